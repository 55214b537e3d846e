"""What one read and one acknowledgement cost the client: our wire beside redis-py's async pipeline.

A thousand streams with one group each, as on an API node with a thousand readers. A round gives each
stream one entry, which is not timed; then every consumer does one XREADGROUP and one XACK. The clients
take turns, round by round, so that whatever else the machine does hits all alike. The cost is CPU time
of this process alone (`time.process_time`): the server's is not in it.
"""

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import redis.asyncio

from relay.bench import machine
from relay.errors import WireProtocol
from relay.wire import Wire

_ENTRY = b"\x92\x01 bounded"  # as small as what a pump appends for one token
_TARGET_US = 15.0
_TARGET_RATIO = 5.0
_WARM_UP_ROUNDS = 2
_RESPONSE_TIMEOUT_S = 30.0

Round = Callable[[], Awaitable[int]]
Progress = Callable[[dict[str, Any]], None]


class Streams:
    """The streams of a run, with one group each. Keys end by themselves after ten minutes."""

    def __init__(self, wire: Wire, count: int) -> None:
        self._wire = wire
        self.keys = [f"relay:bench:{{{index}}}:log" for index in range(count)]

    async def create(self) -> None:
        """Make the groups."""
        await self._each("DEL")
        await self._all([self._wire.send("XGROUP", "CREATE", key, "g", "0", "MKSTREAM") for key in self.keys])
        await self._all([self._wire.send("EXPIRE", key, 600) for key in self.keys])

    async def fill(self) -> None:
        """One entry more in each, and the ones before it gone."""
        await self._all(
            [self._wire.send("XADD", key, "MAXLEN", 1, "*", "r", _ENTRY) for key in self.keys],
        )

    async def remove(self) -> None:
        """Leave nothing behind."""
        await self._each("DEL")

    async def _each(self, command: str) -> None:
        await self._all([self._wire.send(command, key) for key in self.keys])

    @staticmethod
    async def _all(futures: list["asyncio.Future[Any]"]) -> None:
        for future in futures:
            await future


def by_batch(wire: Wire, keys: list[str]) -> Round:
    """All reads in one write, then all acknowledgements: what a node does for readers that wake together."""

    async def run() -> int:
        reads = [wire.send("XREADGROUP", "GROUP", "g", "c", "COUNT", 16, "STREAMS", key, ">") for key in keys]
        acks = [
            wire.send("XACK", key, "g", _last_id(await read)) for key, read in zip(keys, reads, strict=True)
        ]
        return sum([await ack for ack in acks])

    return run


def by_task(wire: Wire, keys: list[str]) -> Round:
    """A task for each consumer, which awaits its read and then its acknowledgement."""

    async def one(key: str) -> int:
        reply = await wire.call("XREADGROUP", "GROUP", "g", "c", "COUNT", 16, "STREAMS", key, ">")
        acked: int = await wire.call("XACK", key, "g", _last_id(reply))
        return acked

    async def run() -> int:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(key)) for key in keys]
        return sum(task.result() for task in tasks)

    return run


def by_pipeline(client: "redis.asyncio.Redis", keys: list[str]) -> Round:
    """redis-py at its best: one pipeline of all reads, one of all acknowledgements."""

    async def run() -> int:
        reads = client.pipeline(transaction=False)
        for key in keys:
            reads.xreadgroup("g", "c", {key: ">"}, count=16)
        acks = client.pipeline(transaction=False)
        for key, reply in zip(keys, await reads.execute(), strict=True):
            acks.xack(key, "g", _last_id(reply))
        return sum(await acks.execute())

    return run


def _last_id(reply: Any) -> bytes:
    """The id of the last entry: RESP3 gives a map of streams, redis-py by default a list of pairs."""
    entries = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    last: bytes = entries[-1][0]
    return last


async def compare(
    url: str, *, consumers: int = 1000, rounds: int = 40, progress: Progress = lambda _: None
) -> dict[str, Any]:
    """Measure on an otherwise unused server. Returns medians over the rounds, in us of CPU per pair."""
    wire = await Wire.connect(url, max_inflight=2 * consumers)
    client = redis.asyncio.Redis.from_url(
        url, socket_timeout=_RESPONSE_TIMEOUT_S, retry=None, max_connections=1, decode_responses=False
    )
    streams = Streams(wire, consumers)
    ways = {
        "wire": by_batch(wire, streams.keys),
        "wire_tasks": by_task(wire, streams.keys),
        "redis_py_pipeline": by_pipeline(client, streams.keys),
    }
    times_us: dict[str, list[float]] = {name: [] for name in ways}
    server = await machine.server(wire)
    try:
        await streams.create()
        for done in range(rounds + _WARM_UP_ROUNDS):
            for name, way in ways.items():
                await streams.fill()
                times_us[name].append(await _cpu_us(way, consumers))
            progress({"done": done + 1})
        await streams.remove()
    finally:
        await client.aclose()
        await wire.close()
    measured = {name: times[_WARM_UP_ROUNDS:] for name, times in times_us.items()}
    return {"server": server} | summary(measured, consumers)


async def _cpu_us(way: Round, consumers: int) -> float:
    """CPU time of one round, per pair. Raises WireProtocol when an entry was missed: then it is no figure."""
    before = time.process_time_ns()
    acked = await way()
    spent = time.process_time_ns() - before
    if acked != consumers:
        raise WireProtocol(f"{acked} of {consumers} entries were read and acknowledged")
    return spent / 1000 / consumers


def summary(times_us: dict[str, list[float]], consumers: int) -> dict[str, Any]:
    """Medians, spread, ratio and verdict of what was measured."""
    medians = {name: statistics.median(times) for name, times in times_us.items()}
    # Paired by round: what slows the machine for a second slows both, and leaves the ratio alone.
    pairs = zip(times_us["redis_py_pipeline"], times_us["wire"], strict=True)
    ratio = statistics.median(theirs / ours for theirs, ours in pairs)
    return {
        "consumers": consumers,
        "rounds": len(times_us["wire"]),
        "cpu_us_per_pair": {
            name: {
                "median": round(medians[name], 2),
                "min": round(min(times), 2),
                "max": round(max(times), 2),
            }
            for name, times in times_us.items()
        },
        "ratio": round(ratio, 2),
        "target": {"us": _TARGET_US, "ratio": _TARGET_RATIO},
        "holds": medians["wire"] <= _TARGET_US and ratio >= _TARGET_RATIO,
    }
