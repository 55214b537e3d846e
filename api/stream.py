"""One consumer of one response: reads within its credit, and confirms what its client has.

    behind   reads the journal: large merged frames; the group's last delivered ID is the position
    live     reads the log through the consumer group; pending entries are what is unconfirmed

A consumer starts behind, goes live when little of what was sent is unconfirmed, and falls behind when
half of its credit is out. No task of its own: the bell, replies and a timer drive it, so that a client's
disconnect can never cancel a Redis call in mid-reply. At most one read is in flight.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from api import sse
from api.condition import Condition
from api.ending import Ending
from api.ledger import Credit
from api.logreads import LogReads
from api.outlet import Outlet
from api.protocol import ClientSocket
from api.recheck import Recheck
from relay.backlog import Backlog
from relay.errors import OutOfMemory, Unavailable
from relay.events import decode
from relay.journal import Entry, Journal, read_entries
from relay.link import Reply
from relay.scripts import Attached

if TYPE_CHECKING:
    from api.node import Node

# A live reader's confirmations go together: one XACK for several tokens, at most this late.
_CONFIRM_EVERY_S = 0.05


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
        self.keep = keep  # the caller named it: its position outlives the connection
        self.ended: asyncio.Future[Ending] = node.loop.create_future()
        self.outlet = Outlet(socket, credit, node.metrics, 0, 0)
        self.ledger = self.outlet.ledger
        self.head = 0  # as last heard
        self.begun = False  # rings come from the moment of the attach; they only note the head until then
        self.live = False
        self.written_at = node.loop.time()
        self._confirmed_at = 0.0
        self.backlog = Backlog()
        self.condition = Condition(node.loop.time(), 0)
        self._log = LogReads(journal, name, connection)
        self._reading = False
        self._recheck = Recheck(node.loop, self.step)
        socket.on_lost(lambda: self.end(Ending.DISCONNECTED))

    @property
    def lag(self) -> int:
        """Bytes that the client does not have yet."""
        return max(0, self.head - self.ledger.confirmed)

    @property
    def is_open(self) -> bool:
        """Whether it is at work: begun, and not ended."""
        return self.begun and not self.ended.done()

    def begin(self, attached: Attached) -> None:
        """Start at the position that the attach gave, with the bytes that came with it."""
        socket, credit = self.outlet.socket, self.outlet.credit
        self.outlet = Outlet(socket, credit, self.node.metrics, attached.offset, attached.epoch)
        self.ledger = self.outlet.ledger
        self.head = max(self.head, attached.head)
        self.begun = True
        if self.lag:
            self.backlog.grew(self.head, self.node.loop.time())
        if attached.rewound:
            self.say(sse.private("rewind", {"position": f"{attached.offset}-{attached.epoch}"}))
        self._take(attached.data, attached.offset)
        self.step()

    def ring(self, head: int) -> None:
        """The bell: the journal ends at `head` now."""
        if head > self.head:
            self.head = head
            self.backlog.grew(head, self.node.loop.time())
            self.step()

    def acknowledge(self, offset: int) -> None:
        """An explicit ack: the client has processed up to `offset`."""
        if self.outlet.credit.explicit and self.ledger.confirmed < offset <= self.ledger.sent:
            self._confirm_to(offset)
            self.step()

    def end(self, ending: Ending) -> None:
        """Stop; the first reason counts. Whoever awaits `ended` closes the response."""
        if self.ended.done():
            return
        self._recheck.cancel()
        self.ended.set_result(ending)

    def say(self, data: bytes) -> None:
        """Write what is no part of the response."""
        self.written_at = self.node.loop.time()
        self.outlet.socket.write(data)

    def sweep(self) -> None:
        """Once a second: look for a lost ring, stay known as alive, keep a quiet connection open."""
        if not self.is_open:
            return
        self._confirm(now=True)
        if not self._reading and not self.outlet.has_terminal:
            (self._read_log if self.live else self._read_journal)()
        if not self.live or not self._reading:
            self._ask(lambda: self.journal.send_seen(self.name, self.connection), self._answer)
        quiet_s = self.node.loop.time() - self.written_at
        if quiet_s >= self.node.settings.keepalive_s and not self.outlet.socket.outstanding():
            self.say(sse.KEEPALIVE)

    def recover(self) -> None:
        """The connection to Redis broke: begin again at what is confirmed; the rest is unknown."""
        if not self.is_open:
            return
        self.live = False
        offset = self.ledger.confirmed
        reset = self._ask(lambda: self.journal.send_reset(self.name, self.connection, offset), self._on_reset)
        self._reading = reset  # nothing else is read before the answer

    def _on_reset(self, reply: Reply) -> None:
        self._reading = False
        if not self._answer(reply):
            return
        if reply.result() == 1:
            self.ledger.forget()
            self._read_journal()
        elif reply.result() == 0:
            self.node.supersede(self)
        else:
            self.end(Ending.LOST)

    def step(self) -> None:
        """Confirm what can be, then read on if there is news and credit."""
        if not self.is_open:
            return
        outlet, ledger = self.outlet, self.ledger
        self._confirm(now=not self.live or outlet.has_terminal)
        if outlet.has_terminal:
            if not ledger.unconfirmed or outlet.credit.explicit:
                self.end(Ending.TERMINAL)
            else:
                self._recheck.later()
        elif not self._reading:
            if self.head > ledger.sent:
                self._read()
            elif ledger.frames and not self.live:
                self._recheck.later()

    # --- reading

    def _read(self) -> None:
        ledger, credit = self.ledger, self.outlet.credit
        if ledger.unconfirmed * 4 > credit.size:
            self._confirm(now=True)
        if not self.live and not ledger.pending and ledger.unconfirmed * 4 <= credit.size:
            # The group stands at what is confirmed: what was sent since is delivered once more, to be
            # pending until it is confirmed, and not written again.
            self.live = True
            self.journal.post_moved(self.name, ledger.confirmed)
        elif ledger.unconfirmed * 2 > credit.size or ledger.pending >= credit.entries:
            self.live = False
        if self.live and self.outlet.room >= self._log.entry_bytes:
            self._read_log()
        else:
            self._read_journal()

    def _read_log(self) -> None:
        count = self._log.count(self.outlet.room, self.outlet.credit.entries - self.ledger.pending)
        if count:
            self._reading = self._ask(lambda: self._log.send(count), self._on_log)
        else:
            self._read_journal()

    def _read_journal(self) -> None:
        self.live = False  # what comes by the journal moves the group itself
        room = self.outlet.room_behind
        if room <= 0:
            self._recheck.later()
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
        entries = read_entries(reply.result())
        if entries:
            self._take_entries(entries)
            self.node.metrics.delivered(self.node.topology.server_time() - entries[0].time_us / 1e6)
        elif self.head > self.ledger.sent:
            self._read_journal()  # not in the log for this group: a failover, or another's last read
            return
        self.step()

    def _take_entries(self, entries: list[Entry]) -> None:
        """Write what follows on what was sent, all of it at once; the rest of a hole is the journal's."""
        base = end = self.ledger.sent
        parts = []
        for entry in entries:
            start = entry.end - len(entry.data)
            self._log.note(len(entry.data))
            self.ledger.read(entry.end, entry.id)
            if start <= end < entry.end:
                parts.append(entry.data[end - start :] if start < end else entry.data)
                end = entry.end
            elif start > end:
                # The cap trimmed entries that were not read yet.
                self.node.metrics.trims_repaired += self.live
                self.live = False
            # Else it is on its way already: only its acknowledgement is owed.
        self.head = max(self.head, entries[-1].end)
        self.outlet.epoch = max(self.outlet.epoch, entries[-1].epoch)
        if parts:
            self._take(b"".join(parts), base)

    def _on_journal(self, reply: Reply, epoch: Reply) -> None:
        self._reading = False
        if not self._answer(reply) or not self._answer(epoch):
            return
        # An id whose epoch is older than its bytes would be taken for lost text on return.
        self.outlet.epoch = max(self.outlet.epoch, int(epoch.result() or 0))
        before, data = self.ledger.sent, reply.result()
        self._take(data, before)
        if self.ledger.sent == before and (data or self.head > before):
            self._recheck.later()  # it does not fit the credit that is left, or a failover lost it
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

    def _take(self, data: bytes, base: int) -> None:
        """Write the whole records of `data`; what the credit does not hold is read from the journal later."""
        self.written_at = self.node.loop.time()
        if not self.outlet.write(decode(data, base)[0]):
            self.live = False

    # --- confirming

    def _confirm(self, *, now: bool) -> None:
        at = self.node.loop.time()
        if now or at - self._confirmed_at >= _CONFIRM_EVERY_S:
            self._confirmed_at = at
            offset = self.outlet.acknowledged()
            if offset > self.ledger.confirmed and not self.outlet.credit.explicit:
                self._confirm_to(offset)

    def _confirm_to(self, offset: int) -> None:
        self.backlog.confirmed(offset)
        self._recheck.soon()
        ids = self.ledger.confirm(offset)
        if ids:
            self.journal.post_ack(self.name, ids)
        if not self.live and not self.ledger.pending:
            self.journal.post_moved(self.name, offset)
