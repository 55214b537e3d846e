"""The rate at which a source is read for a slow consumer, and how a reader of batches keeps to it. Pure.

Times are seconds of any monotonic clock, sizes are bytes and rates bytes a second.
"""

import math


class Pace:
    """The rate at which a source is read, so that its consumer stays about `target_s` behind.

    The rate is the measured drain times a gain that falls with the least sojourn of half a second: 4
    without a queue, 1 at the target, 1/2 from one and a half targets on; never under the floor. So a steady
    consumer gets a steady source, and one that takes more gets more, at most twice as much each 0.25 s, and
    not so much more that the room that is left would be full within a second.
    """

    __slots__ = ("_floor", "_least", "_least_before", "_slot_s", "_target_s", "_unused", "is_binding", "rate")

    GAIN_MOST, GAIN_LEAST = 4.0, 0.5
    SLOT_S, DOUBLES_IN_S, FILLS_IN_S = 0.25, 0.25, 1.0

    def __init__(self, floor: float, target_s: float = 0.5) -> None:
        self._floor = floor
        self._target_s = target_s
        # The least sojourn of this quarter of a second, and of the one before.
        self._least = self._least_before = math.inf
        self._slot_s = 0.0
        self._unused = 0.0  # bytes allowed and not read; negative when a batch ran ahead
        self.is_binding = True  # the source uses what it may: not a quarter of the last second's is left
        self.rate = floor

    def observe(
        self,
        elapsed_s: float,
        read_bytes: int,
        drain: float,
        sojourn_s: float,
        room_bytes: float = math.inf,
        *,
        was_held: bool,
    ) -> None:
        """What was read in the last `elapsed_s`, or held at the window; sets the rate from now on."""
        # Nothing is saved up for long, on either side.
        unused = self._unused - read_bytes + (0.0 if was_held else self.rate * elapsed_s)
        self._unused = max(unused, -4.0 * self.rate) if unused <= 0 else unused / (1.0 + elapsed_s)
        self.is_binding = self._unused <= self.rate / 4
        self._slot_s += elapsed_s
        if self._slot_s >= self.SLOT_S:
            self._least_before, self._least, self._slot_s = self._least, math.inf, 0.0
        self._least = min(self._least, sojourn_s)
        gain = self.GAIN_MOST ** (1.0 - min(self._least, self._least_before) / self._target_s)
        most = max(self.rate, drain) * 2.0 ** (elapsed_s / self.DOUBLES_IN_S)
        most = min(most, drain + max(0.0, room_bytes) / self.FILLS_IN_S)
        self.rate = max(self._floor, min(most, drain * max(self.GAIN_LEAST, gain)))


class Pacer:
    """Keeps a reader of batches to a rate: after a batch it waits until the rate has caught up with it.

    It reads at most what the rate gives, a batch and TOLERANCE_S more; a rate that rises shortens the wait.
    """

    __slots__ = ("_at_s", "_debt")

    # A source slower than the rate is then never made to wait, which would slow it further.
    TOLERANCE_S = 0.1
    # Timers tick in milliseconds: who waits for less comes back too early, again and again.
    LEAST_WAIT_S = 0.001

    def __init__(self) -> None:
        self._debt = 0.0
        self._at_s = 0.0

    def spend(self, size_bytes: int) -> None:
        """A batch was read."""
        self._debt += size_bytes

    def wait_s(self, now_s: float, rate: float | None) -> float:
        """How long until the next read, at this rate since the last call; with None there is no wait."""
        elapsed_s, self._at_s = max(0.0, now_s - self._at_s), now_s
        self._debt = max(0.0, self._debt - rate * elapsed_s) if rate else 0.0
        wait_s = self._debt / rate - self.TOLERANCE_S if rate else 0.0
        return wait_s if wait_s >= self.LEAST_WAIT_S else 0.0
