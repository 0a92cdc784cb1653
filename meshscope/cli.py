"""The command line: words in, one Config out, one exit code back. 0 ok, 1 failed, 2 bad usage or configuration.

Flags come from the settings' declarations; what is wrong is said in one line: what, where, what would be right.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn

from meshscope import __version__, agent, doctor
from meshscope.config import Config, ConfigError, Setting, load, settings, unknown_variables

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2

# Named in the stable command line and still to come.
_LATER_COMMANDS: Final = ("top", "ui")
_LATER_FLAGS: Final = {"--ui": "ADDR:PORT", "--port": "N", "--container": "ID"}
_CAPTURE_FILES: Final = (".pcap", ".pcapng", ".cap")


class UsageError(Exception):
    """The command line cannot be understood; the text is the one line to print."""


class _Parser(argparse.ArgumentParser):
    """argparse with abbreviations off and errors in our one line."""

    def __init__(self, prog: str, description: str, help: str = "") -> None:  # noqa: A002, ARG002 (add_parser's words)
        super().__init__(prog=prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise UsageError(_plain(message, list(self._option_string_actions)))


class _Later(argparse.Action):
    def __call__(self, parser: object, namespace: object, values: object, option_string: str | None = None) -> NoReturn:  # noqa: ARG002
        raise UsageError(f"{option_string}: not built yet")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        return _main(sys.argv[1:] if argv is None else list(argv), os.environ)
    except (UsageError, ConfigError) as error:
        return _fail(str(error), USAGE)
    except (agent.AgentError, doctor.DoctorError) as error:
        return _fail(str(error), FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted", FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader left; the interpreter's last flush must not complain
        return OK


def _fail(line: str, code: int) -> int:
    print(f"meshscope: {line}", file=sys.stderr)  # noqa: T201 (the command line's business)
    return code


def _main(argv: list[str], env: Mapping[str, str]) -> int:
    parser, parsers = _parsers()
    if argv and argv[0] in _LATER_COMMANDS:
        raise UsageError(f"{argv[0]}: not built yet")
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        known = list(parsers[given.command]._option_string_actions)  # noqa: SLF001 (the list argparse matched against)
        raise UsageError(_unknown(unknown[0], known, given.command))
    command: Callable[[argparse.Namespace, Mapping[str, str]], int] = given.run
    return command(given, env)


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser("meshscope", "See what running services say to each other, from the kernel.")
    parser.add_argument("--version", action="version", version=f"meshscope {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers: dict[str, _Parser] = {}
    for name, run, summary in (
        ("run", _run, "watch processes until told to stop"),
        ("replay", _replay, "play a recording made by run --record-raw"),
        ("doctor", _doctor, "what this kernel allows, what is missing and how to get it"),
        ("protocols", _protocols, "list the protocols that are understood"),
    ):
        parsers[name] = commands.add_parser(name, help=summary, description=summary.capitalize() + ".")
        parsers[name].set_defaults(run=run)
    parsers["replay"].add_argument("file", metavar="FILE", help="the recording")
    outputs = ("outputs.", "otlp.", "trace.", "exchanges.")
    _add_settings(parsers["run"], [s for s in settings() if s.flag])
    _add_settings(
        parsers["replay"], [s for s in settings() if s.flag and s.path.startswith(outputs) and s.flag != "--record-raw"]
    )
    _add_settings(parsers["doctor"], [s for s in settings() if s.flag and s.path.startswith(("select.", "capture."))])
    parsers["doctor"].add_argument("--output", default="text", metavar="text|json", help="how to print it")
    for name in ("run", "replay", "doctor"):
        parsers[name].add_argument("--config", metavar="FILE", help="Settings in YAML; the environment and flags go before it.")
    for name in ("run", "doctor"):
        for flag, metavar in _LATER_FLAGS.items():
            parsers[name].add_argument(flag, action=_Later, metavar=metavar, help=argparse.SUPPRESS)
    return parser, parsers


def _add_settings(parser: _Parser, chosen: Sequence[Setting]) -> None:
    for setting in chosen:
        summary = setting.doc.replace("%", "%%")
        if setting.kind.name == "switch":
            parser.add_argument(setting.flag, dest=setting.path, action="store_true", default=argparse.SUPPRESS, help=summary)
            continue
        parser.add_argument(
            setting.flag,
            dest=setting.path,
            action="append" if setting.kind.repeated else "store",
            default=argparse.SUPPRESS,
            metavar=setting.metavar,
            help=summary,
        )


def _config(given: argparse.Namespace, env: Mapping[str, str]) -> Config:
    for line in unknown_variables(env):
        print(f"meshscope: {line}", file=sys.stderr)  # noqa: T201
    values = vars(given)
    paths = {setting.path for setting in settings()}
    config = load(given.config or env.get("MESHSCOPE_CONFIG"), env, {path: values[path] for path in values if path in paths})
    if config.capture.loader == "bcc":
        raise UsageError("--loader bcc: not built yet; auto and libbpf are")
    return config


def _run(given: argparse.Namespace, env: Mapping[str, str]) -> int:
    config = _config(given, env)
    if not config.select:
        raise UsageError("nothing selected; say what to watch: --pid N, --exe GLOB, --cgroup PATH or --all")
    return agent.run(config)


def _replay(given: argparse.Namespace, env: Mapping[str, str]) -> int:
    config = _config(given, env)
    if given.file.lower().endswith(_CAPTURE_FILES):
        raise UsageError(f"{given.file}: replay of packet captures is not built yet; it reads what run --record-raw wrote")
    return agent.replay(config, given.file)


def _doctor(given: argparse.Namespace, env: Mapping[str, str]) -> int:
    if given.output not in {"text", "json"}:
        raise UsageError(f'--output: wants one of text, json, got "{given.output}"')
    return doctor.run(_config(given, env), given.output)


def _protocols(given: argparse.Namespace, env: Mapping[str, str]) -> int:  # noqa: ARG001 (one shape for all commands)
    for name in agent.protocols():
        print(name)  # noqa: T201
    return OK


def _plain(message: str, options: Sequence[str]) -> str:
    """One of argparse's messages in our words."""
    if match := re.fullmatch(r"argument (\S+?)(?:/\S+)?: expected (?:one|at least one) argument", message):
        return f"{match[1]}: wants a value"
    if match := re.match(r"argument COMMAND: invalid choice: '(.*?)' \(choose from (.*)\)", message):
        return f"{match[1]}: no such command; there are {match[2].replace(chr(39), '')}"
    if match := re.fullmatch(r"the following arguments are required: (.*)", message):
        if match[1] == "COMMAND":
            return "no command; say run, replay, doctor or protocols (meshscope --help)"
        return f"{match[1]} is missing"
    if match := re.fullmatch(r"unrecognized arguments: (\S+).*", message, re.DOTALL):
        return _unknown(match[1], options, "")
    return message.removeprefix("argument ")


def _unknown(word: str, options: Sequence[str], command: str) -> str:
    flag = word.split("=", 1)[0]
    if not flag.startswith("-"):
        return f'"{flag}": not expected here'
    nearest = difflib.get_close_matches(flag, [o for o in options if o.startswith("--")], 1)
    return (
        f"{flag}: no such option" + (f" of {command}" if command else "") + (f"; did you mean {nearest[0]}?" if nearest else "")
    )
