from __future__ import annotations

import logging

import pytest

from meshscope.agent.voice import log_to_stderr, say


def test_lines_and_logs_read_alike(capfd: pytest.CaptureFixture[str]) -> None:
    before = logging.root.handlers[:]
    log_to_stderr()
    try:
        say("one")
        logging.getLogger("meshscope.anything").warning("%s", "two")
        logging.getLogger("meshscope.anything").info("not told")
    finally:
        logging.root.handlers[:] = before
    assert capfd.readouterr() == ("", "meshscope: one\nmeshscope: two\n")
