"""How a client is doing, and why."""

from hypothesis import given
from hypothesis import strategies as st

from api.condition import LIVE_AT_S, SLOW_AT_S, STALLED_AFTER_S, Condition, Health, TcpTimes


def observed(*steps: tuple[float, float, int]) -> Condition:
    """A condition after observations of (now, age, confirmed)."""
    condition = Condition(0.0, 0)
    for now, age, confirmed in steps:
        condition.observe(now, age, confirmed, None)
    return condition


def test_a_client_that_lacks_nothing_is_live_for_ever() -> None:
    """Silence of the source is not a stall of the client."""
    assert observed((1.0, 0.0, 10), (1000.0, 0.0, 10)).health is Health.LIVE


def test_slow_begins_at_one_age_and_ends_at_a_lower_one() -> None:
    """Between the two ages a client stays what it was."""
    between = (SLOW_AT_S + LIVE_AT_S) / 2
    assert observed((1.0, between, 10)).health is Health.LIVE
    assert observed((1.0, SLOW_AT_S, 10)).health is Health.SLOW
    assert observed((1.0, SLOW_AT_S, 10), (2.0, between, 20)).health is Health.SLOW
    assert observed((1.0, SLOW_AT_S, 10), (2.0, LIVE_AT_S, 20)).health is Health.LIVE


def test_stalled_is_no_progress_and_ends_with_progress() -> None:
    """What it lacks grows older and nothing is confirmed: stalled; one confirmed byte: slow."""
    stalled = observed((1.0, 0.1, 10), (1.0 + STALLED_AFTER_S, 2.1, 10))
    assert stalled.health is Health.STALLED
    stalled.observe(4.0, 3.0, 11, None)
    assert stalled.health is Health.SLOW


def test_a_stall_is_told_from_a_slow_network() -> None:
    """A window closed for most of the waiting time is the client's doing, else it is the network."""
    condition = Condition(0.0, 0)
    condition.observe(1.0, 1.0, 10, TcpTimes(1_000_000, 900_000))
    assert (condition.health, condition.cause) == (Health.SLOW, "client")
    condition.observe(2.0, 1.0, 20, TcpTimes(2_000_000, 950_000))
    assert condition.cause == "network"
    condition.observe(3.0, 0.0, 99, TcpTimes(2_000_000, 950_000))
    assert (condition.health, condition.cause) == (Health.LIVE, "")


@given(st.lists(st.tuples(st.floats(0.05, 1.0), st.floats(0, 5), st.integers(0, 100)), max_size=50))
def test_a_change_is_told_once(steps: list[tuple[float, float, int]]) -> None:
    """`observe` is True exactly when something changed, whatever is observed."""
    condition, now, confirmed = Condition(0.0, 0), 0.0, 0
    for wait, age, progress in steps:
        now, confirmed = now + wait, confirmed + progress
        before = (condition.health, condition.cause)
        assert condition.observe(now, age, confirmed, None) == ((condition.health, condition.cause) != before)
