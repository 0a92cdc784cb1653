"""What the agent says to its user: lines on standard error, each beginning alike."""

from __future__ import annotations

import logging
import sys


class AgentError(Exception):
    """The agent cannot start or go on; the text is one line for the user."""


def say(line: str) -> None:
    """One line for the user, on standard error."""
    print(f"meshscope: {line}", file=sys.stderr, flush=True)  # noqa: T201 (where users look)


def log_to_stderr() -> None:
    """What parts of the agent log are lines for the user, like those of `say`."""
    logging.basicConfig(format="meshscope: %(message)s", level=logging.WARNING, stream=sys.stderr, force=True)
