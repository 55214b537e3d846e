"""One response on one node: who reads it here, and one read of it for all of them.

A single consumer reads for itself and the feed only passes rings on. From the second on they share:

    ring ──> one XRANGE after the end ──> the recent bytes ──> each member inside takes what it lacks

The feed reads only while a member could take more than it has. A member before the recent bytes reads the
journal itself until it is inside; one beyond them waits until the feed has come past. Members that stand
at one offset, with room for all that follows, are sent the same bytes. Their groups in Redis are moved as
their clients confirm; nothing is pending in them. When one member is left it reads for itself again.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from api.form import NATIVE
from api.metrics import Metrics
from api.outlet import BEHIND_FRAMES
from api.recent import Recent
from api.recheck import Recheck
from relay.errors import Unavailable
from relay.journal import Journal, read_entries, read_epochs
from relay.link import Reply

if TYPE_CHECKING:
    from api.stream import Consumer

# One read asks for about so much, and for so many entries at most.
READ_BYTES, READ_ENTRIES = 16_384, 64


class Feed:
    """The consumers of one response on this node. No task of its own: rings, replies and a timer drive it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        metrics: Metrics,
        server_time: Callable[[], float],
        journal: Journal,
        recent: Recent | None = None,
    ) -> None:
        self.members: dict[Consumer, None] = {}  # in the order in which they came
        self.recent = recent or Recent()
        self.head = 0  # as last heard
        self._loop = loop
        self._metrics = metrics
        self._server_time = server_time
        self._journal = journal
        self._asked: Reply | None = None  # the read that is under way
        self._is_mixed = False  # a member may have text of an epoch that was overruled
        self._is_unsure = False  # Redis was away, and nothing has come since: text may be lost there
        self._recheck = Recheck(loop, lambda: self.read_on(self.head))

    # --- who reads

    @property
    def is_shared(self) -> bool:
        """Whether it reads for its members."""
        return len(self.members) > 1

    def join(self, consumer: "Consumer") -> None:
        """One more; the second makes it shared."""
        self.members[consumer] = None
        if len(self.members) == 2:
            for member in self.members:
                member.share(self)
        elif self.is_shared:
            consumer.share(self)

    def leave(self, consumer: "Consumer") -> bool:
        """One less: False when it was not here. The last but one leaves the last alone."""
        if consumer not in self.members:
            return False
        del self.members[consumer]
        if len(self.members) == 1:
            self._begin_at(0)
            self._recheck.cancel()
            for member in tuple(self.members):
                member.share(None)
        return True

    def ring(self, head: int) -> None:
        """The bell: the journal ends at `head` now."""
        if not self.is_shared:
            for member in tuple(self.members):
                member.ring(head)
        else:
            self.read_on(head)

    def recover(self) -> None:
        """The connection to Redis broke: what was read may be lost there."""
        self._begin_at(0)
        self._is_unsure = True
        for member in tuple(self.members):
            member.recover()  # and then they look

    # --- epochs

    def hear_of(self, epoch: int, head: int) -> None:
        """A member has seen text up to `head`, and who writes: its ring may have been lost."""
        if head > self.head:
            self._hear(head)
        if epoch != self.recent.epoch:
            self._change_epoch(epoch)

    def greet(self, epoch: int, head: int) -> None:
        """A member has begun: what its attach brought, the others' rings may not have told of."""
        self.hear_of(max(epoch, self.recent.epoch), head)
        self._is_mixed = True  # it may itself be the one that has an older epoch

    def _change_epoch(self, epoch: int) -> None:
        """Another worker writes: what was read may be overruled, and each member asks whether it has that."""
        self._begin_at(0)
        self.recent.epoch = epoch
        self._is_mixed = True
        self._even_out()

    def _is_sure(self, member: "Consumer") -> bool:
        """Whether what a member was sent and what is kept here are of one epoch, or one of them is empty."""
        mine, theirs = self.recent.epoch, member.outlet.epoch
        return mine == theirs or not mine or not theirs

    def _even_out(self) -> None:
        unsure = [one for one in self.members if one.is_open and not self._is_sure(one)]
        self._is_mixed = bool(unsure)
        for member in unsure:
            if not member.group.is_reading and not member.outlet.has_terminal:
                member.read_journal()

    # --- giving

    def wants(self, member: "Consumer") -> int:
        """Where a member would go on if there were more; -1: it could not take more."""
        if not member.is_open or member.group.is_reading or member.outlet.has_terminal:
            return -1
        if not self._is_sure(member):
            return -1
        return member.ledger.sent if self._room(member) > 0 else -1

    def serve(self, member: "Consumer") -> None:
        """Give a member what it has room for; for one that has all there is, read on."""
        outlet, ledger, recent = member.outlet, member.ledger, self.recent
        self._judge(member)
        at, room = ledger.sent, self._room(member)
        if room <= 0:
            member.park()
        elif not self._is_sure(member):
            member.read_journal()  # and learns whether what it was sent is still true
        elif at >= recent.end:
            self.read_on(member.head)
        elif at < recent.start:
            member.read_journal()
        else:
            outlet.epoch = recent.epoch
            if outlet.form is NATIVE and recent.end - ledger.confirmed <= outlet.credit.size:
                outlet.send(recent.batch(at, outlet.epoch))
            else:
                outlet.write_part(recent.slice(at, room))
                member.park()
            member.written_at = self._loop.time()

    @staticmethod
    def _judge(member: "Consumer") -> None:
        """Live while it keeps up, by the marks of one that reads for itself."""
        ledger, credit = member.ledger, member.outlet.credit
        if ledger.unconfirmed * 2 > credit.size or ledger.frames >= credit.entries:
            member.live = False
        elif ledger.unconfirmed * 4 <= credit.size and ledger.frames * 4 <= credit.entries:
            member.live = True

    @staticmethod
    def _room(member: "Consumer") -> int:
        # One that keeps up may have a frame out for each entry of its credit; others get fewer, larger ones.
        outlet = member.outlet
        return outlet.room_within(outlet.credit.entries if member.live else BEHIND_FRAMES)

    def _give(self) -> int:
        """There is more: every member that has room takes its part. Returns how many did."""
        self._recheck.soon()
        if self.recent.end > self.head:
            self._hear(self.recent.end)
        takers = 0
        for member in tuple(self.members):
            if not member.is_parked:
                before = member.ledger.sent
                member.step()
                takers += member.ledger.sent > before
        self.recent.trim()
        self.read_on(self.head)
        return takers

    def _hear(self, head: int) -> None:
        self.head = head
        now = self._loop.time()
        for member in self.members:
            member.hear(head, now)

    # --- reading

    def read_on(self, head: int) -> None:
        """Read what follows, if there is news and somebody could take it."""
        if head > self.head:
            self._hear(head)
        if self.head > self.recent.end:
            self.look()

    def look(self) -> None:
        """Read what follows, whether a ring told of it or not: a ring may be lost."""
        if self._asked is not None or not self.is_shared:
            return
        if self._is_mixed:
            self._even_out()
        wanted, recent = self._wanted(), self.recent
        if wanted is None:
            return
        recent.epoch = recent.epoch or max(member.outlet.epoch for member in self.members)
        if recent.start == recent.end or wanted - recent.end > recent.kept_bytes:
            self._begin_at(wanted)
        if self._is_unsure:
            self._read_journal()  # the epochs come with it
            return
        count = max(1, min(READ_ENTRIES, int(READ_BYTES / recent.entry_bytes)))
        try:
            self._asked = self._journal.send_entries(recent.end, count)
        except Unavailable:
            return  # the next reconnect or sweep comes back to it
        self._asked.add_done_callback(self._on_entries)

    def _wanted(self) -> int | None:
        """Where the furthest member goes on that could take more than there is; None: nobody could."""
        start, end = self.recent.start, self.recent.end
        # Nobody waits while more than a buffer is read that somebody else lacks: that one is left behind.
        is_near = start < end and self.head - end <= self.recent.kept_bytes
        furthest: int | None = None
        for member in self.members:
            at = self.wants(member)
            if at >= end and (furthest is None or at > furthest):
                furthest = at
                if is_near:
                    break
        return furthest

    def _begin_at(self, offset: int) -> None:
        self._asked = None  # what is on its way belongs to another place
        self.recent.begin_at(offset)

    def _on_entries(self, reply: Reply) -> None:
        if not self._is_answer(reply):
            return
        entries, before = read_entries(reply.result()), self.recent.end
        if entries and entries[-1].epoch != (self.recent.epoch or entries[-1].epoch):
            self.hear_of(entries[-1].epoch, entries[-1].end)
            return
        if not self.recent.take_entries(entries):
            # The cap trimmed entries that were not read yet: the hole is the journal's.
            self._metrics.trims_repaired += 1
            if entries[-1].end > self.head:
                self._hear(entries[-1].end)
        if self.recent.end > before:
            takers = self._give()
            if takers:
                age_s = self._server_time() - entries[0].time_us / 1e6
                self._metrics.delivered(age_s, takers)
        elif self.head > self.recent.end:
            self._read_journal()

    def _read_journal(self) -> None:
        """Not in the log: trimmed, or lost with a primary."""
        try:
            data = self._journal.send_range(self.recent.end, READ_BYTES)
            self._asked = self._journal.send_epochs()
        except Unavailable:
            return
        self._asked.add_done_callback(lambda epochs: self._on_journal(data, epochs))

    def _on_journal(self, data: Reply, epochs: Reply) -> None:
        if not self._is_answer(epochs) or not data.done() or data.exception() is not None:
            return
        before, newest = self.recent.end, read_epochs(epochs.result()).newest
        if newest != (self.recent.epoch or newest):
            self._change_epoch(newest)
            return
        self.recent.take_bytes(data.result(), newest)
        if self.recent.end > before:
            self._is_unsure = False
            self._give()
        elif self.head > before:
            self._recheck.later()  # a failover lost it, and the worker sends it again

    def _is_answer(self, reply: Reply) -> bool:
        """Whether it is what was asked for last, with a value."""
        if reply is not self._asked:
            return False
        self._asked = None
        # What an error means is each member's to find out, with its next sign of life.
        return not reply.cancelled() and reply.exception() is None
