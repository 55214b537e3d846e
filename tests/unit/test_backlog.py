"""The age of what a reader lacks."""

from hypothesis import given
from hypothesis import strategies as st

from relay.backlog import MAX_SAMPLES, SPACING_S, Backlog

growth = st.lists(st.tuples(st.integers(1, 50), st.floats(0.001, 3.0)), min_size=1, max_size=100)


def test_nothing_lacking_has_no_age() -> None:
    """An empty backlog is 0 s old, and so is one that was confirmed to its end."""
    backlog = Backlog()
    assert backlog.age(5.0) == 0.0
    backlog.grew(10, 1.0)
    backlog.confirmed(10)
    assert backlog.age(5.0) == 0.0


def test_the_oldest_byte_counts() -> None:
    """The age is that of the first sample that is not confirmed, not of the newest."""
    backlog = Backlog()
    backlog.grew(10, 1.0)
    backlog.grew(20, 2.0)
    backlog.confirmed(9)
    assert backlog.age(3.0) == 2.0
    backlog.confirmed(10)
    assert backlog.age(3.0) == 1.0


@given(growth, st.integers(0, 5000))
def test_age_is_exact_to_the_spacing(steps: list[tuple[int, float]], confirmed: int) -> None:
    """Whatever was produced and confirmed, the age is the true one, at most one spacing older."""
    backlog = Backlog()
    offset, now = 0, 0.0
    true: list[tuple[int, float]] = []
    for size, wait in steps:
        offset, now = offset + size, now + wait
        backlog.grew(offset, now)
        true.append((offset, now))
    backlog.confirmed(confirmed)
    lacking = [at for end, at in true if end > confirmed]
    expected = now - lacking[0] if lacking else 0.0
    assert expected <= backlog.age(now) + 1e-9
    assert backlog.age(now) <= expected + SPACING_S + 1e-9


def test_a_stalled_reader_costs_a_bounded_number_of_samples() -> None:
    """However long nothing is confirmed, the samples are bounded and the age goes on from the oldest."""
    backlog = Backlog()
    for second in range(10 * MAX_SAMPLES):
        backlog.grew(second + 1, float(second))
    assert len(backlog._samples) == MAX_SAMPLES
    assert backlog.age(10.0 * MAX_SAMPLES) == 10.0 * MAX_SAMPLES
    backlog.confirmed(10 * MAX_SAMPLES)
    assert backlog.age(10.0 * MAX_SAMPLES) == 0.0
