"""Which wire serves which key.

One node serves every key for now; Sentinel and Cluster will answer `wire(key)` by role and by slot,
and no caller will notice.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from relay import scripts
from relay.errors import Refused
from relay.fitness import judge, parse_info, require
from relay.journal import Journal
from relay.keys import keys_of
from relay.settings import Settings
from relay.wire import Wire, open_wire


class Topology:
    """The deployment's Redis, as wires."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._clock_offset_s = 0.0

    def wire(self, key: str) -> Wire:  # noqa: ARG002 a cluster will look at the key's slot
        """The wire of the node that serves `key`."""
        return self._wire

    def wires(self) -> list[Wire]:
        """All of them, for sweeps and metrics."""
        return [self._wire]

    def journal(self, response_id: str) -> Journal:
        """A response, on the wire that serves it."""
        return Journal(self.wire(keys_of(response_id).meta), response_id)

    @property
    def is_connected(self) -> bool:
        """Whether every node can be reached now."""
        return all(wire.is_connected for wire in self.wires())

    async def synchronise(self) -> None:
        """Estimate our clock's offset to the server's, as NTP does: half of the round trip each way."""
        before = time.time()
        seconds, micros = await self._wire.call("TIME")
        after = time.time()
        self._clock_offset_s = int(seconds) + int(micros) / 1e6 - (before + after) / 2

    def server_time(self) -> float:
        """The server's Unix time in seconds, by our estimate."""
        return time.time() + self._clock_offset_s


@asynccontextmanager
async def open_topology(settings: Settings, *, name: str) -> AsyncIterator[Topology]:
    """Connect, check that the server can carry us, load the scripts; closes with the block.

    Raises Unavailable, SettingsInvalid, or ServerUnfit with what to do about it.
    """
    async with open_wire(settings.redis_url, name=name, max_inflight=settings.wire_inflight) as wire:
        await check_fitness(wire)
        await scripts.load(wire)
        topology = Topology(wire)
        await topology.synchronise()
        yield topology


async def check_fitness(wire: Wire) -> None:
    """Raises ServerUnfit for a server that is too old, a replica, or set to evict."""
    info = parse_info(await wire.call("INFO"))
    try:
        config = await wire.call("CONFIG", "GET", "maxmemory-policy")
    except Refused:  # managed services hide CONFIG; INFO repeats the policy
        config = {}
    require(judge(info, {key.decode(): value for key, value in config.items()}))
