"""How a client is doing: live, slow or stalled, with hysteresis, and what holds it up. Pure.

           age of what it lacks >= 0.5 s            nothing confirmed for 2 s
    live ───────────────────────────────> slow ───────────────────────────────> stalled
      ^                                   │  ^                                     │
      └─────── age <= 0.2 s ──────────────┘  └────── something was confirmed ──────┘

`detached` is a consumer without a connection; nobody observes that one.
"""

from enum import StrEnum
from typing import NamedTuple

SLOW_AT_S, LIVE_AT_S = 0.5, 0.2
STALLED_AFTER_S = 2.0
# Of the time in which bytes were waiting, the part for which the client's window was closed.
CLIENT_SHARE = 0.5


class Health(StrEnum):
    """The contract's client states."""

    LIVE = "live"
    SLOW = "slow"
    STALLED = "stalled"
    DETACHED = "detached"


class TcpTimes(NamedTuple):
    """Of TCP_INFO, in microseconds since the connection began (tcp_info in linux/tcp.h)."""

    busy: int
    rwnd_limited: int


class Condition:
    """One client's condition. `observe` may be called at any spacing."""

    __slots__ = ("_progress_at", "_progress_to", "_times", "cause", "health")

    def __init__(self, now: float, offset: int) -> None:
        self.health = Health.LIVE
        self.cause = ""  # "client": it does not read; "network": it would, and bytes do not arrive
        self._progress_at = now
        self._progress_to = offset
        self._times = TcpTimes(0, 0)

    def observe(
        self, now: float, age_s: float, confirmed: int, times: TcpTimes | None, *, has_all: bool = False
    ) -> bool:
        """Take note; True when `health` or `cause` changed.

        `age_s` is the age of the oldest byte it lacks, 0 when it lacks none; `confirmed` is its position;
        `has_all`: its kernel has acknowledged all that was sent, so that only the client itself is left.
        """
        before = (self.health, self.cause)
        if confirmed > self._progress_to or age_s == 0.0:
            self._progress_at, self._progress_to = now, confirmed
        self.health = self._next(now, age_s)
        self.cause = "" if self.health is Health.LIVE else "client" if has_all else self._cause(times)
        if times is not None:
            self._times = times
        return (self.health, self.cause) != before

    def _next(self, now: float, age_s: float) -> Health:
        if age_s > 0.0 and now - self._progress_at >= STALLED_AFTER_S:
            return Health.STALLED
        if self.health is Health.LIVE:
            return Health.SLOW if age_s >= SLOW_AT_S else Health.LIVE
        return Health.LIVE if age_s <= LIVE_AT_S else Health.SLOW

    def _cause(self, times: TcpTimes | None) -> str:
        if times is None:
            return self.cause
        busy = times.busy - self._times.busy
        closed = times.rwnd_limited - self._times.rwnd_limited
        if busy <= 0:
            return self.cause
        return "client" if closed >= CLIENT_SHARE * busy else "network"
