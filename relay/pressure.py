"""The controllers of backpressure: numbers and a time in, a judgement out. No I/O, no clock, no event loop.

    WaterMarks        full at the high mark, and until the low one
    MinimumSojourn    a queue that stands, as against a burst that passes
    DrainRate         what a consumer takes, in bytes a second
    Aimd              the flush interval
    Damping           what was eased too soon is eased more slowly
    ClusterPressure   level 0 to 3, for new work

Times are seconds of any monotonic clock and sizes are bytes. None of them keeps more than ten values.
"""

from collections import deque
from typing import NamedTuple


class WaterMarks:
    """Full from the high mark on, until the value is back at the low one.

    With equal marks there is no hysteresis, and with both at zero it is always full: at a value that
    reaches both marks the bound wins.
    """

    __slots__ = ("high", "is_full", "low")

    def __init__(self, low: float, high: float) -> None:
        if not 0 <= low <= high:
            raise ValueError(f"water marks {low} and {high}: need 0 <= low <= high")
        self.low = low
        self.high = high
        self.is_full = False

    def observe(self, value: float) -> bool:
        """Whether it is full with this value."""
        if value >= self.high:
            self.is_full = True
        elif value <= self.low:
            self.is_full = False
        return self.is_full


class MinimumSojourn:
    """Whether a queue stands: its oldest entry was at least `target_s` old throughout `interval_s`.

    CoDel's measure (RFC 8289, section 3): the minimum over an interval, not the mean, tells a queue that
    stands from a burst that passes. One look under the target ends it. The age itself says since when it
    has been over the target, so looking seldom does not make the judgement late.
    """

    __slots__ = ("_above_at", "_seen_at", "above_s", "interval_s", "target_s")

    # Looks further apart than this say nothing of the time between: perhaps nobody could read.
    LOOK_BACK_S = 1.0

    def __init__(self, target_s: float = 0.5, interval_s: float = 2.0) -> None:
        self.target_s = target_s
        self.interval_s = interval_s
        self.above_s = 0.0  # for how long it has been at the target or over it
        self._above_at: float | None = None
        self._seen_at: float | None = None

    def observe(self, now_s: float, sojourn_s: float) -> bool:
        """Take the age of the oldest entry, 0 when there is none; whether the queue stands."""
        if sojourn_s < self.target_s:
            self._above_at = None
            self.above_s = 0.0
        else:
            if self._above_at is None:
                unseen_s = 0.0 if self._seen_at is None else now_s - self._seen_at
                self._above_at = now_s - min(sojourn_s - self.target_s, unseen_s, self.LOOK_BACK_S)
            self.above_s = now_s - self._above_at
        self._seen_at = now_s
        return self._above_at is not None and self.above_s >= self.interval_s


class DrainRate:
    """Bytes a second by which a position moves, over the last `window_s`.

    A burst counts as if it had taken `least_s`. A position that goes back (another consumer, or one that
    starts over) begins a new measurement.
    """

    __slots__ = ("_least_s", "_mark_s", "_marks", "_window_s", "bytes_per_s")

    def __init__(self, window_s: float = 2.0, least_s: float = 1.0) -> None:
        self._window_s = window_s
        self._least_s = least_s
        self._mark_s = window_s / 8  # between two marks, so that there are ten at most
        self._marks: deque[tuple[float, int]] = deque()
        self.bytes_per_s: float | None = None  # no estimate yet

    def observe(self, now_s: float, position: int) -> None:
        """Take the position as of now."""
        marks = self._marks
        if not marks or position < marks[-1][1]:
            marks.clear()
            marks.append((now_s, position))
            self.bytes_per_s = None
            return
        while len(marks) > 1 and now_s - marks[1][0] >= self._window_s:
            marks.popleft()
        at_s, start = marks[0]
        span_s = now_s - at_s
        if span_s >= self._mark_s:
            self.bytes_per_s = (position - start) / max(span_s, self._least_s)
            if now_s - marks[-1][0] >= self._mark_s:
                marks.append((now_s, position))


class Aimd:
    """The flush interval: doubled while a queue is there, taken back in equal pieces when it is not.

    Seen as a rate of flushes this is AIMD (Chiu and Jain, 1989): multiplicative decrease, because the
    queue grows for as long as the rate is too high; additive increase, because every increase is a
    guess. From 15 to 500 ms it takes 2.5 s, and a quarter of a second back when no caution is asked for.
    """

    __slots__ = ("high", "low", "value")

    DOUBLES_IN_S = 0.5
    DOWN_PER_S = 2.0

    def __init__(self, low: float = 0.015, high: float = 0.5) -> None:
        self.low = low
        self.high = max(low, high)
        self.value = low

    def observe(self, elapsed_s: float, *, is_congested: bool, caution: float = 1.0) -> float:
        """The interval after `elapsed_s` more; `caution` divides the speed of the way down."""
        if is_congested:
            doubled = 2.0 ** min(elapsed_s / self.DOUBLES_IN_S, 10.0)
            self.value = min(self.high, max(self.value, 0.001) * doubled)  # zero cannot be doubled
        else:
            self.value = max(self.low, self.value - self.DOWN_PER_S * elapsed_s / caution)
        return self.value


class Damping:
    """How much more slowly to ease after having eased too soon: from 1, doubled again and again, to `most`.

    The first `free` occasions cost nothing, each one after them doubles; one is forgiven for every
    `forgiven_s` at rest.
    """

    __slots__ = ("_count", "_forgiven_s", "_free", "_most", "factor")

    def __init__(self, free: int = 6, forgiven_s: float = 10.0, most: float = 16.0) -> None:
        self._free = free
        self._forgiven_s = forgiven_s
        self._most = most
        self._count = 0.0
        self.factor = 1.0

    def note(self, *, was_too_soon: bool = False) -> None:
        """One more occasion; `was_too_soon` is evidence against the easing, and counts at once."""
        self._set(max(self._count, self._free if was_too_soon else 0.0) + 1.0)

    def rest(self, elapsed_s: float) -> None:
        """Nothing needed to be held back for `elapsed_s` more."""
        if self._count:
            self._set(max(0.0, self._count - elapsed_s / self._forgiven_s))

    def _set(self, count: float) -> None:
        self._count = count
        self.factor = min(self._most, 2.0 ** max(0.0, count - self._free))


# What a signal enters levels 1 to 3 at, and below what it leaves them.
THRESHOLDS: dict[str, tuple[tuple[float, float], ...]] = {
    # Share of the budget. Redis refuses writes at its limit, and the answers that run still grow.
    "memory": ((0.70, 0.60), (0.75, 0.65), (0.80, 0.70)),
    # Seconds the oldest interactive job has waited: a delay that is seen, that annoys, that is left.
    "queue": ((2.0, 1.0), (5.0, 2.5), (15.0, 7.5)),
    # Share of the responses that may be active. 80 % is ordinary load.
    "active": ((0.85, 0.75), (0.95, 0.85), (1.0, 0.95)),
    # Seconds by which this node's loop is late: half of a sojourn's target, all of it, twice.
    "loop": ((0.25, 0.10), (0.5, 0.25), (1.0, 0.5)),
}


class Signals(NamedTuple):
    """What is seen of the cluster and of this node's loop: one value for each of THRESHOLDS, in its order."""

    memory_ratio: float | None  # None: there is no budget
    oldest_job_s: float
    active_ratio: float
    loop_lag_s: float


class Pressure(NamedTuple):
    """The level for new work: 1 lower limits, 2 also smaller models and no background, 3 nothing new.

    The reason is a metric label: the signal that is worst off, or "none".
    """

    level: int
    reason: str


class ClusterPressure:
    """The level that the worst signal calls for, one step at a time.

    Up when more was called for throughout `rise_s`, so that one late look is not a step; down when less
    was throughout `dwell_s`. Nodes that see the same signals come to the same level.
    """

    def __init__(self, rise_s: float = 0.5, dwell_s: float = 5.0) -> None:
        self._rise_s = rise_s
        self._dwell_s = dwell_s
        self._called = dict.fromkeys(THRESHOLDS, 0)
        self._since: float | None = None  # since when more, or less, is called for
        self._is_rising = False
        self.pressure = Pressure(0, "none")

    def observe(self, now_s: float, signals: Signals) -> Pressure:
        """Take a look at the signals; the pressure from now on."""
        for (name, marks), value in zip(THRESHOLDS.items(), signals, strict=True):
            before = self._called[name]
            # The marks ascend, so those that hold are the first ones.
            self._called[name] = sum((value or 0.0) >= marks[k][k < before] for k in range(len(marks)))
        worst = max(self._called, key=self._called.__getitem__)
        called, (level, reason) = self._called[worst], self.pressure
        if called == level:
            self._since = None
        elif self._since is None or self._is_rising is not (called > level):
            self._since, self._is_rising = now_s, called > level
        elif now_s - self._since >= (self._rise_s if self._is_rising else self._dwell_s):
            self._since = now_s
            level += 1 if self._is_rising else -1
        reason = worst if called >= level else reason
        self.pressure = Pressure(level, reason if level else "none")
        return self.pressure
