"""One generation: a source read into a journal, no faster than its readers can follow.

The lead is what has been produced less what the pacing consumer has confirmed, or less what Redis has
where nobody paces. At the window the source is not read any more, and read again at half of it. The lead
is looked up only when it could have reached the window: between two looks positions only grow, so the
last one bounds it.
"""

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from typing import Any

from relay import scripts
from relay.errors import Gap, RelayError, Unavailable
from relay.events import Channel, Record, encode, event
from relay.journal import Journal
from relay.lifecycle import FinishReason, Status
from relay.requests import StreamRequest
from relay.settings import Settings
from workers.metrics import Metrics
from workers.sources.base import Batch, Finish, Generation
from workers.writer import Writer

# A consumer whose connection was not heard of for this long does not count: nodes sweep every second.
LIVE_MS = 5000
# A pause shorter than this is flow control, not something to tell anybody about.
NOTICE_AFTER_S = 0.5
_POLL_FIRST_S, _POLL_LAST_S = 0.005, 0.1


@dataclass(frozen=True, slots=True)
class Terms:
    """What was agreed for this response, in bytes and seconds."""

    window_bytes: int
    max_bytes: int
    background: bool
    pause_max_s: float
    abandon_after_s: float

    @classmethod
    def of(cls, settings: Settings, request: StreamRequest | None) -> "Terms":
        """The deployment's terms with what the request asked for."""
        window = (request and request.window_bytes) or settings.window_bytes
        return cls(
            window_bytes=min(window, settings.max_response_bytes),
            max_bytes=settings.max_response_bytes,
            background=request is not None and request.background,
            pause_max_s=settings.pause_max_s,
            abandon_after_s=settings.abandon_after_s,
        )


class Pump:
    """Reads a generation into a writer. `stop` ends it from outside: cancelled, abandoned, lost."""

    def __init__(
        self,
        *,
        journal: Journal,
        claimed: scripts.Claimed,
        terms: Terms,
        settings: Settings,
        metrics: Metrics,
        server_time: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._terms = terms
        self._settings = settings
        self._metrics = metrics
        self._server_time = server_time
        self._loop = asyncio.get_running_loop()
        self._created_at = claimed.created_at
        self.writer = Writer(
            journal,
            epoch=claimed.epoch,
            head=claimed.head,
            cap=settings.log_entries,
            retention_s=settings.retention_s,
            flush_s=settings.flush_ms / 1000,
            metrics=metrics,
            on_stop=self.stop,
        )
        self._digest = hashlib.sha256()
        self._text_bytes = 0
        self._confirmed = 0  # of the pacing consumer, as last seen
        self._has_live = False
        # Time in which readers could be seen: while Redis is away, nobody is slow or gone.
        self._watched_s = 0.0
        self._heard_s = 0.0  # the watched time at which a live consumer was last seen
        self._looked_at = self._loop.time()
        self._reconnects = journal.wire.reconnects  # at the last look
        self._is_fresh = claimed.head == 0
        self._stop_scope: asyncio.Timeout | None = None
        self.stopped: str | RelayError | None = None
        self.paused = False

    # --- what the worker calls

    def resume_after(self, content: bytes) -> None:
        """Take up the digest of what an earlier worker delivered."""
        self._count(content)

    def start(self, data: dict[str, Any]) -> None:
        """The first record of a response."""
        self.writer.feed([event(Channel.START, data)])

    async def run(self, opening: AbstractAsyncContextManager[Generation]) -> Finish | None:
        """Open the source and pump until it finishes. None when `stop` was called: see `stopped`.

        Raises SourceFailed.
        """
        try:
            async with asyncio.timeout(None) as self._stop_scope:
                if self.stopped is not None:
                    return None
                # Inside: an upstream that has not answered yet must not keep a cancel waiting.
                async with opening as generation:
                    return await self._run(generation)
        except TimeoutError:
            if self.stopped is None:
                raise
            return None
        finally:
            self._stop_scope = None

    def stop(self, reason: str | RelayError) -> None:
        """End the generation at once; the first reason counts. Safe from any callback."""
        if self.stopped is None:
            self.stopped = reason
            if self._stop_scope is not None:
                self._stop_scope.reschedule(self._loop.time())

    async def finish(self, status: Status, last: Record, **fields: str | int) -> None:
        """Append the terminal record and close. Raises Fenced, StreamLost or Unavailable."""
        await self.writer.drain()
        for _attempt in range(20):
            try:
                await scripts.close_response(
                    self._journal.wire,
                    self._journal.keys,
                    epoch=self.writer.epoch,
                    base=self.writer.head,
                    data=encode(last),
                    retention_s=self._settings.retention_s,
                    fields={"status": status, "level": 0, "text_bytes": self._text_bytes, **fields},
                )
            except Gap as gap:
                self.writer.go_back(gap.head)
                await self.writer.drain()
            except Unavailable:
                await asyncio.sleep(0.25)
            else:
                with suppress(RelayError):
                    entries = await self._journal.wire.call("XLEN", self._journal.keys.log)
                    self._metrics.stream_entries.observe(entries)
                return
        raise Unavailable("Redis could not be reached to close the response")

    def summary(self, finish: Finish) -> dict[str, Any]:
        """The data of the `done` event."""
        return {
            "finish_reason": finish.reason,
            "text_bytes": self._text_bytes,
            "sha256": self._digest.hexdigest(),
            "usage": finish.usage or {},
        }

    # --- the pumping

    async def _run(self, generation: Generation) -> Finish:
        first = self._is_fresh
        while True:
            if self._is_far_ahead() and (finish := await self._wait_for_room(generation)):
                return finish
            batch = await generation.read()
            self._take(batch)
            if first and batch.records:
                first = False
                self._metrics.first_token_s.observe(max(0.0, self._server_time() - self._created_at))
            if batch.finish is not None:
                return batch.finish
            if self.writer.produced >= self._terms.max_bytes:
                self._notice("shortened", 4, "the response has reached its largest size")
                return Finish(FinishReason.LENGTH)

    def _take(self, batch: Batch) -> None:
        for channel, payload in batch.records:
            if channel is Channel.CONTENT:
                self._count(payload)
        self._metrics.tokens += batch.tokens
        self.writer.feed(batch.records)

    async def _wait_for_room(self, generation: Generation) -> Finish | None:
        """Wait until the lead is under the window; under half of it once the source has been paused.

        Readers have `pause_max_s` to catch up: past it, with a live one, the answer ends here, well-formed.
        While Redis takes nothing (away, at maxmemory) that is nobody's fault, and the wait ends by `stop`.
        """
        if await self._lead() < self._terms.window_bytes:
            return None
        started = at = self._loop.time()
        watched_s, before, poll_s = self._watched_s, self._confirmed, _POLL_FIRST_S
        slow_s = refused_s = 0.0
        try:
            while await self._lead() > self._terms.window_bytes // 2:
                now = self._loop.time()
                if self.writer.is_refused:
                    refused_s += now - at
                else:
                    slow_s += self._watched_s - watched_s
                at, watched_s = now, self._watched_s
                if now - started > NOTICE_AFTER_S and not self.paused:
                    self._pause()
                if slow_s > self._terms.pause_max_s and self._has_live and not self._terms.background:
                    self._notice("shortened", 4, f"no reader kept up for {self._terms.pause_max_s:g} s")
                    return Finish(FinishReason.LENGTH)
                await asyncio.sleep(poll_s)
                poll_s = _POLL_FIRST_S if self._confirmed > before else min(poll_s * 2, _POLL_LAST_S)
                before = self._confirmed
        finally:
            waited = self._loop.time() - started
            self._metrics.throttled_s["memory"] += refused_s
            self._metrics.throttled_s["window"] += waited - refused_s
            generation.skip(waited)
            self._resume()
        return None

    def _pause(self) -> None:
        self.paused = True
        self._metrics.paused += 1
        reason = "Redis takes no text" if self.writer.is_refused else "the reader is a whole window behind"
        self._notice("paused", 3, reason)

    def _resume(self) -> None:
        if self.paused:
            self.paused = False
            self._metrics.paused -= 1
            if self.stopped is None:
                self._notice("resumed", 0, "there is room for half of the window again")

    def _notice(self, kind: str, level: int, reason: str) -> None:
        self._metrics.steps[kind] += 1
        self.writer.feed([event(Channel.NOTICE, {"kind": kind, "level": level, "reason": reason})])

    # --- who reads

    async def _lead(self) -> int:
        """How far the text is ahead, in bytes: of the pacing consumer, looked up, or else of Redis."""
        if self._terms.background:
            return self.writer.produced - self.writer.head
        await self.look()
        return self.writer.produced - self._confirmed

    async def look(self) -> None:
        """Take note of the readers: the best live one paces. Without any, the last one's place holds."""
        try:
            consumers = await self._journal.consumers(self.writer.start_of)
        except RelayError:
            self._looked_at = self._loop.time()
            return  # no news from Redis is no room
        now, reconnects = self._loop.time(), self._journal.wire.reconnects
        if reconnects == self._reconnects:
            self._watched_s += now - self._looked_at
        self._looked_at, self._reconnects = now, reconnects
        live = [c.position for c in consumers if c.idle_ms is not None and c.idle_ms < LIVE_MS]
        self._has_live = bool(live)
        if live:
            self._heard_s = self._watched_s
            self._confirmed = max(live)
        elif consumers:
            self._confirmed = max(self._confirmed, *(c.position for c in consumers))
        if not self._terms.background and self._watched_s - self._heard_s > self._terms.abandon_after_s:
            self.stop("abandoned")

    def _is_far_ahead(self) -> bool:
        behind = self.writer.head if self._terms.background else self._confirmed
        return self.writer.produced - behind >= self._terms.window_bytes

    def _count(self, content: bytes) -> None:
        self._digest.update(content)
        self._text_bytes += len(content)
