"""The layout that Python unpacks is the layout that C has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from meshscope.capture import abi

ROOT = Path(__file__).parents[2]


def test_generated_file_is_current(tmp_path: Path) -> None:
    compiled = tmp_path / "abi.o"
    subprocess.run(
        ["clang", "-O2", "-g", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu", "-c", ROOT / "kprobes/abi.c", "-o", compiled],
        check=True,
    )
    made = subprocess.run([sys.executable, ROOT / "scripts/abi.py", compiled], check=True, capture_output=True, text=True).stdout
    assert made == (ROOT / "meshscope/capture/abi.py").read_text(), "make -C kprobes abi"


def test_formats_have_no_padding() -> None:
    assert abi.CHUNK.size == 64
    assert abi.CHUNK.size + abi.CONN.size == 144
    assert abi.CHUNK.size + abi.PROCESS_PART.size == 96
    for name in ("CHUNK", "CONN", "PROCESS_PART", "CONFIG", "WATCHED", "VERDICT"):
        assert getattr(abi, f"{name}_FIELDS")
