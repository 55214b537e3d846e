"""uvicorn that drains: readers are told to go elsewhere before anything is closed.

uvicorn waits for open responses without end, or cancels them without awaiting; an SSE response is open
for as long as its reader likes. So at the first signal the node stops being ready and takes no new work;
when a load balancer has had the time to see that, its readers get `event: reconnect` and the end of their
response, and only then uvicorn shuts down.
"""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import structlog
import uvicorn

from api.state import State

log = structlog.get_logger("relay.api")

UVICORN_GRACE_S = 1  # for what is left once the readers have gone


class DrainingServer(uvicorn.Server):
    """A server for one node. `on_ready` is called once it accepts."""

    def __init__(self, config: uvicorn.Config, state: State, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._state = state
        self._on_ready = on_ready
        self._hurry = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain the readers within the drain time, then close what is left."""
        node, settings = self._state.node, self._state.settings
        ends_at = asyncio.get_running_loop().time() + settings.drain_s
        with suppress(TimeoutError):
            # At most half: also a short drain has its time for readers.
            async with asyncio.timeout(min(settings.drain_delay_s, settings.drain_s / 2)):
                await self._hurry.wait()
        log.info("draining", consumers=len(node.consumers))
        node.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(ends_at):
                await node.drained()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains; /readyz answers 503 from now on. A second one does not wait to be seen."""
        if self.should_exit:
            self._hurry.set()
        self._state.admission.draining = True
        self._state.metrics.drains()
        super().handle_exit(sig, frame)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle them in the loop, and do not raise them again at the end: a drain is a clean exit."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)
