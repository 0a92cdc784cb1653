from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscope.config import kinds


@pytest.mark.parametrize(
    ("kind", "given_value", "value"),
    [
        (kinds.BYTES, "8MiB", 8 << 20),
        (kinds.BYTES, "64k", 64 << 10),
        (kinds.BYTES, "1.5 GiB", 3 << 29),
        (kinds.BYTES, "2MB", 2_000_000),
        (kinds.BYTES, 4096, 4096),
        (kinds.SECONDS, "200ms", 0.2),
        (kinds.SECONDS, "2m", 120.0),
        (kinds.SECONDS, 5, 5.0),
        (kinds.CPUS, "150%", 1.5),
        (kinds.RATIO, "10%", 0.1),
        (kinds.SWITCH, "on", True),
        (kinds.PIDS, ["1", "2,3"], (1, 2, 3)),
        (kinds.PIDS, 7, (7,)),
        (kinds.LIST, "a, b,", ("a", "b")),
        (kinds.ADDRESS, "[::1]:9464", "[::1]:9464"),
        (kinds.HEADERS, {"A": "b"}, (("a", "b"),)),
    ],
)
def test_values(kind: kinds.Kind, given_value: object, value: object) -> None:
    assert kind.parse(given_value) == value


@pytest.mark.parametrize(
    ("kind", "given_value"),
    [
        (kinds.BYTES, "8 miles"),
        (kinds.BYTES, True),
        (kinds.BYTES, -1),
        (kinds.SECONDS, "nan"),
        (kinds.SECONDS, float("inf")),
        (kinds.RATIO, 1.5),
        (kinds.RATIO, "101%"),
        (kinds.SWITCH, "perhaps"),
        (kinds.PIDS, "0"),
        (kinds.PIDS, 1 << 31),
        (kinds.PIDS, "x"),
        (kinds.ADDRESS, "9464"),
        (kinds.ADDRESS, ":9464"),
        (kinds.ADDRESS, "::1:9464"),
        (kinds.ADDRESS, "localhost:99999"),
        (kinds.URL, "127.0.0.1:4317"),
        (kinds.URL, "http://"),
        (kinds.HEADERS, "novalue"),
        (kinds.HEADERS, "a=b\nc"),
        (kinds.choice("a", "b"), "c"),
    ],
)
def test_refused(kind: kinds.Kind, given_value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (the caller makes the text)
        kind.parse(given_value)


@given(
    st.one_of(
        st.text(),
        st.integers(),
        st.floats(),
        st.booleans(),
        st.none(),
        st.lists(st.text()),
        st.dictionaries(st.text(), st.text()),
    )
)
def test_only_value_errors_leave_a_kind(value: Any) -> None:
    for kind in vars(kinds).values():
        if isinstance(kind, kinds.Kind):
            try:
                kind.parse(value)
            except (ValueError, OverflowError):
                continue
