"""A load balancer as simple as it can be: each new connection goes to the next node that takes it.

async with front(first.port, second.port) as line:
    client = Client(line.url)
    line.ports = [second.port]          # new connections; those that stand are left alone
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

_CHUNK = 65_536


class Front:
    """The balancer. It knows nothing of health: a node that refuses the connection is passed over."""

    def __init__(self, ports: list[int]) -> None:
        self.ports = ports
        self.url = ""
        self.connections = 0
        self._turn = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it."""
        self.connections += 1
        for _ in range(len(self.ports)):
            self._turn += 1
            port = self.ports[self._turn % len(self.ports)]
            try:
                upstream = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                continue
            await _joined((reader, writer), upstream)
            return
        writer.transport.abort()


async def _joined(*ends: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    """Carry bytes both ways. When one side ends, what it said still arrives, and then both are closed."""
    (reader, writer), (upstream_reader, upstream_writer) = ends
    up = asyncio.ensure_future(_carry(reader, upstream_writer))
    down = asyncio.ensure_future(_carry(upstream_reader, writer))
    try:
        await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
    finally:
        # Closed before anything is waited for: the wait may be cancelled.
        for _, end in ends:
            end.close()
        up.cancel()
        down.cancel()
        await asyncio.gather(up, down, *(end.wait_closed() for _, end in ends), return_exceptions=True)


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()


@asynccontextmanager
async def front(*ports: int) -> AsyncIterator[Front]:
    """A balancer before these nodes for as long as the block lasts."""
    line = Front(list(ports))
    tasks: set[asyncio.Task[None]] = set()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(line.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    line.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield line
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
