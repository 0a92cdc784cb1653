"""Who may import whom, what may be named where, how long things may get. Read from the source, nothing is imported."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import mirror

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for package in ("meshscope", "parsers") for path in (ROOT / package).rglob("*.py"))
EVERYTHING = sorted(
    path for folder in ("meshscope", "parsers", "scripts", "bench", "deploy", "tests") for path in (ROOT / folder).rglob("*.py")
)
KERNEL = sorted([*(ROOT / "kprobes").glob("*.c"), *(ROOT / "kprobes").glob("*.h")])

FILE_LINES = 400
FUNCTION_LINES = 60

# The table: what a module, or all of a package, may import besides itself and the standard library. A longer name goes
# first. parsers.base is the vocabulary (Message, Description) and may be spoken wherever exchanges are.
VOCABULARY = {"meshscope.model", "meshscope.stats", "parsers.base"}
SINKS = VOCABULARY | {"meshscope.sinks.conventions", "meshscope.sinks.golden", "meshscope.sinks.worker"}
MAY_IMPORT: dict[str, set[str]] = {
    "parsers.base": set(),
    "parsers": {"parsers"},
    "meshscope.stats": set(),
    "meshscope.model": {"parsers.base"},
    "meshscope.redact": {"parsers.base"},
    "meshscope.capture": {"meshscope.stats"},
    "meshscope.flow": VOCABULARY | {"meshscope.capture.abi", "meshscope.redact", "parsers"},
    "meshscope.enrich": VOCABULARY,
    "meshscope.trace": VOCABULARY,
    "meshscope.route": VOCABULARY | {"meshscope.redact"},
    "meshscope.budget": {"meshscope.stats"},
    "meshscope.config": set(),
    "meshscope.sinks": set(),
    "meshscope.sinks.conventions": VOCABULARY,
    "meshscope.sinks.golden": SINKS,
    "meshscope.sinks.worker": {"meshscope.stats"},
    "meshscope.sinks.document": SINKS,
    "meshscope.sinks.console": SINKS | {"meshscope.sinks.document"},
    "meshscope.sinks.record": SINKS | {"meshscope.sinks.document"},
    "meshscope.sinks.families": SINKS,
    "meshscope.sinks.exposition": SINKS | {"meshscope.sinks.families"},
    "meshscope.sinks.prometheus": SINKS | {"meshscope.sinks.exposition"},
    "meshscope.sinks.otlp": SINKS | {"meshscope.sinks.otlp"},
    "meshscope.sinks.otlp_metrics": SINKS | {"meshscope.sinks.otlp", "meshscope.sinks.families"},
    "meshscope.doctor": {"meshscope.capture", "meshscope.config"},
    "meshscope.cli": {"meshscope", "meshscope.agent", "meshscope.config", "meshscope.doctor"},
    "meshscope.__main__": {"meshscope.cli"},
    "meshscope": set(),
}
ONLY_BY = {"meshscope.agent": {"meshscope.cli"}, "meshscope.cli": {"meshscope.__main__"}}
OUTSIDE = {  # other people's packages, and where they may be imported
    "capstone": "meshscope.capture",
    "elftools": "meshscope.capture",
    "google": "meshscope.sinks.otlp",
    "grpc": "meshscope.sinks.otlp",
    "opentelemetry": "meshscope.sinks.otlp",
    "yaml": "meshscope.config",
    "ctypes": "meshscope.capture",  # of the standard library, but dangerous
}

PROTOCOL = re.compile(
    r"(?:http|https|grpc|h2c?|rpc|redis|resp|kafka|mysql|postgres(?:ql)?|pgsql|mongo(?:db)?|amqp|dns|thrift|websocket|dubbo|smtp"
    r")(?:[/_ -]?\d(?:\.\d)?)?",
    re.IGNORECASE,
)
NAMED = {  # texts that are a protocol's name, where they are not one that something branches on
    "meshscope/config/kinds.py": {"http", "https"},  # schemes of a receiver's URL
    "meshscope/config/tree.py": {"grpc"},  # OTLP's transports
    "meshscope/sinks/otlp_settings.py": {"grpc", "http", "https"},
    "meshscope/sinks/otlp_export.py": {"grpc"},
    "meshscope/sinks/otlp_metrics.py": {"grpc"},
    "meshscope/sinks/conventions.py": {"http", "https", "rpc"},  # metric families and URL schemes of OpenTelemetry
}


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path) for path in SOURCES}


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports, wherever in it; submodules as such."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


def within(name: str, package: str) -> bool:
    """otlp_export belongs to otlp: what was one file is a family of files."""
    return name == package or name.startswith(
        (f"{package}.", "meshscope.sinks.otlp_" if package == "meshscope.sinks.otlp" else "\0")
    )


def rule(name: str) -> str:
    """The entry of the table that holds for a module."""
    return max((entry for entry in MAY_IMPORT if within(name, entry)), key=len)


@pytest.mark.parametrize("path", SOURCES, ids=module)
def test_who_imports_whom(path: Path) -> None:
    name = module(path)
    if within(name, "meshscope.agent"):  # where everything is put together
        return
    entry = rule(name)
    allowed = MAY_IMPORT[entry]
    own = entry if entry not in {"meshscope", "parsers", "meshscope.sinks"} else name
    if name.startswith("parsers."):  # one protocol knows the vocabulary and itself, not its siblings
        allowed, own = {"parsers.base"}, ".".join(name.split(".")[:2])
    for other in imports(path):
        if other.partition(".")[0] in {"meshscope", "parsers"}:
            fits = within(other, own) or any(other == one if one == "meshscope" else within(other, one) for one in allowed)
            assert fits, f"{name} must not import {other}"
            assert name in ONLY_BY.get(other, {name}), f"only {ONLY_BY[other]} may import {other}"


@pytest.mark.parametrize("path", SOURCES, ids=module)
def test_what_is_imported_from_outside(path: Path) -> None:
    name = module(path)
    for other in imports(path):
        top = other.partition(".")[0]
        if top in OUTSIDE:
            assert within(name, OUTSIDE[top]), f"{other} is for {OUTSIDE[top]} only"
        else:
            assert top in sys.stdlib_module_names or top in {"meshscope", "parsers"}, f"{name} imports {other}"


def test_parsers_need_the_standard_library_only() -> None:
    for path in SOURCES:
        if module(path).startswith("parsers"):
            tops = {other.partition(".")[0] for other in imports(path)}
            assert tops <= sys.stdlib_module_names | {"parsers"}, path


def test_the_table_names_only_what_there_is() -> None:
    for entry, allowed in MAY_IMPORT.items():
        assert {entry, *allowed} <= MODULES
    assert {rule(name) for name in MODULES} == set(MAY_IMPORT)


def texts(path: Path) -> Iterator[str]:
    """String constants of a file, docstrings left out."""
    whole = tree(path)
    prose = {id(node.value) for node in ast.walk(whole) if isinstance(node, ast.Expr)}
    for node in ast.walk(whole):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield node.value


def test_no_protocol_is_named_outside_the_parsers() -> None:
    named: dict[str, set[str]] = {}
    for path in SOURCES:
        if not module(path).startswith("parsers"):
            found = {text for text in texts(path) if PROTOCOL.fullmatch(text)}
            if found:
                named[str(path.relative_to(ROOT))] = found
    assert named == NAMED


@pytest.mark.parametrize("path", KERNEL, ids=lambda path: path.name)
def test_no_protocol_is_named_in_the_kernel(path: Path) -> None:
    code = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert not re.search(r"http|grpc|hpack|\bdns\b|redis|kafka", code, re.IGNORECASE)


@pytest.mark.parametrize("path", [*EVERYTHING, *KERNEL], ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_gets_long(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert len(lines) <= FILE_LINES
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES, f"{node.name} in line {node.lineno}"
        return
    begin = 0
    for number, line in enumerate(lines):
        if line == "{":
            begin = number
        elif line == "}" and begin:
            assert number - begin < FUNCTION_LINES, f"line {begin}"
            begin = 0


def test_names_say_what_a_thing_is() -> None:
    for path in EVERYTHING:
        assert not re.search(r"util|manager|helper|common|misc", path.name), path


def test_every_source_file_has_a_test_twin() -> None:
    assert [f"{source}: no test in {twin}" for source, twin in mirror.missing(ROOT)] == []


@pytest.mark.parametrize(
    ("source", "twin"),
    [
        ("meshscope/redact.py", "tests/meshscope/test_redact.py"),
        ("meshscope/sinks/golden.py", "tests/meshscope/sinks/test_golden.py"),
        ("meshscope/flow/__init__.py", "tests/meshscope/test_flow.py"),
        ("parsers/http1/__init__.py", "tests/parsers/test_http1.py"),
        ("parsers/__init__.py", "tests/parsers/test_init.py"),
        ("kprobes/sockets.bpf.c", "tests/kprobes/test_sockets.py"),
    ],
)
def test_where_twins_are(source: str, twin: str) -> None:
    assert mirror.twin(Path(source)) == Path(twin)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", False),
        ('"""Words."""\nimport sys\nX = 1\n', False),
        ("class Row:\n    x: int = 0\n", False),
        ('class Source:\n    def take(self) -> int:\n        """Signature."""\n    def put(self) -> None: ...\n', False),
        ("def f():\n    return 1\n", True),
        ("class A:\n    async def f(self):\n        pass\n", True),
    ],
)
def test_what_needs_a_twin(tmp_path: Path, text: str, code: bool) -> None:
    folder = tmp_path / "meshscope"
    folder.mkdir()
    (folder / "x.py").write_text(text)
    assert bool(list(mirror.missing(tmp_path))) == code
    twin = tmp_path / "tests/meshscope/test_x.py"
    twin.parent.mkdir(parents=True)
    twin.write_text("X = 1\n")
    assert bool(list(mirror.missing(tmp_path))) == code
    twin.write_text("def test_x(): ...\n")
    assert list(mirror.missing(tmp_path)) == []


def test_counters_are_declared_in_one_place() -> None:
    declaring = [module(path) for path in SOURCES if "COUNTERS.update(" in path.read_text(encoding="utf-8")]
    assert declaring == ["meshscope.stats"]
