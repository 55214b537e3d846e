"""One generation: a source read into a journal, no faster than its readers can follow.

The lead is what has been produced less what the pacing consumer has confirmed, or less what Redis has
where nobody paces. `governor` holds the source by it; this reads, counts, and ends.
"""

import asyncio
import hashlib
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any

from relay import scripts
from relay.errors import Gap, RelayError, Unavailable
from relay.events import Channel, Record, encode, event
from relay.journal import Journal
from relay.ladder import Kind, Level, Step, Terms
from relay.lifecycle import FinishReason, Status
from relay.requests import StreamRequest
from relay.settings import Settings
from workers.governor import Governor
from workers.metrics import Metrics
from workers.pacemaker import Pacemaker
from workers.readers import Readers
from workers.sources.base import Batch, Finish, Generation, Prefix
from workers.writer import Writer

# An answer that is cut goes on to the end of its sentence, for so many bytes and seconds at most.
SENTENCE_BYTES, SENTENCE_WITHIN_S = 1024, 1.0
CLOSE_RETRY_S = 0.25
_SENTENCE_END = re.compile(rb"(?:[.!?]|\xe3\x80\x82|\xef\xbc\x81|\xef\xbc\x9f)[\"')\]]*(?=\s|$)")


class Pump:
    """Reads a generation into a writer. `stop` ends it from outside: cancelled, abandoned, lost."""

    def __init__(
        self,
        *,
        journal: Journal,
        claimed: scripts.Claimed,
        request: StreamRequest | None,
        settings: Settings,
        metrics: Metrics,
        server_time: Callable[[], float],
    ) -> None:
        self._journal = journal
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
        self.text_bytes = 0  # of its content
        self._tail = b""  # the last bytes of the content
        self.tokens = 0  # of the whole response
        self._tokens_most = _asked(request)
        terms = _terms(settings, request)
        readers = Readers(journal, self.writer, _pacemaker(terms, request))
        self.writer.on_append = readers.grew
        self.governor = Governor(
            journal.id,
            readers,
            self.writer,
            terms,
            metrics,
            tell=self._tell,
            abandon=lambda: self.stop("abandoned"),
        )
        self._is_fresh = claimed.head == 0
        self._stop_scope: asyncio.Timeout | None = None
        self.stopped: str | RelayError | None = None

    # --- what the worker calls

    def resume_after(self, prefix: Prefix) -> None:
        """Take up the digest and the count of what an earlier worker delivered."""
        self._count(prefix.content.encode())
        self.tokens = prefix.tokens

    def start(self, data: dict[str, Any], notices: list[dict[str, Any]]) -> None:
        """The first record of a response, and what admission has to tell."""
        told = [event(Channel.NOTICE, notice) for notice in notices]
        self.writer.feed([event(Channel.START, data), *told])

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
            self.governor.end()

    def stop(self, reason: str | RelayError) -> None:
        """End the generation at once; the first reason counts. Safe from any callback."""
        if self.stopped is None:
            self.stopped = reason
            if self._stop_scope is not None:
                self._stop_scope.reschedule(self._loop.time())

    async def finish(self, status: Status, last: Record, **fields: str | int) -> None:
        """Append the terminal record and close. Raises Fenced or StreamLost.

        Waits for Redis for as long as the writer does: the text is whole, and given up it might be lost to
        a source that cannot say it again. A worker that drains ends the wait.
        """
        while True:
            rest = await self.writer.drain_to_close()
            try:
                head = await scripts.close_response(
                    self._journal.wire,
                    self._journal.keys,
                    epoch=self.writer.epoch,
                    base=self.writer.head,
                    data=rest + encode(last),
                    retention_s=self._settings.retention_s,
                    fields={"status": status, "level": 0, "text_bytes": self.text_bytes, **fields},
                )
            except Gap as gap:
                self.writer.go_back(gap.head)
            except Unavailable:
                await asyncio.sleep(CLOSE_RETRY_S)
            else:
                self._metrics.journal_fill.observe(head / self._settings.max_response_bytes)
                with suppress(RelayError):
                    entries = await self._journal.wire.call("XLEN", self._journal.keys.log)
                    self._metrics.stream_entries.observe(entries)
                return

    def summary(self, finish: Finish) -> dict[str, Any]:
        """The data of the `done` event."""
        return {
            "finish_reason": finish.reason,
            "text_bytes": self.text_bytes,
            "sha256": self._digest.hexdigest(),
            "usage": finish.usage or {},
        }

    # --- the pumping

    async def _run(self, generation: Generation) -> Finish:
        first = self._is_fresh
        while True:
            if self.governor.holds:
                await self.governor.wait(generation)
                if self.governor.is_shortened:
                    return await self._shorten(generation)
            batch = await generation.read()
            # The start went when the job was claimed: the first token does not wait for a flush after it.
            self._take(batch, at_once=first)
            if first and batch.records:
                first = False
                self._metrics.first_token_s.observe(max(0.0, self._server_time() - self._created_at))
            if batch.finish is not None:
                return batch.finish
            if self.writer.produced >= self._settings.max_response_bytes:
                self._tell(Step(Kind.SHORTENED, Level.SHORTEN, "the response has reached its largest size"))
                return Finish(FinishReason.LENGTH)

    async def _shorten(self, generation: Generation) -> Finish:
        """Read on to the end of the sentence, cut there, end well; leaving cancels the upstream."""
        room = SENTENCE_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(SENTENCE_WITHIN_S):
                while room > 0 and not _SENTENCE_END.search(self._tail[-2:]):
                    batch = await generation.read()
                    room -= sum(len(record.payload) for record in batch.records)
                    cut = _cut(batch.records)
                    self._take(Batch(cut or batch.records, batch.tokens))
                    if cut or batch.finish is not None:
                        break
        self.saved("shorten")
        return Finish(FinishReason.LENGTH)

    def saved(self, reason: str) -> None:
        """Count the tokens that were asked for and need not be generated, where the request told a limit."""
        self._metrics.saved[reason] += max(0, self._tokens_most - self.tokens)

    def _take(self, batch: Batch, *, at_once: bool = False) -> None:
        for channel, payload in batch.records:
            if channel is Channel.CONTENT:
                self._count(payload)
        self._metrics.tokens += batch.tokens
        self.tokens += batch.tokens
        self.governor.spent(batch.tokens, sum(len(record.payload) + 1 for record in batch.records))
        self.writer.feed(batch.records, at_once=at_once)

    def _tell(self, step: Step) -> None:
        notice = {"kind": step.kind, "level": int(step.level), "reason": step.reason}
        self.writer.feed([event(Channel.NOTICE, notice)])

    def _count(self, content: bytes) -> None:
        self._digest.update(content)
        self.text_bytes += len(content)
        self._tail = content[-8:] if len(content) >= 8 else (self._tail + content)[-8:]


def _terms(settings: Settings, request: StreamRequest | None) -> Terms:
    """The deployment's terms with what the request asked for."""
    window = (request and request.window_bytes) or settings.window_bytes
    return Terms(
        window_bytes=min(window, settings.max_response_bytes),
        flush_s=settings.flush_ms / 1000,
        pause_max_s=settings.pause_max_s,
        abandon_after_s=settings.abandon_after_s,
        background=request is not None and request.background,
    )


def _pacemaker(terms: Terms, request: StreamRequest | None) -> Pacemaker:
    pace = request.pace if request is not None else "fastest"
    # Half the pause: before the ladder ends the answer for everyone.
    return Pacemaker(pace, window_bytes=terms.window_bytes, patience_s=terms.pause_max_s / 2)


def _asked(request: StreamRequest | None) -> int:
    """How many tokens the request may take, 0 when it does not say."""
    if request is None:
        return 0
    limits = [request.token_limit, request.simulation and request.simulation.tokens]
    return min((limit for limit in limits if limit), default=0)


def _cut(records: list[Record]) -> list[Record]:
    """The records up to the first end of a sentence, without what follows it; empty when there is none."""
    for index, (channel, payload) in enumerate(records):
        if channel is Channel.CONTENT and (end := _SENTENCE_END.search(payload)):
            return [*records[:index], Record(channel, payload[: end.end()])]
    return []
