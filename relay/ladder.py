"""The ladder of one response: how far its reader is behind, and what is done about it. Pure.

    level       entered when                                           what is done
    0 LIVE      the reader keeps up                                    nothing
    1 COALESCE  a queue stands: 0.5 s old throughout 2 s               flush interval up to 0.5 s
    2 PACE      it stands, and is 2 s old or half the window long      source read at the drain rate
    3 PAUSE     the lead has been at the window for 0.5 s              source not read
    4 SHORTEN   held at the window, and not moving, for pause_max      the answer ends here, well-formed
    5 CANCEL    no consumer for abandon_after                          the generation ends

PAUSE ends at half the window, in PACE. COALESCE and PACE end in LIVE after 1 s in which no queue stood for
1 s, when the oldest record is at most 0.2 s old and the flush interval back at its low end. PACE goes on
for as long as it binds: until the source gives less than it may, or the consumer takes a whole window
within 0.5 s, so that no queue older than that can stand; where the interval is still needed then it
becomes COALESCE. What was eased too soon is eased more slowly the next time, up to 16 times (Damping).

The window itself is no level. `is_paused` holds at once from the window down to half of it, and nobody is
told while that lasts less than 0.5 s: a fast upstream and a fast reader touch it many times a second.

Without a live consumer nobody lags: the level stays, and the next one is judged afresh. Only the clock
of the pause is not reset, or a client could hold a source for ever by reconnecting. A response in the
background is held back by no reader: it is always LIVE, and bounded by its largest size.
"""

import math
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Literal, NamedTuple

from relay.pace import Pace
from relay.pressure import Aimd, Damping, DrainRate, MinimumSojourn, WaterMarks

TARGET_S, INTERVAL_S = 0.5, 2.0
PACE_SOJOURN_S = 2.0
TOLD_AFTER_S = 0.5  # of a pause
LEAVE_AFTER_S, LEAVE_SOJOURN_S = 1.0, 0.2
# Half the pace at which people read: a reader that takes less than this over a whole pause takes nothing.
LEAST_TOKENS_PER_S = 2.5
# A step up so soon after a step down, by a reader that confirmed something just now: it had not stopped, it
# is slow, and the step down was too soon.
TOO_SOON_S, READING_S, NEW_S = 10.0, 1.0, 3.0
# Time in which nobody looked counts for so much at most: an outage of Redis is not the reader's fault.
LOOK_GAP_S = 5.0


class Level(IntEnum):
    """What is done about a reader that is behind."""

    LIVE = 0
    COALESCE = 1
    PACE = 2
    PAUSE = 3
    SHORTEN = 4
    CANCEL = 5


class Kind(StrEnum):
    """What a step is called: the kind of its notice, and its metric label."""

    LIVE = "live"
    COALESCING = "coalescing"
    PACING = "pacing"
    PAUSED = "paused"
    RESUMED = "resumed"
    SHORTENED = "shortened"
    CANCELLED = "cancelled"  # not a notice: its event is the `done` that follows


# Every move there is, and what it is called. SHORTEN and CANCEL are final.
MOVES: dict[tuple[Level, Level], Kind] = {
    (Level.LIVE, Level.COALESCE): Kind.COALESCING,
    (Level.LIVE, Level.PACE): Kind.PACING,
    (Level.LIVE, Level.PAUSE): Kind.PAUSED,
    (Level.COALESCE, Level.LIVE): Kind.LIVE,
    (Level.COALESCE, Level.PACE): Kind.PACING,
    (Level.COALESCE, Level.PAUSE): Kind.PAUSED,
    (Level.PACE, Level.LIVE): Kind.LIVE,
    (Level.PACE, Level.COALESCE): Kind.COALESCING,
    (Level.PACE, Level.PAUSE): Kind.PAUSED,
    (Level.PAUSE, Level.PACE): Kind.RESUMED,
    (Level.PAUSE, Level.SHORTEN): Kind.SHORTENED,
    **{(level, Level.CANCEL): Kind.CANCELLED for level in Level if level < Level.SHORTEN},
}
End = Literal["shorten", "abandon"]
ENDS: dict[Level, End] = {Level.SHORTEN: "shorten", Level.CANCEL: "abandon"}


@dataclass(frozen=True, slots=True)
class Terms:
    """What was agreed for this response. `flush_s` is the interval of LIVE."""

    window_bytes: int
    flush_s: float
    pause_max_s: float
    abandon_after_s: float
    background: bool = False
    floor_tokens_per_s: float = 15.0


class Observation(NamedTuple):
    """One look at the positions, in bytes of the response and seconds of any monotonic clock.

    `lead_bytes` is what was produced less `confirmed_bytes`, where the pacing consumer is. `sojourn_s` is
    how long ago the oldest record that it has not confirmed was appended, 0 when there is none; what the
    writer still gathers does not count.
    """

    now_s: float
    lead_bytes: int
    sojourn_s: float
    confirmed_bytes: int
    has_live_consumer: bool
    bytes_per_token: float = 6.0
    source_done: bool = False


class Step(NamedTuple):
    """One change of level, in words that a client may be shown."""

    kind: Kind
    level: Level
    reason: str


class Decision(NamedTuple):
    """What holds until the next look. `rate_bytes_per_s` is None while the source is not paced."""

    level: Level
    flush_s: float
    rate_bytes_per_s: float | None = None
    is_paused: bool = False
    end: End | None = None
    steps: tuple[Step, ...] = ()


class Ladder:
    """The controller of one response. A decision to end it is final."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self.level = Level.LIVE
        self._window = WaterMarks(terms.window_bytes // 2, terms.window_bytes)
        self._queue = MinimumSojourn(TARGET_S, INTERVAL_S)
        self._drain = DrainRate()
        self._flush = Aimd(terms.flush_s)
        self._pace = Pace(0.0, TARGET_S)
        self._damping = Damping()
        self._seen_at: float | None = None
        self._is_live = False
        self._alone_s = 0.0
        self._confirmed = self._produced = 0
        self._moved_at, self._is_reading = 0.0, False  # when something was last confirmed, and lately
        self._held_at: float | None = None  # since when a live consumer's lead is at the window
        self._stuck_s = 0.0  # for how long of that next to nothing was confirmed
        self._stuck_from = 0
        self._is_free = True  # the pace, if any, holds nothing back
        self._eased_at = float("-inf")  # the last step down
        self._calm_at: float | None = None  # since when no queue stands, above LIVE
        self._steps: list[Step] = []
        self._live = Decision(Level.LIVE, terms.flush_s)

    def observe(self, seen: Observation) -> Decision:
        """Take a look at the positions: several times a second while something is unconfirmed, and every
        few seconds in any case; not when the look failed and has nothing new to say.
        """
        elapsed_s = 0.0 if self._seen_at is None else min(max(0.0, seen.now_s - self._seen_at), LOOK_GAP_S)
        self._seen_at = seen.now_s
        if self.level in ENDS:
            return self._decision(is_paused=True)
        if self.terms.background or seen.source_done:
            return self._live._replace(level=self.level)
        is_paused = self._window.observe(seen.lead_bytes)
        if seen.has_live_consumer:
            self._judge(seen, elapsed_s, is_paused=is_paused)
        else:
            self._wait_alone(elapsed_s)
        if self.level is Level.LIVE and not self._steps and not is_paused:
            return self._live
        return self._decision(is_paused=is_paused)

    def _arrive(self, seen: Observation) -> None:
        """A consumer is there (again), and is not judged by what came before it."""
        self._is_live, self._alone_s = True, 0.0
        self._queue = MinimumSojourn(TARGET_S, INTERVAL_S)
        self._drain = DrainRate()
        self._held_at, self._calm_at = None, seen.now_s
        self._stuck_from = seen.confirmed_bytes

    def _wait_alone(self, elapsed_s: float) -> None:
        # Until the first look that did not find it, it was there.
        self._alone_s += 0.0 if self._is_live else elapsed_s
        self._is_live = False
        if self._alone_s >= self.terms.abandon_after_s:
            self._go(Level.CANCEL, f"nobody has read for {self.terms.abandon_after_s:g} s")

    def _judge(self, seen: Observation, elapsed_s: float, *, is_paused: bool) -> None:
        if not self._is_live:
            self._arrive(seen)
        now_s, lead, sojourn_s, confirmed = seen[:4]
        caution = self._damping.factor
        stands = self._queue.observe(now_s, sojourn_s)
        self._drain.observe(now_s, confirmed)
        if confirmed != self._confirmed:
            self._confirmed, self._moved_at = confirmed, now_s
        self._is_reading = now_s - self._moved_at < READING_S
        if self.level is Level.LIVE:
            self._damping.rest(elapsed_s)
        else:
            self._adjust(seen, elapsed_s)
        self._produced = confirmed + lead
        if is_paused:
            self._hold(seen, elapsed_s, min(TOLD_AFTER_S * caution, self.terms.pause_max_s / 2))
        else:
            self._held_at, self._stuck_s = None, 0.0
        if self.level is Level.PAUSE and not is_paused:
            self._descend(Level.PACE, now_s, "the reader has caught up to half of the window")
        elif stands and self.level < Level.PACE and sojourn_s >= PACE_SOJOURN_S:
            self._climb(Level.PACE, seen, f"the reader is more than {PACE_SOJOURN_S:g} s behind")
        elif stands and self.level < Level.PACE and lead >= self._window.low:
            self._climb(Level.PACE, seen, "the reader is half of the window behind")
        elif stands and self.level is Level.LIVE:
            self._climb(Level.COALESCE, seen, f"the reader stays more than {TARGET_S:g} s behind")
        elif self.level is not Level.LIVE and not is_paused:
            self._ease(seen)

    def _hold(self, seen: Observation, elapsed_s: float, told_after_s: float) -> None:
        """The lead is at the window: tell it when that lasts, end it when nothing is taken."""
        pause_max_s = self.terms.pause_max_s
        if self._held_at is None:
            self._held_at, self._stuck_from = seen.now_s, seen.confirmed_bytes
        else:
            self._stuck_s += elapsed_s
        moved = seen.confirmed_bytes - self._stuck_from
        if moved >= max(1.0, LEAST_TOKENS_PER_S * seen.bytes_per_token * pause_max_s):
            self._stuck_s = 0.0
        if moved < 0 or not self._stuck_s:  # moved back: another consumer
            self._stuck_from = seen.confirmed_bytes
        if self.level is not Level.PAUSE and seen.now_s - self._held_at >= told_after_s:
            self._climb(Level.PAUSE, seen, "the reader is a whole window behind")
        if self.level is Level.PAUSE and self._stuck_s >= pause_max_s:
            self._go(Level.SHORTEN, f"the reader took next to nothing for {pause_max_s:g} s")

    def _adjust(self, seen: Observation, elapsed_s: float) -> None:
        """The measures in force above LIVE: first the pace opens, then the interval comes down."""
        is_congested = seen.sojourn_s >= TARGET_S
        if self.level >= Level.PACE:
            self._set_pace(seen, elapsed_s, seen.confirmed_bytes + seen.lead_bytes - self._produced)
            takes_windows = (self._drain.bytes_per_s or 0.0) * TARGET_S >= self.terms.window_bytes
            self._is_free = takes_windows or not self._pace.is_binding
        if is_congested or self._is_free:
            self._flush.observe(elapsed_s, is_congested=is_congested, caution=self._damping.factor**1.5)
        if self._queue.above_s >= LEAVE_AFTER_S:
            if self._calm_at is not None and self._is_free and self._is_reading:
                self._damping.note(was_too_soon=True)
            self._calm_at = None
        elif self._calm_at is None:
            self._calm_at = seen.now_s

    def _ease(self, seen: Observation) -> None:
        """One step down, when its cause is gone."""
        now_s, leave_after_s = seen.now_s, LEAVE_AFTER_S * self._damping.factor
        calm_s = 0.0 if self._calm_at is None or not self._is_free else now_s - self._calm_at
        is_short = seen.sojourn_s <= LEAVE_SOJOURN_S and self._flush.value <= self._flush.low
        if calm_s >= leave_after_s and is_short:
            self._descend(Level.LIVE, now_s, "the reader keeps up")
        elif calm_s >= leave_after_s + 0.5 and self.level is Level.PACE and seen.sojourn_s < TARGET_S:
            self._descend(Level.COALESCE, now_s, "the reader keeps up with larger records")

    def _set_pace(self, seen: Observation, elapsed_s: float = 0.0, read_bytes: int = 0) -> None:
        # A queue of half the window stands: the pace leads to less than that, but for who was just resumed.
        is_new = seen.now_s - self._eased_at < NEW_S
        room = math.inf if is_new else self._window.low - seen.lead_bytes
        drain, is_held = self._drain.bytes_per_s or 0.0, self._held_at is not None
        self._pace.observe(elapsed_s, read_bytes, drain, seen.sojourn_s, room, was_held=is_held)

    def _climb(self, level: Level, seen: Observation, reason: str) -> None:
        # Whoever falls from LIVE to PAUSE may just have stopped; else a step down is taken back.
        is_back = self.level is Level.PACE if level is Level.PAUSE else self._is_reading
        self._damping.note(was_too_soon=is_back and seen.now_s - self._eased_at < TOO_SOON_S)
        if self.level < Level.PACE <= level:
            self._pace = Pace(max(1.0, self.terms.floor_tokens_per_s * seen.bytes_per_token), TARGET_S)
            self._set_pace(seen)
        self._calm_at = None
        self._go(level, reason)

    def _descend(self, level: Level, now_s: float, reason: str) -> None:
        if level is not Level.COALESCE:
            self._calm_at, self._flush = now_s, Aimd(self.terms.flush_s)
        self._eased_at = now_s
        self._go(level, reason)

    def _go(self, level: Level, reason: str) -> None:
        self._steps.append(Step(MOVES[self.level, level], level, reason))
        self.level = level

    def _decision(self, *, is_paused: bool) -> Decision:
        level, steps = self.level, tuple(self._steps)
        self._steps.clear()
        rate = self._pace.rate if level in (Level.PACE, Level.PAUSE) else None
        return Decision(level, self._flush.value, rate, is_paused or level in ENDS, ENDS.get(level), steps)
