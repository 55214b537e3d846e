"""The readers: how each kind reads a response to its end, whatever becomes of its connections.

fast      as fast as it comes
hopper    leaves after a few seconds and goes on at another node, again and again
acker     explicit acks, half a window at a time
client    the shipped Python client, before all nodes
drip      a small receive buffer, read a little at a time
stalled   reads nothing for up to 25 s in the middle
late      comes when the response runs, or is over
named     explicit acks; comes back by its name alone, to where it had confirmed
twins     two under one name: the newer takes over from the older
"""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial

from relay.client import Delta, Done, Failed, Notice, Reconnect, Rewind, Start, Stream
from relay.errors import RelayError
from tests.chaos.connection import Connection, Event, call, connected
from tests.chaos.life import BUSY, LIVELY, RETRY_S, Life, retry_after

SILENCE_S = 7.0  # a keep-alive comes every 2 s
WINDOW_BYTES = 1024
DRIP_BYTES, DRIP_S = 400, 0.15
STALL_S = (3.0, 25.0)
HOP_S = (1.0, 6.0)


class Reader:
    """One reader of one response, by the name that its records carry."""

    def __init__(self, life: Life, kind: str, name: str, seed: int, consumer: str | None = None) -> None:
        self.life = life
        self.kind = kind
        self.name = name
        self.rng = random.Random(seed)
        self.seen = life.history.reader(name)
        self.consumer = consumer
        self.acks = kind in {"acker", "named", "twins"}
        self._has_stalled = False
        self._acked = 0  # as far as it knows that the relay knows
        self.twin: str | None = None  # who else reads under its name

    @property
    def is_over(self) -> bool:
        """Nothing more is to be had."""
        return self.seen.has_ended or self.seen.is_away

    async def run(self) -> None:
        """Read to the end, over as many connections as it takes."""
        if self.kind == "late":
            await asyncio.sleep(self.rng.uniform(0.5, self.life.plan.nominal_s * 1.3))
        while not self.is_over:
            try:
                wait_s = await self._once()
            except OSError:
                wait_s = self.rng.uniform(*RETRY_S)
            if not self.is_over:
                await asyncio.sleep(wait_s)

    async def take_over(self) -> None:
        """The second twin: comes later, under the name of the first."""
        await asyncio.sleep(self.rng.uniform(1, 8))
        await self.run()

    # --- one connection

    async def _once(self) -> float:
        how, after = self._how()
        headers = {"Last-Event-ID": after} if how == "id" else {}
        if (
            how == "id" and self.consumer
        ):  # which tells the relay where this consumer is: it asks for no ack more
            self.life.note("ack", self.name, self.seen.offset)
        buffer = 4096 if self.kind in {"drip", "stalled"} else 0
        port = self.life.stage.port(self.rng)
        async with connected(port, "GET", self._path(), headers, receive_buffer=buffer) as connection:
            events = await connection.head()
            status = connection.answer.status
            if status == 200:
                if how == "name":  # the relay looked since we asked, and the other twin may have gone on
                    _, after = self._how()
                self.life.note("open", self.name, how, after)
                self._acked = self.seen.offset if how == "id" else 0
                self.life.attach(1)
                try:
                    return await self._read(connection, events)
                finally:
                    self.life.attach(-1)
            while not connection.answer.ended and status != 204:
                await connection.read()
            return self._refused(status, connection)

    def _how(self) -> tuple[str, str]:
        if self.twin is not None and not self.seen.offset:
            # The relay knows the name: it goes on where the one of the two is that has confirmed more,
            # by an ack or by the id that it resumed with.
            both = [self.seen, self.life.history.reader(self.twin)]
            return "name", max(both, key=lambda who: (who.acked, who.offset)).name
        if self.kind == "named" and self.seen.offset:
            return "name", self.name
        return ("id", self.seen.last_id) if self.seen.offset else ("start", "")

    def _path(self) -> str:
        query = [f"consumer={self.consumer}"] if self.consumer else []
        query += [f"window={WINDOW_BYTES}"] if self.acks else []
        return f"/v1/streams/{self.life.id}/events?{'&'.join(query)}"

    def _refused(self, status: int, connection: Connection) -> float:
        if status == 204:
            self.life.note("none", self.name)
            self.seen.is_away = True
            return 0.0
        if status in {404, 410}:
            self.life.note("gone", self.name, str(status))
            return 0.0
        if status in BUSY:
            return retry_after(connection.answer.headers)
        raise AssertionError(f"{self.name} was answered {status}: {connection.answer.body[:300]!r}")

    async def _read(self, connection: Connection, events: list[Event]) -> float:
        """Until the connection's end; how long to wait before the next one."""
        loop = asyncio.get_running_loop()
        leave_at = loop.time() + self.rng.uniform(*HOP_S) if self.kind in {"hopper", "named"} else None
        while True:
            for event in events:
                if (wait_s := self._take(event)) is not None:
                    return wait_s
            if self.is_over or connection.answer.ended:
                return self.rng.uniform(*RETRY_S)
            if self.acks and self.seen.offset - self._acked >= WINDOW_BYTES // 2:
                await self._ack()
            if leave_at is not None and loop.time() > leave_at:
                return 0.0
            await self._pause()
            size = DRIP_BYTES if self.kind == "drip" else 65_536
            events = await connection.read(size, SILENCE_S)

    def _take(self, event: Event) -> float | None:
        """Note it; a number ends the connection: wait so long before the next."""
        self.life.note("event", self.name, *event)
        if self.kind in LIVELY:
            self.life.went_on()
        if event.name == "reconnect":
            return float(json.loads(event.data)["retry_ms"]) / 1000
        if event.name == "rewind" and self.seen.offset != int(
            json.loads(event.data)["position"].split("-")[0]
        ):
            return 0.0  # it had merged what lies there: only an earlier place is one it can resume from
        return None

    async def _ack(self) -> None:
        """Until it is taken: an ack that was answered 204 is the relay's from then on."""
        offset = self.seen.offset
        self.life.note("ack", self.name, offset)
        path = f"/v1/streams/{self.life.id}/consumers/{self.consumer}/ack"
        while True:
            with suppress(OSError):
                answer = await call(self.life.stage.port(self.rng), "POST", path, {"position": offset})
                # 404: the consumer went with what Redis lost; 422: so did the text. The reader hears of both.
                if answer.status in {204, 404, 422}:
                    self._acked = offset
                    return
            await asyncio.sleep(self.rng.uniform(*RETRY_S))

    async def _pause(self) -> None:
        if self.kind == "drip":
            await asyncio.sleep(DRIP_S)
        elif self.kind == "stalled" and not self._has_stalled and self.rng.random() < 0.2:
            self._has_stalled = True
            await asyncio.sleep(self.rng.uniform(*STALL_S))


async def read_with_client(life: Life, name: str) -> None:
    """The shipped client, on the balancer; what it hands on is noted as it would have come."""
    seen = life.history.reader(name)
    life.note("open", name, "start", "")
    life.attach(1)
    try:
        async with life.stage.client.stream(life.id) as stream, aclosing(_typed(stream)) as events:
            async for kind, position, data in events:
                life.note("event", name, kind, position, data)
                life.went_on()
        if not seen.has_ended:
            life.note("none", name)
    except RelayError as error:
        if error.code not in {"not_found", "expired"}:
            raise AssertionError(f"the client gave up: {error.code}: {error.message}") from error
        life.note("gone", name, error.code)
    finally:
        life.attach(-1)


async def _typed(stream: Stream) -> AsyncGenerator[tuple[str, str, str], None]:
    """The client's events as (name, id, data), as they came to it."""
    async for event in stream:
        match event:
            case Delta() | Start() | Notice() | Done():
                kind = type(event).__name__.lower()
                is_private = isinstance(event, Notice) and str(event.position) == "0-0"
                yield kind, "" if is_private else str(event.position), json.dumps(event.raw)
            case Failed():
                data = {"code": event.code, "message": event.message, "retryable": event.retryable}
                position = "" if event.code in {"stream_lost", "superseded"} else str(event.position)
                yield "error", position, json.dumps(data)
            case Rewind():
                yield "rewind", "", json.dumps({"position": str(event.position)})
            case Reconnect():
                yield "reconnect", "", "{}"


async def _lively(life: Life, run: Callable[[], Awaitable[None]]) -> None:
    """A reader by which progress is judged, until it has finished."""
    await run()
    life.lively -= 1
    life.went_on()


def readers_of(life: Life) -> list[Callable[[], Awaitable[None]]]:
    """The readers that its plan has, as things to be run."""
    runs: list[Callable[[], Awaitable[None]]] = []
    for index, kind in enumerate(life.plan.readers):
        name, seed = f"{kind}-{index}", life.plan.reader_seed + index
        if kind == "client":
            runs.append(partial(read_with_client, life, name))
        elif kind == "twins":
            older = Reader(life, kind, name, seed, consumer=name)
            newer = Reader(life, kind, f"{name}-newer", seed + 100, consumer=name)
            older.twin, newer.twin = newer.name, older.name
            runs += [older.run, newer.take_over]
        else:
            consumer = name if kind in {"acker", "named"} else None
            runs.append(Reader(life, kind, name, seed, consumer).run)
        if kind in LIVELY:
            life.lively += 1
            runs[-1] = partial(_lively, life, runs[-1])
    return runs
