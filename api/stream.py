"""One consumer of one response: reads within its credit, writes frames, confirms what its client has.

    behind   reads the journal: large merged frames; the group's last delivered ID is the position
    live     reads the log through the consumer group; pending entries are what is unconfirmed

A consumer starts behind, goes live when its client has everything that was sent, and falls behind when
half of its credit is out. No task of its own: the bell, replies and a timer drive it, so that a client's
disconnect can never cancel a Redis call in mid-reply. At most one read is in flight.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from api import sse
from api.ending import Ending
from api.ledger import Credit, Ledger
from api.protocol import ClientSocket
from relay.errors import OutOfMemory, Unavailable
from relay.events import HEADER_MAX, MAX_PAYLOAD, TERMINAL, Placed, decode, merge
from relay.journal import Entry, Journal, read_entries
from relay.link import Reply
from relay.scripts import Attached

if TYPE_CHECKING:
    from api.node import Node

_CHECK_FIRST_S, _CHECK_LAST_S = 0.004, 0.128
_LARGEST_RECORD = MAX_PAYLOAD + HEADER_MAX


class Consumer:
    """The state of one connection. `ended` resolves once, with the reason."""

    def __init__(
        self,
        node: "Node",
        journal: Journal,
        *,
        name: str,
        connection: str,
        socket: ClientSocket,
        credit: Credit,
        keep: bool,
    ) -> None:
        self.node = node
        self.journal = journal
        self.name = name
        self.connection = connection
        self.socket = socket
        self.credit = credit
        self.keep = keep  # the caller named it: its position outlives the connection
        self.ended: asyncio.Future[Ending] = node.loop.create_future()
        self.ledger = Ledger(0)
        self.head = 0  # as last heard
        self.epoch = 0
        self._behind_since = 0.0  # loop time since when confirmed < head with no progress between
        self.live = False
        self.begun = False  # rings come from the moment of the attach; they only note the head until then
        self.written_at = node.loop.time()
        self.has_terminal = False
        self._entry_bytes = 64.0  # moving average, to ask for no more than the credit holds
        self._reading = False
        self._timer: asyncio.TimerHandle | None = None
        self._check_s = _CHECK_FIRST_S
        socket.on_lost = self._lost

    @property
    def lag(self) -> int:
        """Bytes that the client does not have yet."""
        return max(0, self.head - self.ledger.confirmed)

    def lag_seconds(self, now: float) -> float:
        """For how long the client has lacked the oldest byte that it lacks; `now` is loop time."""
        return now - self._behind_since if self.head > self.ledger.confirmed else 0.0

    @property
    def is_open(self) -> bool:
        """Whether it is at work: begun, and not ended."""
        return self.begun and not self.ended.done()

    # --- what the node calls

    def begin(self, attached: Attached) -> None:
        """Start at the position that the attach gave, with the bytes that came with it."""
        self.ledger = Ledger(attached.offset)
        self.head, self.epoch = max(self.head, attached.head), attached.epoch
        self.begun = True
        if attached.rewound:
            self._write(sse.private("rewind", {"position": f"{attached.offset}-{attached.epoch}"}))
        self._take(decode(attached.data, attached.offset)[0])
        self.step()

    def ring(self, head: int) -> None:
        """The bell: the journal ends at `head` now."""
        if head > self.head:
            if self.head <= self.ledger.confirmed:
                self._behind_since = self.node.loop.time()
            self.head = head
            self.step()

    def acknowledge(self, offset: int) -> None:
        """An explicit ack: the client has processed up to `offset`."""
        if self.credit.explicit and self.ledger.confirmed < offset <= self.ledger.sent:
            self._confirm_to(offset)
            self.step()

    def end(self, ending: Ending) -> None:
        """Stop; the first reason counts. Whoever awaits `ended` closes the response."""
        if self.ended.done():
            return
        if self._timer is not None:
            self._timer.cancel()
        self.ended.set_result(ending)

    def sweep(self) -> None:
        """Once a second: look for a lost ring, stay known as alive, keep a quiet connection open."""
        if not self.is_open:
            return
        self._confirm()
        if not self._reading and not self.has_terminal:
            (self._read_log if self.live else self._read_journal)()
        if not self.live or not self._reading:
            self._ask(lambda: self.journal.send_seen(self.name, self.connection), self._answer)
        quiet_s = self.node.loop.time() - self.written_at
        if quiet_s >= self.node.settings.keepalive_s and not self.socket.outstanding():
            self._write(sse.KEEPALIVE)

    def step(self) -> None:
        """Confirm what can be, then read on if there is news and credit."""
        if not self.is_open:
            return
        self._confirm()
        if self.has_terminal:
            if self.ledger.confirmed >= self.ledger.sent or self.credit.explicit:
                self.end(Ending.TERMINAL)
            else:
                self._check_later()
        elif not self._reading:
            if self.head > self.ledger.sent:
                self._read()
            elif self.ledger.has_marks and not self.live:
                self._check_later()

    # --- reading

    def _room(self) -> int:
        return self.credit.size - self.ledger.unconfirmed

    def _read(self) -> None:
        if not self.live and not self.ledger.pending and self.ledger.unconfirmed * 4 <= self.credit.size:
            # The group stands at what is confirmed: what was sent since is delivered once more, to be
            # pending until it is confirmed, and not written again.
            self.live = True
            self.journal.post_moved(self.name, self.ledger.confirmed)
        elif self._room() * 2 < self.credit.size or self.ledger.pending >= self.credit.entries:
            self.live = False
        if self.live and self._room() >= self._entry_bytes:
            self._read_log()
        else:
            self._read_journal()

    def _read_log(self) -> None:
        room = min(self._room() / self._entry_bytes, self.credit.entries - self.ledger.pending)
        if room < 1:
            self._check_later()
            return
        self._reading = self._ask(
            lambda: self.journal.send_read(self.name, self.connection, int(room)), self._on_log
        )

    def _read_journal(self) -> None:
        # With nothing out, one record may exceed a small credit: it could never be sent otherwise.
        room = self._room() if self.ledger.unconfirmed else max(self._room(), _LARGEST_RECORD)
        if room <= 0:
            self._check_later()
            return
        try:
            data = self.journal.send_range(self.ledger.sent, room)
            epoch = self.journal.send_epoch()
        except Unavailable:
            return  # the next reconnect or sweep comes back to it
        self._reading = True
        epoch.add_done_callback(lambda epoch: self._on_journal(data, epoch))

    @staticmethod
    def _ask(send: Callable[[], Reply], then: Callable[[Reply], object]) -> bool:
        try:
            send().add_done_callback(then)
        except Unavailable:
            return False  # the next reconnect or sweep comes back to it
        return True

    def _on_log(self, reply: Reply) -> None:
        self._reading = False
        if not self._answer(reply):
            return
        entries = read_entries(reply.result(), self.journal.keys)
        for entry in entries:
            self._entry_bytes += (len(entry.data) - self._entry_bytes) / 8
            self.ledger.read(entry.end, entry.id)
            self._take_entry(entry)
        if entries:
            self.node.metrics.delivered(self.node.topology.server_time() - entries[0].time_us / 1e6)
        self.step()

    def _take_entry(self, entry: Entry) -> None:
        start = entry.end - len(entry.data)
        self.head = max(self.head, entry.end)
        self.epoch = max(self.epoch, entry.epoch)
        if entry.end <= self.ledger.sent:
            return  # on its way already; only its acknowledgement is owed
        if start > self.ledger.sent:
            # The cap trimmed entries that were not read yet: the journal has them.
            self.node.metrics.trims_repaired += self.live
            self.live = False
        else:
            self._take(decode(entry.data[self.ledger.sent - start :], self.ledger.sent)[0])

    def _on_journal(self, reply: Reply, epoch: Reply) -> None:
        self._reading = False
        if not self._answer(reply) or not self._answer(epoch):
            return
        data: bytes = reply.result()
        # An id whose epoch is older than its bytes would be taken for lost text on return.
        self.epoch = max(self.epoch, int(epoch.result() or 0))
        before = self.ledger.sent
        self._take(decode(data, self.ledger.sent)[0])
        if self.ledger.sent == before and data:
            self._check_later()  # the next record does not fit the credit that is left
            return
        self.step()

    def _answer(self, reply: Reply) -> bool:
        """Whether a reply has a value to go on with."""
        if not self.is_open or reply.cancelled():
            return False
        error = reply.exception()
        # NOGROUP, or WRONGTYPE and the like: the log or the group is gone. Without a connection, or while
        # the server is busy, the reader waits: the next sweep asks again.
        if error is not None and not isinstance(error, Unavailable | OutOfMemory):
            self.end(Ending.LOST)
        return error is None

    # --- writing

    def _take(self, placed: list[Placed]) -> None:
        """Write the records that the credit holds; what it does not hold is read again later.

        A terminal record needs no credit, and with nothing out the first record may exceed it.
        """
        limit = self.ledger.confirmed + self.credit.size
        fitting: list[Placed] = []
        for item in placed:
            if (
                item.end > limit
                and item.record.channel not in TERMINAL
                and (fitting or self.ledger.unconfirmed)
            ):
                self.live = False
                break
            fitting.append(item)
        if not fitting:
            return
        merged = merge(fitting) if len(fitting) > 1 else fitting
        frames = [sse.frame(item.record, item.end, self.epoch) for item in merged]
        self._write(b"".join(frames))
        # The chunk's own end comes after its data: these marks are late by two bytes, never early.
        at = self.socket.written - sum(map(len, frames))
        for item, data in zip(merged, frames, strict=True):
            at += len(data)
            self.ledger.wrote(at, item.end)
        self.has_terminal = merged[-1].record.channel in TERMINAL
        self.node.metrics.sent(merged, frames)

    def _write(self, data: bytes) -> None:
        self.written_at = self.node.loop.time()
        self.socket.write(data)

    # --- confirming

    def _confirm(self) -> None:
        if self.ledger.has_marks:
            offset = self.ledger.acknowledged(self.socket.written - self.socket.outstanding())
            if offset > self.ledger.confirmed and not self.credit.explicit:
                self._confirm_to(offset)

    def _confirm_to(self, offset: int) -> None:
        self._behind_since = self.node.loop.time()
        self._check_s = _CHECK_FIRST_S
        ids = self.ledger.confirm(offset)
        if ids:
            self.journal.post_ack(self.name, ids)
        if not self.live and not self.ledger.pending:
            self.journal.post_moved(self.name, offset)

    def _check_later(self) -> None:
        """Out of credit, or waiting for the last bytes: look again soon, less and less often."""
        if self._timer is None:
            self._timer = self.node.loop.call_later(self._check_s, self._check)
            self._check_s = min(self._check_s * 2, _CHECK_LAST_S)

    def _check(self) -> None:
        self._timer = None
        self.step()

    def _lost(self) -> None:
        self.end(Ending.DISCONNECTED)
