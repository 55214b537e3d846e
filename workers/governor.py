"""The ladder at work on one response: looks at the readers, holds the source, tells each step.

    look      four times a second while a reader is behind, else once: observes, applies the decision
    holds     asked before each read of the source: at the window, paused, or ahead of the pace
    wait      until none of these holds any more; the pump does not read meanwhile

The window holds at once, whatever the level says; the lead is looked up only when it could have reached
it, because between two looks positions only grow.
"""

import asyncio
from collections.abc import Callable

import structlog

from relay.ladder import Decision, Kind, Ladder, Level, Observation, Step, Terms
from relay.pace import Pacer
from workers.metrics import Metrics
from workers.readers import Readers
from workers.sources.base import Generation
from workers.writer import Writer

log = structlog.get_logger("relay.worker")

# Looks at a reader that is behind, and at one that keeps up: by the watcher of the worker.
LOOK_BEHIND_S, LOOK_LIVE_S = 0.25, 1.0
BEHIND_S = 0.2
_POLL_FIRST_S, _POLL_LAST_S = 0.005, 0.25  # whoever has stood still for long has a window to read first


class Governor:
    """One response's ladder with its hands on the source. `tell` writes a notice of a step."""

    def __init__(
        self,
        response_id: str,
        readers: Readers,
        writer: Writer,
        terms: Terms,
        metrics: Metrics,
        *,
        tell: Callable[[Step], None],
        abandon: Callable[[], None],
    ) -> None:
        self._response_id = response_id
        self._readers = readers
        self._writer = writer
        self._terms = terms
        self._metrics = metrics
        self._tell = tell
        self._abandon = abandon
        self._loop = asyncio.get_running_loop()
        self._ladder = Ladder(terms)
        self._pacer = Pacer()
        self._decision = Decision(Level.LIVE, terms.flush_s)
        self._look_at = 0.0
        self._tokens = self._bytes = 0
        self._is_over = False
        self.is_shortened = False

    @property
    def level(self) -> Level:
        """The level, for the status."""
        return self._decision.level

    @property
    def is_paused(self) -> bool:
        """Whether the source stands for longer than flow control takes."""
        return self._decision.level is Level.PAUSE

    def spent(self, tokens: int, size_bytes: int) -> None:
        """So much was read of the source."""
        self._tokens += tokens
        self._bytes += size_bytes
        if self._decision.rate_bytes_per_s is not None:
            self._pacer.spend(size_bytes)

    # --- looking

    @property
    def is_due(self) -> bool:
        """Whether the watcher should look now: it comes every LOOK_BEHIND_S, and the nearest time counts."""
        return not self._is_over and self._loop.time() >= self._look_at - LOOK_BEHIND_S / 2

    async def look(self) -> None:
        """Look at the readers and do what the ladder decides. Never raises a RelayError."""
        asked_at = self._loop.time()
        if not await self._readers.look() or self._writer.is_refused:
            return  # Redis is away, or takes nothing: nobody is slow
        if self._is_over:
            return  # a notice would come after the last record
        readers = self._readers
        sojourn_s = readers.sojourn_s
        seen = Observation(
            # Watched time, in which an outage of Redis does not pass.
            now_s=readers.watched_s,
            lead_bytes=readers.lead,
            sojourn_s=sojourn_s,
            confirmed_bytes=readers.confirmed,
            has_live_consumer=readers.has_live,
            bytes_per_token=self._bytes / self._tokens if self._tokens else 6.0,
        )
        self._apply(self._ladder.observe(seen))
        is_behind = self.level is not Level.LIVE or sojourn_s >= BEHIND_S or not readers.has_live
        self._look_at = asked_at + (LOOK_BEHIND_S if is_behind else LOOK_LIVE_S)

    def _apply(self, decision: Decision) -> None:
        self._decision = decision
        self._writer.flush_s = decision.flush_s
        self._metrics.pauses(id(self), is_paused=self.is_paused)
        for step in decision.steps:
            self._metrics.steps[step.kind] += 1
            log.info(
                "step",
                response=self._response_id,
                kind=step.kind,
                ladder=int(step.level),
                reason=step.reason,
            )
            if step.kind is not Kind.CANCELLED:
                self._tell(step)
        if decision.end == "abandon":
            self._abandon()
        self.is_shortened = decision.end == "shorten"

    # --- holding

    @property
    def holds(self) -> bool:
        """Whether the source may not be read now, as far as is known without a look."""
        return (
            self._is_full
            or self._decision.is_paused
            or (self._decision.rate_bytes_per_s is not None and self._pace_s() > 0.0)
        )

    async def wait(self, generation: Generation) -> None:
        """Return when the source may be read, or the answer is to be shortened. Bounded by the ladder."""
        started = at = self._loop.time()
        poll_s, before, held_by = _POLL_FIRST_S, self._readers.confirmed, "window"
        try:
            while not self.is_shortened:
                cause, wait_s = await self._hold()
                if cause is None:
                    return
                held_by = cause
                # For how long the pace holds is known; a window is over when a look says so.
                await asyncio.sleep(min(wait_s, _POLL_LAST_S if cause == "pace" else poll_s))
                now = self._loop.time()
                self._metrics.throttled_s[held_by] += now - at
                at = now
                confirmed = self._readers.confirmed
                poll_s = _POLL_FIRST_S if confirmed > before else min(poll_s * 2, _POLL_LAST_S)
                before = confirmed
        finally:
            now = self._loop.time()
            self._metrics.throttled_s[held_by] += now - at
            generation.skip(now - started)

    async def _hold(self) -> tuple[str | None, float]:
        """What holds the source now, and for how long at most."""
        if self._terms.background:
            return ("memory", 1.0) if self._is_full else (None, 0.0)
        if self._is_full or self._decision.is_paused:
            await self.look()
            if self._is_full or self._decision.is_paused:
                return ("memory" if self._writer.is_refused else "window"), 1.0
        wait_s = self._pace_s()
        return ("pace", wait_s) if wait_s > 0.0 else (None, 0.0)

    @property
    def _is_full(self) -> bool:
        # A response in the background is held by no reader, only by a Redis that does not take it.
        lead = self._writer.produced - self._writer.head if self._terms.background else self._readers.lead
        return lead >= self._terms.window_bytes

    def _pace_s(self) -> float:
        return self._pacer.wait_s(self._loop.time(), self._decision.rate_bytes_per_s)

    def end(self) -> None:
        """The generation is over: it is paused no more, and there is nothing more to tell."""
        self._is_over = True
        self._tell = self._abandon = _nobody  # they hold us as we hold them
        self._metrics.pauses(id(self), is_paused=False)
        self._decision = Decision(Level.LIVE, self._terms.flush_s)


def _nobody(*_: object) -> None:
    """Who is told when it is over."""
