"""What a setting's value may look like: text from a flag or a variable, or a value from YAML, made into one type.

A parser raises ValueError and nothing else; the caller says what was wanted (``Kind.wants``) and shows an example.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit


class Kind(NamedTuple):
    """name: for the reference page. wants, example: for the error. secret: never quote what was given."""

    name: str
    wants: str
    example: str
    parse: Callable[[object], Any]
    repeated: bool = False
    secret: bool = False


_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)
_POWER: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)?")
_UNIT: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError  # noqa: TRY004 (one error for whatever a file may hold)
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError
    return number


def _count(value: object) -> int:
    if isinstance(value, str):
        if not re.fullmatch(r"[0-9]{1,18}", value):
            raise ValueError
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError
    return value


def _size(value: object) -> int:
    """Bytes. Ki, Mi, Gi are powers of 1024, as are the bare letters; kB, MB, GB are powers of 1000."""
    if not isinstance(value, str):
        return _count(value)
    match = _SIZE.fullmatch(value.strip())
    if not match:
        raise ValueError
    unit = (match[2] or "").lower()
    base = 1000 if len(unit) == 1 and value.strip().lower().endswith("b") else 1024
    return int(float(match[1]) * base ** _POWER[unit.removesuffix("i")])


def _seconds(value: object) -> float:
    if not isinstance(value, str):
        return _number(value)
    match = _SPAN.fullmatch(value.strip())
    if not match:
        raise ValueError
    return float(match[1]) * _UNIT[match[2] or "s"]


def _milliseconds(value: object) -> float:
    return _number(value) / 1000


def _portion(value: object) -> float:
    if isinstance(value, str) and value.strip().endswith("%"):
        return _number(value.strip()[:-1]) / 100
    return _number(value)


def _ratio(value: object) -> float:
    number = _portion(value)
    if number > 1:
        raise ValueError
    return number


def _switch(value: object) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if not isinstance(value, str) or value.lower() not in words:
        raise ValueError
    return words[value.lower()]


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError
    return value


def _items(value: object) -> list[object]:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, Sequence):
        return [part for item in value for part in (_items(item) if isinstance(item, str) else [item])]
    return [value]


def _list(value: object) -> tuple[str, ...]:
    return tuple(_text(item) for item in _items(value))


def _pids(value: object) -> tuple[int, ...]:
    pids = tuple(_count(item) for item in _items(value))
    if any(pid == 0 or pid >= 1 << 31 for pid in pids):
        raise ValueError
    return pids


def _url(value: object) -> str:
    """An http or https URL with a host; a bare ``host:port`` is not one."""
    text = _text(value)
    if not text:
        return ""
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.port == 0:
        raise ValueError
    return text


def _address(value: object) -> str:
    text = _text(value)
    if not text:
        return ""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError
    if (":" in host) != (host.startswith("[") and host.endswith("]")):
        raise ValueError
    return text


def _headers(value: object) -> tuple[tuple[str, str], ...]:
    """``name=value,name=value`` with percent-encoding (W3C Baggage, as OTEL_EXPORTER_OTLP_HEADERS), or a mapping."""
    if isinstance(value, Mapping):
        pairs = [(_text(name), _text(text)) for name, text in value.items()]
    else:
        pairs = []
        for item in _list(value):
            name, equals, text = item.partition("=")
            if not equals:
                raise ValueError
            pairs.append((name.strip(), unquote(text.strip())))
    if any(not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or re.search(r"[\r\n\0]", text) for name, text in pairs):
        raise ValueError
    return tuple((name.lower(), text) for name, text in pairs)


def choice(*words: str) -> Kind:
    """One of a few words."""

    def parse(value: object) -> str:
        if value not in words:
            raise ValueError
        return str(value)

    return Kind("one of " + ", ".join(words), "one of " + ", ".join(words), words[0], parse)


BYTES: Final = Kind("size", "a number of bytes", "8MiB", _size)
COUNT: Final = Kind("count", "a whole number", "100", _count)
SECONDS: Final = Kind("time", "a time in seconds", "10 or 200ms", _seconds)
MILLISECONDS: Final = Kind("milliseconds", "a number of milliseconds", "10000", _milliseconds)
RATIO: Final = Kind("ratio", "a share from 0 to 1", "0.1 or 10%", _ratio)
CPUS: Final = Kind("cores", "a number of cores", "0.5 or 50%", _portion)
SWITCH: Final = Kind("switch", "true or false", "true", _switch)
PATH: Final = Kind("path", "a file's path", "/var/log/exchanges.jsonl", _text)
LIST: Final = Kind("list", "a list of texts", "a,b", _list, repeated=True)
PIDS: Final = Kind("list of process ids", "process ids", "4711", _pids, repeated=True)
URL: Final = Kind("URL", "an http or https URL", "http://127.0.0.1:4317", _url)
ADDRESS: Final = Kind("address", "ADDR:PORT", "127.0.0.1:9464", _address)
HEADERS: Final = Kind("headers", "name=value pairs", "x-tenant=shop", _headers, secret=True)
