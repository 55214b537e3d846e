"""A crowd of slow readers, each of a response of its own, on a thread beside whatever else is measured."""

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from relay.bench.client import call, create
from relay.bench.kinds import read
from relay.bench.readers import Habits, Kind, Target
from relay.bench.reception import Outcome
from relay.errors import RelayError

# Two bites a second: many small ones would take from the processor that is shared with what is measured.
_HABITS = Habits(drip_bytes_per_s=1024.0, drip_every_s=0.5)
_LONGEST_S = 600.0
_TOKENS = 1_000_000  # more than any run reads
_END_WITHIN_S = 10.0


class Crowd:
    """The readers, and what they have seen so far."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.responses: list[str] = []
        self.outcomes: list[Outcome] = []

    @property
    def endings(self) -> dict[str, int]:
        """How many are in which state; `open` unless a response ended."""
        return dict(Counter(str(outcome.ended) for outcome in self.outcomes))


@contextmanager
def crowd(url: str, kinds: dict[Kind, int], *, tokens_per_s: float) -> Iterator[Crowd]:
    """So many readers of each kind for as long as the block lasts; then their responses are cancelled.

    Their sources give `tokens_per_s`, 0 for as fast as they are let. Raises Unavailable when one is refused.
    """
    here = Crowd(url)
    readers: list[tuple[Kind, str]] = []
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="crowd")
    thread.start()
    tasks: list[asyncio.Task[Outcome]] = []
    try:
        for kind, count in kinds.items():
            for seed in range(count):
                simulated = {"tokens": _TOKENS, "tokens_per_second": tokens_per_s, "seed": seed}
                here.responses.append(create(url, model="simulated", simulation=simulated))
                readers.append((kind, here.responses[-1]))
        asyncio.run_coroutine_threadsafe(_start(here, readers, tasks), loop).result()
        yield here
    finally:
        asyncio.run_coroutine_threadsafe(_end(tasks), loop).result(_END_WITHIN_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        for response_id in here.responses:
            _cancel(url, response_id)


async def _start(here: Crowd, readers: list[tuple[Kind, str]], tasks: list[asyncio.Task[Outcome]]) -> None:
    until = asyncio.get_running_loop().time() + _LONGEST_S
    for kind, response_id in readers:
        outcome = Outcome()
        here.outcomes.append(outcome)
        target = Target.of(f"{here.url}/v1/streams/{response_id}/events")
        tasks.append(asyncio.create_task(read(kind, target, _HABITS, until=until, outcome=outcome)))


async def _end(tasks: list[asyncio.Task[Outcome]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _cancel(url: str, response_id: str) -> None:
    with suppress(RelayError):  # its system may be ending too; what matters was measured
        call(url, "DELETE", f"/v1/streams/{response_id}")
