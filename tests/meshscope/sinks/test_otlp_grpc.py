from __future__ import annotations

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from meshscope.sinks.otlp_export import SendError
from meshscope.sinks.otlp_grpc import GrpcTransport
from meshscope.sinks.otlp_settings import resolve
from tests.receivers import Answer, grpc_receiver


def details(seconds: int) -> tuple[tuple[str, bytes], ...]:
    packed = AnyMessage()
    packed.Pack(RetryInfo(retry_delay=Duration(seconds=seconds, nanos=500_000_000)))
    return (("grpc-status-details-bin", Status(code=8, details=[packed]).SerializeToString()),)


@pytest.mark.parametrize(
    ("code", "trailers", "passing", "after"),
    [
        ("UNAVAILABLE", (), True, None),
        ("UNAVAILABLE", details(2), True, 2.5),
        ("UNAVAILABLE", (("grpc-status-details-bin", b"\xff\xff"),), True, None),
        ("RESOURCE_EXHAUSTED", (), False, None),
        ("RESOURCE_EXHAUSTED", details(0), True, 0.5),
        ("DATA_LOSS", (), True, None),
        ("ABORTED", (), True, None),
        ("UNAUTHENTICATED", (), False, None),
        ("UNIMPLEMENTED", (), False, None),
        ("INTERNAL", (), False, None),
    ],
)
def test_which_codes_may_pass(code: str, trailers: tuple[tuple[str, bytes], ...], passing: bool, after: float | None) -> None:
    with grpc_receiver() as receiver:
        found = resolve("traces", {}, endpoint=receiver.endpoint, protocol="grpc")
        assert found is not None
        transport = GrpcTransport(found)
        receiver.answers = [Answer(code, headers=trailers)]
        with pytest.raises(SendError, match=f"{code}: as told") as error:
            transport.send(b"", 10)
        assert (error.value.passing, error.value.after_s) == (passing, after)
        assert "TraceService" in receiver.paths[0]
        transport.abort()
        with pytest.raises(SendError):
            transport.send(b"", 10)
