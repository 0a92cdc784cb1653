"""Any input at all: nothing raises, nothing that a terminal could choke on passes, one pass is enough, time is linear."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscope.redact import KEPT_HEADERS, REDACTED, Redactor, kept, target, value
from parsers.base import REQUESTS
from tests.meshscope.planted import EVERY_HEADER, SECRETS, message

PIECES = st.sampled_from(
    [
        *SECRETS.values(),
        REDACTED,
        "REDACTE",
        *"/?&;=#@:%+. -_~\"'{},<>1aZé",
        "://",
        "%40",
        "%25",
        "%3D",
        "token",
        "basic ",
        "12345678",
    ]
)
TEXT = st.one_of(
    st.text(), st.lists(PIECES, max_size=20).map("".join), st.lists(st.one_of(PIECES, st.text(max_size=3))).map("".join)
)


def harmless_to_print(text: str) -> bool:
    return all(unicodedata.category(letter) not in {"Cc", "Cs", "Zl", "Zp"} for letter in text)


@given(TEXT, st.booleans())
def test_any_target_is_taken_printable_and_final_after_one_pass(text: str, raw: bool) -> None:
    done = target(text, raw_path=raw)
    assert harmless_to_print(done)
    assert target(done, raw_path=raw) == done


@given(TEXT)
def test_any_header_value_is_taken_printable_and_final_after_one_pass(text: str) -> None:
    done = value(text)
    assert harmless_to_print(done)
    assert len(done) <= 1024
    assert value(done) == done


@given(TEXT, st.dictionaries(st.sampled_from([*KEPT_HEADERS, *EVERY_HEADER, "x-other"]), TEXT))
def test_any_message_is_taken(text: str, headers: dict[str, str]) -> None:
    redact = Redactor()
    done = message(REQUESTS, text)
    done.headers = dict(headers)
    redact(done)
    assert done.target is not None
    assert harmless_to_print(done.target)
    assert all(kept(name) and harmless_to_print(text) for name, text in done.headers.items())
    once = (done.target, dict(done.headers))
    Redactor()(done)
    assert (done.target, done.headers) == once


@given(st.sampled_from(sorted(SECRETS.values())), st.text("abcxyz-/", max_size=12), st.text("abcxyz-/", max_size=12))
def test_a_secret_between_words_never_passes(planted: str, before: str, after: str) -> None:
    assert planted not in target(f"/{before}/{planted}/{after}")
    assert planted not in target(f"/{before}?q={planted}&{after}")


HOSTILE = {
    "eyJ": "eyJ",
    "eyJ.": "eyJhbGciOi.",
    "at": "a@",
    "no_at": "a",
    "encoded_at": "a%4",
    "encoded_equals": "a%3D",
    "digits": "12345678 ",
    "digits_dashes": "1--",
    "mixed": "aB1-",
    "short_mixed": "aaaaaaaaaaaaaa1-",
    "spaces": "basic ",
    "space": "basic" + " " * 50,
    "digest": "digest ",
    "assigned": "token=",
    "quotes": "token='",
    "nested": "a=",
    "pairs": "&a=b",
    "segments": "/a",
    "harmless": "/abc/12345678",
    "schemes": "a://",
    "percent": "%25",
    "percents": "%",
    "semicolons": ";a",
    "controls": "\x00",
    "redacted": "REDACTED",
    "equals": "=",
    "prefix": "sk_",
    "uuid": "123e4567-e89b-",
}


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("end", ["", "\n", " !", "@"])
def test_time_is_linear_in_the_length_of_hostile_input(unit: str, end: str) -> None:
    """Sixteen times the input takes about sixteen times as long; were it quadratic, 256 times."""

    def cost(size: int) -> float:
        text = unit * (size // len(unit)) + end
        best = float("inf")
        for _ in range(3):
            start = time.thread_time_ns()
            target("/" + text)
            target("/?" + text)
            target(text)
            value(text)
            best = min(best, time.thread_time_ns() - start)
        return best

    small, large = cost(2_000), cost(32_000)
    assert large / max(small, 100_000) < 80
