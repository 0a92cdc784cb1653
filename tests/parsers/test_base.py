from __future__ import annotations

from parsers import base


def test_message_begins_open() -> None:
    message = base.Message(base.RESPONSES, 3, 17, 4)
    assert (message.half, message.stream, message.ts, message.offset) == (1, 3, 17, 4)
    assert (message.final, message.ending, message.end_ts, message.doubts, message.target) == (
        False,
        base.Ending.OPEN,
        0,
        (),
        None,
    )
    assert base.Message(0, 0, 0, 0).headers is not message.headers


def test_messages_and_the_like_have_no_dictionary() -> None:
    description = base.Description("GET", "200", "ok", "http", {})
    for thing in (base.Message(0, 0, 0, 0), base.Handover(None, None), description):
        assert not hasattr(thing, "__dict__")
    assert description.detail_code is None


def test_verdicts_are_ordered_from_no_to_yes() -> None:
    assert [verdict.name for verdict in sorted(base.Verdict)] == ["NO", "MAYBE", "REQUEST", "RESPONSE"]


def test_the_contract_names_every_part() -> None:
    text = base.__doc__ or ""
    for name in ("NAME", "sniff(", "feed(", "gap(", "close(", "ready(", "skip", "describe("):
        assert name in text
    for field in base.Message.__slots__:
        assert f"{field}:" in (base.Message.__doc__ or ""), field
