"""One multiplexed connection per process to one Redis node, and what keeps it there.

When the link breaks, every command in flight fails with ConnectionLost (it may or may not have run)
and the wire reconnects by itself, backing off to at most a second between tries. Subscriptions are made
again, and those who asked are told, because rings may have been missed. A server that owes a reply for
`reply_timeout_s` is taken for dead.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypedDict, Unpack

import structlog

from relay.address import Address, Finder, Fixed
from relay.errors import ConnectionLost, Redirected, RelayError, Unavailable
from relay.line import Listener
from relay.link import Argument, Link, Reply

log = structlog.get_logger("relay.wire")

_FIRST_BACKOFF_S, _LAST_BACKOFF_S = 0.02, 1.0
_CLOSE_S = 1.0  # for what is queued to leave; a server that hangs gets no longer
RESUBSCRIBE_S = 0.2  # after a subscription was refused or ended by the server


class Options(TypedDict, total=False):
    """How a wire behaves; each has a default in `Wire`."""

    name: str
    max_inflight: int
    reply_timeout_s: float
    connect_timeout_s: float


class Wire:
    """Make one with `open_wire`, or with `connect` where nothing need outlive a break.

    `find` is asked for the address before each connection. `on_lost` is called when one breaks,
    `on_redirect` with what a cluster says of a slot.
    """

    def __init__(
        self,
        find: Finder,
        *,
        name: str = "relay",
        max_inflight: int = 16_384,
        reply_timeout_s: float = 10.0,
        connect_timeout_s: float = 5.0,
    ) -> None:
        self._find = find
        self._name = name
        self._max_inflight = max_inflight
        self._reply_timeout_s = reply_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._link: Link | None = None  # set only once it has been greeted
        self._listeners: dict[str, Listener] = {}
        self._on_reconnect: list[Callable[[], None]] = []
        self._deaf: set[str] = set()  # channels whose subscription is to be made again
        self._lost = asyncio.Event()
        self._lost.set()
        self._connected = asyncio.Event()
        self.address: Address | None = None  # of the last connection
        self.on_lost: Callable[[], None] = lambda: None
        self.on_redirect: Callable[[Redirected], None] = lambda _redirected: None
        self.reconnects = 0

    @classmethod
    async def connect(cls, url: str, **options: Unpack[Options]) -> "Wire":
        """Connect once. Raises Unavailable, SettingsInvalid (credentials) or Refused."""
        wire = cls(Fixed.at(url), **options)
        await wire.establish()
        return wire

    # --- commands

    def send(self, *args: Argument) -> Reply:
        """Queue one command for this turn's write; the future resolves to its reply.

        The future fails with ConnectionLost, OutOfMemory, Unavailable or Refused. Cancelling it does not
        recall the command, and does not disturb the order of replies. Raises Unavailable at once when
        there is no connection, or when too many commands already wait.
        """
        if self._link is None:
            raise Unavailable(f"no connection to Redis at {self._find.shown}")
        return self._link.send(args)

    def send_packed(self, packed: bytes) -> Reply:
        """`send` for a command in RESP already (`relay.link.pack`): what is sent often is packed once."""
        if self._link is None:
            raise Unavailable(f"no connection to Redis at {self._find.shown}")
        return self._link.send_packed(packed)

    async def call(self, *args: Argument) -> Any:
        """Send one command and wait for its reply; waits up to the connect timeout for a connection."""
        if self._link is None:
            await self.wait_connected(self._connect_timeout_s)
        return await self.send(*args)

    def post(self, *args: Argument) -> None:
        """Send a command whose reply nobody needs: an XACK that a later one repeats, a notification."""
        with suppress(Unavailable):
            self.send(*args).add_done_callback(_retrieve)

    @property
    def inflight(self) -> int:
        """Commands without a reply."""
        return self._link.inflight if self._link else 0

    @property
    def is_connected(self) -> bool:
        """Whether there is a greeted connection now."""
        return self._link is not None

    async def find(self) -> Address:
        """Where it would connect to now. Raises Unavailable."""
        return await self._find.find()

    async def wait_connected(self, within_s: float) -> bool:
        """Whether it is, or comes to be within this time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._connected.wait()
        return self.is_connected

    # --- push messages

    def subscribe(self, channel: str, listener: Listener) -> None:
        """Hand the sharded messages of `channel` to `listener`, also after a reconnect."""
        self._listeners[channel] = listener
        if self._link is not None:
            self._link.send_subscription("SSUBSCRIBE", channel)

    def unsubscribe(self, channel: str) -> None:
        """Stop that. Messages already on their way are dropped."""
        if self._listeners.pop(channel, None) is not None and self._link is not None:
            self._link.send_subscription("SUNSUBSCRIBE", channel)

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        """Call `callback` after each reconnect: rings may have been missed meanwhile."""
        self._on_reconnect.append(callback)

    # --- life

    def renew(self) -> None:
        """Drop the connection, for the address may be another now; `keep` makes the next one."""
        if self._link is not None:
            self._link.abort()

    async def close(self) -> None:
        """Write what is queued, close, and fail what is in flight."""
        link, self._link = self._link, None
        self._connected.clear()
        if link is not None:
            await link.close(within_s=_CLOSE_S)

    async def keep(self) -> None:
        """Reconnect whenever the connection breaks, and drop it when replies stay out, until cancelled."""
        while True:
            try:
                async with asyncio.timeout(self._reply_timeout_s / 4):
                    await self._lost.wait()
            except TimeoutError:
                if self._link is not None and self._link.silent_s() > self._reply_timeout_s:
                    self._link.abort()
                continue
            await self._reconnect()

    async def establish(self) -> None:
        """Connect and greet. Raises Unavailable, SettingsInvalid (credentials) or Refused."""
        shown = self._find.shown
        link = Link(
            shown, self._max_inflight, self._dispatch, self._link_lost, self._fell_deaf, self._redirected
        )
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                address = await self._find.find()
                await _connect(link, address)
                said = await asyncio.gather(*[link.send(command) for command in address.greeting(self._name)])
        except (OSError, TimeoutError, ConnectionLost) as error:
            link.abort()
            raise Unavailable(f"cannot reach Redis at {shown}: {str(error) or 'timed out'}") from error
        except BaseException:  # cancelled in mid-greeting, too: nobody else knows of this link
            link.abort()
            raise
        if not link.is_open:
            # It broke in the turn that answered the greeting, before anyone listened for the loss.
            raise Unavailable(f"cannot reach Redis at {shown}: it closed the connection")
        if (self._find.must_lead or self.address is not None) and said[0].get(b"role") == b"replica":
            # Until somebody is promoted: what is sent to a replica would be refused.
            link.abort()
            raise Unavailable(f"Redis at {address.shown} is a replica")
        for channel in self._listeners:
            link.send_subscription("SSUBSCRIBE", channel)
        self._link, self.address = link, address
        self._lost.clear()
        self._connected.set()

    async def _reconnect(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        is_first = self.address is None
        while self._link is None:
            # Jitter, so that a thousand processes do not come back in one instant.
            if not is_first or backoff_s > _FIRST_BACKOFF_S:
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, _LAST_BACKOFF_S)
            with suppress(RelayError):
                await self.establish()
        self.reconnects += not is_first
        for callback in self._on_reconnect:
            try:
                callback()
            except Exception:
                log.exception("reconnect_callback_failed", redis=self._find.shown)

    def _link_lost(self, link: Link) -> None:
        if link is self._link:
            self._link = None
            self._connected.clear()
            self._lost.set()
            self.on_lost()

    def _dispatch(self, channel: str, payload: bytes) -> None:
        listener = self._listeners.get(channel)
        if listener is not None:
            try:
                listener(payload)
            except Exception:
                # A defect of ours with one channel: the replies that follow are everybody's.
                log.exception("listener_failed", redis=self._find.shown)

    def _fell_deaf(self, channel: str) -> None:
        """A subscription was refused, or the server has ended it: make it again, all that are due at once."""
        if channel in self._listeners:
            if not self._deaf:
                asyncio.get_running_loop().call_later(RESUBSCRIBE_S, self._resubscribe)
            self._deaf.add(channel)

    def _resubscribe(self) -> None:
        deaf, self._deaf = self._deaf, set()
        for channel in deaf:
            if channel in self._listeners and self._link is not None:
                self._link.send_subscription("SSUBSCRIBE", channel)

    def _redirected(self, redirected: Redirected) -> None:
        self.on_redirect(redirected)


async def _connect(link: Link, address: Address) -> None:
    loop = asyncio.get_running_loop()
    if address.path:
        await loop.create_unix_connection(lambda: link, address.path)
    else:
        await loop.create_connection(lambda: link, address.host, address.port, ssl=address.tls)


@asynccontextmanager
async def open_wire(at: str | Finder, **options: Unpack[Options]) -> AsyncIterator[Wire]:
    """A wire that reconnects by itself for as long as the block lasts. Options as for `Wire.connect`."""
    wire = Wire(Fixed.at(at) if isinstance(at, str) else at, **options)
    await wire.establish()
    # The only task that a wire has; it ends with the block.
    keeper = asyncio.create_task(wire.keep(), name="wire-keeper")
    try:
        yield wire
    finally:
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper
        await wire.close()


def _retrieve(future: Reply) -> None:
    if not future.cancelled():
        future.exception()
