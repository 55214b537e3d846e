"""The states of a response and the only moves between them.

        queued ──> running <──> paused
          │           │            │
          └───────────┴────────────┴──> completed | failed | cancelled   (terminal)

`queued -> running` again after a worker's death is `running -> running` under a new epoch.
"""

from enum import StrEnum


class Status(StrEnum):
    """What the contract calls `status`."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset((Status.COMPLETED, Status.FAILED, Status.CANCELLED))

MOVES: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset((Status.RUNNING, *TERMINAL)),
    Status.RUNNING: frozenset((Status.RUNNING, Status.PAUSED, *TERMINAL)),
    Status.PAUSED: frozenset((Status.RUNNING, *TERMINAL)),
    Status.COMPLETED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELLED: frozenset(),
}


def may_move(before: Status, after: Status) -> bool:
    """Whether the table allows it. The Lua scripts refuse the same moves: they check `terminal`."""
    return after in MOVES[before]


class FinishReason(StrEnum):
    """The finish reasons of our own; an upstream's are passed through as they come."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
