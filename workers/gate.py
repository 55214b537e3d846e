"""Whether a worker takes new jobs: it claims nothing while it cannot carry more. What runs goes on.

    loop     its event loop is late, and has been for a second: what runs is late already
    memory   its resident memory is at its budget, until a tenth below
    redis    Redis refused a write, until it takes writes again for two looks at it

A job that is not claimed waits for another worker, where it is pressure on admission by its age. What a
lost worker has left is taken over all the same: it is a running answer, and its reader waits.
"""

import asyncio
import resource
from collections import deque
from collections.abc import Callable
from pathlib import Path

import structlog

from relay.errors import RelayError
from relay.pressure import WaterMarks
from relay.topology import Topology
from workers.metrics import HELD, Metrics

log = structlog.get_logger("relay.worker")

LOOK_S, LOOKS = 0.25, 4  # a look is late or not; a second of them is a loop that is
LATE_HIGH_S, LATE_LOW_S = 0.25, 0.1
MEMORY_LOW = 0.9  # of the budget
PROBE_S, PROBES = 1.0, 2
# A script with flags and without `allow-oom` or `no-writes` runs where a write would be taken, and nowhere
# else (Redis, "Lua API reference", script flags): so it needs no key.
_PROBE = "#!lua\nreturn 1"
_STATM = Path("/proc/self/statm")


class Gate:
    """The judgement. `is_open` changes with `observe` alone; `reopened` is called when it opens again."""

    def __init__(self, metrics: Metrics, *, memory_bytes: int | None, reopened: Callable[[], None]) -> None:
        self._metrics = metrics
        self._reopened = reopened
        self._late: deque[float] = deque(maxlen=LOOKS)
        self._is_late = False
        self._memory = WaterMarks(memory_bytes * MEMORY_LOW, memory_bytes) if memory_bytes else None
        self._refused = metrics.out_of_memory
        self._taken = PROBES  # probes in a row that Redis took
        self.is_open = True

    @property
    def asks_redis(self) -> bool:
        """Whether it is to be told with `probed` if Redis takes writes again."""
        return self._taken < PROBES

    def probed(self, *, is_taken: bool) -> None:
        """Redis took a probe, or did not."""
        self._taken = self._taken + 1 if is_taken else 0

    def observe(self, late_s: float, resident_bytes: int | None) -> None:
        """A look came `late_s` after its time, and found so much memory in use (None: not known here)."""
        self._late.append(late_s)
        if len(self._late) == LOOKS:
            if min(self._late) >= LATE_HIGH_S:
                self._is_late = True
            elif max(self._late) <= LATE_LOW_S:
                self._is_late = False
        if self._metrics.out_of_memory > self._refused:
            self._refused, self._taken = self._metrics.out_of_memory, 0
        is_full = self._memory is not None and self._memory.observe(resident_bytes or 0)
        self._hold(dict(zip(HELD, (self._is_late, is_full, self.asks_redis), strict=True)))

    def _hold(self, holds: dict[str, bool]) -> None:
        for reason, is_held in holds.items():
            if is_held != bool(self._metrics.held[reason]):
                self._metrics.held[reason] = int(is_held)
                log.warning("claiming_held" if is_held else "claiming_free", reason=reason)
        was_open, self.is_open = self.is_open, not any(holds.values())
        if self.is_open and not was_open:
            log.info("claiming_resumed")
            self._reopened()


async def keep(gate: Gate, topology: Topology) -> None:
    """Look four times a second, until cancelled."""
    loop = asyncio.get_running_loop()
    probe_at = 0.0
    while True:
        due = loop.time() + LOOK_S
        await asyncio.sleep(LOOK_S)
        gate.observe(loop.time() - due, resident_bytes())
        if gate.asks_redis and loop.time() >= probe_at:
            gate.probed(is_taken=await takes_writes(topology))
            probe_at = loop.time() + PROBE_S


async def takes_writes(topology: Topology) -> bool:
    """Whether every server takes writes now. Changes nothing there."""
    try:
        for wire in topology.wires():
            await wire.call("EVAL", _PROBE, 0)
    except RelayError:
        return False
    return True


def resident_bytes() -> int | None:
    """This process's resident memory; None where the kernel does not tell it (macOS)."""
    try:
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return None
