"""The work queue on real servers: who gets which job, and what becomes of one whose worker is gone."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import pytest

import relay.jobs
from relay.jobs import SCAN_COUNT, STREAMS, Job, Jobs
from relay.keys import JOBS_BACKGROUND, JOBS_GROUP, JOBS_INTERACTIVE, keys_of
from relay.topology import Topology
from relay.wire import Wire, open_wire
from tests.support.servers import admin
from tests.support.wait import wait_until_async

AT_ONCE_MS = 1  # of a claim that is to find nothing: XREADGROUP takes 0 for ever
IDLE_MS = 1000  # two looks at one orphan are closer together than this
NO_ONE = 60_000  # ms: no pending entry of a test is as old as this


@pytest.fixture
async def wire(redis_url: str) -> AsyncIterator[Wire]:
    """The wire of the queue."""
    async with open_wire(redis_url, name="jobs-test") as wire:
        yield wire


@pytest.fixture
async def blocking(redis_url: str) -> AsyncIterator[Wire]:
    """The wire that claims wait on."""
    async with open_wire(redis_url, name="jobs-claim") as wire:
        yield wire


@pytest.fixture
async def jobs(wire: Wire) -> Jobs:
    """An empty queue."""
    jobs = Jobs(Topology(wire))
    await jobs.prepare()
    return jobs


async def claim(jobs: Jobs, blocking: Wire, worker: str = "w", count: int = 10) -> list[Job]:
    """What is there now."""
    return await jobs.claim(blocking, worker, count, AT_ONCE_MS)


async def pending(wire: Wire) -> Counter[str]:
    """How many pending entries each worker has, over both streams."""
    found: Counter[str] = Counter()
    for stream in STREAMS.values():
        for worker, count in (await wire.call("XPENDING", stream, JOBS_GROUP))[3] or ():
            found[worker.decode()] += int(count)
    return found


async def hold(wire: Wire, *response_ids: str) -> None:
    """Take a lease on each, as a worker that generates does."""
    for reply in [wire.send("SET", keys_of(name).lease, "w", "PX", NO_ONE) for name in response_ids]:
        await reply


async def orphans(jobs: Jobs, worker: str = "rescuer", *, idle_ms: int = 0, most: int = 10) -> list[Job]:
    """What one scan takes over."""
    return await jobs.orphans(worker, idle_ms, most)


# --- submit, claim, finish


async def test_a_submitted_job_is_claimed_once_and_gone_when_finished(
    jobs: Jobs, wire: Wire, blocking: Wire
) -> None:
    """It stays in its stream, pending, until it is finished."""
    await jobs.submit("interactive", "r1")
    assert await jobs.depth() == 1
    (job,) = await claim(jobs, blocking)
    assert job == Job(JOBS_INTERACTIVE, job.entry_id, "r1", 1)
    assert await claim(jobs, blocking) == []
    assert await jobs.depth() == 1
    assert await pending(wire) == {"w": 1}
    await jobs.finish(job)
    assert await jobs.depth() == 0
    assert await pending(wire) == {}


async def test_a_job_is_finished_as_often_as_one_likes(jobs: Jobs, blocking: Wire) -> None:
    """A second finish, whoever sends it, changes nothing."""
    await jobs.submit("interactive", "r1")
    await jobs.submit("interactive", "r2")
    first, second = await claim(jobs, blocking)
    await jobs.finish(first)
    await jobs.finish(first)
    assert await jobs.depth() == 1
    await jobs.finish(second)


async def test_the_depth_counts_what_is_queued_and_what_runs_in_both_queues(
    jobs: Jobs, blocking: Wire
) -> None:
    """Admission is refused by it: claimed or not, a response is work until it has ended."""
    for queue in ("interactive", "background", "background"):
        await jobs.submit(queue, f"r-{queue}")
    assert await jobs.depth() == 3
    (job,) = await claim(jobs, blocking, count=1)
    assert await jobs.depth() == 3
    await jobs.finish(job)
    assert await jobs.depth() == 2


async def test_jobs_come_in_the_order_they_were_submitted(jobs: Jobs, blocking: Wire) -> None:
    """Nobody waits longer than who came later."""
    for number in range(20):
        await jobs.submit("interactive", f"r{number}")
    claimed = [job.response_id for _ in range(4) for job in await claim(jobs, blocking, count=5)]
    assert claimed == [f"r{number}" for number in range(20)]


async def test_interactive_jobs_come_before_background_ones(jobs: Jobs, blocking: Wire) -> None:
    """Whatever was submitted first: somebody waits for the interactive one."""
    await jobs.submit("background", "b1")
    await jobs.submit("background", "b2")
    await jobs.submit("interactive", "i1")
    assert [job.response_id for job in await claim(jobs, blocking, count=1)] == ["i1"]
    assert [(job.stream, job.response_id) for job in await claim(jobs, blocking)] == [
        (JOBS_BACKGROUND, "b1"),
        (JOBS_BACKGROUND, "b2"),
    ]


@pytest.mark.parametrize("count", [1, 2, 7])
async def test_a_claim_never_brings_more_than_was_asked_for(jobs: Jobs, blocking: Wire, count: int) -> None:
    """A worker with two free slots takes two jobs, though both queues are full of them."""
    for number in range(10):
        await jobs.submit("interactive", f"i{number}")
        await jobs.submit("background", f"b{number}")
    sizes = []
    while taken := await claim(jobs, blocking, count=count):
        sizes.append(len(taken))
    assert max(sizes) == count
    assert sum(sizes) == 20


async def test_a_claim_on_an_empty_queue_waits_for_the_next_job(
    jobs: Jobs, wire: Wire, blocking: Wire
) -> None:
    """It is there as soon as it is submitted, in either queue."""
    for queue, stream in STREAMS.items():
        waiting = asyncio.create_task(jobs.claim(blocking, "w", 10, NO_ONE))
        await wait_until_async(lambda: _blocked(wire), "the claim waits")
        await jobs.submit(queue, f"r-{queue}")
        async with asyncio.timeout(30):
            assert [(job.stream, job.response_id) for job in await waiting] == [(stream, f"r-{queue}")]


async def _blocked(wire: Wire) -> bool:
    return b"\r\nblocked_clients:1\r\n" in await wire.call("INFO", "clients")


async def test_a_claim_on_an_empty_queue_ends_after_the_time_it_was_given(jobs: Jobs, blocking: Wire) -> None:
    """Bounded, so that a worker that is to stop does."""
    async with asyncio.timeout(30):
        assert await jobs.claim(blocking, "w", 10, 20) == []


async def test_two_workers_never_get_one_job(jobs: Jobs, redis_url: str) -> None:
    """Four of them on a busy queue: every job goes to exactly one."""
    for number in range(120):
        await jobs.submit(("interactive", "background")[number % 2], f"r{number}")

    async def work(worker: str) -> list[str]:
        taken: list[str] = []
        async with open_wire(redis_url) as own:
            while some := await jobs.claim(own, worker, 3, AT_ONCE_MS):
                taken += [job.response_id for job in some]
        return taken

    shares = await asyncio.gather(*(work(f"w{number}") for number in range(4)))
    assert Counter(name for share in shares for name in share) == {f"r{number}": 1 for number in range(120)}


async def test_preparing_again_keeps_what_is_queued(jobs: Jobs, redis_url: str, blocking: Wire) -> None:
    """Every worker and every node that starts prepares; what was queued before them is claimed."""
    await jobs.submit("interactive", "r1")
    async with open_wire(redis_url) as second:
        await asyncio.gather(jobs.prepare(), Jobs(Topology(second)).prepare())
    assert [job.response_id for job in await claim(jobs, blocking)] == ["r1"]


# --- what was lost


async def test_jobs_submitted_after_a_flush_are_claimed(jobs: Jobs, redis_url: str, blocking: Wire) -> None:
    """The group is made again, from the beginning of the new stream."""
    with admin(redis_url) as client:
        client.flushall()
    await jobs.submit("interactive", "after")
    claimed: list[Job] = []

    async def some() -> bool:
        claimed.extend(await claim(jobs, blocking))
        return bool(claimed)

    await wait_until_async(some, "the job is claimed")
    assert [job.response_id for job in claimed] == ["after"]


async def test_a_flush_under_a_waiting_claim_is_no_error(
    jobs: Jobs, wire: Wire, redis_url: str, blocking: Wire
) -> None:
    """The wait ends without a job, the queue is made again, and the next claim works."""
    waiting = asyncio.create_task(jobs.claim(blocking, "w", 10, NO_ONE))
    await wait_until_async(lambda: _blocked(wire), "the claim waits")
    with admin(redis_url) as client:
        client.flushall()
    async with asyncio.timeout(30):
        assert await waiting == []
    assert await claim(jobs, blocking) == []
    await jobs.submit("background", "after")
    assert [job.response_id for job in await claim(jobs, blocking)] == ["after"]


async def test_a_scan_of_a_flushed_queue_finds_nothing(jobs: Jobs, redis_url: str) -> None:
    """No group is no orphan, and no error."""
    with admin(redis_url) as client:
        client.flushall()
    assert await orphans(jobs) == []


# --- hand over


async def test_a_job_handed_over_is_claimed_by_another_as_if_it_were_new(
    jobs: Jobs, wire: Wire, blocking: Wire
) -> None:
    """A worker that is drained takes nothing with it, and a handed-over job has not failed anybody."""
    await jobs.submit("background", "r1")
    (job,) = await claim(jobs, blocking, "old")
    await jobs.hand_over(job)
    assert await jobs.depth() == 1
    assert await pending(wire) == {}
    (again,) = await claim(jobs, blocking, "new")
    assert (again.stream, again.response_id, again.deliveries) == (JOBS_BACKGROUND, "r1", 1)
    assert again.entry_id != job.entry_id


# --- orphans


async def test_a_job_without_a_lease_is_taken_over_once(jobs: Jobs, wire: Wire, blocking: Wire) -> None:
    """Its worker is gone: the first to look takes it, and it counts as delivered once more."""
    await jobs.submit("interactive", "r1")
    (job,) = await claim(jobs, blocking, "dead")
    assert await orphans(jobs, "first", idle_ms=0) == [job._replace(deliveries=2)]
    assert await orphans(jobs, "second", idle_ms=NO_ONE) == []
    assert await pending(wire) == {"first": 1}


async def test_of_two_workers_that_look_at_once_one_takes_the_job(
    jobs: Jobs, redis_url: str, wire: Wire, blocking: Wire
) -> None:
    """Both saw the same orphans; each goes to one of them."""
    for number in range(30):
        await jobs.submit("interactive", f"r{number}")
    assert len(await claim(jobs, blocking, "dead", 30)) == 30
    await wait_until_async(lambda: _idle(wire, 30), "all have been left alone for long enough")
    async with open_wire(redis_url) as other:
        shares = await asyncio.gather(
            Jobs(Topology(wire)).orphans("first", IDLE_MS, 30),
            Jobs(Topology(other)).orphans("second", IDLE_MS, 30),
        )
    taken = Counter(job.response_id for share in shares for job in share)
    assert taken == {f"r{number}": 1 for number in range(30)}


async def _idle(wire: Wire, count: int) -> bool:
    found = await wire.call("XPENDING", JOBS_INTERACTIVE, JOBS_GROUP, "IDLE", IDLE_MS, "-", "+", 1000)
    return len(found) == count


async def test_a_job_whose_response_has_a_lease_is_left_alone(jobs: Jobs, wire: Wire, blocking: Wire) -> None:
    """However long it runs: the lease says that its worker lives."""
    for name in ("mine", "orphan"):
        await jobs.submit("interactive", name)
    await hold(wire, "mine")
    assert len(await claim(jobs, blocking, "w")) == 2
    assert [job.response_id for job in await orphans(jobs)] == ["orphan"]
    await wire.call("DEL", keys_of("mine").lease)
    assert {job.response_id for job in await orphans(jobs)} == {"mine", "orphan"}


async def test_a_job_just_claimed_is_left_alone(jobs: Jobs, wire: Wire, blocking: Wire) -> None:
    """Its worker may not have come to the lease yet."""
    await jobs.submit("interactive", "r1")
    assert await claim(jobs, blocking, "busy")
    assert await orphans(jobs, idle_ms=NO_ONE) == []
    assert await pending(wire) == {"busy": 1}


async def test_no_more_orphans_are_taken_than_there_is_room_for(
    jobs: Jobs, wire: Wire, blocking: Wire
) -> None:
    """The rest stays where another worker finds it; both queues count."""
    for number in range(4):
        await jobs.submit("interactive", f"i{number}")
        await jobs.submit("background", f"b{number}")
    assert len(await claim(jobs, blocking, "dead")) + len(await claim(jobs, blocking, "dead")) == 8
    assert len(await orphans(jobs, "rescuer", idle_ms=0, most=6)) == 6
    assert await pending(wire) == {"dead": 2, "rescuer": 6}
    assert await orphans(jobs, "rescuer", most=0) == []


async def test_interactive_orphans_come_first(jobs: Jobs, blocking: Wire) -> None:
    """Somebody waits for them."""
    await jobs.submit("background", "b")
    assert await claim(jobs, blocking, "dead")
    await jobs.submit("interactive", "i")
    assert await claim(jobs, blocking, "dead")
    assert [job.response_id for job in await orphans(jobs, most=1)] == ["i"]


async def test_a_pending_entry_that_was_deleted_is_forgotten(jobs: Jobs, wire: Wire, blocking: Wire) -> None:
    """A finish of which half was lost leaves no job behind, and no pending entry either."""
    await jobs.submit("interactive", "r1")
    (job,) = await claim(jobs, blocking, "dead")
    await wire.call("XDEL", job.stream, job.entry_id)
    assert await orphans(jobs) == []
    await wait_until_async(lambda: _nothing_pending(wire), "the entry is acknowledged")


async def _nothing_pending(wire: Wire) -> bool:
    return not await pending(wire)


async def many_held(jobs: Jobs, wire: Wire, blocking: Wire, count: int) -> list[str]:
    """So many jobs claimed, each with a lease."""
    names = [f"r{number}" for number in range(count)]
    for name in names:
        await jobs.submit("interactive", name)
    await hold(wire, *names)
    claimed = 0
    while some := await claim(jobs, blocking, "w", 128):
        claimed += len(some)
    assert claimed == count
    return names


async def test_an_orphan_behind_many_that_are_held_is_found_at_once(
    jobs: Jobs, wire: Wire, blocking: Wire
) -> None:
    """A scan looks at several pages: a reader of the last response waits no longer than that of the first."""
    names = await many_held(jobs, wire, blocking, 2 * SCAN_COUNT + 50)
    for lost in (names[-1], names[SCAN_COUNT], names[0]):
        await wire.call("DEL", keys_of(lost).lease)
        (found,) = await orphans(jobs)
        assert found.response_id == lost
        await jobs.finish(found)


async def test_a_scan_goes_on_where_the_last_one_stopped(
    jobs: Jobs, wire: Wire, blocking: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is bounded, and comes round: an orphan on any page is found by one of the next scans."""
    monkeypatch.setattr(relay.jobs, "SCAN_PAGES", 1)
    names = await many_held(jobs, wire, blocking, 2 * SCAN_COUNT + 50)
    for lost in (names[-1], names[SCAN_COUNT], names[0]):
        await wire.call("DEL", keys_of(lost).lease)
        scans = [await orphans(jobs) for _ in range(3)]
        assert [job.response_id for scan in scans for job in scan] == [lost]
        await jobs.finish(next(job for scan in scans for job in scan))


async def test_a_scan_of_nothing_but_held_jobs_costs_few_round_trips(
    jobs: Jobs, wire: Wire, blocking: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for Redis a bounded number of times, however many jobs it looks at."""
    await many_held(jobs, wire, blocking, SCAN_COUNT - 1)
    calls: list[str] = []
    call = wire.call

    async def counted(*args: str | bytes | float) -> object:
        calls.append(str(args[0]))
        return await call(*args)

    monkeypatch.setattr(wire, "call", counted)
    assert await orphans(jobs) == []
    assert calls == ["XPENDING", "XRANGE", "XPENDING"]


@pytest.mark.only_on("embedded", "redis8", "valkey8")  # see there for older ones
async def test_workers_are_counted_by_what_they_do(
    jobs: Jobs, blocking: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for jobs is one, also without any; who holds one is one however quiet; each counts once."""
    assert await jobs.workers() == 0
    await jobs.submit("interactive", "rs_1")
    await jobs.submit("background", "rs_2")
    assert len(await claim(jobs, blocking, "busy")) + len(await claim(jobs, blocking, "busy")) == 2
    assert await claim(jobs, blocking, "idle") == []
    assert await jobs.workers() == 2
    monkeypatch.setattr(relay.jobs, "WORKER_SEEN_MS", -1)
    assert await jobs.workers() == 1


async def test_whether_a_response_is_queued_is_found_page_by_page(
    jobs: Jobs, blocking: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting or running; not once it is finished; and a queue too long to look through has everything."""
    monkeypatch.setattr(relay.jobs, "LOOK_COUNT", 4)
    monkeypatch.setattr(relay.jobs, "LOOK_PAGES", 3)
    for number in range(10):
        await jobs.submit("interactive", f"rs_{number}")
    assert all([await jobs.has("interactive", f"rs_{number}") for number in range(10)])
    assert not await jobs.has("interactive", "rs_none")
    assert not await jobs.has("background", "rs_3")
    first, *_ = await claim(jobs, blocking)
    assert await jobs.has("interactive", first.response_id)
    await jobs.finish(first)
    assert not await jobs.has("interactive", first.response_id)
    for number in range(20, 23):
        await jobs.submit("interactive", f"rs_{number}")
    assert await jobs.has("interactive", "rs_none")
