"""The pace of a source, and a reader of batches that keeps to it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pace import Pace, Pacer


def paced(drain: float, sojourn: float, floor: float = 90.0) -> float:
    """The rate that a look sets."""
    pace = Pace(floor)
    for _ in range(10):
        pace.observe(0.1, 0, was_held=False, drain=drain, sojourn_s=sojourn)
    return pace.rate


@given(st.floats(0, 1e6), st.floats(0, 60), st.floats(0, 60), st.floats(0, 1000))
def test_the_rate_falls_with_the_sojourn_and_never_below_the_floor(
    drain: float, sojourn: float, more: float, floor: float
) -> None:
    """The further behind, the slower the source; but the floor holds."""
    assert paced(drain, sojourn, floor) >= paced(drain, sojourn + more, floor) >= floor


@pytest.mark.parametrize(
    ("sojourn", "rate"), [(0.0, 4000), (0.25, 2000), (0.5, 1000), (0.75, 500), (30.0, 500)]
)
def test_at_the_target_the_source_is_read_at_the_drain_rate(sojourn: float, rate: float) -> None:
    """Four times as fast without a queue, half as fast with a long one."""
    assert paced(1000.0, sojourn) == pytest.approx(rate)


def test_a_rate_grows_twofold_in_a_quarter_of_a_second_and_falls_at_once() -> None:
    """From the floor, or from the drain where that is more."""
    pace = Pace(100.0)
    for drain, sojourn, rate in (
        (0, 0, 100),
        (1000, 0, 2000),
        (1000, 0, 4000),
        (1000, 9, 4000),
        (1000, 9, 500),
    ):
        pace.observe(0.25, 0, was_held=False, drain=drain, sojourn_s=sojourn)
        assert pace.rate == pytest.approx(rate)


def test_the_pace_goes_by_the_least_sojourn_of_half_a_second() -> None:
    """A consumer that confirms in steps is not behind, however old its oldest record gets between them."""
    pace = Pace(90.0)
    rates = []
    for look in range(40):
        pace.observe(0.1, 0, was_held=False, drain=1000.0, sojourn_s=look % 3 / 3)
        rates.append(pace.rate)
    assert set(rates[10:]) == {4000}


@given(st.floats(0, 1e4), st.floats(0, 1e4), st.floats(0, 1e4))
def test_the_rate_falls_with_the_room_and_leaves_a_second_to_see_it_full(
    drain: float, room: float, more: float
) -> None:
    """A consumer without a queue gets more than it takes, but never so much that the room is gone at once."""

    def rate(room_bytes: float) -> float:
        pace = Pace(0.0)
        for _ in range(10):
            pace.observe(0.1, 0, drain, 0.0, room_bytes, was_held=False)
        return pace.rate

    assert rate(room) <= rate(room + more)
    assert rate(room) - drain <= room + 1e-6
    assert rate(-more) == min(drain, rate(room))


@pytest.mark.parametrize(("share", "is_binding"), [(1.0, True), (0.9, True), (0.5, False), (0.0, False)])
def test_the_pace_binds_a_source_that_would_give_more(share: float, *, is_binding: bool) -> None:
    """A source that uses all it may is bound; one that leaves a part unused for a second is not."""
    pace = Pace(90.0)
    for _ in range(30):
        pace.observe(0.1, int(share * 100), was_held=False, drain=1000.0, sojourn_s=0.5)
    assert pace.is_binding is is_binding


@pytest.mark.parametrize(("before", "after"), [(0, 100), (100_000, 0)])
def test_what_the_source_did_long_ago_does_not_count(before: int, after: int) -> None:
    """Neither an idle minute nor a huge batch decides for more than some seconds what binds it."""
    pace = Pace(90.0)
    for read in (before, *[0] * 100, *[after] * 20):
        pace.observe(0.1, read, was_held=False, drain=1000.0, sojourn_s=0.5)
    assert pace.is_binding is (after > 0)


def test_a_source_held_at_the_window_is_bound() -> None:
    """That it was not read says nothing of what it would give."""
    pace = Pace(90.0)
    for _ in range(30):
        pace.observe(0.1, 0, was_held=True, drain=1000.0, sojourn_s=0.5)
    assert pace.is_binding


@given(st.floats(50, 1e5), st.lists(st.integers(1, 8192), min_size=1, max_size=40))
def test_a_reader_of_batches_keeps_to_the_rate(rate: float, batches: list[int]) -> None:
    """Over any time it reads what the rate gives, one batch and the tolerance, and no more."""
    pacer, now = Pacer(), 100.0
    read: list[tuple[float, int]] = []
    for size in batches:
        now += pacer.wait_s(now, rate)
        assert pacer.wait_s(now, rate) == 0.0
        pacer.spend(size)
        read.append((now, size))
    for first in range(len(read)):
        total = sum(size for _, size in read[first:])
        span = read[-1][0] - read[first][0]
        assert total <= rate * (span + pacer.TOLERANCE_S + pacer.LEAST_WAIT_S) + max(batches) + 1e-3


def test_a_source_slower_than_the_rate_never_waits() -> None:
    """Waiting after each token would add up to a slower source."""
    pacer = Pacer()
    for token in range(200):
        assert pacer.wait_s(token / 50, 310.0) == 0
        pacer.spend(6)


def test_a_rate_that_rises_shortens_the_wait_and_none_ends_it() -> None:
    """What is owed is bytes, not time."""
    pacer = Pacer()
    assert pacer.wait_s(0.0, 100.0) == 0
    pacer.spend(1000)
    assert pacer.wait_s(0.0, 100.0) == pytest.approx(9.9)
    assert pacer.wait_s(1.0, 1000.0) == 0
    pacer.spend(5000)
    assert pacer.wait_s(1.0, None) == 0
    assert pacer.wait_s(1.0, 100.0) == 0
