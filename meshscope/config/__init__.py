"""Configuration: one frozen tree, replaced whole. A YAML file < the environment < flags.

``load`` makes the tree, ``settings`` lists every setting (for the command line and the reference page); both read
the declarations in ``tree``.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import yaml

from meshscope.config.kinds import Kind
from meshscope.config.tree import Budget, Capture, Config, Exchanges, Metrics, Otlp, Outputs, Select, Trace

__all__ = [
    "Budget",
    "Capture",
    "Config",
    "ConfigError",
    "Exchanges",
    "Metrics",
    "Otlp",
    "Outputs",
    "Select",
    "Setting",
    "Trace",
    "load",
    "settings",
    "unknown_variables",
]

PREFIX: Final = "MESHSCOPE_"
_FILE_MAX: Final = 1 << 20  # bytes; a configuration is a page, not a disk


class ConfigError(Exception):
    """A setting that cannot be used. ``path`` says where: ``capture.ring_bytes``, a variable, a flag or a file."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path
        self.message = message


class Setting(NamedTuple):
    """One setting. env: our variable, then the specification's if there is one. flag: may be empty; metavar: of its value."""

    path: str
    kind: Kind
    default: Any
    doc: str
    env: tuple[str, ...]
    env_kinds: tuple[Kind, ...]
    flag: str
    metavar: str

    @property
    def type(self) -> str:
        """The kind's name, for the reference page."""
        return self.kind.name


def settings(of: type = Config, prefix: str = "") -> Iterator[Setting]:
    """Every setting of the tree, in the order of declaration."""
    for field in dataclasses.fields(of):
        path = f"{prefix}{field.name}"
        if not field.metadata:
            yield from settings(cast("type", field.default_factory), f"{path}.")
            continue
        about = field.metadata
        own = PREFIX + path.replace(".", "_").upper()
        env = (own, about["env"]) if about["env"] else (own,)
        flag, _, metavar = about["flag"].partition(" ")
        kinds = (about["kind"], about["env_kind"])
        yield Setting(path, about["kind"], field.default, about["doc"], env, kinds, flag, metavar)


def load(file: str | None, env: Mapping[str, str], args: Mapping[str, object]) -> Config:
    """The tree. ``args``: setting path -> value of a flag. Raises ConfigError."""
    values: dict[str, Any] = {}
    if file:
        values |= _read(file)
    for setting in settings():
        for name, kind in reversed(list(zip(setting.env, setting.env_kinds, strict=False))):
            if env.get(name):  # the specification: an empty variable is an unset one
                values[setting.path] = _parse(name, kind, env[name])
        if setting.path in args:
            values[setting.path] = _parse(setting.flag or setting.path, setting.kind, args[setting.path])
    config = _build(values)
    _check(config)
    return config


def unknown_variables(env: Mapping[str, str]) -> list[str]:
    """One line for each variable of ours that sets nothing, with the nearest that would.

    Only those that name one of our sections, and as a line, not an error: others may have variables that begin alike.
    """
    known = [name for setting in settings() for name in setting.env]
    sections = tuple({f"{PREFIX}{setting.path.split('.')[0].upper()}_" for setting in settings()})
    lines = []
    for name in sorted(env):
        if name.startswith(sections) and name not in known:
            nearest = difflib.get_close_matches(name, known, 1)
            lines.append(f"{name}: sets nothing" + (f"; did you mean {nearest[0]}?" if nearest else ""))
    return lines


def _read(file: str) -> dict[str, Any]:
    try:
        with Path(file).open("rb") as stream:
            text = stream.read(_FILE_MAX + 1)
    except OSError as error:
        raise ConfigError(file, error.strerror or str(error)) from error
    if len(text) > _FILE_MAX:
        raise ConfigError(file, "wants a YAML file of at most 1 MiB")
    try:
        document = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{file}:{mark.line + 1}:{mark.column + 1}" if mark else file
        raise ConfigError(where, f"not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(file, "not YAML: " + " ".join(str(error).split())) from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(file, f"wants sections such as `capture:`, got {_shown(document)}")
    return dict(_flatten(document, "", {setting.path: setting for setting in settings()}))


def _flatten(node: dict[Any, Any], prefix: str, known: Mapping[str, Setting]) -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        path = f"{prefix}{key}"
        if path in known:
            yield path, _parse(path, known[path].kind, value)
        elif any(name.startswith(f"{path}.") for name in known):
            if value is None:
                continue
            if not isinstance(value, dict):
                raise ConfigError(path, f"wants settings below it, got {_shown(value)}")
            yield from _flatten(value, f"{path}.", known)
        else:
            raise ConfigError(path, "no such setting" + _nearest(path, known))


def _nearest(path: str, known: Mapping[str, Setting]) -> str:
    names = set(known) | {name.split(".")[0] for name in known}
    nearest = difflib.get_close_matches(path, sorted(names), 1, 0.5)
    same_leaf = [name for name in known if name.rsplit(".", 1)[-1] == path.rsplit(".", 1)[-1]]
    best = same_leaf or nearest
    return f"; did you mean {best[0]}?" if best else f"; known: {', '.join(sorted({n.split('.')[0] for n in known}))}"


def _parse(where: str, kind: Kind, value: object) -> Any:  # noqa: ANN401
    try:
        return kind.parse(value)
    except (ValueError, OverflowError) as error:
        got = "" if kind.secret else f", got {_shown(value)}"
        raise ConfigError(where, f"wants {kind.wants}{got}; e.g. {kind.example}") from error


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


def _build(values: Mapping[str, Any]) -> Config:
    sections: dict[str, Any] = {}
    for field in dataclasses.fields(Config):
        if field.metadata:
            sections[field.name] = values.get(field.name, field.default)
            continue
        section = cast("type", field.default_factory)
        prefix = f"{field.name}."
        sections[field.name] = section(**{path[len(prefix) :]: v for path, v in values.items() if path.startswith(prefix)})
    return Config(**sections)


def _check(config: Config) -> None:
    """What one value alone cannot tell."""
    ring = config.capture.ring_bytes
    if ring & (ring - 1) or not 1 << 12 <= ring <= 1 << 30:
        raise ConfigError("capture.ring_bytes", f"wants a power of two from 4KiB to 1GiB, got {ring}; e.g. 8MiB")
    if not 1 <= config.capture.rings <= 16:
        raise ConfigError("capture.rings", f"wants 1 to 16, got {config.capture.rings}; e.g. 1")
    if not 0.001 <= config.capture.poll <= 1:
        raise ConfigError("capture.poll", f"wants 1ms to 1s, got {config.capture.poll}; e.g. 20ms")
    if config.metrics.interval < 0.1:
        raise ConfigError("metrics.interval", f"wants at least 100ms, got {config.metrics.interval}; e.g. 10")
    if config.otlp.timeout <= 0:
        raise ConfigError("otlp.timeout", "wants more than 0; e.g. 10")
    for name in ("routes", "connections"):
        if not getattr(config.exchanges, name):
            raise ConfigError(f"exchanges.{name}", "wants at least 1")
