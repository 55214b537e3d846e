"""Whose position paces a response with several readers."""

from hypothesis import given
from hypothesis import strategies as st

from relay.ladder import LEAST_TOKENS_PER_S
from workers.pacemaker import BYTES_PER_TOKEN, Pacemaker

WINDOW, PATIENCE_S = 1000, 10.0
LEAST = int(LEAST_TOKENS_PER_S * BYTES_PER_TOKEN * PATIENCE_S)

offsets = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 5000), min_size=1)


def slowest() -> Pacemaker:
    """One that waits for all."""
    return Pacemaker("slowest", window_bytes=WINDOW, patience_s=PATIENCE_S)


@given(st.lists(offsets, min_size=1, max_size=20))
def test_the_fastest_is_the_furthest_whatever_the_others_do(looks: list[dict[str, int]]) -> None:
    """At once, and without memory."""
    pacemaker = Pacemaker("fastest", window_bytes=WINDOW, patience_s=PATIENCE_S)
    for now, live in enumerate(looks):
        assert pacemaker.choose(float(now), 6000, live) == max(live.values())


def test_the_slowest_paces_while_it_reads() -> None:
    """However slow: as long as it takes the least, for ever."""
    pacemaker = slowest()
    for second in range(0, 200, 10):
        live = {"fast": 5000, "slow": second // 10 * LEAST}
        assert pacemaker.choose(float(second), 6000, live) == live["slow"]


def test_one_that_holds_the_source_and_takes_nothing_has_its_patience_and_no_more() -> None:
    """Then the next slowest paces, until it takes something again."""
    pacemaker = slowest()
    live = {"fast": 5500, "slow": 5200, "frozen": 100}
    assert pacemaker.choose(0.0, 6000, live) == 100
    assert pacemaker.choose(9.9, 6000, live) == 100
    assert pacemaker.choose(10.0, 6000, live) == 5200
    assert pacemaker.choose(60.0, 6000, live | {"frozen": 100 + LEAST - 1}) == 5200
    back = 100 + LEAST
    assert pacemaker.choose(61.0, 6000, live | {"frozen": back}) == back


def test_who_does_not_hold_the_source_loses_no_patience() -> None:
    """Behind by less than the window it costs nobody anything."""
    pacemaker = slowest()
    for second in range(100):
        assert pacemaker.choose(float(second), 6000, {"fast": 6000, "slow": 5001}) == 5001
    # Nobody has looked for long: it begins to hold the source only now.
    assert pacemaker.choose(200.0, 6001, {"fast": 6000, "slow": 5001}) == 5001
    assert pacemaker.choose(209.9, 6001, {"fast": 6000, "slow": 5001}) == 5001
    assert pacemaker.choose(210.0, 6001, {"fast": 6000, "slow": 5001}) == 6000


def test_a_reader_that_is_alone_or_furthest_always_paces() -> None:
    """There is nobody to go on for: what happens then is the ladder's."""
    pacemaker = slowest()
    for second in (0.0, 50.0):
        assert pacemaker.choose(second, 6000, {"only": 100}) == 100
        assert pacemaker.choose(second, 6000, {"both": 100, "frozen": 100}) == 100


def test_one_that_left_and_returns_is_waited_for_anew() -> None:
    """Nothing is remembered of those who are gone."""
    pacemaker = slowest()
    live = {"fast": 5000, "frozen": 100}
    pacemaker.choose(0.0, 6000, live)
    assert pacemaker.choose(20.0, 6000, live) == 5000
    assert pacemaker.choose(21.0, 6000, {"fast": 5000}) == 5000
    assert pacemaker.choose(22.0, 6000, live) == 100


@given(st.lists(offsets, min_size=1, max_size=20), st.floats(0.1, 20))
def test_whoever_paces_is_a_live_reader(looks: list[dict[str, int]], step_s: float) -> None:
    """Never a place where nobody is."""
    pacemaker = slowest()
    for turn, live in enumerate(looks):
        assert pacemaker.choose(turn * step_s, 6000, live) in live.values()
