"""A timer that looks again soon, then less and less often."""

import asyncio
from collections.abc import Callable

FIRST_S, LAST_S = 0.004, 0.128


class Recheck:
    """At most one call of `action` is due; each waits twice as long as the one before, up to LAST_S."""

    __slots__ = ("_action", "_loop", "_timer", "_wait_s")

    def __init__(self, loop: asyncio.AbstractEventLoop, action: Callable[[], None]) -> None:
        self._loop = loop
        self._action = action
        self._timer: asyncio.TimerHandle | None = None
        self._wait_s = FIRST_S

    def later(self) -> None:
        """Have `action` called, unless that is due already."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._wait_s, self._fire)
            self._wait_s = min(self._wait_s * 2, LAST_S)

    def soon(self) -> None:
        """Something moved: the next wait is the shortest again."""
        self._wait_s = FIRST_S

    def cancel(self) -> None:
        """Forget it."""
        if self._timer is not None:
            self._timer.cancel()

    def _fire(self) -> None:
        self._timer = None
        self._action()
