"""Protocols: bytes in, messages out. Standard library only; `parsers/README.md` tells how to add one."""

from __future__ import annotations

from parsers import http1

PROTOCOLS = (http1,)
