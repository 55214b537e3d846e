"""A node's rounds: who is visited, how often, and how many at a time."""

import asyncio
from collections import Counter

import pytest

from api.node import Node
from api.rounds import AT_A_TIME, MOST_TURNS, ROUND_S, ROUNDS, Rounds
from tests.support.consumer import Served


class Crowd:
    """Readers of a node that note their visits, in place of its own, and a clock that the rounds move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int, *, leaving: bool = False) -> None:
        self.here = [Visited(self, leaving=leaving) for _ in range(count)]
        self.naps: list[float] = []
        self.steps: Counter[Visited] = Counter()
        self.sweeps: Counter[Visited] = Counter()
        self.at_once: list[int] = [0]  # visits between two naps
        node = Served().node
        self.rounds = Rounds(node)
        monkeypatch.setattr(Node, "consumers", property(lambda _: list(self.here)))
        monkeypatch.setattr("relay.turns.asyncio.sleep", self._nap)
        monkeypatch.setattr(self.rounds, "_publish", self._second_is_over)

    async def _nap(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.at_once.append(0)

    def _second_is_over(self) -> None:
        raise asyncio.CancelledError

    async def second(self) -> None:
        """One second of rounds."""
        with pytest.raises(asyncio.CancelledError):
            await self.rounds.run()


class Visited:
    """A reader; one that is leaving does so when it is swept."""

    is_open = False

    def __init__(self, crowd: Crowd, *, leaving: bool) -> None:
        self.crowd = crowd
        self.leaving = leaving

    def step(self) -> None:
        """Count it."""
        self.crowd.steps[self] += 1
        self.crowd.at_once[-1] += 1

    def sweep(self) -> None:
        """Count it, and leave."""
        self.crowd.sweeps[self] += 1
        self.crowd.at_once[-1] += 1
        if self.leaving:
            self.crowd.here.remove(self)


@pytest.mark.parametrize("count", [1, 15, 100, AT_A_TIME * MOST_TURNS])
async def test_all_step_ten_times_a_second_and_are_looked_at_once(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never many of them at a time, so that nobody else waits for long."""
    crowd = Crowd(monkeypatch, count)
    await crowd.second()
    assert sum(crowd.naps) == pytest.approx(ROUNDS * ROUND_S)
    assert set(crowd.sweeps.values()) == {1}
    assert {crowd.steps[reader] + crowd.sweeps[reader] for reader in crowd.here} == {ROUNDS}
    assert max(crowd.at_once) < 2 * AT_A_TIME


async def test_without_readers_it_only_wakes_up_ten_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle node is idle."""
    crowd = Crowd(monkeypatch, 0)
    await crowd.second()
    assert len(crowd.naps) == ROUNDS


async def test_more_readers_than_the_turns_are_for_are_visited_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More of them at a time, and no more turns."""
    crowd = Crowd(monkeypatch, 2 * AT_A_TIME * MOST_TURNS)
    await crowd.second()
    assert len(crowd.naps) == ROUNDS * MOST_TURNS
    assert len(crowd.sweeps) == len(crowd.here)


async def test_every_reader_is_looked_at_within_a_second_however_many_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All of a hundred readers are lost at once: who is found and leaves moves nobody past his turn."""
    crowd = Crowd(monkeypatch, 100, leaving=True)
    await crowd.second()
    assert crowd.here == []
    assert sum(crowd.naps) == pytest.approx(1)


async def test_what_is_told_of_all_readers_is_of_those_who_are_here() -> None:
    """States, and the largest lag in bytes and seconds; nothing of nobody."""
    served = Served()
    rounds = Rounds(served.node)
    consumer, _ = await served.attach()
    consumer.hear(consumer.head + 100, served.node.loop.time())
    rounds._publish()
    metrics = served.metrics
    assert metrics.states == {"live": 1, "slow": 0, "stalled": 0, "detached": 0}
    assert metrics.lag_bytes_max == 100
    assert metrics.lag_seconds_max >= 0
    served.node.detach(consumer)
    rounds._publish()
    assert set(metrics.states.values()) == {0}
    assert (metrics.lag_bytes_max, metrics.lag_seconds_max) == (0, 0.0)
