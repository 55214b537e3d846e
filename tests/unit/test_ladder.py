"""The ladder: what holds over any history of looks, and what a closed loop of source and reader does."""

import copy
import math
from collections import deque
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.ladder import ENDS, MOVES, Decision, Kind, Ladder, Level, Observation, Terms
from relay.pace import Pacer

BYTES_PER_TOKEN = 6.0
FLOOR = 15 * BYTES_PER_TOKEN
FINAL = {Level.SHORTEN, Level.CANCEL}
NOTICES = {"coalescing", "pacing", "paused", "resumed", "shortened", "live"}  # those of the contract
UNLIMITED = math.inf


def terms(
    window: int = 32_768,
    *,
    pause_max_s: float = 20.0,
    abandon_after_s: float = 30.0,
    background: bool = False,
) -> Terms:
    """The defaults of a deployment."""
    return Terms(window, 0.015, pause_max_s, abandon_after_s, background)


# --- the table


def test_every_level_but_the_last_two_can_be_left_and_cancelled() -> None:
    """SHORTEN and CANCEL are final; only a pause is shortened, and only a pause resumes."""
    assert {before for before, _ in MOVES} == set(Level) - FINAL
    assert {before for before, after in MOVES if after is Level.CANCEL} == set(Level) - FINAL
    assert [before for before, after in MOVES if after is Level.SHORTEN] == [Level.PAUSE]
    assert [move for move, kind in MOVES.items() if kind is Kind.RESUMED] == [(Level.PAUSE, Level.PACE)]
    assert set(ENDS) == FINAL


def test_a_step_is_named_as_its_notice() -> None:
    """The kinds are the contract's, but for the end of a generation that nobody reads."""
    assert {str(kind) for kind in Kind} == NOTICES | {"cancelled"}
    assert set(MOVES.values()) == set(Kind)


# --- any history


class Move(NamedTuple):
    """Some looks in a row: what the source made before each, and what share of the lead was confirmed."""

    looks: int
    gap_s: float
    made: int
    taken: float
    is_live: bool


class Script:
    """Turns moves into looks whose positions and ages agree with each other."""

    def __init__(self) -> None:
        self.now = 0.0
        self.produced = self.confirmed = 0
        self.records: deque[tuple[int, float]] = deque()  # (end, appended at)

    def look(self, move: Move) -> Observation:
        """The next look under this move."""
        self.now += move.gap_s
        self.confirmed += int((self.produced - self.confirmed) * move.taken) if move.is_live else 0
        if move.made:
            self.produced += move.made
            self.records.append((self.produced, self.now))
        while self.records and self.records[0][0] <= self.confirmed:
            self.records.popleft()
        age = self.now - self.records[0][1] if self.records else 0.0
        lead = self.produced - self.confirmed
        return Observation(self.now, lead, age, self.confirmed, move.is_live, BYTES_PER_TOKEN)

    def looks(self, moves: Iterable[Move]) -> list[Observation]:
        """All of them."""
        return [self.look(move) for move in moves for _ in range(move.looks)]


moves = st.builds(
    Move,
    looks=st.integers(1, 40),
    gap_s=st.sampled_from([0.02, 0.1, 0.25, 0.25, 1.0, 7.0]),
    made=st.sampled_from([0, 6, 30, 300, 1500, 8192]),
    taken=st.sampled_from([0.0, 0.0, 0.02, 0.3, 0.9, 1.0, 1.0]),
    is_live=st.sampled_from([True, True, True, True, False]),
)
histories = st.lists(moves, max_size=25)
windows = st.sampled_from([1024, 2048, 8192, 32_768])


@given(windows, histories)
def test_no_step_without_a_change_and_no_change_without_a_step(window: int, history: list[Move]) -> None:
    """The steps of all decisions are a path through the table, from LIVE to the level that is told."""
    ladder, level = Ladder(terms(window)), Level.LIVE
    for look in Script().looks(history):
        decision = ladder.observe(look)
        for step in decision.steps:
            assert MOVES[level, step.level] is step.kind
            assert step.reason
            level = step.level
        assert decision.level is level is ladder.level


@given(windows, histories)
def test_the_bounds_hold_at_every_look(window: int, history: list[Move]) -> None:
    """The window at once and whatever the level; the floor, the interval, and what goes with a level."""
    ladder = Ladder(terms(window))
    for look in Script().looks(history):
        decision = ladder.observe(look)
        assert 0.015 <= decision.flush_s <= 0.5
        assert (decision.end is not None) == (decision.level in FINAL) <= decision.is_paused
        assert (decision.rate_bytes_per_s is not None) == (decision.level in {Level.PACE, Level.PAUSE})
        assert decision.rate_bytes_per_s is None or decision.rate_bytes_per_s >= FLOOR
        if decision.end is None:
            assert decision.is_paused or look.lead_bytes < window
            assert not decision.is_paused or look.lead_bytes > window // 2
            assert decision.is_paused or decision.level is not Level.PAUSE
        if decision.level is Level.LIVE:
            assert decision.flush_s == 0.015


@given(windows, histories, moves)
def test_an_end_is_final(window: int, history: list[Move], later: Move) -> None:
    """Once the answer is to be ended nothing else is ever decided, and it is said once."""
    ladder, script = Ladder(terms(window, abandon_after_s=3.0, pause_max_s=3.0)), Script()
    decisions = [ladder.observe(look) for look in script.looks(history)]
    if decisions and decisions[-1].end is not None:
        for look in script.looks([later]):
            assert ladder.observe(look) == decisions[-1]._replace(steps=())


def strength(decision: Decision) -> tuple[float, ...]:
    """How much a decision holds the source back, in each respect."""
    rate = decision.rate_bytes_per_s if decision.rate_bytes_per_s is not None else UNLIMITED
    return (decision.level, decision.flush_s, decision.is_paused, 0.0 if decision.end else -rate)


@settings(max_examples=300)
@given(windows, histories, moves, st.integers(0, 40_000), st.floats(0, 1), st.floats(0, 30))
def test_decisions_are_monotone_in_lag(
    window: int, history: list[Move], last: Move, more: int, untaken: float, older: float
) -> None:
    """From any state, a look that shows more lag is never answered with less restraint."""
    ladder, script = Ladder(terms(window)), Script()
    for look in script.looks(history):
        ladder.observe(look)
    worse_off = copy.deepcopy(ladder)
    before = script.confirmed
    near = script.look(last)
    held_back = int((near.confirmed_bytes - before) * untaken)
    far = near._replace(
        lead_bytes=near.lead_bytes + more + held_back,
        confirmed_bytes=near.confirmed_bytes - held_back,
        sojourn_s=near.sojourn_s + older if near.lead_bytes + more + held_back else 0.0,
    )
    pairs = zip(strength(ladder.observe(near)), strength(worse_off.observe(far)), strict=True)
    assert all(less <= greater + 1e-9 for less, greater in pairs)


@given(windows, histories)
def test_every_level_is_left_when_its_cause_is_gone(window: int, history: list[Move]) -> None:
    """A reader that keeps up brings any response back to live, even one that was made cautious."""
    ladder, script = Ladder(terms(window)), Script()
    for look in script.looks(history):
        ladder.observe(look)
    keeps_up = Move(looks=900, gap_s=0.1, made=30, taken=1.0, is_live=True)
    last = [ladder.observe(look) for look in script.looks([keeps_up])][-1]
    assert last == Decision(Level.LIVE, 0.015) or last.end is not None


@settings(max_examples=50)
@given(windows, st.lists(moves, min_size=10, max_size=40))
def test_steps_are_bounded_however_a_reader_behaves(window: int, history: list[Move]) -> None:
    """Forty steps in a minute are never exceeded."""
    ladder = Ladder(terms(window, pause_max_s=1e6, abandon_after_s=1e6))
    at = [look.now_s for look in Script().looks(history) for _ in ladder.observe(look).steps]
    assert all(after - before > 60 for before, after in zip(at, at[40:], strict=False))


@given(windows, histories)
def test_a_response_in_the_background_is_held_back_by_no_reader(window: int, history: list[Move]) -> None:
    """Whoever reads it, or nobody: it is live and unpaced."""
    ladder = Ladder(terms(window, background=True))
    for look in Script().looks(history):
        assert ladder.observe(look) == Decision(Level.LIVE, 0.015)


@given(windows, histories)
def test_a_source_that_is_done_is_not_held_back(window: int, history: list[Move]) -> None:
    """What remains only has to leave: at the shortest interval, without a step."""
    ladder, script = Ladder(terms(window)), Script()
    for look in script.looks(history):
        ladder.observe(look)
    if ladder.level not in FINAL:
        last = script.look(Move(1, 0.1, 6, 0.0, is_live=True))._replace(source_done=True)
        assert ladder.observe(last) == Decision(ladder.level, 0.015)


# --- a closed loop


class Loop:
    """A source, a writer, a reader and a ladder, in steps of 5 ms. Nothing sleeps.

    The source makes `natural` bytes a second, or batches as fast as it is let. The reader takes
    `capacity(now)` bytes a second of frames with `overhead` bytes each, and confirms what it has each
    `ack_s` and `delay_s` late. The pump looks each `look_s`, and obeys.
    """

    STEP_S = 0.005

    def __init__(
        self,
        agreed: Terms,
        *,
        natural: float = 300.0,
        capacity: Callable[[float], float] = lambda _now: 1e6,
        is_live: Callable[[float], bool] = lambda _now: True,
        overhead: int = 0,
        batch: int = 1500,
        look_s: float = 0.25,
        delay_s: float = 0.05,
        ack_s: float = 0.0,
    ) -> None:
        self.ladder, self.pacer = Ladder(agreed), Pacer()
        self.natural, self.capacity, self.is_live = natural, capacity, is_live
        self.overhead, self.batch = overhead, batch
        self.look_s, self.delay_s, self.ack_s = look_s, delay_s, ack_s
        self.now = self.due = self.credit = self.next_look = self.acked_at = 0.0
        self.flushed_at = -1.0
        self.produced = self.appended = self.received = self.confirmed = 0
        self.entries: deque[tuple[int, float]] = deque()  # (end, appended at)
        self.frames: deque[tuple[int, float]] = deque()  # (end, bytes left)
        self.acks: deque[tuple[float, int]] = deque()
        self.decision = Decision(Level.LIVE, agreed.flush_s)
        self.steps: list[tuple[float, str]] = []
        self.levels: set[Level] = set()
        self.lead_max = 0

    def until(self, end_s: float) -> "Loop":
        """Run, at most to the end of the answer."""
        while self.now < end_s and self.decision.end is None:
            self.now += self.STEP_S
            while self.acks and self.acks[0][0] <= self.now:
                self.confirmed = self.acks.popleft()[1]
            if self.now >= self.next_look:
                self._look()
            self._make()
            self._flush()
            self._read()
        return self

    def at(self, kind: str) -> list[float]:
        """When steps of a kind were told."""
        return [when for when, told in self.steps if told == kind]

    def _look(self) -> None:
        while self.entries and self.entries[0][0] <= self.confirmed:
            self.entries.popleft()
        age = self.now - self.entries[0][1] if self.entries else 0.0
        lead = self.produced - self.confirmed
        self.decision = self.ladder.observe(
            Observation(self.now, lead, age, self.confirmed, self.is_live(self.now), BYTES_PER_TOKEN)
        )
        self.steps += [(self.now, step.kind.value) for step in self.decision.steps]
        self.levels.add(self.decision.level)
        self.next_look = self.now + (0.02 if self.decision.is_paused else self.look_s)

    def _make(self) -> None:
        if self.pacer.wait_s(self.now, self.decision.rate_bytes_per_s) or self.decision.is_paused:
            return  # and the schedule of the source moves with it
        if self.produced - self.confirmed >= self.ladder.terms.window_bytes:
            self._look()
            if self.decision.is_paused:
                return
        self.due += self.natural * self.STEP_S
        size = self.batch if self.natural == UNLIMITED else int(self.due // 6 * 6)
        if self.natural != UNLIMITED:
            self.due -= size
        self.produced += size
        self.pacer.spend(size)
        self.lead_max = max(self.lead_max, self.produced - self.confirmed)

    def _flush(self) -> None:
        if self.produced > self.appended and self.now - self.flushed_at >= self.decision.flush_s:
            for start in range(self.appended, self.produced, 1000):
                end = min(start + 1000, self.produced)
                self.frames.append((end, end - start + self.overhead))
            self.appended, self.flushed_at = self.produced, self.now
            self.entries.append((self.appended, self.now))

    def _read(self) -> None:
        budget = self.capacity(self.now) * self.STEP_S if self.is_live(self.now) else 0.0
        while self.frames and budget > 0:
            end, left = self.frames.popleft()
            if left > budget:
                self.frames.appendleft((end, left - budget))
                break
            budget -= left
            self.received = end
        is_news = self.received > (self.acks[-1][1] if self.acks else self.confirmed)
        if is_news and self.now - self.acked_at >= self.ack_s:
            self.acks.append((self.now + self.delay_s, self.received))
            self.acked_at = self.now


def stalls(start: float, end: float = UNLIMITED) -> Callable[[float], float]:
    """A fast reader that takes nothing from `start` to `end`."""
    return lambda now: 0.0 if start <= now < end else 1e6


@settings(max_examples=25, deadline=None)
@given(
    natural=st.sampled_from([60.0, 300.0, 6000.0, UNLIMITED]),
    window=windows,
    delay_s=st.floats(0.0, 0.3),
    look_s=st.floats(0.02, 0.25),
)
def test_a_fast_reader_never_leaves_live(natural: float, window: int, delay_s: float, look_s: float) -> None:
    """A lead that touches the window for less than half a second is flow control: nobody is told."""
    loop = Loop(terms(window), natural=natural, delay_s=delay_s, look_s=look_s).until(15)
    assert loop.levels == {Level.LIVE}
    assert loop.lead_max < window + loop.batch


@pytest.mark.parametrize("look_s", [0.05, 0.25])
@pytest.mark.parametrize("window", [2048, 32_768])
def test_a_stalled_reader_is_paced_within_three_seconds_and_live_within_two(
    window: int, look_s: float
) -> None:
    """At 50 tokens/s, three times over: the pace comes in time, and goes in time."""
    reads = (0, 4, 14, 18, 23, 27, 30, 40)
    phases = list(pairwise(reads))

    def capacity(now: float) -> float:
        return 0.0 if any(start <= now < end for start, end in phases[1::2]) else 1e6

    loop = Loop(terms(window), capacity=capacity, look_s=look_s).until(reads[-1])
    assert [kind for _, kind in loop.steps] == ["pacing", "live"] * 3
    for paced, live, (start, end) in zip(loop.at("pacing"), loop.at("live"), phases[1::2], strict=True):
        assert paced - start <= 2.8
        assert live - end <= 1.8


@pytest.mark.parametrize("window", [2048, 8192, 32_768])
def test_a_stalled_reader_of_a_fast_source_is_paused_shortened_at_the_bound_or_resumed(window: int) -> None:
    """Paused within three seconds, shortened at pause_max; or back to live two seconds after it reads."""
    gone = Loop(terms(window), natural=UNLIMITED, capacity=stalls(5), batch=500).until(60)
    assert [kind for _, kind in gone.steps] == ["paused", "shortened"]
    assert gone.at("paused")[0] <= 8
    assert gone.at("shortened")[0] == pytest.approx(25, abs=0.5)
    back = Loop(terms(window), natural=UNLIMITED, capacity=stalls(5, 15), batch=500).until(40)
    assert [kind for _, kind in back.steps] == ["paused", "resumed", "live"]
    assert back.at("live")[0] <= 17


def test_a_stalled_reader_of_a_slow_source_is_spooled_for_before_it_is_paused() -> None:
    """Text is cheap: at the floor the source goes on until the window is full, and only then is held."""
    loop = Loop(terms(2048), capacity=stalls(5)).until(60)
    assert [kind for _, kind in loop.steps] == ["pacing", "paused", "shortened"]
    assert loop.at("paused")[0] == pytest.approx(5 + 2.6 + (2048 - 2.6 * 300) / FLOOR, abs=2)
    assert loop.at("shortened")[0] - loop.at("paused")[0] == pytest.approx(20, abs=1)


@settings(max_examples=25, deadline=None)
@given(
    natural=st.sampled_from([300.0, 1200.0, UNLIMITED]),
    share=st.sampled_from([0.3, 0.5, 0.8, 0.95]),
    window=st.sampled_from([8192, 32_768]),
    look_s=st.floats(0.05, 0.25),
)
def test_under_a_constant_load_the_ladder_settles(
    natural: float, share: float, window: int, look_s: float
) -> None:
    """A reader slower than its source: from the second minute on two steps in each at most, at one rate.

    The source does not go over the window, nor does it starve the reader. What steps are left are those
    of a reader that almost keeps up, once in a while, between coalescing and pacing.
    """
    capacity = share * min(natural, 6000.0)
    loop = Loop(terms(window), natural=natural, capacity=lambda _now: capacity, look_s=look_s).until(60)
    told, produced, confirmed = len(loop.steps), loop.produced, loop.confirmed
    loop.until(180)
    assert len(loop.steps) - told <= 4
    assert all(kind in {"coalescing", "pacing"} for _, kind in loop.steps[told:])
    assert loop.lead_max < window + loop.batch
    assert (loop.produced - produced) / 120 == pytest.approx(capacity, rel=0.1, abs=loop.batch / 60)
    assert (loop.confirmed - confirmed) / 120 >= 0.9 * capacity
    assert loop.decision.end is None


@pytest.mark.parametrize("overhead", [0, 100])
@pytest.mark.parametrize("natural", [300.0, 1200.0, UNLIMITED])
def test_a_client_that_drips_a_kilobyte_a_second_is_paced_and_not_paused_for_ever(
    natural: float, overhead: int
) -> None:
    """With a fast source it is paused once, until half of the window has dripped, and never shortened."""
    loop = Loop(terms(), natural=natural, capacity=lambda _now: 1000.0, overhead=overhead).until(60)
    told = len(loop.steps)
    loop.until(180)
    assert loop.decision.end is None
    assert len(loop.at("paused")) == len(loop.at("resumed")) == (natural == UNLIMITED)
    assert len(loop.steps) - told <= 2
    least = min(natural, 1000 - 2 * overhead)
    assert loop.confirmed / 180 >= 0.75 * least


@pytest.mark.parametrize(
    ("window", "batch", "capacity"), [(8192, 60, 200.0), (32_768, 1500, 1000.0), (32_768, 1500, 30_000.0)]
)
def test_a_source_that_would_give_more_stays_paced(window: int, batch: int, capacity: float) -> None:
    """That the queue is short is the work of the pace, and no reason to end it."""
    loop = Loop(terms(window), natural=UNLIMITED, batch=batch, capacity=lambda _now: capacity).until(60)
    assert loop.decision.level is Level.PACE
    assert len(loop.steps) <= 6
    loop.levels.clear()
    assert loop.until(180).levels == {Level.PACE}


@pytest.mark.parametrize(("spell_s", "within_s"), [(6, 3), (120, 20)])
@pytest.mark.parametrize("slow", [100.0, 270.0, 3000.0])
@pytest.mark.parametrize("natural", [300.0, UNLIMITED])
def test_a_reader_that_was_slow_and_is_fast_again_comes_back_to_live(
    natural: float, slow: float, spell_s: float, within_s: float
) -> None:
    """Soon after a short spell, and with the caution of experience after a long one."""

    def capacity(now: float) -> float:
        return slow if now < spell_s else 1e6

    loop = Loop(terms(4096), natural=natural, batch=500, capacity=capacity, look_s=0.2).until(spell_s)
    assert loop.levels > {Level.LIVE} or slow > natural * 0.8
    loop.until(spell_s + within_s)
    assert loop.decision.level is Level.LIVE


def test_a_reader_that_stops_again_does_not_count_as_slow() -> None:
    """It read for a moment between two stalls: that is no evidence against easing soon once it reads."""
    loop = Loop(terms(), capacity=lambda now: 0.0 if 5 <= now < 10 or 10.5 <= now < 20 else 1e6).until(40)
    assert [kind for _, kind in loop.steps] == ["pacing", "live"]
    assert loop.at("live")[0] <= 21.8


def test_records_that_cost_more_than_their_text_are_coalesced_until_the_reader_keeps_up() -> None:
    """At 100 bytes a frame this reader takes 30 frames of 50 a second; with fewer it has the whole text."""
    loop = Loop(terms(), capacity=lambda _now: 3000.0, overhead=100).until(120)
    before, told = loop.confirmed, len(loop.steps)
    loop.until(240)
    assert loop.decision.flush_s > 0.015
    assert (loop.confirmed - before) / 120 >= 0.85 * 300
    assert len(loop.steps) == told


def test_a_reader_below_the_floor_is_paused_in_turns_and_one_that_hardly_moves_is_shortened() -> None:
    """Three tokens a second are a reader, at the window's own pace; one and a half are nobody."""
    slow = Loop(terms(2048), capacity=lambda _now: 20.0).until(200)
    assert slow.decision.end is None
    assert slow.at("paused")
    assert slow.at("resumed")
    hardly = Loop(terms(2048), capacity=lambda _now: 10.0).until(200)
    assert hardly.decision.end == "shorten"


@pytest.mark.parametrize("natural", [300.0, UNLIMITED])
@pytest.mark.parametrize("half_s", [0.4, 1.0, 2.0, 3.0, 5.0, 10.0])
def test_a_flapping_reader_makes_a_bounded_number_of_steps(natural: float, half_s: float) -> None:
    """It stalls and reads in turns, for five minutes: the ladder grows calmer than the reader."""
    loop = Loop(
        terms(), natural=natural, capacity=lambda now: 0.0 if now % (2 * half_s) < half_s else 1e6
    ).until(300)
    per_minute = [sum(int(when // 60) == minute for when, _ in loop.steps) for minute in range(5)]
    assert max(per_minute) <= 30
    assert max(per_minute[2:]) <= 15


def test_acknowledgements_once_a_second_are_no_queue() -> None:
    """A client that confirms in steps keeps up, and comes back to live after a stall like any other."""
    assert Loop(terms(), ack_s=1.0).until(60).levels == {Level.LIVE}
    stalled = Loop(terms(), ack_s=1.0, capacity=stalls(5, 15)).until(30)
    assert stalled.decision.level is Level.LIVE


# --- without a consumer


def test_before_the_first_consumer_the_window_holds_and_nobody_lags() -> None:
    """A fast source fills the window and waits; the reader that then comes is never told of it."""
    loop = Loop(terms(), natural=UNLIMITED, is_live=lambda now: now > 10).until(9)
    assert loop.decision.is_paused
    loop.until(30)
    assert loop.levels == {Level.LIVE}


@pytest.mark.parametrize("natural", [300.0, UNLIMITED])
def test_a_response_that_nobody_reads_is_abandoned(natural: float) -> None:
    """Thirty seconds after the last reader has left, or after the start; never in the background."""
    never = Loop(terms(), natural=natural, is_live=lambda _now: False).until(60)
    assert never.decision.end == "abandon"
    assert never.at("cancelled")[0] == pytest.approx(30, abs=0.5)
    left = Loop(terms(), natural=natural, is_live=lambda now: now < 10 or 35 < now < 36).until(120)
    assert left.at("cancelled")[0] == pytest.approx(66, abs=0.5)
    kept = Loop(terms(background=True), natural=300.0, is_live=lambda _now: False).until(60)
    assert kept.decision == Decision(Level.LIVE, 0.015)


def test_a_client_that_reconnects_without_reading_holds_no_source_for_ever() -> None:
    """The pause's clock goes on with each connection, where abandoning alone would never come."""
    loop = Loop(
        terms(), natural=UNLIMITED, capacity=stalls(5), is_live=lambda now: now < 10 or now % 10 < 5
    ).until(120)
    assert loop.decision.end == "shorten"


def test_a_consumer_is_not_judged_by_what_came_before_it() -> None:
    """A reader that returns to a full window and an old queue is at once like any other."""
    loop = Loop(terms(), natural=UNLIMITED, is_live=lambda now: now < 10 or now > 25).until(60)
    assert loop.levels == {Level.LIVE}


def seen(now: float, lead: int, sojourn: float, *, confirmed: int = 0, is_live: bool = True) -> Observation:
    """A look, in few words."""
    return Observation(now, lead, sojourn, confirmed, is_live, BYTES_PER_TOKEN)


@pytest.mark.parametrize(("lead", "before_s", "after_s"), [(1000, 0.4, 0.4), (900, 2.4, 1.9)])
def test_a_clock_that_ran_for_one_consumer_is_not_held_against_the_next(
    lead: int, before_s: float, after_s: float
) -> None:
    """Just before a step the consumer leaves; the next one comes to an old queue, and has time of its own."""
    ladder = Ladder(terms(1000))
    for look in range(int(before_s * 20) + 1):
        assert ladder.observe(seen(look / 20, lead, look / 20)).level is Level.LIVE
    ladder.observe(seen(10, lead, 10, is_live=False))
    for look in range(int(after_s * 20) + 1):
        assert ladder.observe(seen(20 + look / 20, lead, 20 + look / 20)).level is Level.LIVE
    assert ladder.observe(seen(20 + after_s + 0.15, lead, 20)).level > Level.LIVE


def test_a_consumer_further_back_makes_its_own_progress() -> None:
    """The clock of a pause starts from where the pacing consumer is, not from where another one was."""
    ladder = Ladder(terms(8192, pause_max_s=3.0))
    ladder.observe(seen(0.0, 8192, 0.0, confirmed=50_000))
    looks = [seen(look / 10, 58_192 - look * 100, 9.0, confirmed=look * 100) for look in range(1, 100)]
    assert {ladder.observe(look).level for look in looks} <= {Level.LIVE, Level.PACE, Level.PAUSE}


def test_abandoning_counts_from_the_first_look_that_found_nobody() -> None:
    """Until then somebody was there."""
    ladder = Ladder(terms(abandon_after_s=5.0))
    looks = [seen(0, 0, 0), *(seen(now, 0, 0, is_live=False) for now in (4, 8, 12))]
    assert [ladder.observe(look).end for look in looks] == [None, None, None, "abandon"]


@pytest.mark.parametrize(("lead", "level"), [(4095, Level.COALESCE), (4096, Level.PACE)])
def test_a_young_queue_that_stands_is_paced_at_half_of_the_window(lead: int, level: Level) -> None:
    """Text that is made fast fills the window before it grows old."""
    ladder = Ladder(terms(8192))
    looks = [seen(look / 10, lead, 0.9, confirmed=look * 400) for look in range(30)]
    assert [ladder.observe(look).level for look in looks][-1] is level


def test_live_is_entered_below_where_it_was_left() -> None:
    """Over 0.5 s it is left, at 0.2 s it is entered again, and between them nothing moves."""
    ladder = Ladder(terms())
    ages = [0.6] * 30 + [0.4] * 100 + [0.2] * 5
    levels = [
        ladder.observe(seen(look / 10, 100, age, confirmed=look)).level for look, age in enumerate(ages)
    ]
    assert levels[29:130] == [Level.COALESCE] * 101
    assert levels[-1] is Level.LIVE


def test_an_outage_in_which_nobody_could_look_ends_nothing() -> None:
    """A minute without a look is no minute of pause, nor of abandonment."""
    held, alone = Ladder(terms(1024)), Ladder(terms(1024))
    for now in (0.0, 1.0, 61.0, 61.1):
        assert held.observe(Observation(now, 2000, now, 0, has_live_consumer=True)).end is None
        assert alone.observe(Observation(now, 2000, now, 0, has_live_consumer=False)).end is None


def test_a_pause_that_is_shorter_than_its_notice_is_still_told_before_it_ends() -> None:
    """With a tiny bound the two steps come, in their order, and the answer ends at the bound."""
    ladder = Ladder(terms(1024, pause_max_s=0.2))
    looks = [Observation(look / 50, 2000, look / 50, 0, has_live_consumer=True) for look in range(20)]
    decisions = [ladder.observe(look) for look in looks]
    assert [step.kind for decision in decisions for step in decision.steps] == ["paused", "shortened"]
    assert [decision.end for decision in decisions].index("shorten") == 10
