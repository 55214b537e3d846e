"""What the keys of one response are reached by: a wire, or a route through the wires of a cluster."""

from collections.abc import Callable
from typing import Any, Protocol

from relay.link import Argument, Reply

Listener = Callable[[bytes], None]


class Line(Protocol):
    """What those who hold a response's keys see; `relay.wire.Wire` says what each does."""

    @property
    def reconnects(self) -> int:
        """Changes whenever replies or rings may have been lost."""

    @property
    def is_connected(self) -> bool:
        """Whether commands can be sent now."""

    def send(self, *args: Argument) -> Reply:
        """See `Wire.send`."""

    def send_packed(self, packed: bytes) -> Reply:
        """See `Wire.send_packed`."""

    async def call(self, *args: Argument) -> Any:
        """See `Wire.call`."""

    def post(self, *args: Argument) -> None:
        """See `Wire.post`."""

    def subscribe(self, channel: str, listener: Listener) -> None:
        """See `Wire.subscribe`."""

    def unsubscribe(self, channel: str) -> None:
        """See `Wire.unsubscribe`."""
