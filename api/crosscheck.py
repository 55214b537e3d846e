"""Our positions against Redis's: XINFO GROUPS and XPENDING of a few consumers at a time, every few seconds.

    pending   XPENDING has another number of entries than were read and are not confirmed
    ahead     the group stands past what the client has confirmed: somebody else moved or acknowledged it
    behind    it stands before: a worker would take the reader for slower than it is

Workers pace by what Redis says, so a difference is a wrong pace. The group's `lag` is not judged: it is
nil for a group created at an ID or moved to one, as ours are, and after a trim Redis below 8 and every
Valkey misreport it. A difference counts when it is there in two looks in a row and neither side moved
while it was looked at; what is on its way between the two is none. Behind is only who stands there: groups
of shared reads are moved a little after their clients.
"""

import asyncio
from typing import Any, NamedTuple

import structlog

from api.metrics import Metrics
from api.node import Node
from api.stream import Consumer
from relay.errors import RelayError
from relay.link import Reply

log = structlog.get_logger("relay.api")

EVERY_S = 2.0
MOST = 32  # consumers of one look, in turn: about a hundred commands, and no more on a node with thousands
LINE_EVERY_S = 5.0


class Ours(NamedTuple):
    """What the node holds of a consumer."""

    confirmed: int
    sent: int
    pending: int


class Theirs(NamedTuple):
    """What Redis holds: offsets of the group's last delivered ID and of its oldest pending entry's end."""

    delivered: int
    pending: int
    oldest: int | None


def compare(ours: Ours, theirs: Theirs) -> str | None:
    """The kind of a difference, the worst first; None when both say the same."""
    if theirs.oldest is None and theirs.delivered > ours.confirmed:
        return "ahead"
    if ours.pending != theirs.pending:
        return "pending"
    # An entry that ends within what is confirmed should have been acknowledged.
    at = theirs.delivered if theirs.oldest is None else min(theirs.delivered, theirs.oldest)
    is_behind = at < ours.confirmed if theirs.oldest is None else at <= ours.confirmed
    return "behind" if is_behind else None


class Finding(NamedTuple):
    """A difference, where its group stands if that must not have moved, and whether it was counted."""

    kind: str
    delivered: int
    is_counted: bool


class CrossCheck:
    """Looks at the node's consumers in turn, and again at those that differed."""

    def __init__(self, node: Node, metrics: Metrics) -> None:
        self._node = node
        self._metrics = metrics
        self._turn = 0
        self._suspects: dict[Consumer, Finding] = {}
        self._line_at = -LINE_EVERY_S
        self._untold = 0

    async def run(self) -> None:
        """Look until cancelled. Without Redis there is nothing to compare."""
        while True:
            await asyncio.sleep(EVERY_S)
            try:
                await self.look()
            except RelayError as error:
                log.debug("crosscheck_failed", error=error.message)

    async def look(self) -> None:
        """Compare the next few. Raises Unavailable."""
        asked = self._ask(self._choose())
        for consumer, ours, groups, summary in asked:
            theirs = await _theirs(consumer.name, groups, summary)
            if theirs is not None and consumer.is_open and ours == _ours(consumer):
                self._metrics.checked += 1
                self._judge(consumer, compare(ours, theirs), ours, theirs)
        self._suspects = {consumer: found for consumer, found in self._suspects.items() if consumer.is_open}

    def _choose(self) -> list[Consumer]:
        consumers = self._node.consumers
        start = self._turn if self._turn < len(consumers) else 0
        self._turn = start + MOST
        chosen = dict.fromkeys([*self._suspects, *consumers[start : self._turn]])
        return [consumer for consumer in chosen if consumer.is_open]

    @staticmethod
    def _ask(consumers: list[Consumer]) -> list[tuple[Consumer, Ours, Reply, Reply]]:
        """All in one write, so that replies which were on their way are taken before ours."""
        groups: dict[str, Reply] = {}
        asked = []
        for consumer in consumers:
            journal = consumer.journal
            if journal.id not in groups:
                groups[journal.id] = journal.wire.send("XINFO", "GROUPS", journal.keys.log)
            summary = journal.wire.send("XPENDING", journal.keys.log, consumer.name)
            asked.append((consumer, _ours(consumer), groups[journal.id], summary))
        return asked

    def _judge(self, consumer: Consumer, kind: str | None, ours: Ours, theirs: Theirs) -> None:
        before = self._suspects.pop(consumer, None)
        if kind is None:
            return
        found = Finding(kind, theirs.delivered if kind == "behind" else 0, is_counted=True)
        is_again = before is not None and before[:2] == found[:2]
        if is_again and before is not None and not before.is_counted:
            self._metrics.disagreements[kind] += 1
            self._tell(consumer, kind, ours, theirs)
        if len(self._suspects) < MOST:  # more would crowd out the others; they come again in their turn
            self._suspects[consumer] = found._replace(is_counted=is_again)

    def _tell(self, consumer: Consumer, kind: str, ours: Ours, theirs: Theirs) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._line_at < LINE_EVERY_S:
            self._untold += 1
            return
        log.warning(
            "positions_disagree",
            kind=kind,
            response=consumer.journal.id,
            consumer=consumer.name,
            ours=ours._asdict(),
            redis=theirs._asdict(),
            untold=self._untold,
        )
        self._line_at, self._untold = now, 0


def _ours(consumer: Consumer) -> Ours:
    ledger = consumer.ledger
    return Ours(ledger.confirmed, ledger.sent, ledger.pending)


async def _theirs(name: str, groups: Reply, summary: Reply) -> Theirs | None:
    """What Redis answered; None where the log or the group is gone, which its reader finds out itself."""
    found, pending = await asyncio.gather(groups, summary, return_exceptions=True)
    if isinstance(found, BaseException) or isinstance(pending, BaseException):
        return None
    group: dict[bytes, Any] | None = next((one for one in found if one[b"name"] == name.encode()), None)
    if group is None:
        return None
    count, oldest = pending[0], pending[1]
    return Theirs(_offset(group[b"last-delivered-id"]), count, _offset(oldest) if count else None)


def _offset(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])
