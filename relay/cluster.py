"""A Redis Cluster: one wire for each primary, and the way from a key to its wire, looked up at each send.

The slot map is asked for when it is stale, by redis-py's parser; MOVED corrects it at once. ASK sends one
command on to the node that its slot moves to. While the keys of a response are on both sides, what needs
several of them is answered TRYAGAIN, and its caller tries again, as with everything that is Unavailable.
https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.cluster import parse_cluster_slots
from redis.crc import key_slot
from redis.exceptions import RedisError

from relay.address import Address, Fixed, Seeds, parse
from relay.errors import Redirected, Unavailable
from relay.line import Listener
from relay.route import Route
from relay.wire import Options, Wire

log = structlog.get_logger("relay.cluster")

SLOTS = 16_384
UNSETTLED_S = 10.0  # after a redirection of a slot, what is sent to it is followed for so long
REFRESH_S, REFRESH_SOON_S = 10.0, 0.25  # the map: when all is well, and when a node is away
ASK_WITHIN_S = 1.0
Place = tuple[str, int]
Affects = Callable[[str], bool]


class Cluster:
    """The slot map and its wires. `prepare` is called with each wire before it connects.

    `on_change` gets a predicate of keys: replies and rings of those for which it is true may have been lost.
    """

    def __init__(
        self,
        seeds: Seeds,
        options: Options,
        prepare: Callable[[Wire], None],
        on_change: Callable[[Affects], None],
    ) -> None:
        self._seeds = seeds
        self._options = options
        self._prepare = prepare
        self._on_change = on_change
        self._wires: dict[Place, Wire] = {}
        self._keepers: dict[Place, asyncio.Task[None]] = {}
        self.owners: list[Wire | None] = [None] * SLOTS
        self.unsettled: dict[int, float] = {}  # slots that move or have moved, until when (loop time)
        self.changes = 0  # of the map or of a connection, ever
        self.retired_reconnects = 0  # of wires that are no more
        self._listeners: dict[int, dict[str, Listener]] = {}  # by slot, then by channel
        self._stale = asyncio.Event()
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    @property
    def wires(self) -> list[Wire]:
        """The wires to the primaries."""
        return list(self._wires.values())

    @property
    def is_connected(self) -> bool:
        """Whether every slot can be reached now."""
        return None not in self.owners and all(wire.is_connected for wire in self._wires.values())

    def route(self, key: str) -> Route:
        """The way to a key."""
        return Route(self, key_slot(key.encode()))

    async def start(self) -> None:
        """Learn the map and connect to all primaries. Raises Unavailable."""
        self._learn(await self._ask())
        if None in self.owners:
            raise Unavailable(f"no node serves slot {self.owners.index(None)} of the Redis cluster")
        for wire in self.wires:
            if not await wire.wait_connected(self._options.get("connect_timeout_s", 5.0)):
                await wire.establish()  # says why

    async def keep(self) -> None:
        """Keep the map right, until cancelled."""
        while True:
            if self._stale.is_set() or not self.is_connected:
                await asyncio.sleep(REFRESH_SOON_S * random.uniform(0.5, 1.0))
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(REFRESH_S):
                        await self._stale.wait()
            self._stale.clear()
            now = self._loop.time()
            for slot in [slot for slot, until in self.unsettled.items() if until < now]:
                del self.unsettled[slot]
            try:
                served = await self._ask()
                self._learn(served)
                await self._retire(served)
            except Unavailable as error:
                log.warning("no_slot_map", error=error.message)
            except Exception:
                log.exception("slot_map_failed")  # a defect of ours; the map that there is still serves

    async def close(self) -> None:
        """Close every wire."""
        for place in list(self._wires):
            await self._drop(place)

    async def changed(self, within_s: float) -> None:
        """Wait for the next change of the map or of a connection, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._changed.wait()

    def wire_at(self, place: Place) -> Wire:
        """The wire to a node: also to one that serves no slot yet, for it may be given one."""
        wire = self._wires.get(place)
        return wire if wire is not None else self._add(place)

    # --- subscriptions

    def subscribe(self, slot: int, channel: str, listener: Listener) -> None:
        """Listen at whoever serves the slot, now and later."""
        self._listeners.setdefault(slot, {})[channel] = listener
        wire = self.owners[slot]
        if wire is not None:
            wire.subscribe(channel, listener)

    def unsubscribe(self, slot: int, channel: str) -> None:
        """Stop that."""
        channels = self._listeners.get(slot, {})
        if channels.pop(channel, None) is not None:
            if not channels:
                del self._listeners[slot]
            wire = self.owners[slot]
            if wire is not None:
                wire.unsubscribe(channel)

    # --- the map

    async def _ask(self) -> dict[Place, set[int]]:
        """Who serves what, from the first node that has an agreement to speak of. Raises Unavailable."""
        known = [self._seeds.url(*place) for place in self._wires]
        urls = [*random.sample(known, len(known)), *self._seeds.seed_urls]
        partial: dict[Place, set[int]] | None = None
        for url in dict.fromkeys(urls):
            try:
                async with asyncio.timeout(ASK_WITHIN_S):
                    is_agreed, served = await _ask_node(url)
            except (RedisError, OSError, TimeoutError) as error:
                log.debug("no_slot_map_from", redis=parse(url).shown, error=str(error))
                continue
            if is_agreed:
                return served
            partial = partial or served
        if partial:
            return partial
        hosts = ", ".join(f"{host}:{port}" for host, port in self._seeds.hosts)
        raise Unavailable(f"no node of the Redis cluster at {hosts} answers")

    def _learn(self, served: dict[Place, set[int]]) -> None:
        """Take a map over, but for the slots of which a node that is there has just said otherwise."""
        settled = set()
        for slot in self.unsettled:
            wire = self.owners[slot]
            if wire is not None and wire.is_connected:
                settled.add(slot)
        for place, slots in served.items():
            self._give(self.wire_at(place), slots - settled)

    async def _retire(self, served: dict[Place, set[int]]) -> None:
        """Close the wires to those who serve nothing any more: replicas, and nodes that have left."""
        if not self.unsettled:
            owners = set(self.owners)
            for place, wire in list(self._wires.items()):
                if place not in served and wire not in owners:
                    await self._drop(place)

    def _give(self, wire: Wire, slots: set[int]) -> None:
        """These slots are this wire's now; whoever listens there listens on it."""
        moved = {slot for slot in slots if self.owners[slot] is not wire}
        before = {slot: self.owners[slot] for slot in moved & self._listeners.keys()}
        for slot in moved:
            self.owners[slot] = wire
        for slot, old in before.items():
            for channel, listener in self._listeners[slot].items():
                if old is not None:
                    old.unsubscribe(channel)
                wire.subscribe(channel, listener)
        if moved:
            self._tell(lambda key: key_slot(key.encode()) in moved)

    def redirected(self, wire: Wire, redirected: Redirected) -> None:
        """A node says where a slot is, or that it is on its way there."""
        if not redirected.host and wire.address is not None:
            redirected.host = wire.address.host
        slot, target = redirected.slot, self.wire_at((redirected.host, redirected.port))
        is_news = slot not in self.unsettled
        self.unsettled[slot] = self._loop.time() + UNSETTLED_S
        if not redirected.asking:
            self._stale.set()
            self._give(target, {slot})
        elif is_news:  # what was read in these moments failed
            self._tell(lambda key: key_slot(key.encode()) == slot)

    def _tell(self, affects: Affects) -> None:
        self.changes += 1
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self._on_change(affects)

    # --- the wires

    def _add(self, place: Place) -> Wire:
        wire = Wire(Fixed(parse(self._seeds.url(*place))), **self._options)
        wire.on_lost = self._stale.set
        wire.on_redirect = partial(self.redirected, wire)
        self._prepare(wire)
        wire.on_reconnect(lambda: self._tell(lambda key: self.owners[key_slot(key.encode())] is wire))
        self._wires[place] = wire
        # Ends with `_drop`, or at the latest with `close`.
        self._keepers[place] = asyncio.create_task(wire.keep(), name=f"wire-keeper {place[0]}:{place[1]}")
        return wire

    async def _drop(self, place: Place) -> None:
        keeper, wire = self._keepers.pop(place), self._wires.pop(place)
        self.retired_reconnects += wire.reconnects
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper
        await wire.close()


class Owner:
    """The finder of a wire of its own to whoever serves a key: what blocks cannot share a wire."""

    must_lead = True

    def __init__(self, cluster: Cluster, key: str) -> None:
        self._cluster = cluster
        self._slot = key_slot(key.encode())
        self.shown = f"the node of {key}"

    async def find(self) -> Address:
        """Its address now. Raises Unavailable."""
        wire = self._cluster.owners[self._slot]
        if wire is None:
            raise Unavailable(f"no node serves slot {self._slot} of the Redis cluster")
        return await wire.find()


async def _ask_node(url: str) -> tuple[bool, dict[Place, set[int]]]:
    """Whether the cluster works as this node sees it, and who serves which slots."""
    client = Redis.from_url(url, socket_timeout=ASK_WITHIN_S, retry=Retry(NoBackoff(), 0))
    async with client:
        told: dict[str, str] = await client.execute_command("CLUSTER INFO")  # type: ignore[no-untyped-call]
        reply = await client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
    served: dict[Place, set[int]] = {}
    for (first, last), nodes in parse_cluster_slots(reply, current_host=parse(url).host).items():
        host, port = nodes["primary"]
        served.setdefault((host, int(port)), set()).update(range(first, last + 1))
    return told.get("cluster_state") == "ok", served
