"""Responses that readers wait for and no queue knows: queued again.

A node may die, or lose Redis, between opening a response and queueing its job; a failover may lose the job
and keep the response, or lose the end of a response whose job is done. Nobody would ever claim it, and its
readers would wait until its retention ends.
"""

import asyncio
import random

import structlog

from api.node import Node
from api.responses import Responses
from relay.errors import RelayError

log = structlog.get_logger("relay.api")

EVERY_S = 2.5  # and a response of which nothing was heard from one look to the next is looked up
MOST = 64  # of one look, at random: each costs a look at its lease


class Requeue:
    """Looks at what this node's readers wait for."""

    def __init__(self, node: Node, responses: Responses) -> None:
        self._node = node
        self._responses = responses
        # Of each response at the last look: its end as last heard, and up to where a reader was sent it.
        self._places: dict[str, tuple[int, int]] = {}

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
            consumer.journal.id: (consumer.head, consumer.ledger.sent)
            for consumer in self._node.consumers
            if consumer.begun
        }
        quiet = [name for name, place in waiting.items() if self._places.get(name) == place]
        self._places = waiting
        for name in random.sample(quiet, min(len(quiet), MOST)):
            if await self._responses.requeue(name):
                log.warning("requeued", response=name)
