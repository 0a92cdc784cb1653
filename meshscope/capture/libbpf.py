"""The system's libbpf through ctypes: just the calls that we make, and its words when something fails."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Callable
from typing import Any, Final

from meshscope.capture import CaptureError

_PRINT: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
SAMPLE: Final = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)  # ring_buffer_sample_fn
_POINTER, _INT, _TEXT, _SIZE, _BYTES = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p
_KEPT_LINES: Final = 40

# name: (result, arguments); include/bpf/libbpf.h and bpf.h
_CALLS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "libbpf_set_print": (_POINTER, (_PRINT,)),
    "libbpf_version_string": (_TEXT, ()),
    "libbpf_find_vmlinux_btf_id": (_INT, (_TEXT, _INT)),
    "bpf_object__open_file": (_POINTER, (_TEXT, _POINTER)),
    "bpf_object__load": (_INT, (_POINTER,)),
    "bpf_object__close": (None, (_POINTER,)),
    "bpf_object__next_program": (_POINTER, (_POINTER, _POINTER)),
    "bpf_object__next_map": (_POINTER, (_POINTER, _POINTER)),
    "bpf_program__name": (_TEXT, (_POINTER,)),
    "bpf_program__section_name": (_TEXT, (_POINTER,)),
    "bpf_program__fd": (_INT, (_POINTER,)),
    "bpf_program__set_expected_attach_type": (_INT, (_POINTER, _INT)),
    "bpf_program__set_autoload": (_INT, (_POINTER, ctypes.c_bool)),
    "bpf_program__attach": (_POINTER, (_POINTER,)),
    "bpf_program__attach_uprobe_opts": (_POINTER, (_POINTER, _INT, _TEXT, _SIZE, _POINTER)),
    "bpf_link__destroy": (_INT, (_POINTER,)),
    "bpf_map__name": (_TEXT, (_POINTER,)),
    "bpf_map__fd": (_INT, (_POINTER,)),
    "bpf_map__reuse_fd": (_INT, (_POINTER, _INT)),
    "bpf_map__max_entries": (ctypes.c_uint32, (_POINTER,)),
    "bpf_map__set_max_entries": (_INT, (_POINTER, ctypes.c_uint32)),
    "bpf_map__initial_value": (_POINTER, (_POINTER, ctypes.POINTER(_SIZE))),
    "bpf_map_create": (_INT, (_INT, _TEXT, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, _POINTER)),
    "bpf_map_update_elem": (_INT, (_INT, _BYTES, _BYTES, ctypes.c_uint64)),
    "bpf_map_lookup_elem": (_INT, (_INT, _BYTES, _POINTER)),
    "bpf_map_delete_elem": (_INT, (_INT, _BYTES)),
    "bpf_map_get_next_key": (_INT, (_INT, _BYTES, _POINTER)),
    "ring_buffer__new": (_POINTER, (_INT, SAMPLE, _POINTER, _POINTER)),
    "ring_buffer__consume": (_INT, (_POINTER,)),
    "ring_buffer__free": (None, (_POINTER,)),
}


class UprobeOptions(ctypes.Structure):
    """struct bpf_uprobe_opts up to the fields of libbpf 1.1; `sz` tells newer ones where it ends."""

    _fields_ = (
        ("sz", _SIZE),
        ("ref_ctr_offset", _SIZE),
        ("bpf_cookie", ctypes.c_uint64),
        ("retprobe", ctypes.c_bool),
        ("func_name", _TEXT),
    )


class Libbpf:
    """The library. Calls are attributes by their C names; a null or negative result becomes CaptureError by `made` or `done`.

    said: the last warnings of the library, oldest first.
    """

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL("libbpf.so.1", use_errno=True)
        except OSError as error:
            raise CaptureError("libbpf.so.1 is not installed; apt-get install libbpf1 (Debian 12 and later)") from error
        for name, (result, arguments) in _CALLS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        self.said: list[str] = []
        self._vsnprintf = ctypes.CDLL(None).vsnprintf
        self._vsnprintf.argtypes = (_POINTER, _SIZE, _TEXT, _POINTER)
        self._keep = _PRINT(self._print)  # libbpf holds only the pointer
        self.libbpf_set_print(self._keep)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        raise AttributeError(f"libbpf's {name} is not declared in {__name__}")

    def made(self, result: int | None, doing: str) -> int:
        """The pointer or descriptor that a call made; CaptureError that says what was being done if it made none."""
        if result is None or result <= 0:
            raise CaptureError(f"{doing}: {explain(-result if result else ctypes.get_errno(), self.said)}")
        return result

    def done(self, code: int, doing: str) -> None:
        """CaptureError if a call that returns 0 for success did not."""
        if code:
            raise CaptureError(f"{doing}: {explain(-code if code < -1 else ctypes.get_errno(), self.said)}")

    def _print(self, level: int, form: bytes, values: int) -> int:
        if level > 1:  # LIBBPF_DEBUG
            return 0
        text = ctypes.create_string_buffer(4096)
        self._vsnprintf(text, len(text), form, values)
        self.said = [*self.said, *text.value.decode(errors="replace").splitlines()][-_KEPT_LINES:]
        return 0


def explain(code: int, said: list[str]) -> str:
    """Why the kernel refused, in one line: the errno, and for the verifier its last word."""
    verdict = next((line for line in reversed(said) if re.search(r"invalid|not allowed|too large|unknown func|R\d ", line)), "")
    words = os.strerror(code) if code < 200 else f"error {code}"
    return f"{words} ({verdict.strip()[:160]})" if verdict else words
