"""OTLP over gRPC. The only file that imports grpc, and imported only when this transport is chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from meshscope.sinks.conventions import clean
from meshscope.sinks.otlp_export import SendError
from meshscope.sinks.otlp_settings import OtlpSettings

_METHOD: Final = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
_PASSING: Final = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)  # RESOURCE_EXHAUSTED only with a RetryInfo
_OPTIONS: Final = (
    ("grpc.primary_user_agent", "meshscope"),
    ("grpc.enable_retries", 0),  # ours are counted
    ("grpc.max_reconnect_backoff_ms", 5000),
    ("grpc.enable_http_proxy", 0),  # as over HTTP, where there is none either
)


class GrpcTransport:
    """One unary call a request. Raises OSError if a certificate file is unusable."""

    def __init__(self, settings: OtlpSettings) -> None:
        target = f"[{settings.host}]:{settings.port}" if ":" in settings.host else f"{settings.host}:{settings.port}"
        if settings.secure:
            self._channel = grpc.secure_channel(target, credentials(settings), _OPTIONS, compression(settings))
        else:
            self._channel = grpc.insecure_channel(target, _OPTIONS, compression(settings))
        self._call = self._channel.unary_unary(_METHOD)
        self._metadata = settings.headers

    def send(self, body: bytes, timeout_s: float) -> bytes:
        try:
            return bytes(self._call(body, timeout=timeout_s, metadata=self._metadata))
        except grpc.RpcError as error:
            raise _failure(error) from error
        except ValueError as error:  # the channel is closed
            raise SendError("aborted", passing=False) from error

    def abort(self) -> None:
        self._channel.close()

    def close(self) -> None:
        self._channel.close()


def credentials(settings: OtlpSettings) -> grpc.ChannelCredentials:
    """TLS as the settings want it. Raises OSError if a certificate file is unusable."""
    return grpc.ssl_channel_credentials(
        _read(settings.certificate), _read(settings.client_key), _read(settings.client_certificate)
    )


def compression(settings: OtlpSettings) -> grpc.Compression:
    """As the settings want it."""
    return grpc.Compression.Gzip if settings.gzip else grpc.Compression.NoCompression


def _failure(error: grpc.RpcError) -> SendError:
    code = error.code()
    after = _retry_delay(error)
    passing = code in _PASSING or (code is grpc.StatusCode.RESOURCE_EXHAUSTED and after is not None)
    return SendError(f"{code.name}: {clean(error.details() or '')}".rstrip(": "), passing=passing, after_s=after)


def _retry_delay(error: grpc.RpcError) -> float | None:
    """Seconds the receiver asks us to wait (google.rpc.RetryInfo in the status details)."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            info = RetryInfo()
            try:
                if any(detail.Unpack(info) for detail in Status.FromString(value).details):
                    return max(0.0, float(info.retry_delay.ToTimedelta().total_seconds()))
            except DecodeError:
                return None
    return None


def _read(path: str) -> bytes | None:
    return Path(path).read_bytes() if path else None
