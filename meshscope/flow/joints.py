"""Which exchanges are watched at both ends: each end leaves the joint key and looks whether the other did."""

from __future__ import annotations

from typing import Final

Joint = tuple[str | bytes, int, int, int]  # see Exchange.joint

_CLIENT: Final = 1
_SERVER: Final = 2
_BOTH: Final = 3


class Joints:
    """The newest joint keys, `bound` / 2 to `bound` of them, in two generations.

    The other end shows within a millisecond as a rule; the older generation is dropped whole when the younger is full,
    which costs nothing per key.
    """

    def __init__(self, bound: int) -> None:
        self._half = max(bound // 2, 1)
        self._young: dict[Joint, int] = {}
        self._old: dict[Joint, int] = {}

    def client(self, joint: Joint) -> bool:
        """A client end is here. True if its server end was, before."""
        return self._leave(joint, _CLIENT)

    def server(self, joint: Joint) -> bool:
        """A server end is here. True if its client end was, before."""
        return self._leave(joint, _SERVER)

    def both(self, joint: Joint) -> bool:
        """True if both ends were here by now."""
        return self._young.get(joint) == _BOTH or self._old.get(joint) == _BOTH

    def _leave(self, joint: Joint, end: int) -> bool:
        where = self._old if joint in self._old else self._young
        seen = where.get(joint)
        if seen is None:
            if len(where) >= self._half:
                self._old, self._young = where, {}
                where = self._young
            where[joint] = end
            return False
        where[joint] = seen = seen | end
        return seen == _BOTH
