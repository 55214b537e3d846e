"""One consumer of one response: reads within its credit, and confirms what its client has.

    behind   reads the journal: large merged frames; the group's last delivered ID is the position
    live     reads the log through the consumer group; pending entries are what is unconfirmed

A consumer starts behind, goes live when little of what was sent is unconfirmed, and falls behind when
half of its credit is out. Where others read the same response on this node a feed reads for all of them
(`api.feed`), whether live or behind. No task of its own: the bell, replies and a timer drive it, so that
a client's disconnect can never cancel a Redis call in mid-reply. At most one read is in flight.
"""

import asyncio
from typing import TYPE_CHECKING

from api import sse
from api.condition import Condition
from api.ending import Ending
from api.form import NATIVE, Form
from api.group import Group
from api.ledger import Credit
from api.outlet import Outlet
from api.recent import following
from api.recheck import Recheck
from api.sink import Sink
from relay.backlog import Backlog
from relay.events import decode
from relay.journal import Entry, Journal
from relay.position import Epochs
from relay.scripts import Attached

if TYPE_CHECKING:
    from api.feed import Feed
    from api.node import Node

# Confirmations go together: one XACK of a live reader for several tokens, one move of another's group.
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
        socket: Sink,
        credit: Credit,
        keep: bool,
        form: Form = NATIVE,
    ) -> None:
        self.node = node
        self.journal = journal
        self.name = name
        self.connection = connection
        self.keep = keep  # the caller named it: its position outlives the connection
        self.ended: asyncio.Future[Ending] = node.loop.create_future()
        self.outlet = Outlet(socket, credit, node.metrics, 0, 0, form=form)
        self.ledger = self.outlet.ledger
        self.head = 0  # as last heard
        self.begun = False  # rings come from the moment of the attach; they only note the head until then
        self.live = False
        self.written_at = node.loop.time()
        self._confirmed_at = 0.0
        self.backlog = Backlog()
        self.condition = Condition(node.loop.time(), 0)
        self.feed: Feed | None = None  # while it shares the reads of others
        self.is_parked = False  # it has no room: nothing is tried before it steps by itself
        self.last_word = b""  # what it was told at its end, before it had begun
        self.group = Group(self)
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
        self.outlet = self.outlet.at(attached.offset, attached.epoch)
        self.ledger = self.outlet.ledger
        self.head = max(self.head, attached.head)
        self.group.told = attached.offset
        self.begun = True
        if self.lag:
            self.backlog.grew(self.head, self.node.loop.time())
        if attached.rewound:
            self.say(self.outlet.form.private("rewind", {"position": f"{attached.offset}-{attached.epoch}"}))
        self._take(attached.data, attached.offset)
        if self.feed is not None:
            self.feed.greet(attached.epoch, self.head)
        self.step()

    def ring(self, head: int) -> None:
        """The bell: the journal ends at `head` now."""
        if head > self.head:
            self.hear(head, self.node.loop.time())
            self.step()

    def hear(self, head: int, now: float) -> None:
        """Note the head, and no more."""
        if head > self.head:
            self.head = head
            self.backlog.grew(head, now)

    def share(self, feed: "Feed | None") -> None:
        """From now on a feed reads for it; None: it reads for itself."""
        self.feed = feed
        if feed is None:
            self.live = False  # its group stands at what it was told: going live moves it
            self.step()

    def acknowledge(self, offset: int) -> None:
        """An explicit ack: the client has processed up to `offset`."""
        if self.outlet.credit.explicit and self.ledger.confirmed < offset <= self.ledger.sent:
            self._confirm_to(offset)
            self.step()

    def end(self, ending: Ending, last_word: bytes = b"") -> None:
        """Stop; the first reason counts. The last word is written; before the beginning it is kept."""
        if self.ended.done():
            return
        if last_word and self.begun:
            self.say(last_word)
        else:
            self.last_word = last_word
        self._recheck.cancel()
        self.ended.set_result(ending)

    def say(self, data: bytes) -> None:
        """Write what is no part of the response. After its last event nothing is said any more."""
        self.written_at = self.node.loop.time()
        if data and not self.outlet.has_terminal:
            self.outlet.socket.write(data)

    def sweep(self) -> None:
        """Once a second: look for a lost ring, stay known as alive, keep a quiet connection open."""
        if not self.is_open:
            return
        self._confirm(now=True)
        is_reading = self.group.is_reading
        if self.feed is None and not is_reading and not self.outlet.has_terminal:
            (self._read_log if self.live else self.read_journal)()
        if self.feed is not None or not self.live or not is_reading:
            self.group.seen()
        quiet_s = self.node.loop.time() - self.written_at
        if quiet_s >= self.node.settings.keepalive_s and not self.outlet.socket.outstanding():
            self.say(sse.KEEPALIVE)

    def recover(self) -> None:
        """The connection to Redis broke: begin again at what is confirmed; the rest is unknown."""
        if not self.is_open:
            return
        self.live = False
        self.group.reset(self.ledger.confirmed)

    def on_reset(self) -> None:
        """The group stands at what is confirmed again, with nothing pending."""
        self.ledger.forget()
        (self.read_journal if self.feed is None else self.feed.look)()

    def step(self) -> None:
        """Confirm what can be, then read on if there is news and credit."""
        if not self.is_open:
            return
        self.is_parked = False
        outlet, ledger = self.outlet, self.ledger
        self._confirm(now=not self.live or outlet.has_terminal)
        if outlet.has_terminal:
            if not ledger.unconfirmed or outlet.credit.explicit:
                self.end(Ending.TERMINAL)
            else:
                self._recheck.later()
        elif not self.group.is_reading:
            if self.head > ledger.sent:
                self._read()
            elif ledger.frames and not self.live:
                self._recheck.later()

    # --- reading

    def _read(self) -> None:
        ledger, credit = self.ledger, self.outlet.credit
        if ledger.unconfirmed * 4 > credit.size:
            self._confirm(now=True)
        if self.feed is not None:
            self.feed.serve(self)
            return
        if not self.live and not ledger.pending and ledger.unconfirmed * 4 <= credit.size:
            # The group stands at what is confirmed: what was sent since is delivered once more, to be
            # pending until it is confirmed, and not written again.
            self.live = True
            self.group.move(ledger.confirmed)
        elif ledger.unconfirmed * 2 > credit.size or ledger.pending >= credit.entries:
            self.live = False
        if self.live and self.outlet.room >= self.group.entry_bytes:
            self._read_log()
        else:
            self.read_journal()

    def _read_log(self) -> None:
        count = self.group.count(self.outlet.room, self.outlet.credit.entries - self.ledger.pending)
        if count:
            self.group.read_log(count)
        else:
            self.read_journal()

    def read_journal(self) -> None:
        """Read what follows on what was sent, as far as there is room."""
        self.live = False  # what comes by the journal moves the group itself
        room = self.outlet.room_behind
        if room > 0:
            self.group.read_journal(self.ledger.sent, room)
        else:
            self.park()

    def park(self) -> None:
        """Wait for room: until something is confirmed."""
        self.is_parked = True
        if self.ledger.frames or not self.outlet.credit.explicit:  # else an ack makes room
            self._recheck.later()

    def on_entries(self, entries: list[Entry]) -> None:
        """The log's answer."""
        ledger, outlet = self.ledger, self.outlet
        for entry in entries:
            self.group.note(len(entry.data))
            ledger.read(entry.end, entry.id)
            self.head = max(self.head, entry.end)
        is_another_s = bool(entries and ledger.sent and entries[-1].epoch != outlet.epoch)
        if is_another_s or (not entries and self.head > ledger.sent):
            # Another worker writes, and what was sent may be overruled; or it is not in the log for this
            # group, after a failover or another's last read.
            self.read_journal()
            return
        if entries:
            data, is_whole = following(entries, ledger.sent)
            if not is_whole:  # the cap trimmed entries that were not read yet: the hole is the journal's
                self.node.metrics.trims_repaired += self.live
                self.live = False
            outlet.epoch = entries[-1].epoch
            if data:
                self._take(data, ledger.sent)
            self.node.metrics.delivered(self.node.topology.server_time() - entries[0].time_us / 1e6)
        self.step()

    def on_bytes(self, data: bytes, epochs: Epochs) -> None:
        """The journal's answer."""
        before = self.ledger.sent
        if epochs.valid_offset(before, self.outlet.epoch) < before:
            self.end(Ending.LOST)  # a failover lost what was sent, and another worker wrote other text
            return
        # An id whose epoch is older than its bytes would be taken for lost text on return.
        self.outlet.epoch = epochs.newest
        self.outlet.write_part(data)
        if self.feed is not None:
            self.feed.hear_of(epochs.newest, self.ledger.sent)
        if self.ledger.sent > before:
            self.written_at = self.node.loop.time()
            self.step()
        elif data:
            self.park()  # it does not fit
        elif self.head > before:
            self._recheck.later()  # a failover lost it

    def _take(self, data: bytes, base: int) -> None:
        """Write the whole records of `data`; what the credit does not hold is read from the journal later."""
        self.written_at = self.node.loop.time()
        if not self.outlet.write(decode(data, base)[0]):
            self.live = False

    # --- confirming

    def _confirm(self, *, now: bool) -> None:
        at = self.node.loop.time()
        is_due = at - self._confirmed_at >= _CONFIRM_EVERY_S
        if now or is_due:
            offset = self.outlet.acknowledged()
            if offset > self.ledger.confirmed and not self.outlet.credit.explicit:
                self._confirm_to(offset)
        if is_due:
            self._confirmed_at = at
            # Of a live reader of the log the pending entries tell.
            is_by_log = self.live and self.feed is None
            if not is_by_log and not self.ledger.pending and self.ledger.confirmed > self.group.told:
                self.group.move(self.ledger.confirmed)

    def _confirm_to(self, offset: int) -> None:
        self.backlog.confirmed(offset)
        self._recheck.soon()
        if ids := self.ledger.confirm(offset):
            self.group.acknowledge(ids)
