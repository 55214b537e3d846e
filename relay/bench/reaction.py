"""How soon a source is paced for a reader that stops, and how soon all is as before when it reads again.

The reader confirms by the ack call, with `?window=2048`, what it has processed: it stops with both. Levels
are those of the response's status, which the worker tells at once.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from relay.bench.client import Client, call, create
from relay.bench.run import Progress
from relay.bench.system import System
from relay.errors import ServerUnfit
from relay.ladder import Level

READERS = 5  # at once, each at another point of the worker's second
WINDOW_BYTES, TOKENS_PER_S = 2048, 50.0
_STEADY_S = 5.0  # of reading well, before the reader stops
_STALL_S = 6.0  # at least; and at most what it takes to be paced
_GIVE_UP_S = 15.0
_POLL_S = 0.02
_ACK_EVERY_S = 0.1
_APART_S = 0.23


@dataclass(slots=True)
class _Reader:
    """One reader that acknowledges as it reads."""

    url: str
    response_id: str
    client: Client
    acked: int = 0
    acked_at: float = 0.0

    def level(self) -> int:
        _, told = call(self.url, "GET", f"/v1/streams/{self.response_id}")
        return int(told["level"])

    def turn(self) -> None:
        """Read for a moment, and acknowledge a few times a second."""
        self.client.read(65_536, _POLL_S)
        now = time.monotonic()
        if self.client.offset > self.acked and now - self.acked_at >= _ACK_EVERY_S:
            self.acked, self.acked_at = self.client.offset, now
            path = f"/v1/streams/{self.response_id}/consumers/bench/ack"
            call(self.url, "POST", path, {"position": self.acked})


def reaction(system: System, progress: Progress) -> dict[str, Any]:
    """Several readers that stop and read again: the times to paced and back to live, in seconds, of each.

    A time of _GIVE_UP_S stands for never.
    """
    with ThreadPoolExecutor(READERS) as pool:
        runs = [pool.submit(_one, system.urls[0], number) for number in range(READERS)]
        results = []
        for number, run in enumerate(runs):
            results.append(run.result())
            progress({"done": number + 1})
    return {
        "readers": READERS,
        "paced_s": [paced for paced, _, _ in results],
        "live_s": [live for _, live, _ in results],
        "level_before": [before for _, _, before in results],
    }


def _one(url: str, number: int) -> tuple[float, float, int]:
    """Time to paced, time to live, and the level before the stall."""
    time.sleep(number * _APART_S)
    simulated = {"tokens": 3000, "tokens_per_second": TOKENS_PER_S, "seed": number}
    response_id = create(url, model="simulated", simulation=simulated)
    query = f"?window={WINDOW_BYTES}&consumer=bench"
    try:
        with Client(url, response_id, query=query, small=False) as client:
            reader = _Reader(url, response_id, client)
            _read_for(reader, _STEADY_S)
            if not client.text_bytes:
                raise ServerUnfit("no text came before the reader was to stop")
            before = reader.level()
            stalled = time.monotonic()
            paced = _until(reader, stalled, is_reading=False)
            time.sleep(max(0.0, stalled + _STALL_S - time.monotonic()))
            reading = time.monotonic()
            live = _until(reader, reading, is_reading=True)
    finally:
        call(url, "DELETE", f"/v1/streams/{response_id}")
    return round(paced, 2), round(live, 2), before


def _read_for(reader: _Reader, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        reader.turn()


def _until(reader: _Reader, began: float, *, is_reading: bool) -> float:
    """Seconds from `began` to the level waited for: LIVE when it reads, PACE or more when it does not."""
    while (gone_s := time.monotonic() - began) < _GIVE_UP_S:
        if is_reading:
            reader.turn()
        else:
            time.sleep(_POLL_S)
        level = reader.level()
        if (level == Level.LIVE) if is_reading else (level >= Level.PACE):
            return time.monotonic() - began
    return gone_s
