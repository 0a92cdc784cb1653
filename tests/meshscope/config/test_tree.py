from __future__ import annotations

import dataclasses

import pytest

from meshscope.config import settings
from meshscope.config.tree import Config, Select


def test_the_tree_is_replaced_not_changed() -> None:
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.capture.rings = 2  # type: ignore[misc]
    other = dataclasses.replace(config, capture=dataclasses.replace(config.capture, rings=2))
    assert (config.capture.rings, other.capture.rings) == (1, 2)


@pytest.mark.parametrize("selected", [{"pids": (1,)}, {"exes": ("x",)}, {"cgroups": ("/x",)}, {"all": True}])
def test_a_selection_is_true_when_something_is_selected(selected: dict[str, object]) -> None:
    assert not Select()
    assert dataclasses.replace(Select(), **selected)  # type: ignore[arg-type]


def test_defaults_are_what_their_own_text_would_give() -> None:
    """A default that its kind refuses could not be written down in a file."""
    for setting in settings():
        if setting.default not in {"", ()}:
            assert setting.kind.parse(setting.default) == setting.default, setting.path


def test_flags_are_told_apart_and_say_what_they_want() -> None:
    flags = [setting.flag for setting in settings() if setting.flag]
    assert len(set(flags)) == len(flags)
    for setting in settings():
        if setting.flag:
            assert bool(setting.metavar) == (setting.kind.name != "switch"), setting.flag
