"""HTTP/1.0 and HTTP/1.1 (RFC 9110, RFC 9112), seen from outside."""

from __future__ import annotations

from typing import Final

from parsers.http1.conventions import describe
from parsers.http1.heads import sniff
from parsers.http1.parser import Parser

NAME: Final = "http/1.1"

__all__ = ["NAME", "Parser", "describe", "sniff"]
