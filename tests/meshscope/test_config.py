from __future__ import annotations

from pathlib import Path

import pytest

from meshscope.config import Config, ConfigError, load, settings, unknown_variables


def write(tmp_path: Path, text: str) -> str:
    file = tmp_path / "meshscope.yaml"
    file.write_text(text)
    return str(file)


def test_defaults_hold_and_every_setting_has_a_sentence() -> None:
    assert load(None, {}, {}) == Config()
    listed = list(settings())
    assert len({setting.path for setting in listed}) == len(listed)
    for setting in listed:
        assert setting.doc.endswith("."), setting.path
        assert setting.env[0] == "MESHSCOPE_" + setting.path.upper().replace(".", "_")
    assert {"--pid", "--max-cpu", "--raw-paths"} <= {setting.flag for setting in listed}


def test_file_then_environment_then_flags(tmp_path: Path) -> None:
    file = write(tmp_path, "capture:\n  ring_bytes: 1MiB\n  rings: 2\ntrace: {sample: 0.5}\nduration: 3\n")
    env = {"MESHSCOPE_CAPTURE_RINGS": "3", "MESHSCOPE_TRACE_SAMPLE": "25%", "MESHSCOPE_CAPTURE_LOADER": ""}
    config = load(file, env, {"trace.sample": "0.1"})
    assert (config.capture.ring_bytes, config.capture.rings, config.trace.sample, config.duration) == (1 << 20, 3, 0.1, 3.0)
    assert config.capture.loader == "auto"


def test_otel_variables_are_read_and_ours_win() -> None:
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
        "OTEL_EXPORTER_OTLP_HEADERS": "X-Tenant=shop%20one,key=v",
        "MESHSCOPE_OTLP_ENDPOINT": "http://other:4317",
    }
    otlp = load(None, env, {}).otlp
    assert (otlp.endpoint, otlp.protocol, otlp.timeout) == ("http://other:4317", "http/protobuf", 2.5)
    assert otlp.headers == (("x-tenant", "shop one"), ("key", "v"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("capture: {ring_bytes: lots}", 'capture.ring_bytes: wants a number of bytes, got "lots"; e.g. 8MiB'),
        ("capture: {ring_byte: 1}", "capture.ring_byte: no such setting; did you mean capture.ring_bytes?"),
        ("captur: {}", "captur: no such setting; did you mean capture?"),
        ("sample: 1", "sample: no such setting; did you mean trace.sample?"),
        ("capture: 5", "capture: wants settings below it, got 5"),
        ("- a", 'wants sections such as `capture:`, got ["a"]'),
        ("capture: {rings: true}", "capture.rings: wants a whole number, got true; e.g. 100"),
        ("capture: {rings: 99}", "capture.rings: wants 1 to 16, got 99; e.g. 1"),
        ("capture: {ring_bytes: 5000000}", "capture.ring_bytes: wants a power of two from 4KiB to 1GiB, got 5000000; e.g. 8MiB"),
        ("select: {pids: [0]}", "select.pids: wants process ids, got [0]; e.g. 4711"),
        ("otlp: {endpoint: collector}", 'otlp.endpoint: wants an http or https URL, got "collector"; e.g. http://127.0.0.1:4317'),
        ("a: b: c", "meshscope.yaml:1:5: not YAML: mapping values are not allowed here"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(write(tmp_path, text), {}, {})
    assert str(caught.value).endswith(line)
    assert "\n" not in str(caught.value)


def test_errors_name_variable_and_flag() -> None:
    with pytest.raises(ConfigError, match=r"^MESHSCOPE_BUDGET_CPU: wants a number of cores, got \"x\"; e\.g\. 0\.5 or 50%$"):
        load(None, {"MESHSCOPE_BUDGET_CPU": "x"}, {})
    with pytest.raises(ConfigError, match=r"^--max-cpu: "):
        load(None, {}, {"budget.cpu": "-1"})
    with pytest.raises(ConfigError, match=r"^/nonexistent/c\.yaml: No such file or directory$"):
        load("/nonexistent/c.yaml", {}, {})


def test_a_secret_is_not_quoted() -> None:
    with pytest.raises(ConfigError) as caught:
        load(None, {"OTEL_EXPORTER_OTLP_HEADERS": "hunter2"}, {})
    assert "hunter2" not in str(caught.value)


def test_unknown_variables_are_told() -> None:
    lines = unknown_variables({"MESHSCOPE_CAPTURE_RINGBYTES": "1", "MESHSCOPE_CONFIG": "x", "MESHSCOPE_PORT": "y"})
    assert lines == ["MESHSCOPE_CAPTURE_RINGBYTES: sets nothing; did you mean MESHSCOPE_CAPTURE_RING_BYTES?"]
