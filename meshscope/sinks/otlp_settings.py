"""Where OTLP goes and how: the endpoint rules and variables of OpenTelemetry's "OTLP Exporter Configuration".

Nothing of OpenTelemetry is imported here, so that a run without OTLP does not pay for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import SplitResult, unquote, urlsplit

Signal = Literal["traces", "metrics"]

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
_GRPC_PORT: Final = 4317


@dataclass(frozen=True, slots=True)
class OtlpSettings:
    """One signal's way out.

    url: full address, with the signal's path where the protocol has one; never holds a password. protocol: "grpc" or
    "http/protobuf". headers: names in lower case. timeout_s: for one attempt. certificate: PEM file of trusted authorities, empty
    for the system's; client_certificate and client_key: our own, for mutual TLS.
    """

    signal: Signal
    url: str
    protocol: str
    headers: tuple[tuple[str, str], ...] = ()
    timeout_s: float = 10.0
    gzip: bool = False
    certificate: str = ""
    client_certificate: str = ""
    client_key: str = ""

    @property
    def secure(self) -> bool:
        """TLS or not."""
        return self.url.startswith("https:")

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or _DEFAULT_PORTS[parts.scheme]

    @property
    def path(self) -> str:
        return urlsplit(self.url).path or "/"


def resolve(
    signal: Signal,
    environ: Mapping[str, str],
    *,
    endpoint: str = "",
    signal_endpoint: str = "",
    protocol: str = "",
    headers: tuple[tuple[str, str], ...] = (),
    timeout_s: float = 10.0,
) -> OtlpSettings | None:
    """Settings of one signal, or None if nothing says where it should go.

    The arguments are what flags, file and the general variables gave; the variables of one signal, such as
    ``OTEL_EXPORTER_OTLP_TRACES_TIMEOUT``, go before them. ``endpoint`` is a base address, to which HTTP adds /v1/traces or
    /v1/metrics; ``signal_endpoint`` is used as it is written. Without a protocol, port 4317 means gRPC, every other HTTP.
    Raises ValueError saying which variable or address is wrong and what would be right.
    """
    if not endpoint and not signal_endpoint:
        return None
    address, where = (signal_endpoint, f"OTLP {signal} endpoint") if signal_endpoint else (endpoint, "OTLP endpoint")
    specific = _Variables(environ, signal)
    parts = _split(address, where, insecure=specific.get("INSECURE").lower() == "true")
    protocol = specific.own("PROTOCOL") or protocol or ("grpc" if parts.port == _GRPC_PORT else "http/protobuf")
    if protocol not in {"grpc", "http/protobuf"}:
        raise ValueError(f"{specific.name('PROTOCOL')}: {protocol!r} is not offered; use grpc or http/protobuf")
    compression = specific.get("COMPRESSION") or "none"
    if compression not in {"none", "gzip"}:
        raise ValueError(f"{specific.name('COMPRESSION')}: {compression!r} is not offered; use gzip or none")
    path = parts.path if signal_endpoint else f"{parts.path.rstrip('/')}/v1/{signal}"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    netloc = f"{host}:{parts.port}" if parts.port else str(host)
    chosen = {name.lower(): value for name, value in headers} | _headers(specific.own("HEADERS"), specific.name("HEADERS"))
    timeout = specific.own("TIMEOUT")
    if timeout and not timeout.isdecimal():
        raise ValueError(f"{specific.name('TIMEOUT')}: {timeout!r} is no number of milliseconds, for example 10000")
    return OtlpSettings(
        signal,
        SplitResult(parts.scheme, netloc, "" if protocol == "grpc" else path or "/", "", "").geturl(),
        protocol,
        tuple(chosen.items()),
        int(timeout) / 1000 if timeout else timeout_s,
        compression == "gzip",
        specific.get("CERTIFICATE"),
        specific.get("CLIENT_CERTIFICATE"),
        specific.get("CLIENT_KEY"),
    )


class _Variables:
    """``OTEL_EXPORTER_OTLP_<SIGNAL>_X`` before ``OTEL_EXPORTER_OTLP_X``."""

    def __init__(self, environ: Mapping[str, str], signal: Signal) -> None:
        self._environ = environ
        self._signal = signal.upper()

    def own(self, key: str) -> str:
        return self._environ.get(f"OTEL_EXPORTER_OTLP_{self._signal}_{key}", "").strip()

    def get(self, key: str) -> str:
        return self.own(key) or self._environ.get(f"OTEL_EXPORTER_OTLP_{key}", "").strip()

    def name(self, key: str) -> str:
        """The variable that ``get`` would have read."""
        return f"OTEL_EXPORTER_OTLP_{self._signal}_{key}" if self.own(key) else f"OTEL_EXPORTER_OTLP_{key}"


def _split(address: str, where: str, *, insecure: bool) -> SplitResult:
    if "://" not in address:  # host:port, as gRPC users write it
        address = f"{'http' if insecure else 'https'}://{address}"
    try:
        parts = urlsplit(address)
        valid = parts.scheme in _DEFAULT_PORTS and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"{where}: not an address of the form http://HOST:PORT or https://HOST:PORT")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(f"{where}: user, query and fragment have no place in it; credentials go into OTEL_EXPORTER_OTLP_HEADERS")
    return parts


def _headers(text: str, where: str) -> dict[str, str]:
    """``name=value,name=value``, percent-encoded. An error never quotes the value."""
    found = {}
    for item in filter(str.strip, text.split(",")):
        name, equals, value = item.partition("=")
        name, value = unquote(name.strip()), unquote(value.strip())
        if not equals or not name.isascii() or not name.isprintable() or " " in name or not value.isprintable():
            raise ValueError(f"{where}: not a list of the form name=value,name=value")
        found[name.lower()] = value
    return found
