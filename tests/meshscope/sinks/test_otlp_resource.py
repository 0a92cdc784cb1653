from __future__ import annotations

import platform

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from meshscope.model import Workload
from meshscope.sinks.otlp_resource import Resources, put
from tests.meshscope.exchanges import CURL, SHOP
from tests.receivers import plain


def test_a_resource_names_the_workload_its_host_and_who_tells() -> None:
    found = plain(Resources().of(SHOP).attributes)
    assert found.pop("telemetry.sdk.version")
    assert found.pop("telemetry.distro.version")
    assert found == {
        "service.name": "shop",
        "service.namespace": "market",
        "service.instance.id": f"{platform.node()}:c0ffee",
        "container.id": "c0ffee",
        "host.name": platform.node(),
        "telemetry.sdk.name": "opentelemetry",
        "telemetry.sdk.language": "python",
        "telemetry.distro.name": "meshscope",
    }


def test_the_agents_environment_describes_the_place_and_never_the_workload(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "the-agent")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=prod,service.version=7,host.name=node1,a=%00")
    found = plain(Resources().of(CURL).attributes)
    assert found["deployment.environment.name"] == "prod"
    assert found["host.name"] == found["service.instance.id"] == "node1"
    assert found["service.name"] == "curl"
    assert found["a"] == "\ufffd"
    assert "service.version" not in found


def test_resources_are_made_once_and_not_for_ever() -> None:
    resources = Resources()
    assert resources.of(SHOP) is resources.of(SHOP)
    for i in range(3000):
        resources.of(Workload(f"w{i}"))
    assert len(resources._made) <= 1024


def test_attributes_keep_their_types() -> None:
    span = Span()
    put(span.attributes, {"s": "x", "i": 5, "b": True})
    assert [pair.value.WhichOneof("value") for pair in span.attributes] == ["string_value", "int_value", "bool_value"]
