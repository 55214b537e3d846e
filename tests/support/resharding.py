"""A slot of a cluster that moves to another primary, step by step.

What redis-cli does, with time between the steps: https://redis.io/docs/latest/commands/cluster-setslot/
"""

from typing import Any

from redis.cluster import key_slot

from tests.support.topologies import HOST, Deployment, ManagedServer

MIGRATE_MS = 5000


class Move:
    """The slot of `key`, on its way once `begin` is called. Each step may be followed by whatever time."""

    def __init__(self, redis: Deployment, key: str) -> None:
        self.slot = key_slot(key.encode())
        self.source = redis.primary_of(key)
        self.target, *self._others = (one for one in redis.primaries() if one is not self.source)

    def begin(self) -> "Move":
        """From here on what the source has not is asked for at the target."""
        _call(self.target, "CLUSTER SETSLOT", self.slot, "IMPORTING", _id(self.source))
        _call(self.source, "CLUSTER SETSLOT", self.slot, "MIGRATING", _id(self.target))
        return self

    def keys(self) -> None:
        """What there is goes over, all at once."""
        keys = _call(self.source, "CLUSTER GETKEYSINSLOT", self.slot, 100)
        if keys:
            _call(self.source, "MIGRATE", HOST, self.target.port, "", 0, MIGRATE_MS, "KEYS", *keys)

    def end(self) -> None:
        """The target is the owner; the others are told, for gossip takes its time."""
        for server in (self.target, self.source, *self._others):
            _call(server, "CLUSTER SETSLOT", self.slot, "NODE", _id(self.target))


def _id(server: ManagedServer) -> str:
    return str(_call(server, "CLUSTER MYID"))


def _call(server: ManagedServer, *words: object) -> Any:
    with server.admin() as client:
        return client.execute_command(*words)
