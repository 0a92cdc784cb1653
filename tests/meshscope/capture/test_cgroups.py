"""Control groups as directories: found by the mount table, followed through removal and re-creation."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshscope.capture import CaptureError, cgroups
from meshscope.capture.cgroups import ControlGroup, mount_point


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hierarchy of plain files; its mount point has a space in its name."""
    made = tmp_path / "cgroup two"
    (made / "shop" / "web").mkdir(parents=True)
    (made / "shop" / "cgroup.procs").write_text("10\n0\n11\n")
    (made / "shop" / "web" / "cgroup.procs").write_text("12\n")
    (made / "shop" / "threads").mkdir()  # without the file, as if it were threaded
    mounts = tmp_path / "mounts"
    place = str(made).replace(" ", "\\040")
    mounts.write_text(f"proc /proc proc rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw 0 0\nnone {place} cgroup2 rw 0 0\n")
    monkeypatch.setattr(cgroups, "MOUNTS", mounts)
    return made


def test_mount_point(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mount_point() == root
    empty = root / "none"
    empty.write_text("proc /proc proc rw 0 0\n")
    monkeypatch.setattr(cgroups, "MOUNTS", empty)
    with pytest.raises(CaptureError, match="no cgroup v2"):
        mount_point()


@pytest.mark.parametrize("form", ["{root}/shop", "/shop", "shop"])
def test_a_group_by_any_of_its_names(root: Path, form: str) -> None:
    group = ControlGroup(form.format(root=root))
    assert group.path == root / "shop"
    assert group.ident() == (root / "shop").stat().st_ino
    assert sorted(group.members()) == [10, 11, 12]


def test_a_group_that_does_not_exist_is_told(root: Path) -> None:
    with pytest.raises(CaptureError, match="no control group /absent"):
        ControlGroup("/absent")
    assert root.exists()


def test_a_group_made_again_is_another(root: Path) -> None:
    group = ControlGroup("shop")
    (root / "shop").rename(root / "old")
    assert group.ident() is None
    assert list(group.members()) == []
    (root / "shop").mkdir()
    assert group.ident() not in {None, (root / "old").stat().st_ino}
