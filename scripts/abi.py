"""BTF of kprobes/abi.c -> meshscope/capture/abi.py on standard output.

    python scripts/abi.py OBJECT

The layout is what the compiler laid out, not what somebody copied. Little-endian, no padding: -Wpadded has seen to it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

LETTERS = {1: "B", 2: "H", 4: "I", 8: "Q"}
STRUCTS = {
    "ms_chunk": "CHUNK",
    "ms_conn": "CONN",
    "ms_process": "PROCESS_PART",
    "ms_config": "CONFIG",
    "ms_watched": "WATCHED",
    "ms_verdict": "VERDICT",
}
PLAIN = {"ms_abi", "ms_limit", "ms_kind", "ms_dir", "ms_src", "ms_role", "ms_chunk_flag", "ms_process_event", "ms_verdict_what"}
ENUMS = PLAIN | {"ms_ssl_call"}
RENAMED = {"MS_MAGIC_NUMBER": "MAGIC", "MS_ABI_VERSION_NUMBER": "ABI_VERSION"}

Types = dict[int, dict[str, Any]]


def read(path: str) -> Types:
    dumped = subprocess.run(["bpftool", "btf", "dump", "file", path, "-j"], check=True, capture_output=True, text=True)
    return {entry["id"]: entry for entry in json.loads(dumped.stdout)["types"]}


def resolve(types: Types, number: int) -> dict[str, Any]:
    entry = types[number]
    while entry["kind"] in {"TYPEDEF", "VOLATILE", "CONST"}:
        entry = types[entry["type_id"]]
    return entry


def fields(types: Types, struct: dict[str, Any]) -> tuple[str, list[str]]:
    """Format letters and field names of a struct without its common head."""
    letters, names = "", []
    for member in struct["members"]:
        kind = resolve(types, member["type_id"])
        if kind["kind"] == "STRUCT":
            continue  # the head; it has a format of its own
        if kind["kind"] == "INT":
            letters += LETTERS[kind["size"]]
            names.append(member["name"])
            continue
        element, count = resolve(types, kind["type_id"]), kind["nr_elems"]
        if element["size"] == 1:
            letters += f"{count}s"
            names.append(member["name"])
        else:
            letters += LETTERS[element["size"]] * count
            names += [f"{member['name']}_{way}" for way in ("rx", "tx")]
    return letters, names


def main() -> None:
    types = read(sys.argv[1])
    named = {entry["name"]: entry for entry in types.values() if entry["kind"] in {"STRUCT", "ENUM"}}
    print('"""Generated from kprobes/meshscope.h by `make -C kprobes abi`. Do not edit."""\n')
    print("import struct\n")
    for enum in [name for name in named if name in ENUMS]:
        for value in named[enum]["values"]:
            print(f"{RENAMED.get(value['name'], value['name'].removeprefix('MS_'))} = {value['val']}")
        print()
    for struct, name in STRUCTS.items():
        letters, members = fields(types, named[struct])
        print(f'{name} = struct.Struct("<{letters}")')
        print(f"{name}_FIELDS = {tuple(members)!r}\n")
    counters = [value["name"].removeprefix("MS_").lower() for value in named["ms_counter"]["values"][:-1]]
    print(f"COUNTER_NAMES = {tuple(counters)!r}")


if __name__ == "__main__":
    main()
