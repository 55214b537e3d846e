"""Whose position paces a response, of all who read it. Pure: time and positions in, one position out.

fastest   the reader that is furthest: one that is frozen stops nobody
slowest   the one that is least far, with patience: one that holds the source and takes next to nothing
          for `patience_s` has no say any more, until it takes something again
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from relay.ladder import LEAST_TOKENS_PER_S

BYTES_PER_TOKEN = 6.0


class _Mark(NamedTuple):
    """Since when a reader holds the source, and from where on it is to have moved."""

    at_s: float
    offset: int


class Pacemaker:
    """The choice for one response. Remembers one mark of each reader that holds the source."""

    def __init__(self, pace: Literal["fastest", "slowest"], *, window_bytes: int, patience_s: float) -> None:
        self._waits = pace == "slowest"
        self._window_bytes = window_bytes
        self._patience_s = patience_s
        # By the same measure the ladder ends a pause, after twice the time.
        self._least_bytes = max(1.0, LEAST_TOKENS_PER_S * BYTES_PER_TOKEN * patience_s)
        self._marks: dict[str, _Mark] = {}

    def choose(self, now_s: float, produced: int, live: Mapping[str, int]) -> int:
        """The pacing position among `live` readers, by name, of which there is at least one."""
        front = max(live.values())
        if not self._waits:
            return front
        self._marks = {
            name: self._mark(name, offset, now_s)
            for name, offset in live.items()
            if offset < front and produced - offset >= self._window_bytes
        }
        return min(offset for name, offset in live.items() if self._has_say(name, now_s))

    def _has_say(self, name: str, now_s: float) -> bool:
        mark = self._marks.get(name)
        return mark is None or now_s - mark.at_s < self._patience_s

    def _mark(self, name: str, offset: int, now_s: float) -> _Mark:
        mark = self._marks.get(name)
        if mark is None or offset - mark.offset >= self._least_bytes:
            return _Mark(now_s, offset)
        return mark
