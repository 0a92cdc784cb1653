"""The two ways to attach; on a real kernel they are tried in tests/kprobes/test_openssl.py."""

from __future__ import annotations

import threading

import pytest

from meshscope.capture.uprobes import close_all, may_attach_together


@pytest.mark.parametrize(
    ("release", "together"),
    [
        ("6.1.0-13-amd64", False),
        ("6.10.14", False),
        ("6.11.0", True),
        ("6.18.44", True),
        ("7.0.0-22-generic", True),
        ("odd", False),
    ],
)
def test_which_kernels_take_one_link_for_many(release: str, together: bool) -> None:
    assert may_attach_together(release) is together


class Slow:
    """Its close waits for the others', as links wait for the kernel."""

    def __init__(self, together: threading.Barrier) -> None:
        self._together = together

    def close(self) -> None:
        self._together.wait(10)


def test_links_are_closed_at_the_same_time() -> None:
    together = threading.Barrier(8)
    close_all([Slow(together) for _ in range(8)])
    assert not together.broken
    close_all([Slow(threading.Barrier(1))])
    close_all([])


def test_a_failing_close_is_not_hidden() -> None:
    class Bad:
        def close(self) -> None:
            raise OSError("no")

    with pytest.raises(OSError, match="no"):
        close_all([Bad(), Bad()])
