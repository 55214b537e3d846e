"""The controllers of backpressure: each for itself, over any history of looks."""

import math
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pressure import (
    THRESHOLDS,
    Aimd,
    ClusterPressure,
    Damping,
    DrainRate,
    MinimumSojourn,
    Pressure,
    Signals,
    WaterMarks,
)

values = st.floats(0, 1e6)
gaps_s = st.floats(0.005, 2.0)
QUIET = Signals(memory_ratio=0.1, oldest_job_s=0.0, active_ratio=0.1, loop_lag_s=0.0)


# --- water marks


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.lists(values))
def test_full_from_the_high_mark_until_the_low_one(a: float, b: float, seen: list[float]) -> None:
    """At the high mark it is full, at the low one it is not, and between them it is what it was."""
    low, high = sorted((a, b))
    marks = WaterMarks(low, high)
    for value in seen:
        before = marks.is_full
        expected = True if value >= high else False if value <= low else before
        assert marks.observe(value) is expected


def test_the_bound_wins_where_the_marks_contradict_each_other() -> None:
    """With equal marks there is no hysteresis; with none at all there is never room."""
    assert WaterMarks(10, 10).observe(10)
    assert not WaterMarks(10, 10).observe(9)
    assert WaterMarks(0, 0).observe(0)


@pytest.mark.parametrize("marks", [(2, 1), (-1, 1)])
def test_marks_that_make_no_sense_are_refused(marks: tuple[float, float]) -> None:
    """A low mark over the high one, or under zero, is a mistake of the caller."""
    with pytest.raises(ValueError, match="need 0 <= low <= high"):
        WaterMarks(*marks)


# --- minimum sojourn


def test_a_burst_passes_and_a_standing_queue_does_not() -> None:
    """Over the target for just less than the interval is a burst; for the interval it is a queue."""
    queue = MinimumSojourn(target_s=0.5, interval_s=2.0)
    looks = [(now / 10, 0.6) for now in range(20)]
    assert not any(queue.observe(*look) for look in looks)
    assert queue.observe(2.0, 0.6)


@given(st.lists(st.tuples(gaps_s, st.floats(0, 10)), max_size=60))
def test_the_minimum_decides_not_the_mean(looks: list[tuple[float, float]]) -> None:
    """A queue that stands was never seen under its target in all of the interval."""
    queue, now = MinimumSojourn(0.5, 2.0), 0.0
    last_under = 0.0
    for gap, sojourn in looks:
        now += gap
        if sojourn < 0.5:
            last_under = now
        if queue.observe(now, sojourn):
            assert now - last_under >= 2.0


@given(st.floats(0.02, 0.5), st.floats(0, 1))
def test_a_stall_is_a_queue_at_the_same_age_however_seldom_one_looks(every_s: float, phase: float) -> None:
    """The age tells since when it is over the target: the judgement is one look late at the most."""
    queue, now = MinimumSojourn(0.5, 2.0), phase * every_s
    while not queue.observe(now, now):  # nothing is taken from time 0 on
        now += every_s
    assert 2.5 <= now < 2.5 + every_s + 1e-9


def test_time_in_which_nobody_looked_is_no_evidence() -> None:
    """After a long gap an old entry is not at once a standing queue: perhaps nobody could read."""
    queue = MinimumSojourn(0.5, 2.0)
    queue.observe(0.0, 0.0)
    assert not queue.observe(60.0, 59.0)
    assert queue.observe(62.0, 61.0)


@given(st.lists(st.tuples(gaps_s, st.floats(0, 5), st.floats(0, 5)), max_size=40))
def test_an_older_queue_stands_no_later(looks: list[tuple[float, float, float]]) -> None:
    """Of two queues, the one that was older at every look is the first to stand."""
    young, old, now = MinimumSojourn(), MinimumSojourn(), 0.0
    for gap, sojourn, more in looks:
        now += gap
        stands = young.observe(now, sojourn)
        assert old.observe(now, sojourn + more) or not stands


# --- drain rate


def test_without_two_looks_there_is_no_estimate() -> None:
    """It knows when it does not know, and after a position that went back it does not know again."""
    drain = DrainRate()
    drain.observe(0.0, 1000)
    assert drain.bytes_per_s is None
    drain.observe(1.0, 1500)
    assert drain.bytes_per_s == 500
    drain.observe(1.1, 200)
    assert drain.bytes_per_s is None


@given(st.floats(1, 1e6), st.floats(0.02, 0.5))
def test_a_steady_consumer_is_measured_exactly(rate: float, every_s: float) -> None:
    """After a second the estimate is the rate, whatever the looks' interval."""
    drain = DrainRate()
    for look in range(int(4 / every_s) + 2):
        drain.observe(look * every_s, int(look * every_s * rate))
        if look * every_s >= 1.0:
            assert drain.bytes_per_s == pytest.approx(rate, abs=2)


def test_a_burst_counts_over_a_second_at_least() -> None:
    """Thousands of bytes in a quarter of a second say that much a second, not four times as much."""
    drain = DrainRate()
    drain.observe(0.0, 0)
    drain.observe(0.25, 4000)
    assert drain.bytes_per_s == 4000


def test_a_consumer_that_stops_is_at_zero_after_the_window() -> None:
    """Nothing confirmed for the whole window is a rate of zero, and no longer the past."""
    drain = DrainRate(window_s=2.0)
    for look in range(40):
        drain.observe(look / 10, min(look, 10) * 100)
    assert drain.bytes_per_s == 0


@given(st.lists(st.tuples(st.floats(0.001, 1.0), st.integers(-500, 5000)), max_size=200))
def test_the_estimate_is_a_mean_of_what_was_seen(moves: list[tuple[float, int]]) -> None:
    """It is never negative, nor over what the fastest move would give, and few values are kept."""
    drain, now, position = DrainRate(), 0.0, 0
    most = 0.0
    for gap, moved in moves:
        now, position = now + gap, max(0, position + moved)
        most = max(most, moved / gap)
        drain.observe(now, position)
        assert drain.bytes_per_s is None or 0 <= drain.bytes_per_s <= most + 1e-6
        assert len(drain._marks) <= 10


# --- the flush interval


@given(st.floats(0, 0.5), st.lists(st.tuples(gaps_s, st.booleans(), st.floats(1, 256))))
def test_the_interval_stays_within_its_bounds(low: float, looks: list[tuple[float, bool, float]]) -> None:
    """Whatever happens it is between its ends, and moves the way it is told."""
    flush = Aimd(low)
    for gap, is_congested, caution in looks:
        before = flush.value
        value = flush.observe(gap, is_congested=is_congested, caution=caution)
        assert low <= value <= 0.5
        assert value >= before if is_congested else value <= before


def test_up_fast_and_down_when_the_queue_is_gone() -> None:
    """From 15 to 500 ms in two and a half seconds, and back in half a second at most."""
    flush = Aimd(0.015, 0.5)
    ups = [flush.observe(0.1, is_congested=True) for _ in range(26)]
    assert ups[4] == pytest.approx(0.03)
    assert ups[-1] == 0.5
    downs = [flush.observe(0.1, is_congested=False) for _ in range(3)]
    assert downs[0] - downs[1] == pytest.approx(0.2)
    assert downs[-1] == 0.015


@given(st.floats(0.02, 0.5), st.integers(1, 50))
def test_the_interval_depends_on_the_time_and_not_on_the_number_of_looks(span: float, looks: int) -> None:
    """Many short looks move it as far as one long one."""
    once, often = Aimd(), Aimd()
    once.observe(span, is_congested=True)
    for _ in range(looks):
        often.observe(span / looks, is_congested=True)
    assert often.value == pytest.approx(once.value)


def test_an_interval_of_zero_can_grow() -> None:
    """Doubling needs something to start from."""
    flush = Aimd(0.0)
    assert flush.observe(1.0, is_congested=True) > 0
    assert Aimd(0.9, 0.5).high == 0.9


# --- damping


def test_occasions_double_the_factor_and_rest_forgives() -> None:
    """A few cost nothing; then it doubles up to its bound, and calm takes it back."""
    damping = Damping(free=2, forgiven_s=10.0, most=16.0)
    factors = []
    for _ in range(8):
        damping.note()
        factors.append(damping.factor)
    assert factors == [1, 1, 2, 4, 8, 16, 16, 16]
    damping.rest(1000.0)
    assert damping.factor == 1


def test_evidence_against_an_easing_counts_at_once() -> None:
    """What was seen to be too soon needs no further occasions."""
    damping = Damping()
    damping.note(was_too_soon=True)
    assert damping.factor == 2


# --- the pressure of the cluster


def run(cluster: ClusterPressure, looks: Iterable[Signals], start_s: float = 0.0) -> list[Pressure]:
    """A look each quarter of a second."""
    return [cluster.observe(start_s + look / 4, signals) for look, signals in enumerate(looks)]


@pytest.mark.parametrize(
    ("signals", "pressure"),
    [
        (QUIET, (0, "none")),
        (QUIET._replace(memory_ratio=None), (0, "none")),
        (QUIET._replace(memory_ratio=0.70), (1, "memory")),
        (QUIET._replace(memory_ratio=0.75), (2, "memory")),
        (QUIET._replace(memory_ratio=0.80), (3, "memory")),
        (QUIET._replace(oldest_job_s=2.0), (1, "queue")),
        (QUIET._replace(oldest_job_s=60.0), (3, "queue")),
        (QUIET._replace(active_ratio=0.80), (0, "none")),
        (QUIET._replace(active_ratio=1.0), (3, "active")),
        (QUIET._replace(loop_lag_s=0.5), (2, "loop")),
        (QUIET._replace(oldest_job_s=2.0, memory_ratio=0.76), (2, "memory")),
    ],
)
def test_the_worst_signal_sets_the_level(signals: Signals, pressure: tuple[int, str]) -> None:
    """Each signal has its levels, and the reason names the one that is worst off."""
    assert run(ClusterPressure(), [signals] * 20)[-1] == pressure


def test_memory_clears_at_sixty_percent() -> None:
    """Between 60 and 70 % a level that was entered is kept; below it goes, one step after each dwell."""
    cluster = ClusterPressure(dwell_s=5.0)
    run(cluster, [QUIET._replace(memory_ratio=0.85)] * 20)
    kept = run(cluster, [QUIET._replace(memory_ratio=0.61)] * 400, 5.0)
    assert kept[-1] == (1, "memory")
    gone = run(cluster, [QUIET._replace(memory_ratio=0.59)] * 22, 105.0)
    assert [level for level, _ in gone] == [1] * 20 + [0] * 2


def test_a_single_late_look_is_no_step() -> None:
    """A loop that was late once, or a spike of a job's age, changes nothing."""
    spike = QUIET._replace(loop_lag_s=5.0, oldest_job_s=100.0)
    assert {level for level, _ in run(ClusterPressure(), [QUIET, spike, QUIET] * 50)} == {0}


@st.composite
def histories(draw: st.DrawFn) -> list[Signals]:
    """Signals that stay for some looks and then move to anywhere."""
    signals = st.builds(
        Signals,
        st.none() | st.floats(0, 1.2),
        st.floats(0, 40),
        st.floats(0, 1.5),
        st.floats(0, 2),
    )
    runs = draw(st.lists(st.tuples(signals, st.integers(1, 30)), min_size=1, max_size=12))
    return [signal for signal, times in runs for _ in range(times)]


@given(histories())
def test_one_step_at_a_time_and_down_only_after_the_dwell(history: list[Signals]) -> None:
    """No level is skipped, a step down comes 5 s after any other, and the reason is a known label."""
    seen = [Pressure(0, "none"), *run(ClusterPressure(dwell_s=5.0), history)]
    last_step = -math.inf
    for look, (before, after) in enumerate(pairwise(seen)):
        assert abs(after.level - before.level) <= 1
        assert after.reason in ({*THRESHOLDS} if after.level else {"none"})
        if after.level < before.level:
            assert look / 4 - last_step >= 5.0
        if after.level != before.level:
            last_step = look / 4


@given(histories(), st.integers(1, 40))
def test_signals_that_stay_settle_the_level(history: list[Signals], extra: int) -> None:
    """Under constant signals the level comes to rest in 16 s; with more of everything it is no lower."""
    cluster = ClusterPressure()
    run(cluster, history)
    start = len(history) / 4
    settled = run(cluster, [history[-1]] * (64 + extra), start)
    assert len(set(settled[64:])) == 1
    more = Signals(*((value or 0.0) + 0.1 for value in history[-1]))
    worse = run(cluster, [more] * 64, start + len(settled) / 4)
    assert worse[-1].level >= settled[-1].level


@given(histories())
def test_every_cluster_level_is_left_when_its_cause_is_gone(history: list[Signals]) -> None:
    """Three dwells after everything is quiet there is no pressure."""
    cluster = ClusterPressure(dwell_s=5.0)
    run(cluster, history)
    assert run(cluster, [QUIET] * 65, len(history) / 4)[-1] == (0, "none")


def test_the_thresholds_ascend_and_are_left_below_where_they_are_entered() -> None:
    """A table that contradicts itself would never settle; its signals are those of a look, in order."""
    for marks in THRESHOLDS.values():
        assert all(down < up for up, down in marks)
        assert all(a < b for (a, _), (b, _) in pairwise(marks))
        assert all(a < b for (_, a), (_, b) in pairwise(marks))
    assert [name.split("_")[0] for name in Signals._fields] == ["memory", "oldest", "active", "loop"]
    assert list(THRESHOLDS) == ["memory", "queue", "active", "loop"]
