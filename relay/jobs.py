"""The work queue: one stream for each priority, consumer group `workers`.

A job is an entry with a response's id; it stays in its stream, pending, until it is finished, so the
streams' lengths are what is queued and running. The lease is a key of its own (see `journal`), not the
pending entry's idle time: claiming an entry to renew it would steal it back from a new owner.
Delivery is at least once: `claim_response` decides who generates.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from relay.errors import Refused
from relay.keys import JOBS_BACKGROUND, JOBS_GROUP, JOBS_INTERACTIVE, keys_of
from relay.line import Line
from relay.link import Argument
from relay.topology import Topology
from relay.tracing import TRACEPARENT
from relay.wire import Wire

STREAMS = {"interactive": JOBS_INTERACTIVE, "background": JOBS_BACKGROUND}
# Pending entries looked at in one round trip, and round trips of one scan of one stream: a thousand entries
# a scan, so that also the last orphan of a full deployment is found within a few seconds.
SCAN_COUNT, SCAN_PAGES = 100, 10
LOOK_COUNT, LOOK_PAGES = 1000, 8  # entries of a page, and pages, in which one job is looked for

WORKER_SEEN_MS = 5_000  # an idle worker asks for a job every second


class Job(NamedTuple):
    """A claimed entry: which stream, which entry, which response, how often it was delivered."""

    stream: str
    entry_id: bytes
    response_id: str
    deliveries: int
    context: str = ""  # of its trace, a W3C traceparent

    @property
    def queued_s(self) -> float:
        """When it was queued, Unix time by the server's clock."""
        return int(self.entry_id.partition(b"-")[0]) / 1000


class QueueState(NamedTuple):
    """One priority's queue: jobs that wait, jobs taken and not finished, the age of the oldest that waits."""

    waiting: int
    pending: int
    oldest_s: float


class Jobs:
    """The queues of a deployment; `blocking` is a wire of its own, because a blocked read stops the line."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._cursors = dict.fromkeys(STREAMS.values(), "-")  # where the next scan for orphans starts

    async def prepare(self) -> None:
        """Make the streams and the group where they are missing. Idempotent."""
        for stream in STREAMS.values():
            try:
                await self._line(stream).call("XGROUP", "CREATE", stream, JOBS_GROUP, "0", "MKSTREAM")
            except Refused as error:
                if error.prefix != "BUSYGROUP":
                    raise

    async def submit(self, queue: str, response_id: str, traceparent: str = "") -> None:
        """Queue a response. A retry queues it twice, which is harmless: only one claim succeeds."""
        await self._line(STREAMS[queue]).call("XADD", STREAMS[queue], "*", *_fields(response_id, traceparent))

    async def has(self, queue: str, response_id: str) -> bool:
        """Whether a response is queued or running; taken for granted where the queue is too long to look."""
        stream, start = STREAMS[queue], "-"
        for _ in range(LOOK_PAGES):
            rows = await self._line(stream).call("XRANGE", stream, start, "+", "COUNT", LOOK_COUNT)
            if any(fields[1].decode() == response_id for _, fields in rows):
                return True
            if len(rows) < LOOK_COUNT:
                return False
            start = "(" + rows[-1][0].decode()
        return True

    async def depth(self) -> int:
        """How many responses are queued or running."""
        lengths = [self._line(stream).send("XLEN", stream) for stream in STREAMS.values()]
        return sum([await length for length in lengths])

    async def states(self) -> dict[str, QueueState]:
        """Each queue as it is now. Ages are by the server's clock, which is in the entries' IDs."""
        return {queue: await self._state(stream) for queue, stream in STREAMS.items()}

    async def workers(self) -> int:
        """How many workers there are: those that hold a job, or asked for one lately.

        One that was lost counts until its jobs are another's; an idle one that was lost, for WORKER_SEEN_MS.
        Redis before 7.2 notes a worker that asks only when it gets something: there idle ones are missing.
        """
        seen: set[bytes] = set()
        for stream in STREAMS.values():
            with suppress(Refused):  # nothing was ever queued
                for one in await self._line(stream).call("XINFO", "CONSUMERS", stream, JOBS_GROUP):
                    if one[b"pending"] or one[b"idle"] <= WORKER_SEEN_MS:
                        seen.add(one[b"name"])
        return len(seen)

    async def _state(self, stream: str) -> QueueState:
        line = self._line(stream)
        groups = line.send("XINFO", "GROUPS", stream)
        length = line.send("XLEN", stream)
        now = line.send("TIME")
        group = next(iter(await groups), None)
        if group is None:
            return QueueState(await length, 0, 0.0)
        # Finished jobs are deleted, so what is not pending waits; the group's own lag is nil or wrong after
        # deletions.
        waiting = max(0, await length - group[b"pending"])
        seconds, micros = await now
        oldest = (
            await line.call("XRANGE", stream, b"(" + group[b"last-delivered-id"], "+", "COUNT", 1)
            if waiting
            else None
        )
        if not oldest:
            return QueueState(waiting, group[b"pending"], 0.0)
        born_s = int(oldest[0][0].partition(b"-")[0]) / 1000
        return QueueState(waiting, group[b"pending"], max(0.0, int(seconds) + int(micros) / 1e6 - born_s))

    async def claim(self, blocking: Wire, worker: str, count: int, block_ms: int) -> list[Job]:
        """At most `count` new jobs, interactive ones first; waits up to `block_ms` for one.

        Only on an empty queue does it block, for a single job: a blocked read on both streams could
        otherwise bring `count` of each. In a cluster it blocks on the interactive one alone, for the other
        may be elsewhere: an idle worker looks at that one every `block_ms`.
        """
        try:
            for stream in STREAMS.values():
                line = self._line(stream) if self._topology.is_sharded else blocking
                if jobs := await _read(line, worker, ("COUNT", count, "STREAMS", stream, ">")):
                    return jobs
            streams = (JOBS_INTERACTIVE,) if self._topology.is_sharded else tuple(STREAMS.values())
            return await _read(
                blocking,
                worker,
                ("COUNT", 1, "BLOCK", block_ms, "STREAMS", *streams, *(">" for _ in streams)),
            )
        except Refused as error:
            if error.prefix not in ("NOGROUP", "UNBLOCKED"):
                raise
            await self.prepare()  # the streams were flushed away
            return []

    async def finish(self, job: Job) -> None:
        """Take it out of the queue. Idempotent."""
        line = self._line(job.stream)
        await asyncio.gather(
            line.call("XACK", job.stream, JOBS_GROUP, job.entry_id),
            line.call("XDEL", job.stream, job.entry_id),
        )

    async def hand_over(self, job: Job) -> None:
        """Queue it anew for another worker, then take this delivery out."""
        await self._line(job.stream).call("XADD", job.stream, "*", *_fields(job.response_id, job.context))
        await self.finish(job)

    async def orphans(
        self, worker: str, idle_ms: int, most: int, may_take: Callable[[], bool] = lambda: True
    ) -> list[Job]:
        """Take over at most `most` jobs whose response nobody holds a lease on.

        A job younger than `idle_ms` is left alone: its worker may not have come to the lease yet. `may_take`
        is asked when the leases have been looked at: each step before may have waited for Redis to come back.
        """
        taken: list[Job] = []
        for stream in STREAMS.values():
            if most - len(taken) > 0:
                with suppress(Refused):
                    taken += await self._orphans_of(stream, worker, idle_ms, most - len(taken), may_take)
        return taken

    async def _orphans_of(
        self, stream: str, worker: str, idle_ms: int, most: int, may_take: Callable[[], bool]
    ) -> list[Job]:
        taken: list[Job] = []
        for _ in range(SCAN_PAGES):
            jobs = await self._old_jobs(stream, idle_ms)
            keys = [keys_of(job.response_id).lease for job in jobs]
            leases = [self._line(key).send("EXISTS", key) for key in keys]
            free = [job for job, lease in zip(jobs, leases, strict=True) if not await lease]
            if not may_take():
                most = len(taken)
            if len(free) > most - len(taken):  # what there is no room for now is the first that is seen next
                self._cursors[stream] = free[most - len(taken)].entry_id.decode()
            # The idle time decides between two workers that saw the same orphan: the second gets nothing.
            taken += [
                job._replace(deliveries=job.deliveries + 1)
                for job in free[: most - len(taken)]
                if await self._line(stream).call("XCLAIM", stream, JOBS_GROUP, worker, idle_ms, job.entry_id)
            ]
            if len(taken) >= most or self._cursors[stream] == "-":
                break
        return taken

    async def _old_jobs(self, stream: str, idle_ms: int) -> list[Job]:
        """The next page of jobs claimed over `idle_ms` ago; after the last page the first comes again."""
        line = self._line(stream)
        rows = await line.call(
            "XPENDING", stream, JOBS_GROUP, "IDLE", idle_ms, self._cursors[stream], "+", SCAN_COUNT
        )
        self._cursors[stream] = "(" + rows[-1][0].decode() if len(rows) == SCAN_COUNT else "-"
        if not rows:
            return []
        entries = dict(await line.call("XRANGE", stream, rows[0][0], rows[-1][0]))
        for entry_id, *_ in rows:
            if entry_id not in entries:  # deleted while pending
                line.post("XACK", stream, JOBS_GROUP, entry_id)
        return [
            _job(stream, entry_id, entries[entry_id], deliveries)
            for entry_id, _, _, deliveries in rows
            if entry_id in entries
        ]

    def _line(self, key: str) -> Line:
        return self._topology.wire(key)


def _fields(response_id: str, context: str) -> tuple[str, ...]:
    return ("id", response_id, TRACEPARENT, context) if context else ("id", response_id)


def _job(stream: str, entry_id: bytes, fields: list[bytes], deliveries: int) -> Job:
    context = fields[3].decode() if len(fields) > 3 else ""
    return Job(stream, entry_id, fields[1].decode(), deliveries, context)


async def _read(wire: Line, worker: str, rest: tuple[Argument, ...]) -> list[Job]:
    reply: dict[bytes, list[Any]] | None = await wire.call("XREADGROUP", "GROUP", JOBS_GROUP, worker, *rest)
    return [
        _job(stream.decode(), entry_id, fields, 1)
        for stream, entries in (reply or {}).items()
        for entry_id, fields in entries
        if fields
    ]
