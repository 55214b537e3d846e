"""An event loop without time: everything happens when a test says so."""

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from typing import Any, cast


class Timer:
    """What `call_later` gives."""

    def __init__(self, at: float, callback: Callable[[], object]) -> None:
        self.at = at
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        """Do not fire."""
        self.cancelled = True


class FakeLoop:
    """As much of an event loop as futures and timers need. An error in a callback is the test's."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._soon: deque[tuple[Callable[..., object], tuple[object, ...]]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def time(self) -> float:
        """Seconds, as the test has set them."""
        return self.now

    def get_debug(self) -> bool:
        """Futures ask."""
        return False

    def call_soon(self, callback: Callable[..., object], *args: object, **_: object) -> None:
        """In the order of the calls, when `run` comes to it."""
        self._soon.append((callback, args))

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """When `advance` passes it."""
        timer = Timer(self.now + delay, callback)
        heapq.heappush(self._timers, (timer.at, next(self._order), timer))
        return timer

    def create_future(self) -> "asyncio.Future[Any]":
        """A future of this loop."""
        return asyncio.Future(loop=cast("asyncio.AbstractEventLoop", self))

    def run(self) -> None:
        """Everything that is due now."""
        while self._soon:
            callback, args = self._soon.popleft()
            callback(*args)

    def advance(self, seconds: float) -> None:
        """Let time pass, timer by timer."""
        until = self.now + seconds
        self.run()
        while self._timers and self._timers[0][0] <= until:
            self.now, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                timer.callback()
            self.run()
        self.now = until

    @property
    def timers(self) -> int:
        """Those that will fire."""
        return sum(not timer.cancelled for _, _, timer in self._timers)
