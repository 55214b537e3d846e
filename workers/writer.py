"""Gathers records and appends them to a journal, self-clocked.

While one append is in flight new records gather; when its reply comes they leave as one entry, merged.
The first goes at once, and so does what is fed with `at_once`; after that there is a floor on the
interval, unless a whole entry's worth has gathered. The last entries are kept until they are old enough:
a server that failed over and lost writes answers GAP, and they are sent again, the same bytes at the same
offsets.

No task of its own: the replies drive it. What gathers is bounded by whoever feeds it, who sees how far
`produced` is ahead of `head`.
"""

import asyncio
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable

from relay import scripts
from relay.errors import (
    ConnectionLost,
    Fenced,
    Gap,
    OutOfMemory,
    Refused,
    RelayError,
    StreamLost,
    Unavailable,
)
from relay.events import MAX_PAYLOAD, PIECE, TEXT, Placed, Record, encode, fit, merge
from relay.journal import Journal
from relay.link import Reply
from workers.metrics import Metrics

# Kept for a resend: what an asynchronous replica may lack after a failover, about a second's worth.
KEPT_BYTES = 262_144
KEPT_ENTRIES = 1024
BUSY_FACTOR, BUSY_MAX_S = 3.0, 0.06
_RETRY_FIRST_S, _RETRY_LAST_S = 0.05, 1.0


class Writer:
    """Appends to one response under one epoch.

    `on_stop` is called once, from a reply: with "cancelled" when somebody wants the generation to stop,
    or with the error (Fenced, StreamLost, WireProtocol) that ends this writer.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        epoch: int,
        head: int,
        cap: int,
        retention_s: int,
        flush_s: float,
        metrics: Metrics,
        on_stop: Callable[["str | RelayError"], None],
    ) -> None:
        self._journal = journal
        self.epoch = epoch
        self.head = head  # what Redis has
        self._end = head  # what is encoded; the rest is still gathered
        self._append = scripts.AppendCommand(
            journal.wire, journal.keys, epoch=epoch, cap=cap, retention_s=retention_s
        )
        self.flush_s = flush_s
        self._metrics = metrics
        self._on_stop = on_stop
        self._loop = asyncio.get_running_loop()
        self._gathered: list[Record] = []
        self._gathered_bytes = 0
        self._kept: deque[tuple[int, bytes]] = deque()  # (end, bytes) of entries, sent and unsent
        self._kept_bytes = 0
        self._sent_at = -1e9
        self._at_once = False
        self._inflight = False
        self._timer: asyncio.TimerHandle | None = None
        self._round_trip_s = 0.0  # moving average of an append
        self._retry_s = _RETRY_FIRST_S
        self._retrying = False  # the timer is a retry's: nothing is sent before it fires
        self.is_refused = False  # Redis did not take the last append: it is away, or at maxmemory
        self._is_full = False  # the latter
        self._drained: asyncio.Future[None] | None = None
        self.ended: RelayError | None = None
        self.on_append: Callable[[int], None] = _nobody

    @property
    def sent_at(self) -> float:
        """When the last append left, by the loop's clock."""
        return self._sent_at

    @property
    def produced(self) -> int:
        """The offset up to which there is text, gathered text included (headers not yet counted)."""
        return self._end + self._gathered_bytes

    def feed(self, records: Iterable[Record], *, at_once: bool = False) -> None:
        """Take records, each at most MAX_PAYLOAD; they leave when the clock allows.

        `at_once`: with the next append, however soon after the last one.
        """
        self._at_once = at_once or self._at_once
        for record in records:
            self._gathered.append(record)
            self._gathered_bytes += len(record.payload) + 1
        self._kick()

    async def drain(self) -> None:
        """Wait until everything fed is in Redis. Raises what ended the writer."""
        while self._gathered or self.head < self._end:
            await self._more()
        if self.ended is not None:
            raise self.ended

    async def drain_to_close(self) -> bytes:
        """The same; but a Redis at maxmemory, which takes no append, takes an end: what is to go with that.

        Bounded: of a source that is not read while Redis refuses, it is a window at most.
        """
        while (self._gathered or self.head < self._end) and (self._inflight or not self._is_full):
            await self._more()
        if self.ended is not None:
            raise self.ended
        while self._gathered:
            self._encode()
        return b"".join(data for end, data in self._kept if end > self.head)

    async def _more(self) -> None:
        if self.ended is not None:
            raise self.ended
        self._drained = self._loop.create_future()
        self._kick(now=True)
        await self._drained

    def stop(self) -> None:
        """Let go of the timer, of what was kept and of those who are called: nothing is sent any more."""
        self.ended = self.ended or Fenced("this writer was stopped")
        if self._timer is not None:
            self._timer.cancel()
        self._wake()
        # They hold us as we hold them, and what goes round is freed by the collector alone, much later.
        self._on_stop = self.on_append = _nobody
        self._kept.clear()
        self._kept_bytes = 0

    def entry(self, end: int) -> bytes | None:
        """The entry that ends at `end`, if this writer still has it."""
        index = bisect_left(self._kept, end, key=lambda entry: entry[0])
        if index < len(self._kept) and self._kept[index][0] == end:
            return self._kept[index][1]
        return None

    def start_of(self, end: int) -> int | None:
        """Where the entry that ends at `end` starts, if this writer still has it."""
        data = self.entry(end)
        return None if data is None else end - len(data)

    def go_back(self, head: int) -> None:
        """Redis has less than it acknowledged: go on from there, if an entry that is kept starts there."""
        first = self._kept[0][0] - len(self._kept[0][1]) if self._kept else self._end
        if head != first and self.start_of(head) is None:
            self._end_with(StreamLost(f"Redis lost bytes from {head} on; kept are those from {first} on"))
            return
        self._metrics.resent(self.head - head)
        self.head = head
        self._kick(now=True)

    # --- the clock

    def _kick(self, *, now: bool = False) -> None:
        if self._inflight or self._retrying or self.ended is not None:
            return
        if self.head < self._end:
            self._send()
        elif self._gathered:
            wait_s = self._sent_at + self._interval_s() - self._loop.time()
            if now or self._at_once or wait_s <= 0 or self._gathered_bytes >= MAX_PAYLOAD:
                self._encode()
                self._send()
            elif self._timer is None:
                self._timer = self._loop.call_later(wait_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._retrying = False
        self._kick(now=self._drained is not None)

    def _interval_s(self) -> float:
        """The floor, or more while appends are slow: fewer and larger ones are what helps a busy system."""
        return max(self.flush_s, min(self._round_trip_s * BUSY_FACTOR, BUSY_MAX_S))

    def _encode(self) -> None:
        """Merge what has gathered into one entry of about MAX_PAYLOAD at most; the rest waits its turn."""
        merged = merge(Placed(0, record) for record in self._gathered) if len(self._gathered) > 1 else None
        records = [placed.record for placed in merged] if merged is not None else self._gathered
        pieces = [piece for record in records for piece in _pieces(record)]
        taken: list[bytes] = []
        size = used = 0
        for piece in pieces:
            if taken and size + len(piece.payload) > MAX_PAYLOAD:
                break
            taken.append(encode(piece))
            size += len(taken[-1])
            used += 1
        self._at_once = False
        self._gathered = pieces[used:]
        self._gathered_bytes = sum(len(record.payload) + 1 for record in self._gathered)
        self._end += size
        self._kept.append((self._end, b"".join(taken)))
        self._kept_bytes += size

    def _send(self) -> None:
        """Send the first entry that Redis lacks."""
        end, data = self._kept[-1]
        if end - len(data) != self.head:  # not the newest: a resend
            end, data = self._kept[bisect_left(self._kept, self.head + 1, key=lambda entry: entry[0])]
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._sent_at = self._loop.time()
        try:
            reply = self._append.send(end - len(data), data)
        except Unavailable as error:
            self._try_later(error)
            return
        self._inflight = True
        reply.add_done_callback(self._replied)

    def _replied(self, reply: Reply) -> None:
        self._inflight = False
        if reply.cancelled():
            return
        try:
            appended = scripts.read_append(reply.result())
        except Gap as gap:
            self.go_back(gap.head)
        except (ConnectionLost, Unavailable, OutOfMemory) as error:
            self._try_later(error)
        except Refused as error:
            if error.prefix == "NOSCRIPT":
                self._journal.wire.post("SCRIPT", "LOAD", scripts.APPEND.text)
                self._try_later(error)
            else:
                self._end_with(error)
        except RelayError as error:
            self._end_with(error)
        else:
            took_s = self._loop.time() - self._sent_at
            self._round_trip_s += (took_s - self._round_trip_s) / 8
            self._metrics.appended(took_s)
            self._retry_s = _RETRY_FIRST_S
            self.is_refused = self._is_full = False
            self._advance(appended.head)
            self.on_append(appended.head)
            if appended.cancelled:
                self._on_stop("cancelled")
            self._kick(now=self._drained is not None)

    def _advance(self, head: int) -> None:
        self.head = head
        kept = self._kept
        while len(kept) > KEPT_ENTRIES or self._kept_bytes > KEPT_BYTES:
            if kept[0][0] > head:
                break
            self._kept_bytes -= len(kept.popleft()[1])
        if self._drained is not None and not self._gathered and head >= self._end:
            self._wake()

    def _try_later(self, error: RelayError) -> None:
        """Nothing is lost: the entry stays. Retries back off to a second, until `stop` or until fenced."""
        self._metrics.append_failed(error)
        self.is_refused = True
        self._is_full = isinstance(error, OutOfMemory)
        if self._timer is not None:
            self._timer.cancel()
        self._retrying = True
        self._timer = self._loop.call_later(self._retry_s, self._tick)
        self._retry_s = min(self._retry_s * 2, _RETRY_LAST_S)
        if self._is_full:
            self._wake()

    def _end_with(self, error: RelayError) -> None:
        self.ended = error
        self._wake()
        self._on_stop(error)

    def _wake(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None


def _pieces(record: Record) -> Iterable[Record]:
    """Text in pieces; an event stays whole."""
    return fit(record, PIECE) if record.channel in TEXT and len(record.payload) > PIECE else (record,)


def _nobody(_: object) -> None:
    """Who is called when nobody listens any more."""
