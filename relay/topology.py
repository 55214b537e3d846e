"""Which wire serves which key: one server, the primary that sentinels name, or a cluster.

    one server, Sentinel   one wire for every key; with sentinels it finds the primary anew at each connection
    Cluster                one wire for each primary; a key's line is looked up at each send (`relay.route`)

No caller notices the difference, but for jobs: the two queues have slots of their own.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from relay import scripts
from relay.address import Finder, Fixed, Seeds, parse_seeds
from relay.cluster import Affects, Cluster, Owner
from relay.errors import Redirected, Refused
from relay.fitness import judge, parse_info, require
from relay.journal import Journal
from relay.keys import keys_of
from relay.line import Line
from relay.sentinel import Sentinels
from relay.settings import Settings
from relay.wire import Options, Wire, open_wire

CANCEL_AGAIN_S = 0.1


class Topology:
    """The deployment's Redis, as wires. This one: a single wire for every key."""

    is_sharded = False

    def __init__(self, wire: Wire, find: Finder | None = None) -> None:
        self._one = wire
        self._find = find
        self._clock_offset_s = 0.0

    def wire(self, key: str) -> Line:  # noqa: ARG002 a cluster looks at the key's slot
        """The line to the node that serves `key`, now and later."""
        return self._one

    def wires(self) -> list[Wire]:
        """Those to the primaries there are now, for metrics and checks; do not keep them."""
        return [self._one]

    def journal(self, response_id: str) -> Journal:
        """A response, on the line that serves it."""
        return Journal(self.wire(keys_of(response_id).meta), response_id)

    @property
    def is_connected(self) -> bool:
        """Whether every key can be reached now."""
        return self._one.is_connected

    @property
    def reconnects(self) -> int:
        """Connections made again after a break, ever."""
        return self._one.reconnects

    def on_change(self, callback: Callable[[Affects], None]) -> None:
        """Have `callback` called when replies and rings may have been lost, with a predicate of the keys.

        That is after a reconnect, a failover, the move of a slot.
        """
        self._one.on_reconnect(lambda: callback(lambda _key: True))

    def open_blocking(self, key: str, options: Options) -> AbstractAsyncContextManager[Wire]:
        """A wire of its own to the node of `key`, for reads that block."""
        return open_wire(self._finder(key), **options)

    async def synchronise(self) -> None:
        """Estimate our clock's offset to the server's, as NTP does: half of the round trip each way.

        The nodes of a cluster are taken to agree on the time; `relay doctor` looks at each.
        """
        before = time.time()
        seconds, micros = await self.wires()[0].call("TIME")
        after = time.time()
        self._clock_offset_s = int(seconds) + int(micros) / 1e6 - (before + after) / 2

    def server_time(self) -> float:
        """The server's Unix time in seconds, by our estimate."""
        return time.time() + self._clock_offset_s

    def _finder(self, key: str) -> Finder:  # noqa: ARG002 a cluster looks at the key's slot
        if self._find is None:
            raise RuntimeError("this topology was made of a wire alone")
        return self._find


class SentinelTopology(Topology):
    """One wire, to the primary that the sentinels name."""

    def __init__(self, wire: Wire, sentinels: Sentinels) -> None:
        super().__init__(wire, sentinels)
        self._sentinels = sentinels
        sentinels.wires.add(wire)

    @asynccontextmanager
    async def open_blocking(self, key: str, options: Options) -> AsyncIterator[Wire]:
        """As on one server, and watched as the other is."""
        async with super().open_blocking(key, options) as wire:
            self._sentinels.wires.add(wire)
            try:
                yield wire
            finally:
                self._sentinels.wires.discard(wire)


class ClusterTopology(Topology):
    """A wire for each primary."""

    is_sharded = True

    def __init__(self, seeds: Seeds, options: Options) -> None:
        self._cluster = Cluster(seeds, options, scripts.keep_loaded, self._changed)
        self._callbacks: list[Callable[[Affects], None]] = []
        self._clock_offset_s = 0.0

    def wire(self, key: str) -> Line:
        """The line to whoever serves the key's slot."""
        return self._cluster.route(key)

    def wires(self) -> list[Wire]:
        """Those to the primaries there are now."""
        return self._cluster.wires

    @property
    def is_connected(self) -> bool:
        """Whether every slot can be reached now."""
        return self._cluster.is_connected

    @property
    def reconnects(self) -> int:
        """Connections made again after a break, ever."""
        return self._cluster.retired_reconnects + sum(wire.reconnects for wire in self.wires())

    def on_change(self, callback: Callable[[Affects], None]) -> None:
        """As on one server."""
        self._callbacks.append(callback)

    @asynccontextmanager
    async def open_blocking(self, key: str, options: Options) -> AsyncIterator[Wire]:
        """As on one server, but that it follows the key's slot."""
        async with open_wire(self._finder(key), **options) as wire:

            def redirected(said: Redirected) -> None:
                self._cluster.redirected(wire, said)
                if not said.asking:
                    wire.renew()

            wire.on_redirect = redirected
            yield wire

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["ClusterTopology"]:
        """Connected for as long as the block lasts. Raises Unavailable."""
        try:
            await self._cluster.start()
            # The one task of the map; it ends with the block.
            keeper = asyncio.create_task(self._cluster.keep(), name="cluster-keeper")
            try:
                yield self
            finally:
                await _end(keeper)
        finally:
            await self._cluster.close()

    def _changed(self, affects: Affects) -> None:
        for callback in self._callbacks:
            callback(affects)

    def _finder(self, key: str) -> Finder:
        return Owner(self._cluster, key)


@asynccontextmanager
async def open_topology(settings: Settings, *, name: str) -> AsyncIterator[Topology]:
    """Connect, check that the servers can carry us, load the scripts; closes with the block.

    Raises Unavailable, SettingsInvalid, or ServerUnfit with what to do about it.
    """
    options = Options(name=name, max_inflight=settings.wire_inflight)
    async with _connected(settings.redis_url, options) as topology:
        for wire in topology.wires():
            await check_fitness(wire)
            await scripts.load(wire)
        await topology.synchronise()
        yield topology


@asynccontextmanager
async def _connected(url: str, options: Options) -> AsyncIterator[Topology]:
    seeds = parse_seeds(url)
    if seeds is None:
        find = Fixed.at(url)
        async with open_wire(find, **options) as wire:
            scripts.keep_loaded(wire)
            yield Topology(wire, find)
    elif seeds.kind == "cluster":
        async with ClusterTopology(seeds, options).opened() as cluster:
            yield cluster
    else:
        sentinels = Sentinels(seeds)
        try:
            async with open_wire(sentinels, **options) as wire:
                scripts.keep_loaded(wire)
                # Ends with the block, as the wire's keeper does.
                watcher = asyncio.create_task(sentinels.watch(), name="sentinel-watcher")
                try:
                    yield SentinelTopology(wire, sentinels)
                finally:
                    await _end(watcher)
        finally:
            await sentinels.aclose()


async def _end(task: "asyncio.Task[Any]") -> None:
    # Again and again: redis-py, in whose calls it may be, has been seen to swallow a cancellation.
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_AGAIN_S)


async def check_fitness(wire: Wire) -> None:
    """Raises ServerUnfit for a server that is too old, a replica, or set to evict."""
    info = parse_info(await wire.call("INFO"))
    try:
        config = await wire.call("CONFIG", "GET", "maxmemory-policy")
    except Refused:  # managed services hide CONFIG; INFO repeats the policy
        config = {}
    require(judge(info, {key.decode(): value for key, value in config.items()}))
