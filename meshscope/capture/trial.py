"""What this kernel allows, told by trying it: smallest possible programs and maps through bpf(2), closed at once.

Needs neither libbpf nor a compiler, so it still tells when those are missing. Nothing stays behind: every descriptor is
closed, the uprobe is set on a file of our own that nobody maps, the other hooks carry a program that returns 0.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

_BPF: Final = {"x86_64": 321, "aarch64": 280}
_PERF_EVENT_OPEN: Final = {"x86_64": 298, "aarch64": 241}
BTF_FILE: Final = "/sys/kernel/btf/vmlinux"

# bpf(2) commands, program, map and attach types: include/uapi/linux/bpf.h
_MAP_CREATE, _PROG_LOAD, _RAW_TRACEPOINT_OPEN, _BTF_LOAD, _LINK_CREATE = 0, 5, 17, 18, 28
_KPROBE, _SOCK_OPS, _RAW_TRACEPOINT, _TRACING = 2, 13, 17, 26
_HASH, _PERCPU_ARRAY, _LRU_HASH, _ARRAY_OF_MAPS, _SK_STORAGE, _RINGBUF = 1, 6, 9, 12, 24, 27
_TRACE_RAW_TP, _TRACE_FEXIT, _PERF_EVENT, _CGROUP_SOCK_OPS = 23, 25, 41, 3
_NO_PREALLOC: Final = 1
_RETURN_ZERO: Final = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)  # r0 = 0; exit
_PROG: Final = struct.Struct("<IIQQIIQII16sIIIIQIIQIII4x")
_PERF_ATTR: Final = struct.Struct("<IIQQQQQIIQQ")  # up to config2
_PERF_ATTR_SIZE: Final = 112
_PERF_CLOEXEC: Final = 8

_KIND_TYPEDEF, _KIND_FUNC = 8, 12
# bytes that follow a BTF type's 12, by kind: fixed, and per member (Documentation/bpf/btf.rst)
_BTF_FIXED: Final = {1: 4, 3: 12, 14: 4, 17: 4}
_BTF_MEMBER: Final = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
_ENOTSUPP: Final = 524  # the kernel's own, not for user space; it leaks all the same

# An int, for the maps that insist on types.
_BTF_INT: Final = (
    struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, 16, 16, 5) + struct.pack("<IIII", 1, 1 << 24, 4, 1 << 24 | 32) + b"\0int\0"
)


_MEANINGS: Final = {
    errno.EINVAL: "this kernel does not know it",
    errno.ENOENT: "this kernel has no such hook",
    errno.ENOSYS: "this kernel has no such system call",
    errno.EOPNOTSUPP: "this kernel was built without it",
    _ENOTSUPP: "this kernel was built without it",
    errno.EBUSY: "another program holds it",
}
_CAPABILITIES: Final = {"CAP_BPF": 39, "CAP_PERFMON": 38, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_SYS_RESOURCE": 24}
NEEDED: Final = ("CAP_BPF", "CAP_PERFMON", "CAP_SYS_PTRACE")  # load; probe; look into processes of others
GRANT: Final = (
    "start it with them: systemd AmbientCapabilities=CAP_BPF CAP_PERFMON CAP_SYS_PTRACE, "
    "docker --cap-add=BPF --cap-add=PERFMON --cap-add=SYS_PTRACE"
)
_LOCKDOWN: Final = Path("/sys/kernel/security/lockdown")


class Trial(NamedTuple):
    """One thing tried. name: as users say it; works; why: what the kernel's refusal means, empty if it works."""

    name: str
    works: bool
    why: str


def trials() -> list[Trial]:
    """Everything tried, in the order of the ladder. Never raises."""
    attempts: tuple[tuple[str, Callable[[ExitStack], object]], ...] = (
        ("map ringbuf", lambda stack: _map(stack, _RINGBUF, 0, 0, os.sysconf("SC_PAGESIZE"))),
        ("map lru_hash", lambda stack: _map(stack, _LRU_HASH, 8, 8, 8)),
        ("map percpu_array", lambda stack: _map(stack, _PERCPU_ARRAY, 4, 8, 1)),
        ("map array_of_maps", _array_of_maps),
        ("map sk_storage", _sk_storage),
        ("tp_btf sock_send_length", lambda stack: _tracing(stack, "btf_trace_sock_send_length", _KIND_TYPEDEF, _TRACE_RAW_TP)),
        (
            "tp_btf inet_sock_set_state",
            lambda stack: _tracing(stack, "btf_trace_inet_sock_set_state", _KIND_TYPEDEF, _TRACE_RAW_TP),
        ),
        ("fexit tcp_sendmsg", lambda stack: _tracing(stack, "tcp_sendmsg", _KIND_FUNC, _TRACE_FEXIT)),
        ("kprobe tcp_sendmsg", lambda stack: _probe(stack, "kprobe", b"tcp_sendmsg\0")),
        ("uprobe", _uprobe),
        ("raw_tp sched_process_exit", _raw_tracepoint),
        ("sockops", lambda stack: _program(stack, _SOCK_OPS, _CGROUP_SOCK_OPS)),
    )
    return [attempt(name, what) for name, what in attempts]


def attempt(name: str, what: Callable[[ExitStack], object]) -> Trial:
    """Try one thing and undo it."""
    with ExitStack() as stack:
        try:
            what(stack)
        except OSError as error:
            return Trial(name, False, explain(error))
    return Trial(name, True, "")


def explain(error: OSError) -> str:
    """What a refusal by bpf(2) or perf_event_open(2) means."""
    code = error.errno or 0
    name = {_ENOTSUPP: "ENOTSUPP", errno.EOPNOTSUPP: "EOPNOTSUPP"}.get(code) or errno.errorcode.get(code, str(code))
    if code in {errno.EPERM, errno.EACCES}:
        lacking = [name for name in missing_capabilities() if name != "CAP_SYS_PTRACE"]  # not for bpf(2)
        return f"needs {' and '.join(lacking)}, {name}" if lacking else f"this kernel forbids it, {name}"
    detail = f" ({error.filename})" if error.filename else ""
    meaning = "this kernel has no BTF" if error.filename == BTF_FILE else _MEANINGS.get(code, "refused")
    return f"{meaning}, {name}{detail}"


def capabilities() -> frozenset[str]:
    """The capabilities this process has in effect, of those that matter here."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    bits = int(next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:")), 16)
    return frozenset(name for name, bit in _CAPABILITIES.items() if bits >> bit & 1)


def missing_capabilities() -> list[str]:
    """The capabilities without which nothing can be captured. CAP_SYS_ADMIN contains the first two."""
    have = capabilities()
    if "CAP_SYS_ADMIN" in have:
        have |= {"CAP_BPF", "CAP_PERFMON"}
    return [name for name in NEEDED if name not in have]


def lockdown() -> str:
    """The mode in effect: none, integrity or confidentiality; "" where the kernel has none or securityfs is not mounted."""
    try:
        modes = _LOCKDOWN.read_text(encoding="ascii")
    except OSError:
        return ""
    return modes.partition("[")[2].partition("]")[0]


def obstacle() -> str:
    """Why nothing can be captured here, if that is known before trying: one line with what would help; else ""."""
    lacking = [name for name in missing_capabilities() if name != "CAP_SYS_PTRACE"]  # needed for processes of others only
    if lacking:
        return f"missing {' and '.join(lacking)}; {GRANT}"
    if not Path(BTF_FILE).exists():
        return f"this kernel has no BTF ({BTF_FILE}); use one with CONFIG_DEBUG_INFO_BTF=y, such as Debian's"
    return ""


@cache
def btf_id(name: str, kind: int) -> int:
    """Id of a type in the kernel's BTF, 0 if there is none. Raises OSError when the kernel has no BTF."""
    data = Path(BTF_FILE).read_bytes()
    _, _, _, header, types, types_length, strings, _ = struct.unpack_from("<HBBIIIII", data)
    start = header + strings
    found = data.find(b"\0" + name.encode() + b"\0", start)
    if found < 0:
        return 0
    wanted = found + 1 - start
    at, end, number = header + types, header + types + types_length, 0
    unpack = struct.Struct("<II4x").unpack_from
    while at < end:
        number += 1
        name_at, info = unpack(data, at)
        of = info >> 24 & 31
        if name_at == wanted and of == kind:
            return number
        at += 12 + _BTF_FIXED.get(of, 0) + _BTF_MEMBER.get(of, 0) * (info & 0xFFFF)
    return 0


@cache
def _syscall() -> Callable[..., int]:
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    return call


def _call(stack: ExitStack, table: dict[str, int], *args: object) -> int:
    """A system call that returns a descriptor, closed with the stack."""
    number = table.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, "no system call number for this machine")
    result = _syscall()(ctypes.c_long(number), *args)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    stack.callback(os.close, result)
    return int(result)


def _bpf(stack: ExitStack, command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return _call(stack, _BPF, ctypes.c_int(command), buffer, ctypes.c_uint(len(attributes)))


def _program(stack: ExitStack, kind: int, attach: int = 0, target: int = 0) -> int:
    code = ctypes.create_string_buffer(_RETURN_ZERO, len(_RETURN_ZERO))
    licence = ctypes.create_string_buffer(b"GPL")
    return _bpf(
        stack,
        _PROG_LOAD,
        _PROG.pack(
            kind, len(_RETURN_ZERO) // 8, ctypes.addressof(code), ctypes.addressof(licence), 0, 0, 0, 0, 0, b"ms_trial",
            0, attach, 0, 0, 0, 0, 0, 0, 0, target, 0,
        ),
    )  # fmt: skip


def _tracing(stack: ExitStack, name: str, kind: int, attach: int) -> None:
    target = btf_id(name, kind)
    if not target:
        raise OSError(errno.ENOENT, "not in the kernel's BTF")
    _bpf(stack, _RAW_TRACEPOINT_OPEN, struct.pack("<QI4x", 0, _program(stack, _TRACING, attach, target)))


def _raw_tracepoint(stack: ExitStack) -> None:
    name = ctypes.create_string_buffer(b"sched_process_exit")
    _bpf(stack, _RAW_TRACEPOINT_OPEN, struct.pack("<QI4x", ctypes.addressof(name), _program(stack, _RAW_TRACEPOINT)))


def _probe(stack: ExitStack, unit: str, where: bytes, pid: int = -1) -> None:
    try:
        kind = int(Path(f"/sys/bus/event_source/devices/{unit}/type").read_text(encoding="ascii"))
    except FileNotFoundError as error:
        raise OSError(errno.EOPNOTSUPP, "no such event source") from error
    target = ctypes.create_string_buffer(where)
    attributes = _PERF_ATTR.pack(kind, _PERF_ATTR_SIZE, 0, 0, 0, 0, 0, 0, 0, ctypes.addressof(target), 0)
    buffer = ctypes.create_string_buffer(attributes, _PERF_ATTR_SIZE)
    event = _call(
        stack,
        _PERF_EVENT_OPEN,
        buffer,
        ctypes.c_int(pid),
        ctypes.c_int(0 if pid < 0 else -1),
        ctypes.c_int(-1),
        ctypes.c_ulong(_PERF_CLOEXEC),
    )
    program = _program(stack, _KPROBE)
    _bpf(stack, _LINK_CREATE, struct.pack("<IIIIQ", program, event, _PERF_EVENT, 0, 1))  # 1: an attach cookie, 5.15 and later


def _uprobe(stack: ExitStack) -> None:
    file = os.memfd_create("meshscope-trial", os.MFD_CLOEXEC)
    stack.callback(os.close, file)
    os.write(file, b"\x90" * 16)
    _probe(stack, "uprobe", f"/proc/self/fd/{file}\0".encode(), os.getpid())


def _map(stack: ExitStack, kind: int, key: int, value: int, entries: int, flags: int = 0, inner: int = 0, btf: int = 0) -> int:
    types = (btf, 1, 1) if btf else (0, 0, 0)
    return _bpf(
        stack, _MAP_CREATE, struct.pack("<IIIIIII16sIIII", kind, key, value, entries, flags, inner, 0, b"ms_trial", 0, *types)
    )


def _array_of_maps(stack: ExitStack) -> None:
    inner = _map(stack, _RINGBUF, 0, 0, os.sysconf("SC_PAGESIZE"))
    _map(stack, _ARRAY_OF_MAPS, 4, 4, 1, 0, inner)


def _sk_storage(stack: ExitStack) -> None:
    types = ctypes.create_string_buffer(_BTF_INT, len(_BTF_INT))
    btf = _bpf(stack, _BTF_LOAD, struct.pack("<QQIII4x", ctypes.addressof(types), 0, len(_BTF_INT), 0, 0))
    _map(stack, _SK_STORAGE, 4, 4, 0, _NO_PREALLOC, 0, btf)
