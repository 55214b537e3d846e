"""A histogram of times with a fixed relative error, in the manner of HdrHistogram (hdrhistogram.org).

Every recorded time lands in one of a few thousand integer counters: below 256 us exactly, above that
within 1/128 of its value. Recording is one shift and one addition, whatever the number of samples;
the load client records every token of every response, and shares its cores with what it measures.
"""

_BITS = 7  # 128 counters for each doubling: a relative error below 0.8 %
_EXACT = 2 << _BITS
LIMIT_US = (1 << 40) - 1  # twelve days; longer times are counted as this one
_SIZE = (40 - _BITS + 1) << _BITS


class Histogram:
    """Counts of times in whole microseconds, from 0 to `LIMIT_US`."""

    __slots__ = ("counts", "max_us", "min_us")

    def __init__(self) -> None:
        self.counts = [0] * _SIZE
        self.max_us = 0
        self.min_us = LIMIT_US

    def record(self, us: int) -> None:
        """Count one time. What lies outside 0 to LIMIT_US counts as the nearer bound."""
        if us > self.max_us:
            us = min(us, LIMIT_US)
            self.max_us = us
        if us < self.min_us:
            us = max(us, 0)
            self.min_us = us
        if us < _EXACT:
            self.counts[us] += 1
        else:
            shift = us.bit_length() - _BITS - 1
            self.counts[(shift << _BITS) + (us >> shift)] += 1

    def __len__(self) -> int:
        """How many times were recorded."""
        return sum(self.counts)

    def percentile(self, percent: float) -> int:
        """The time that `percent` % of the recorded ones do not exceed, in us; 0 when there are none.

        Never below the true value, and above it by less than 0.8 %; the largest is exact.
        """
        total = len(self)
        if not total:
            return 0
        rank = max(1, -int(-total * percent // 100))  # the ceiling: nearest-rank, as HdrHistogram has it
        seen = 0
        for index, count in enumerate(self.counts):
            seen += count
            if seen >= rank:
                return min(_upper_us(index), self.max_us)
        return self.max_us

    def summary_ms(self) -> dict[str, float]:
        """p50, p90, p99, p99.9, least and largest, in milliseconds."""
        times = {
            "p50": self.percentile(50),
            "p90": self.percentile(90),
            "p99": self.percentile(99),
            "p999": self.percentile(99.9),
            "min": self.min_us if len(self) else 0,
            "max": self.max_us,
        }
        return {name: round(us / 1000, 3) for name, us in times.items()}


def _upper_us(index: int) -> int:
    """The largest time that falls into a counter."""
    shift = max(0, (index >> _BITS) - 1)
    return ((index - (shift << _BITS) + 1) << shift) - 1
