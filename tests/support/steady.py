"""Time as an event loop lived through it, for claims about how soon something is done.

async with steady() as clock:
    began = clock.now
    ...
    assert clock.now - began < 1.0
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_BEAT_S = 0.01
_MOST_S = 2 * _BEAT_S  # that one beat counts


class Steady:
    """Seconds, to a beat: one that comes late, because the process did not get the CPU, counts as two."""

    def __init__(self) -> None:
        self.now = 0.0

    async def beat(self) -> None:
        """Go on for ever."""
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(_BEAT_S)
            last, before = loop.time(), last
            self.now += min(last - before, _MOST_S)


@asynccontextmanager
async def steady() -> AsyncIterator[Steady]:
    """A clock that goes for as long as the block lasts."""
    clock = Steady()
    beating = asyncio.create_task(clock.beat())
    try:
        yield clock
    finally:
        beating.cancel()
        with suppress(asyncio.CancelledError):
            await beating
