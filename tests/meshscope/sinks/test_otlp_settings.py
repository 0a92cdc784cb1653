from __future__ import annotations

import pytest

from meshscope.sinks.otlp_settings import OtlpSettings, resolve


def test_nothing_said_is_nothing_exported() -> None:
    assert resolve("traces", {"OTEL_EXPORTER_OTLP_HEADERS": "a=b"}) is None


@pytest.mark.parametrize(
    ("endpoint", "protocol", "url", "chosen"),
    [
        ("http://collector:4318", "", "http://collector:4318/v1/traces", "http/protobuf"),
        ("http://collector:4318/base/", "", "http://collector:4318/base/v1/traces", "http/protobuf"),
        ("https://collector", "", "https://collector/v1/traces", "http/protobuf"),
        ("http://collector:4317", "", "http://collector:4317", "grpc"),
        ("http://collector:9000/ignored", "grpc", "http://collector:9000", "grpc"),
        ("http://[::1]:4318", "", "http://[::1]:4318/v1/traces", "http/protobuf"),
        ("collector:4317", "", "https://collector:4317", "grpc"),
    ],
)
def test_a_base_address_gets_the_path_of_its_signal_and_a_protocol_by_its_port(
    endpoint: str, protocol: str, url: str, chosen: str
) -> None:
    found = resolve("traces", {}, endpoint=endpoint, protocol=protocol)
    assert found is not None
    assert (found.url, found.protocol) == (url, chosen)


def test_an_address_of_one_signal_is_used_as_it_is() -> None:
    found = resolve("metrics", {}, endpoint="http://a:4318", signal_endpoint="http://b:9090/api/v1/otlp/v1/metrics")
    assert found is not None
    assert found.url == "http://b:9090/api/v1/otlp/v1/metrics"
    assert (found.host, found.port, found.path, found.secure) == ("b", 9090, "/api/v1/otlp/v1/metrics", False)


def test_an_address_without_scheme_is_secure_unless_told_otherwise() -> None:
    found = resolve("traces", {"OTEL_EXPORTER_OTLP_INSECURE": "true"}, endpoint="collector:4317")
    assert found is not None
    assert found.url == "http://collector:4317"


def test_variables_of_the_signal_go_before_general_ones() -> None:
    environ = {
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
        "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "Authorization=Bearer%20x, b=2,",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
        "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "2500",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": "/ca.pem",
        "OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE": "/other.pem",
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "/me.pem",
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": "/me.key",
    }
    found = resolve("traces", environ, endpoint="https://c:1", protocol="http/protobuf", headers=(("b", "1"), ("c", "3")))
    expected = OtlpSettings(
        "traces",
        "https://c:1",
        "grpc",
        (("b", "2"), ("c", "3"), ("authorization", "Bearer x")),
        2.5,
        gzip=True,
        certificate="/ca.pem",
        client_certificate="/me.pem",
        client_key="/me.key",
    )
    assert found == expected


@pytest.mark.parametrize(
    ("endpoint", "environ", "part"),
    [
        ("ftp://x", {}, "http://HOST:PORT"),
        ("http://", {}, "http://HOST:PORT"),
        ("http://x:99999", {}, "http://HOST:PORT"),
        ("http://x:0", {}, "http://HOST:PORT"),
        ("http://[::1", {}, "http://HOST:PORT"),
        ("http://user:hunter2@x", {}, "OTEL_EXPORTER_OTLP_HEADERS"),
        ("http://x?token=hunter2", {}, "query"),
        ("http://x", {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"),
        ("http://x", {"OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"}, "OTEL_EXPORTER_OTLP_COMPRESSION"),
        ("http://x", {"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "10s"}, "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"),
        ("http://x", {"OTEL_EXPORTER_OTLP_TRACES_HEADERS": "hunter2"}, "name=value"),
        ("http://x", {"OTEL_EXPORTER_OTLP_TRACES_HEADERS": "a=hunter2%0d%0a"}, "name=value"),
    ],
)
def test_what_cannot_be_used_is_named_and_no_secret_is_quoted(endpoint: str, environ: dict[str, str], part: str) -> None:
    with pytest.raises(ValueError, match="OTLP") as error:
        resolve("traces", environ, endpoint=endpoint)
    assert part in str(error.value)
    assert "hunter2" not in str(error.value)
    assert "\n" not in str(error.value)
