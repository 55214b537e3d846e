"""What the driver sees besides its readers: Redis's own logs and metas, and what the workers have traced.

Independent of the code under test: plain clients of redis-py, one for each server.
"""

import asyncio
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from redis import RedisError
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.cluster import key_slot

from tests.chaos.life import Life
from tests.support.topologies import Deployment

EVERY_S = 1.0
TIMEOUT_S = 3.0
SLOTS_EVERY_S = 0.5
PROMOTED_WITHIN_S = 2.0  # until a promotion is noticed
TERMINAL = frozenset(("completed", "failed", "cancelled"))


class Observer:
    """Takes the logs' entries and the workers' words into the histories, once a second."""

    def __init__(self, redis: Deployment, folder: Path) -> None:
        self._redis = redis
        self._folder = folder
        self._clients: dict[int, Redis] = {}
        self._slots: list[tuple[int, int, int]] = []  # first, last, port
        self._primary = redis.data[0].port
        self._primaries = [server.port for server in redis.primaries()]
        self._looked_at = 0.0
        self._read: dict[Path, int] = {}  # how much of each trace has been read
        self.traced = 0

    async def watch(self, lives: Callable[[], Iterable[Life]]) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(EVERY_S)
            now = {life.id: life for life in lives() if life.id}
            self.read_traces(now)
            await asyncio.gather(*(self._look(life) for life in list(now.values())))

    async def finish(self, life: Life, lives: dict[str, Life], bound_s: float) -> bool:
        """The last look at a response that has ended, and its final state; False when it has not ended."""
        deadline = time.monotonic() + bound_s
        while True:
            found = await self._state(life)
            if found is not None:
                meta, journal = found
                if not meta or meta.get("status") in TERMINAL:
                    break
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.2)
        if self._redis.shape != "single":
            await asyncio.sleep(PROMOTED_WITHIN_S)  # a loss that this state tells of has been noticed by then
        await self._look(life)
        self.read_traces(lives)
        life.count_alone()
        life.note("final", meta, journal)
        return True

    async def close(self) -> None:
        """Hang up."""
        for client in self._clients.values():
            await client.aclose()

    # --- Redis

    async def client(self, response_id: str) -> Redis:
        """The client of the server that has this response."""
        if self._redis.shape != "single" and time.monotonic() - self._looked_at > SLOTS_EVERY_S:
            self._looked_at = time.monotonic()
            await asyncio.to_thread(self._locate)
        port = self._primary
        if self._slots:
            slot = key_slot(f"relay:{{{response_id}}}:meta".encode())
            port = next((port for first, last, port in self._slots if first <= slot <= last), port)
        found = self._clients.get(port)
        if found is None:
            found = self._clients[port] = Redis(
                host="127.0.0.1",
                port=port,
                socket_timeout=TIMEOUT_S,
                socket_connect_timeout=TIMEOUT_S,
                retry=Retry(NoBackoff(), 0),
                max_connections=16,
            )
        return found

    def _locate(self) -> None:
        """Where the primaries are now; as before when nobody says."""
        for server in self._redis.primaries():
            if self._redis.shape == "sentinel":
                if server is self._redis.primary_of():
                    self._primary = server.port
                return
            with server.admin() as client:
                rows = client.execute_command("CLUSTER SLOTS")
            self._slots = _slots(rows)
            return

    async def _look(self, life: Life) -> None:
        """The entries of its log since the last look. A failure is another look's matter."""
        async with life.looking:
            await self._look_alone(life)

    async def _look_alone(self, life: Life) -> None:
        try:
            client = await self.client(life.id)
            rows = await client.xrange(_key(life.id, "log"), f"({life.seen_id}", "+")
        except (RedisError, OSError, TimeoutError, AssertionError):
            return
        for entry_id, fields in rows:
            data = fields[b"d"]
            end, epoch = (int(part) for part in entry_id.split(b"-"))
            if end - len(data) > life.seen_end:
                life.note("hole", end - len(data))
            life.note("entry", end, epoch, len(data), zlib.crc32(data))
            life.seen_end, life.seen_id = end, entry_id.decode()

    async def _state(self, life: Life) -> tuple[dict[str, str], str] | None:
        try:
            client = await self.client(life.id)
            pipeline = client.pipeline(transaction=False)
            pipeline.hgetall(_key(life.id, "meta"))
            pipeline.get(_key(life.id, "journal"))
            meta, journal = await pipeline.execute()
        except (RedisError, OSError, TimeoutError, AssertionError):
            return None
        found = {name.decode(): value.decode("latin-1") for name, value in meta.items()}
        return found, (journal or b"").decode("latin-1")

    async def has_promoted(self) -> bool:
        """Whether other servers are primaries than at the last look: by a fault, or by themselves."""
        now = await asyncio.to_thread(lambda: [server.port for server in self._redis.primaries()])
        before, self._primaries = self._primaries, now
        return now != before

    # --- traces

    def read_traces(self, lives: dict[str, Life]) -> None:
        """What the workers have written since the last look."""
        for path in sorted(self._folder.glob("*.trace")):
            at = self._read.get(path, 0)
            with path.open("rb") as file:
                file.seek(at)
                whole, _, _ = file.read().rpartition(b"\n")
            if whole:
                self._read[path] = at + len(whole) + 1
                for line in whole.decode().splitlines():
                    self._trace(path.stem, line.split(), lives)

    def _trace(self, worker: str, words: list[str], lives: dict[str, Life]) -> None:
        self.traced += 1
        kind, response_id, *numbers = words
        life = lives.get(response_id)
        if life is not None:
            life.note(kind, worker, *map(int, numbers))


def _key(response_id: str, name: str) -> str:
    return f"relay:{{{response_id}}}:{name}"


def _slots(rows: Any) -> list[tuple[int, int, int]]:
    """Of CLUSTER SLOTS, whichever way redis-py hands it on."""
    if isinstance(rows, dict):
        return [(first, last, int(told["primary"][1])) for (first, last), told in rows.items()]
    return [(int(row[0]), int(row[1]), int(row[2][1])) for row in rows]
