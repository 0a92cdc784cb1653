from __future__ import annotations

import ctypes
import errno
from pathlib import Path

import pytest

from meshscope.capture import CaptureError
from meshscope.capture.libbpf import _CALLS, Libbpf, UprobeOptions, explain


def test_every_call_is_there() -> None:
    library = Libbpf()
    assert all(callable(getattr(library, name)) for name in _CALLS)
    assert library.libbpf_version_string().decode().startswith("v1.")


def test_calls_that_were_not_declared_are_refused() -> None:
    with pytest.raises(AttributeError, match="bpf_program__unload is not declared"):
        _ = Libbpf().bpf_program__unload


def test_without_the_library_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_name: str, **_options: object) -> None:
        raise OSError("libbpf.so.1: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(CaptureError, match="apt-get install libbpf1"):
        Libbpf()


def test_what_was_made_is_returned() -> None:
    assert Libbpf().made(7, "cannot open x") == 7


@pytest.mark.parametrize(("result", "number"), [(-errno.EPERM, errno.EPERM), (-errno.EINVAL, errno.EINVAL)])
def test_what_was_not_made_says_why(result: int, number: int) -> None:
    with pytest.raises(CaptureError) as caught:
        Libbpf().made(result, "cannot make a ring")
    assert str(caught.value).startswith("cannot make a ring: ")
    assert {errno.EPERM: "not permitted", errno.EINVAL: "Invalid argument"}[number] in str(caught.value)


@pytest.mark.parametrize("result", [None, 0])
def test_no_pointer_means_look_into_errno(result: int | None) -> None:
    library = Libbpf()
    ctypes.set_errno(errno.ENOENT)
    with pytest.raises(CaptureError, match="cannot attach: No such file"):
        library.made(result, "cannot attach")


def test_done_is_silent_about_success_and_tells_failure() -> None:
    library = Libbpf()
    library.done(0, "cannot write a map")
    with pytest.raises(CaptureError, match="cannot write a map: Argument list too long"):
        library.done(-errno.E2BIG, "cannot write a map")
    ctypes.set_errno(errno.EBUSY)
    with pytest.raises(CaptureError, match="cannot write a map: Device or resource busy"):
        library.done(-1, "cannot write a map")


@pytest.mark.parametrize("content", [b"", b"no object at all", b"\x7fELF" + bytes(60)])
def test_what_the_library_says_is_kept(tmp_path: Path, content: bytes) -> None:
    library = Libbpf()
    file = tmp_path / "x.bpf.o"
    file.write_bytes(content)
    with pytest.raises(CaptureError, match="cannot open x"):
        library.made(library.bpf_object__open_file(str(file).encode(), None), "cannot open x")
    assert any(line.startswith("libbpf: ") for line in library.said)


def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    library = Libbpf()
    file = str(tmp_path / "absent.o").encode()
    for _ in range(100):
        library.bpf_object__open_file(file, None)
    assert len(library.said) == 40


def test_a_refusal_is_told_with_the_verifiers_last_word() -> None:
    said = [
        "libbpf: load failed",
        "R1 type=ctx expected=fp",
        "0: (79) r1 = *(u64 *)(r1 +0)",
        "R2 invalid mem access 'scalar'",
        "processed 12 insns",
    ]
    assert explain(errno.EACCES, said) == "Permission denied (R2 invalid mem access 'scalar')"
    assert explain(errno.EACCES, []) == "Permission denied"
    assert explain(524, []) == "error 524"  # the kernel's own ENOTSUPP
    assert len(explain(errno.EACCES, ["invalid " + "x" * 1000])) < 200


def test_options_say_how_long_they_are() -> None:
    assert ctypes.sizeof(UprobeOptions) == 40
    assert UprobeOptions.retprobe.offset == 24
