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


class FinishReason(StrEnum):
    """The finish reasons of our own; an upstream's are passed through as they come."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
