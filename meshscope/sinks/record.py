"""``--record FILE``: redacted exchanges, one JSON document a line after a first line that names the format.

Such a file is for people and their tools; ``replay`` reads only what ``--record-raw`` wrote and refuses this one by name.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Sequence
from typing import Final

from meshscope.model import Exchange
from meshscope.sinks.document import line
from meshscope.stats import Stats

FORMAT: Final = "meshscope-exchanges"
VERSION: Final = 1
HEADER: Final = (json.dumps({"format": FORMAT, "version": VERSION}, separators=(",", ":")) + "\n").encode()

logger = logging.getLogger(__name__)


class Record:
    """Writes exchanges to ``path``, which is replaced, and readable by its owner only.

    Raises OSError if the file cannot be opened. A write that fails later (disk full) ends the recording with one log line;
    from then on exchanges are only counted, and the file ends with a whole line where the system allows it.
    """

    def __init__(self, path: str, stats: Stats) -> None:
        self._path = path
        self._stats = stats
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        if stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.fchmod(self._fd, 0o600)  # an older file keeps its mode otherwise; a device must
        self._size = 0  # of what is known to be whole lines
        self._write(HEADER)

    def emit(self, exchanges: Sequence[Exchange]) -> None:
        if exchanges and (self._fd < 0 or not self._write(b"".join(map(line, exchanges)))):
            self._stats.n["record_failed"] += len(exchanges)

    def flush(self, now_ns: int) -> None:
        """Every batch is written when it comes."""

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, data: bytes) -> bool:
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            logger.error("recording to %s ends: %s", self._path, error.strerror)  # noqa: TRY400 - the cause is all there is to say
            self._cut_back()
            self.close()
            return False
        self._size += len(data)
        return True

    def _cut_back(self) -> None:
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:  # a pipe or a device
            return
