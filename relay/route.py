"""The way to one slot of a cluster: a `Line` that finds its wire at each send and follows redirections."""

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from relay.errors import ConnectionLost, Redirected, Unavailable
from relay.line import Listener
from relay.link import Argument, Reply, pack
from relay.wire import Wire

if TYPE_CHECKING:
    from relay.cluster import Cluster

HOPS = 5  # of one command; more is a cluster that does not agree with itself
CALL_WITHIN_S = 5.0  # for a call: until its slot has a node, and while the slot is on the move
RETRY_S = 0.05
_MOVING = ("TRYAGAIN", "CLUSTERDOWN", "READONLY")


class Route:
    """The line of all keys of one slot.

    A redirected command is followed to the node that has the key. `send_packed`, the way of appends and
    reads, hands out the wire's own reply until the slot is known to be moving: the first one that is
    redirected fails with Redirected, which is Unavailable: it did not run, and its caller tries again.
    """

    __slots__ = ("_cluster", "_slot")

    def __init__(self, cluster: "Cluster", slot: int) -> None:
        self._cluster = cluster
        self._slot = slot

    @property
    def reconnects(self) -> int:
        """Changes whenever replies or rings may have been lost, here or elsewhere in the cluster."""
        return self._cluster.changes

    @property
    def is_connected(self) -> bool:
        """Whether the slot's node can be reached now."""
        wire = self._cluster.owners[self._slot]
        return wire is not None and wire.is_connected

    def send(self, *args: Argument) -> Reply:
        """As `Wire.send`."""
        packed = pack(*args)
        return _Followed(self, packed, self._wire().send_packed(packed)).reply

    def send_packed(self, packed: bytes) -> Reply:
        """As `Wire.send_packed`."""
        reply = self._wire().send_packed(packed)
        return _Followed(self, packed, reply).reply if self._slot in self._cluster.unsettled else reply

    async def call(self, *args: Argument) -> Any:
        """As `Wire.call`; also waits for a slot that moves, as long as it is certain that nothing ran."""
        packed, loop = pack(*args), asyncio.get_running_loop()
        until = loop.time() + CALL_WITHIN_S
        while True:
            try:
                return await _Followed(self, packed, self._wire().send_packed(packed)).reply
            except ConnectionLost:
                raise
            except Unavailable as error:
                is_moving = isinstance(error, Redirected) or error.message.startswith(_MOVING)
                if loop.time() >= until or not (is_moving or not self.is_connected):
                    raise
            await self._cluster.changed(RETRY_S)

    def post(self, *args: Argument) -> None:
        """As `Wire.post`."""
        with suppress(Unavailable):
            self.send(*args).add_done_callback(lambda reply: reply.cancelled() or reply.exception())

    def subscribe(self, channel: str, listener: Listener) -> None:
        """As `Wire.subscribe`, at whoever serves the slot."""
        self._cluster.subscribe(self._slot, channel, listener)

    def unsubscribe(self, channel: str) -> None:
        """As `Wire.unsubscribe`."""
        self._cluster.unsubscribe(self._slot, channel)

    def onward(self, redirected: Redirected, packed: bytes) -> Reply:
        """Send a command on to where the redirection points. Raises Unavailable."""
        if not redirected.asking:
            return self._wire().send_packed(packed)
        wire = self._cluster.wire_at((redirected.host, redirected.port))
        wire.post("ASKING")  # for the next command alone, which leaves in the same write
        return wire.send_packed(packed)

    def _wire(self) -> Wire:
        wire = self._cluster.owners[self._slot]
        if wire is None:
            raise Unavailable(f"no node serves slot {self._slot} of the Redis cluster")
        return wire


class _Followed:
    """A reply that follows at most HOPS redirections before it is one."""

    __slots__ = ("_hops", "_packed", "_route", "reply")

    def __init__(self, route: Route, packed: bytes, first: Reply) -> None:
        self._route = route
        self._packed = packed
        self._hops = HOPS
        self.reply: Reply = first.get_loop().create_future()
        first.add_done_callback(self._came)

    def _came(self, reply: Reply) -> None:
        if self.reply.done():  # its caller gave up
            return
        error = reply.exception()
        if error is None:
            self.reply.set_result(reply.result())
        elif isinstance(error, Redirected) and self._hops:
            self._hops -= 1
            try:
                self._route.onward(error, self._packed).add_done_callback(self._came)
            except Unavailable as unavailable:
                self._fail(unavailable)
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self.reply.set_exception(error)
        self.reply.exception()  # a reply that its caller gave up on is not logged as never read
