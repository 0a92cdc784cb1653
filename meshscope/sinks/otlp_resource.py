"""Who telemetry is about: OpenTelemetry resources of workloads and of the agent itself."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope as SdkScope

from meshscope.model import Workload
from meshscope.sinks.conventions import SCHEMA_URL, Value, clean, resource_attributes

AGENT: Final = Workload("meshscope", kind="agent")
_KEPT: Final = 1024  # resources remembered; workloads on one node are fewer


class Resources:
    """Makes and remembers one resource message per workload.

    ``OTEL_RESOURCE_ATTRIBUTES`` of the agent describes the place it runs in (environment, cluster), so it goes to every workload;
    what it says of the agent as a service or a process does not.
    """

    def __init__(self) -> None:
        ours = {"telemetry.distro.name": "meshscope", "telemetry.distro.version": _version()}
        whole = Resource({"host.name": platform.node()}).merge(Resource.create(dict(ours))).attributes
        self._place = {
            key: clean(value) if isinstance(value, str) else value
            for key, value in whole.items()
            if isinstance(value, str | int) and not key.startswith(("service.", "process."))
        }
        self._made: dict[Workload, ResourceMessage] = {}
        self.scope = InstrumentationScope(name="meshscope", version=_version())
        self.instrumentation = SdkScope("meshscope", _version(), SCHEMA_URL)

    def of(self, workload: Workload) -> ResourceMessage:
        """The resource of one workload; the same object each time.

        ``service.instance.id`` is the host, and the container where there is one: it outlives a restart of the agent, and keeps
        apart what the agents of two hosts say about one service.
        """
        found = self._made.get(workload)
        if found is None:
            if len(self._made) >= _KEPT:
                self._made.clear()
            found = self._made[workload] = ResourceMessage()
            put(found.attributes, self._attributes(workload))
        return found

    def resource(self, workload: Workload) -> Resource:
        """The same for the SDK's data types."""
        return Resource(self._attributes(workload), SCHEMA_URL)

    def _attributes(self, workload: Workload) -> dict[str, Value]:
        instance = str(self._place["host.name"]) + (f":{workload.container[:12]}" if workload.container else "")
        return {**resource_attributes(workload), "service.instance.id": clean(instance), **self._place}


def put(target: RepeatedCompositeFieldContainer[KeyValue], values: Mapping[str, Value]) -> None:
    """Append attributes to a message's list of them."""
    add = target.add
    for key, value in values.items():
        any_value = add(key=key).value
        if isinstance(value, str):
            any_value.string_value = value
        elif isinstance(value, bool):
            any_value.bool_value = value
        else:
            any_value.int_value = value


def _version() -> str:
    try:
        return clean(version("meshscope"))
    except PackageNotFoundError:  # run from a source tree
        return "0"
