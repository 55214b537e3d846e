"""The histogram against a sorted list: never below the truth, above it by less than 0.8 %."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.bench.histogram import LIMIT_US, Histogram

PERCENTS = (0.1, 1, 25, 50, 90, 99, 99.9, 100)


def filled(times: list[int]) -> Histogram:
    """A histogram of these times."""
    histogram = Histogram()
    for us in times:
        histogram.record(us)
    return histogram


def nearest_rank(times: list[int], percent: float) -> int:
    """The definition: the least recorded time that `percent` % of all do not exceed."""
    rank = max(1, math.ceil(len(times) * percent / 100))
    return sorted(times)[rank - 1]


@given(st.lists(st.integers(0, LIMIT_US), min_size=1, max_size=200), st.sampled_from(PERCENTS))
def test_a_percentile_is_close_to_the_true_one_and_never_below(times: list[int], percent: float):
    """True for any times, from a microsecond to twelve days."""
    true = nearest_rank(times, percent)
    found = filled(times).percentile(percent)
    assert true <= found <= true * (1 + 1 / 128)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=200), st.sampled_from(PERCENTS))
def test_short_times_are_exact(times: list[int], percent: float):
    """Below 256 us each microsecond has its own counter."""
    assert filled(times).percentile(percent) == nearest_rank(times, percent)


@given(st.lists(st.integers(0, LIMIT_US), min_size=1))
def test_count_least_and_largest_are_exact(times: list[int]):
    """The largest is the one that matters most; it must not be rounded."""
    histogram = filled(times)
    assert len(histogram) == len(times)
    assert (histogram.min_us, histogram.max_us) == (min(times), max(times))
    assert histogram.percentile(100) == max(times)


def test_an_empty_histogram_says_zero():
    """A run in which nothing arrived still has a report."""
    assert Histogram().percentile(99) == 0
    assert set(Histogram().summary_ms().values()) == {0}


@pytest.mark.parametrize(("us", "counted"), [(-5, 0), (LIMIT_US + 1, LIMIT_US), (1 << 60, LIMIT_US)])
def test_times_out_of_range_count_as_the_nearer_bound(us: int, counted: int):
    """Neither a clock that stepped back nor a stopped machine ends a run."""
    histogram = filled([counted, us, us])
    assert (histogram.min_us, histogram.max_us, len(histogram)) == (counted, counted, 3)
    assert histogram.percentile(50) == counted


def test_the_summary_is_in_milliseconds():
    """A hundred thousand times between 0 and 100 ms, evenly: the percentiles are where they must be."""
    times = list(range(100_000))
    random.Random(1).shuffle(times)
    summary = filled(times).summary_ms()
    assert summary["p50"] == pytest.approx(50, rel=0.01)
    assert summary["p90"] == pytest.approx(90, rel=0.01)
    assert summary["p99"] == pytest.approx(99, rel=0.01)
    assert (summary["min"], summary["max"]) == (0, 99.999)
