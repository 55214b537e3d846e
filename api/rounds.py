"""A node's rounds: each consumer steps ten times a second and is looked at once, a few at a time.

In one go, some hundred slow readers would hold the loop for milliseconds ten times a second, and by that
the fast readers beside them would be late.
"""

from contextlib import suppress

from api.condition import Health
from api.node import Node
from api.stream import Consumer
from relay.errors import RelayError
from relay.turns import in_turns

ROUND_S = 0.1
ROUNDS = 10  # in each of which a tenth of the consumers is looked at
AT_A_TIME, MOST_TURNS = 16, 50  # consumers, some 0.2 ms; of more than 800 it is more of them at a time


class Rounds:
    """Covers for lost rings, judges the clients, and samples the lag."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def run(self) -> None:
        """Go round until cancelled."""
        node = self._node
        while True:
            # Of those who are here now: in a list that changes, who leaves moves others past their turn.
            consumers, feeds = node.consumers, node.feeds
            for number in range(ROUNDS):
                await self._round(set(consumers[number::ROUNDS]))
                for feed in feeds[number::ROUNDS]:
                    feed.look()
            self._publish()
            with suppress(RelayError):
                await node.topology.synchronise()

    async def _round(self, due: set[Consumer]) -> None:
        """Step all, and look at those that are due."""
        present = self._node.consumers
        async for consumers in in_turns(present, over_s=ROUND_S, at_a_time=AT_A_TIME, most_turns=MOST_TURNS):
            for consumer in consumers:
                if consumer in due:
                    self._look(consumer)  # before it confirms: the lag as it was, and not at its least
                    consumer.sweep()
                else:
                    consumer.step()

    def _look(self, consumer: Consumer) -> None:
        """Judge a client once a second, tell the other nodes when that has changed, and sample its lag."""
        if not consumer.is_open:
            return
        now, condition, outlet = self._node.loop.time(), consumer.condition, consumer.outlet
        lag_bytes, lag_s = consumer.lag, consumer.backlog.age(now)
        times = None if condition.health is Health.LIVE else outlet.socket.times()
        has_all = outlet.credit.explicit and lag_s > 0.0 and not outlet.socket.outstanding()
        if condition.observe(now, lag_s, consumer.ledger.confirmed, times, has_all=has_all):
            consumer.journal.post_health(consumer.name, condition.health, condition.cause)
        self._node.metrics.lag_bytes.observe(lag_bytes)
        self._node.metrics.lag_seconds.observe(lag_s)

    def _publish(self) -> None:
        """What is told of all of them, once a second."""
        metrics, now, consumers = self._node.metrics, self._node.loop.time(), self._node.consumers
        metrics.states.update(dict.fromkeys(metrics.states, 0))
        for consumer in consumers:
            metrics.states[consumer.condition.health] += 1
        metrics.lag_bytes_max = max((consumer.lag for consumer in consumers), default=0)
        metrics.lag_seconds_max = max((consumer.backlog.age(now) for consumer in consumers), default=0.0)
