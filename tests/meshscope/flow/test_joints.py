from __future__ import annotations

from meshscope.flow.joints import Joint, Joints


def joint(n: int) -> Joint:
    return ("127.0.0.1", 40_000, n, 1)


def test_either_end_may_come_first() -> None:
    joints = Joints(10)
    assert not joints.client(joint(1))
    assert joints.server(joint(1))
    assert not joints.server(joint(2))
    assert not joints.both(joint(2))
    assert joints.client(joint(2))
    assert joints.both(joint(1))
    assert joints.both(joint(2))
    assert not joints.both(joint(3))


def test_one_end_is_not_two() -> None:
    joints = Joints(10)
    joints.server(joint(1))
    assert not joints.server(joint(1))


def test_the_newest_are_remembered() -> None:
    joints = Joints(100)
    for n in range(1_000):
        joints.client(joint(n))
        assert len(joints._young) + len(joints._old) <= 100
    assert all(joints.server(joint(n)) for n in range(951, 1_000))
    assert not joints.server(joint(800))
