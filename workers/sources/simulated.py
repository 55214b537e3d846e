"""The simulated source: tokens that fall due on a schedule, whether or not anybody reads them.

The load is open: token i is due at `started_at + i / rate`, so a reader that comes late finds all that
fell due meanwhile, and a slow system shows as delay instead of as a slower clock. The text is
`relay.simulation`'s: a pure function of the seed and the token index.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from relay import simulation
from relay.errors import SourceFailed
from relay.events import Channel, Record
from relay.models import Model
from relay.requests import Simulation, StreamRequest
from workers.sources.base import Batch, Finish, Prefix

# A read is at most one record: 512 tokens of 12 bytes at the most are below MAX_PAYLOAD.
BURST_TOKENS = 512
FREE_RUN_TOKENS = 256  # a read without a schedule: about 1.5 KiB, at most 2 KiB over any text it makes
TICK_S = 0.002
_TOLERANCE = 1e-6  # of a token: a timer that fires a rounding error early has fired


class Ticker:
    """Wakes many sleepers with few timers: those due within one tick wake together.

    A timer for each token costs more than making it; and what wakes together is appended together.
    """

    def __init__(self, tick_s: float = TICK_S) -> None:
        self._tick_s = tick_s
        self._due: dict[int, list[asyncio.Future[None]]] = {}

    async def sleep(self, delay_s: float) -> None:
        """Sleep for `delay_s`, rounded up to a tick; 0 yields to the loop once."""
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        loop = asyncio.get_running_loop()
        tick = math.ceil((loop.time() + delay_s) / self._tick_s)
        sleepers = self._due.get(tick)
        if sleepers is None:
            sleepers = self._due[tick] = []
            loop.call_at(tick * self._tick_s, self._wake, tick)
        woken = loop.create_future()
        sleepers.append(woken)
        await woken

    def _wake(self, tick: int) -> None:
        for woken in self._due.pop(tick):
            if not woken.done():
                woken.set_result(None)


@dataclass(frozen=True, slots=True)
class Clock:
    """The three things a schedule needs of time; tests bring their own."""

    unix: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep


class SimulatedGeneration:
    """One running simulation. Implements `base.Generation`."""

    __slots__ = ("_clock", "_cut", "_finish", "_next", "_rate", "_seed", "_stop", "_zero")

    def __init__(
        self, request: StreamRequest, model: Model, *, clock: Clock, started_at: float, prefix: Prefix | None
    ) -> None:
        parameters = request.simulation or Simulation()
        limits = [limit for limit in (request.token_limit, model.max_tokens) if limit is not None]
        self._clock = clock
        self._seed = parameters.seed
        self._rate = parameters.tokens_per_second
        self._stop = min([parameters.tokens, *limits])
        self._next, self._cut = _after(prefix, self._seed) if prefix is not None else (0, 0)
        # Derived once: a step of the wall clock during the generation must not move the schedule.
        self._zero = clock.monotonic() - max(0.0, clock.unix() - started_at)
        if prefix is not None and self._rate:
            self._zero = clock.monotonic() - self._next / self._rate
        words = sum(len(text.split()) for text in _texts(request.chat_messages))
        self._finish = Finish(
            "length" if self._stop < parameters.tokens else "stop",
            {
                "prompt_tokens": words,
                "completion_tokens": self._stop,
                "total_tokens": words + self._stop,
            },
        )

    async def read(self) -> Batch:
        """Sleep until a token is due; all that are due by then, at most BURST_TOKENS, as one record."""
        if self._next >= self._stop:
            return Batch(finish=self._finish)
        first = self._next
        if self._rate:
            due = await self._due()
        else:
            await self._clock.sleep(0)
            due = first + FREE_RUN_TOKENS
        # Nothing below waits, so a cancelled read has taken nothing.
        self._next = last = min(due, self._stop)
        payload = simulation.text(self._seed, first, last).encode()
        if self._cut:
            payload, self._cut = payload[self._cut :], 0
        return Batch(
            [Record(Channel.CONTENT, payload)], last - first, self._finish if last == self._stop else None
        )

    def skip(self, seconds: float) -> None:
        """Move the schedule: what was not read on purpose is not late."""
        self._zero += seconds

    async def _due(self) -> int:
        """The index up to which tokens are due, once at least one is."""
        clock, rate, first = self._clock, self._rate, self._next
        delay = self._zero + first / rate - clock.monotonic()
        while True:
            # Also when it is late already: a schedule far behind must not hog the loop.
            await clock.sleep(max(0.0, delay))
            elapsed = (clock.monotonic() - self._zero) * rate  # in tokens
            if elapsed > first - _TOLERANCE:
                return min(int(elapsed + _TOLERANCE) + 1, first + BURST_TOKENS)
            delay = (first - elapsed) / rate


class SimulatedSource:
    """Makes simulations. Implements `base.Source`; holds nothing between two of them."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock(sleep=Ticker().sleep)

    def can_continue(self, prefix: Prefix, model: Model) -> bool:  # noqa: ARG002
        """Exactly, from any byte on; a simulation makes no tool calls, so it cannot have made those."""
        return not prefix.tool_calls

    @asynccontextmanager
    async def open(
        self, request: StreamRequest, model: Model, *, started_at: float, prefix: Prefix | None = None
    ) -> AsyncIterator[SimulatedGeneration]:
        """Begin at `started_at` (Unix seconds), or go on now after `prefix`.

        Raises SourceFailed (source_cannot_continue) when the prefix is not this simulation's text.
        """
        yield SimulatedGeneration(request, model, clock=self._clock, started_at=started_at, prefix=prefix)


def _after(prefix: Prefix, seed: int) -> tuple[int, int]:
    """The first token that is not whole in the prefix, and how many of its bytes are there already."""
    delivered = prefix.content.encode()
    whole = simulation.tokens_in(seed, len(delivered))
    text = simulation.text(seed, 0, whole + 1).encode()
    if prefix.tool_calls or not text.startswith(delivered):
        raise SourceFailed(
            "source_cannot_continue", "the delivered text is not this simulation's", retryable=False
        )
    return whole, len(delivered) - len(simulation.text(seed, 0, whole).encode())


def _texts(messages: list[dict[str, Any]]) -> list[str]:
    """The text of all messages: their content, or the text parts of it."""
    texts: list[str] = []
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"text": content}]
        texts += [
            part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)
        ]
    return texts
