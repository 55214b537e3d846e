"""Who reads a response, how far they are, and how old the oldest thing is that the pacing one lacks."""

import asyncio

from relay.backlog import Backlog
from relay.errors import RelayError
from relay.journal import LIVE_MS, Journal
from workers.pacemaker import Pacemaker
from workers.writer import Writer


class Readers:
    """What the last look showed. Without a live consumer the last one's place holds."""

    def __init__(self, journal: Journal, writer: Writer, pacemaker: Pacemaker) -> None:
        self._journal = journal
        self._writer = writer
        self._pacemaker = pacemaker
        self._loop = asyncio.get_running_loop()
        self._backlog = Backlog()
        self.confirmed = 0  # of the pacing consumer
        self.has_live = False
        # Time in which readers could be seen: while Redis is away, nobody is slow or gone.
        self.watched_s = 0.0
        self._looked_at = self._loop.time()
        self._reconnects = journal.wire.reconnects  # at the last look

    @property
    def lead(self) -> int:
        """How far the text is ahead of the pacing consumer, by the last look: an upper bound since."""
        return self._writer.produced - self.confirmed

    @property
    def sojourn_s(self) -> float:
        """The age of the oldest byte in Redis that the pacing consumer has not confirmed."""
        return self._backlog.age(self._loop.time())

    def grew(self, head: int) -> None:
        """Redis has the text up to `head` now."""
        self._backlog.grew(head, self._loop.time())

    async def look(self) -> bool:
        """Look the positions up. False when Redis had no news: that is no reader's doing."""
        try:
            consumers = await self._journal.consumers(self._writer.start_of)
        except RelayError:
            self._looked_at = self._loop.time()
            return False
        now, reconnects = self._loop.time(), self._journal.wire.reconnects
        is_news = reconnects == self._reconnects
        if is_news:
            self.watched_s += now - self._looked_at
        self._looked_at, self._reconnects = now, reconnects
        live = {c.id: c.position for c in consumers if c.idle_ms is not None and c.idle_ms < LIVE_MS}
        self.has_live = bool(live)
        if live:
            self.confirmed = self._pacemaker.choose(self.watched_s, self._writer.produced, live)
        elif consumers:
            self.confirmed = max(self.confirmed, *(c.position for c in consumers))
        self._backlog.confirmed(self.confirmed)
        return is_news
