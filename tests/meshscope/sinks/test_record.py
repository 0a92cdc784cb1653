from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path

import pytest

from meshscope.sinks import record
from meshscope.sinks.record import HEADER, Record
from meshscope.stats import Stats
from tests.meshscope.exchanges import exchange


def test_the_first_line_names_the_format_and_every_other_is_an_exchange(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    sink = Record(str(path), Stats())
    sink.emit([exchange(), exchange(status=404)])
    sink.emit([])
    sink.flush(0)
    lines = path.read_text().splitlines()
    assert json.loads(lines[0]) == {"format": "meshscope-exchanges", "version": 1}
    assert [json.loads(text)["response"]["status"] for text in lines[1:]] == [200, 404]
    sink.close()
    sink.close()


def test_only_the_owner_may_read_it_even_if_it_was_there_before(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("old content that is longer than the header" * 10)
    path.chmod(0o644)
    Record(str(path), Stats()).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == HEADER


def test_a_path_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Record(str(tmp_path / "none" / "r.jsonl"), Stats())


def test_a_device_keeps_its_mode() -> None:
    before = Path(os.devnull).stat().st_mode
    Record(os.devnull, Stats()).close()
    assert Path(os.devnull).stat().st_mode == before


def test_a_full_disk_ends_the_recording_with_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, stats, room = tmp_path / "r.jsonl", Stats(), 3000
    write = os.write

    def limited(fd: int, data: memoryview) -> int:
        left = room - os.fstat(fd).st_size
        if left <= 0:
            raise OSError(28, "No space left on device")
        return write(fd, data[:left])

    sink = Record(str(path), stats)
    monkeypatch.setattr(record.os, "write", limited)
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            sink.emit([exchange()])
    lines = path.read_text().splitlines()
    assert [json.loads(text) for text in lines]
    assert stats.n["record_failed"] == 5 - (len(lines) - 1) > 0
    assert [r.getMessage() for r in caplog.records] == [f"recording to {path} ends: No space left on device"]
    sink.close()
