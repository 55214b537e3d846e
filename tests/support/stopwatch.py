"""Upper bounds on time that hold for a machine which has the CPU for it.

    watch = Stopwatch()
    ...what must not take longer...
    watch.within(5.0, "from the loss of a worker to new text")

Where the tests share their cores with others, a claim about the product's time is spoilt by the time in which
somebody waited for a core: the kernel counts that (pressure stall information), and it is taken off.
"""

import time
from contextlib import suppress
from pathlib import Path

_PRESSURE = Path("/proc/pressure/cpu")
_SUMMED_EVERY_S = 2.0  # the kernel brings its total up to date no more often than this


class Stopwatch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._waited_s = waited_for_cpu_s()

    @property
    def elapsed_s(self) -> float:
        """Seconds by the clock."""
        return time.monotonic() - self._began

    def within(self, limit_s: float, what: str, elapsed_s: float | None = None) -> None:
        """Raise AssertionError when it took longer, time in which a core was lacking not counted.

        `elapsed_s`: what was measured since the start; by default what has passed.
        """
        took_s = self.elapsed_s if elapsed_s is None else elapsed_s
        if took_s < limit_s:
            return
        lacked_s = self.lacked_s(took_s)
        assert took_s - lacked_s < limit_s, (
            f"{what}: {took_s:.2f} s, of which {lacked_s:.2f} s without a core; at most {limit_s:g} s"
        )

    def lacked_s(self, took_s: float) -> float:
        """For how long of what it took, until now, a core was lacking. Takes the time of the kernel's sum."""
        time.sleep(_SUMMED_EVERY_S)
        return min(took_s, waited_for_cpu_s() - self._waited_s)


def waited_for_cpu_s() -> float:
    """For how long since the machine started something wanted a core and had none; 0 where nobody counts."""
    with suppress(OSError):
        some = _PRESSURE.read_text().splitlines()[0]
        return int(some.rpartition("total=")[2]) / 1e6
    return 0.0
