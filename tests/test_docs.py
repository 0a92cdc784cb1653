"""What is written agrees with what is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from meshscope.config import settings
from meshscope.model import FLAGS
from meshscope.stats import COUNTERS
from parsers import PROTOCOLS

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "parsers").glob("*.md"), *(ROOT / "kprobes").glob("*.md")]
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]+)(?:#([^)\s]+))?\)")


def test_the_reference_is_current() -> None:
    made = subprocess.run([sys.executable, ROOT / "scripts/reference.py"], capture_output=True, check=True, text=True).stdout
    assert (ROOT / "docs/reference.md").read_text(encoding="utf-8") == made, "make reference"


def test_the_reference_is_complete() -> None:
    text = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
    names = [name for one in settings() for name in (one.path, *one.env, one.flag) if name]
    names += [*COUNTERS, *FLAGS, *(one.NAME for one in PROTOCOLS)]
    assert [name for name in names if f"`{name}`" not in text and f"`{name} " not in text] == []


def test_the_readme_leads_to_the_reference() -> None:
    assert "(docs/reference.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_flags_that_are_written_about_exist(page: Path) -> None:
    known = {one.flag for one in settings()} | {"--config"}
    for command in re.findall(r"meshscope (?:run|replay|doctor)[^`\n]*|`--[^`]*`", page.read_text(encoding="utf-8")):
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", command.partition("#")[0]):
            assert flag in known, f"{page.name}: {flag}"


def test_make_targets_that_are_written_about_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        for target in re.findall(r"(?:`|^    |^)make ([a-z][a-z-]*)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert target in targets, f"{page.name}: make {target}"
