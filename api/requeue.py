"""Responses that readers wait for and no queue knows: queued again.

A node may die, or lose Redis, between opening a response and queueing its job; a failover may lose the job
and keep the response. Nobody would ever claim it, and its readers would wait until its retention ends.
"""

import asyncio
import random

import structlog

from api.node import Node
from api.responses import Responses
from relay.errors import RelayError
from relay.journal import Journal

log = structlog.get_logger("relay.api")

EVERY_S = 2.5  # and a response that was there at one look and the next, with nothing said, is looked up
MOST = 16  # of one look: each costs a look at its meta and at the queue


class Requeue:
    """Looks at what this node's readers wait for."""

    def __init__(self, node: Node, responses: Responses) -> None:
        self._node = node
        self._responses = responses
        self._waited: set[str] = set()  # at the last look

    async def run(self) -> None:
        """Look until cancelled; without Redis there is nothing to look at."""
        while True:
            await asyncio.sleep(EVERY_S * random.uniform(0.8, 1.2))  # nodes do not all find it at once
            try:
                await self.look()
            except RelayError as error:
                log.debug("requeue_failed", error=error.message)

    async def look(self) -> None:
        """Queue again what waits since the last look and has no job. Raises RelayError."""
        waiting = {
            consumer.journal.id: consumer.journal
            for consumer in self._node.consumers
            if consumer.begun and not consumer.head
        }
        late: list[Journal] = [journal for name, journal in waiting.items() if name in self._waited]
        self._waited = set(waiting)
        for journal in late[:MOST]:
            if await self._responses.requeue(journal):
                log.warning("requeued", response=journal.id)
