"""Which source files have no test twin.

    python scripts/mirror.py        prints them, one a line; exit code 1 if there are any

The rule, and no list of exceptions::

    meshscope/x.py             tests/meshscope/test_x.py
    parsers/http1/heads.py     tests/parsers/http1/test_heads.py
    kprobes/x.bpf.c            tests/kprobes/test_x.py
    meshscope/flow/__init__.py tests/meshscope/test_flow.py
    parsers/__init__.py        tests/parsers/test_init.py

A file without a function that does something needs none: docstring, imports, constants, fields, a protocol's signatures.
A twin holds at least one test.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("meshscope", "parsers")


def twin(source: Path) -> Path:
    """Where the tests of a source file are; both relative to the root."""
    folder, name = source.parent, source.name.partition(".")[0]
    if name == "__init__":
        folder, name = (folder.parent, folder.name) if len(folder.parts) > 1 else (folder, "init")
    return Path("tests", folder, f"test_{name}.py")


def missing(root: Path) -> Iterator[tuple[Path, Path]]:
    """Source files without twin, and the twin they should have; both relative to the root."""
    sources = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py")) if holds_code(path)]
    sources += sorted((root / "kprobes").glob("*.bpf.c"))
    for path in sources:
        source = path.relative_to(root)
        where = twin(source)
        if not (root / where).exists() or not holds_test(root / where):
            yield source, where


def holds_code(path: Path) -> bool:
    """Whether a Python file has a function that does something."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not _signature_only(node) for node in ast.walk(tree))


def holds_test(path: Path) -> bool:
    """Whether a Python file has a function that pytest takes for a test."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(isinstance(node, ast.FunctionDef) and node.name.startswith("test_") for node in ast.walk(tree))


def _signature_only(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return all(isinstance(line, ast.Expr) and isinstance(line.value, ast.Constant) for line in function.body)


def main() -> int:
    lacking = list(missing(Path(__file__).parents[1]))
    for source, where in lacking:
        print(f"{source}: no test in {where}")
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
