"""``meshscope doctor``: what this kernel allows, found by trying; what ``run`` would do; what is missing, what would fix it.

Uses capture alone. Exit code 0 if ``run`` would work here, else 1.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypedDict

from meshscope.capture import CaptureError, CaptureSettings, trial
from meshscope.capture.bpf import BpfSource
from meshscope.capture.libbpf import Libbpf
from meshscope.capture.libraries import Libraries, Refused, forbids_return_probes
from meshscope.capture.processes import Mapping, executable, libraries
from meshscope.capture.selection import Roots, Selection
from meshscope.config import Config

OK: Final = 0
FAILED: Final = 1


class DoctorError(Exception):
    """The examination itself could not be made; one line."""


class Lack(TypedDict):
    """Something missing. fix: a command, or what to change. fatal: `run` does not work without it."""

    what: str
    fix: str
    fatal: bool


class Probe(TypedDict):
    """One place where a TLS library would be probed; cost: what a hit costs the process."""

    function: str
    rule: str
    offset: int
    cost: str


class LibraryUse(TypedDict):
    """A TLS library of a process; refused: why it would not be probed, empty if it would."""

    path: str
    build_id: str
    refused: str
    probes: list[Probe]


class ProcessReport(TypedDict):
    """A selected process. exe: empty if it may not be looked into."""

    pid: int
    exe: str
    libraries: list[LibraryUse]


class Report(TypedDict):
    """All that was found; `--output json` prints it. rung: the socket hook `run` would use, None: none works."""

    works: bool
    kernel: str
    machine: str
    btf: bool
    lockdown: str
    libbpf: str
    capabilities: list[str]
    missing_capabilities: list[str]
    trials: list[dict[str, str | bool]]
    rung: str | None
    refused: list[str]
    processes: list[ProcessReport]
    notes: list[str]
    missing: list[Lack]


def run(config: Config, output: str) -> int:
    """Examine and print. output: text or json. Returns the exit code."""
    report = examine(config)
    print(json.dumps(report) if output == "json" else "\n".join(lines(report)))  # noqa: T201 (what the command is for)
    return OK if report["works"] else FAILED


def examine(config: Config) -> Report:
    """Try everything, undo everything."""
    lacking = trial.missing_capabilities()
    btf = Path(trial.BTF_FILE).exists()
    missing: list[Lack] = []
    if lacking:
        missing.append(Lack(what=", ".join(lacking), fix=trial.GRANT, fatal=lacking != ["CAP_SYS_PTRACE"]))
    if not btf:
        fix = "a kernel built with CONFIG_DEBUG_INFO_BTF=y, such as Debian's: apt-get install linux-image-amd64"
        missing.append(Lack(what=f"{trial.BTF_FILE}: the kernel's types", fix=fix, fatal=True))
    selected, notes = _selected(config)
    version, rung, refused = _try_loading(config, missing)
    return Report(
        works=rung is not None and not any(lack["fatal"] for lack in missing),
        kernel=platform.release(),
        machine=platform.machine(),
        btf=btf,
        lockdown=trial.lockdown() or "unknown",
        libbpf=version,
        capabilities=sorted(trial.capabilities()),
        missing_capabilities=lacking,
        trials=[{"name": each.name, "works": each.works, "why": each.why} for each in trial.trials()],
        rung=rung,
        refused=refused,
        processes=[_process(pid) for pid in selected],
        notes=notes,
        missing=missing,
    )


def _try_loading(config: Config, missing: list[Lack]) -> tuple[str, str | None, list[str]]:
    """Load and attach as `run` would, watching nobody: libbpf's version, the rung, why better ones are refused."""
    try:
        version = Libbpf().libbpf_version_string().decode()
    except CaptureError as error:
        what, _, fix = str(error).partition("; ")
        missing.append(Lack(what=what, fix=fix, fatal=True))
        return "", None, []
    try:
        source = BpfSource(CaptureSettings(config.capture.ring_bytes, config.capture.rings, rung=config.capture.rung))
    except CaptureError as error:
        if not missing:
            what, _, fix = str(error).rpartition("; ")
            missing.append(Lack(what=what, fix=fix, fatal=True))
        return version, None, [str(error)]
    source.close()
    return version, source.rung, source.refused


class _Nobody:
    """Takes a selection in the kernel's place, so that it can be told without being made."""

    def __init__(self) -> None:
        self._marked: dict[int, int] = {}

    def select(self, tgid: int, shard: int = 0) -> None:  # noqa: ARG002 (the kernel's)
        self._marked[tgid] = 0

    def deselect(self, tgid: int) -> None:
        self._marked.pop(tgid, None)

    def select_cgroup(self, cgroup: int, shard: int = 0) -> None:
        """Who is inside comes by `select`."""

    def selected(self) -> dict[int, int]:
        return dict(self._marked)


def _selected(config: Config) -> tuple[list[int], list[str]]:
    """The processes that `run` would watch now, and what it would say about the selection. Raises DoctorError."""
    select = config.select
    roots, nobody = Roots(Selection(select.pids, select.exes, select.cgroups, select.all)), _Nobody()
    try:
        roots.check()
        roots.choose(nobody)
    except CaptureError as error:
        raise DoctorError(str(error)) from error
    return sorted(roots.watched(nobody)) if select else [], roots.take_notices()


def _process(pid: int) -> ProcessReport:
    known = Libraries()
    return ProcessReport(pid=pid, exe=executable(pid), libraries=[_library(known, pid, mapping) for mapping in libraries(pid)])


def _library(known: Libraries, pid: int, mapping: Mapping) -> LibraryUse:
    unsafe = forbids_return_probes(pid, platform.release())
    try:
        opened = known.open(pid, mapping)
    except Refused as error:
        return LibraryUse(path=mapping.path, build_id="", refused=str(error), probes=[])
    os.close(opened.descriptor)
    probes = [
        Probe(function=place.function, rule=str(place.rule), offset=place.offset, cost=place.cost)
        for place in opened.library.placements
    ]
    return LibraryUse(path=mapping.path, build_id=opened.library.build_id, refused=unsafe, probes=probes)


def lines(report: Report) -> Iterator[str]:
    """The report for people, aligned."""
    yield f"kernel         {report['kernel']} {report['machine']}"
    yield f"kernel types   {trial.BTF_FILE if report['btf'] else 'missing'}"
    yield f"lockdown       {report['lockdown']}"
    yield f"libbpf         {report['libbpf'] or 'missing'}"
    yield f"capabilities   {', '.join(report['capabilities']) or 'none'}"
    for each in report["trials"]:
        yield f"  {each['name']:<30} {'works' if each['works'] else each['why']}"
    for line in report["refused"]:
        yield f"refused        {line}"
    yield f"socket bytes   {report['rung'] or 'none works'}"
    for process in report["processes"]:
        yield f"process {process['pid']}  {process['exe']}"
        if not process["exe"]:
            yield "  cannot be looked into: needs CAP_SYS_PTRACE"
        elif not process["libraries"]:
            yield "  no TLS library"
        for library in process["libraries"]:
            yield from _library_lines(library)
    yield from report["notes"]
    for lack in report["missing"]:
        yield f"missing        {lack['what']}"
        yield f"  to get it    {lack['fix']}"
    yield "run would work here" if report["works"] else "run would not work here"


def _library_lines(library: LibraryUse) -> Iterator[str]:
    yield f"  {library['path']}  {library['build_id']}"
    if library["refused"]:
        yield f"    not probed: {library['refused']}"
        return
    for probe in library["probes"]:
        yield f"    {probe['function']:<28} {probe['rule']:<22} {probe['offset']:#9x}  {probe['cost']}"
