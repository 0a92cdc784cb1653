"""The agent's own counters: one flat dict of name -> number, every name declared here with a sentence.

Kernel counters arrive under their names of kprobes/meshscope.h in lower case (``bytes_moved``) with prefix
``kernel_``. Adding to an undeclared counter raises KeyError, so a typo cannot lose a loss.
"""

from __future__ import annotations

from typing import Final

COUNTERS: Final[dict[str, str]] = {}  # name -> what it counts; extended below by area


class Stats:
    """Counters of one agent. Increment with ``stats.n[name] += 1``; read with ``snapshot``."""

    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n: dict[str, int] = dict.fromkeys(COUNTERS, 0)

    def snapshot(self) -> dict[str, int]:
        """A copy, safe to hand to another thread."""
        return dict(self.n)
