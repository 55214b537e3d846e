"""The names of the keys, and nothing else.

All keys of one response carry the hash tag `{id}`: one Lua script may touch them, and a cluster
spreads responses over its nodes. A test checks that every key has a TTL or is in PERMANENT.
"""

from typing import NamedTuple

PREFIX = "relay:"
JOBS_INTERACTIVE = PREFIX + "jobs:interactive"
JOBS_BACKGROUND = PREFIX + "jobs:background"
JOBS_GROUP = "workers"
PRESSURE = PREFIX + "pressure"
PERMANENT = frozenset((JOBS_INTERACTIVE, JOBS_BACKGROUND))


class Keys(NamedTuple):
    """The keys of one response, each as it goes on the wire."""

    meta: str
    journal: str
    log: str
    lease: str
    bell: str  # sharded pub/sub channel, rung by append and close
    control: str  # sharded pub/sub channel, rung for the worker: cancel, an ack after a pause


def keys_of(response_id: str) -> Keys:
    """The keys of the response `response_id`."""
    base = f"{PREFIX}{{{response_id}}}:"
    return Keys(
        base + "meta",
        base + "journal",
        base + "log",
        base + "lease",
        base + "bell",
        base + "control",
    )


def owner_index(owner: str) -> str:
    """A sorted set of an owner's recent responses, scored by creation time."""
    return f"{PREFIX}owner:{{{owner}}}:responses"


def idempotency(owner: str, key_hash: str) -> str:
    """Where the response of an Idempotency-Key is remembered."""
    return f"{PREFIX}idempotency:{{{owner}:{key_hash}}}"
