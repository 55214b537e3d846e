"""An upstream of a benchmark as a process of its own: it says its port, and ends with whoever started it."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import uvloop

from relay.errors import ServerUnfit


class Child(NamedTuple):
    """One that serves."""

    port: int
    pid: int


@contextmanager
def child(module: str, *arguments: str) -> Iterator[Child]:
    """`python -m module` for as long as the block lasts. Raises ServerUnfit when it does not start."""
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0) as process:
        try:
            line = process.stdout.readline() if process.stdout is not None else b""
            if not line.startswith(b"ready "):
                raise ServerUnfit("the benchmark's upstream did not start; its last words are above")
            yield Child(int(line.split()[1]), process.pid)
        finally:
            process.kill()


def serve(starting: Coroutine[Any, Any, asyncio.Server]) -> None:
    """The process itself: serve until SIGTERM, or until the other end of its stdin is closed."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(starting))


async def _serve(starting: Coroutine[Any, Any, asyncio.Server]) -> None:
    server = await starting
    sys.stdout.write(f"ready {server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    # Whoever started it holds the other end of this pipe: its end is ours, however it came.
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), ended.set)
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    await ended.wait()
    server.close()
