"""Generations on a real server, from a source that does what a test says: the pump, its job, the worker."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis

from relay import ladder, scripts, simulation
from relay.errors import OutOfMemory, SourceFailed, Unavailable
from relay.events import Channel, Placed, Record, content, encode
from relay.jobs import Jobs
from relay.journal import Journal, Snapshot
from relay.keys import JOBS_GROUP, JOBS_INTERACTIVE
from relay.ladder import TOLD_AFTER_S as NOTICE_AFTER_S
from relay.ladder import Decision, Kind, Level, Observation, Step
from relay.models import Model, Registry
from relay.requests import StreamRequest
from relay.scripts import Claimed
from relay.settings import Settings
from relay.topology import open_topology
from relay.wire import Wire, open_wire
from tests.support.proxy import Proxy, proxy
from tests.support.servers import out_of_memory
from tests.support.wait import wait_until_async as until
from workers import pump as pump_module
from workers import worker as worker_module
from workers import writer as writer_module
from workers.generation import GenerationJob, Workshop
from workers.metrics import Metrics
from workers.poison import MAX_LOST
from workers.sources.base import Batch, Finish, Prefix, Source
from workers.sources.simulated import SimulatedSource
from workers.worker import CLAIM_BATCH, Worker

WINDOW = 2048
LONG_S = 300.0  # an interval that no test waits for
LINE = "sixteen bytes… "  # of a fountain, one a read
SLACK = 512  # what may be produced over a window: the start, a notice, one read


class Scripted:
    """A source in the hands of a test, and its generations. Implements `base.Source` and `Generation`.

    Texts, finishes and failures are read in the order in which they are said; with `fountain`, there is
    always one more line.
    """

    def __init__(self, *, continues: bool = False) -> None:
        self.continues = continues
        self.fountain = False
        self.refusal: SourceFailed | None = None
        self.said: asyncio.Queue[Batch | Exception] = asyncio.Queue(maxsize=10_000)
        self.accepts = asyncio.Event()  # cleared, it takes for ever to open
        self.accepts.set()
        self.asked = 0
        self.opened: list[Prefix | None] = []
        self.closed = 0
        self.at_once = self.most_at_once = 0
        self.reads = 0
        self.skipped: list[float] = []

    # --- what a test does

    def say(self, *records: Record | str, tokens: int = 1, finish: Finish | None = None) -> None:
        """The next read returns these, strings as content."""
        texts = [content(record) if isinstance(record, str) else record for record in records]
        self.said.put_nowait(Batch(texts, tokens, finish))

    def end(self, reason: str = "stop", usage: dict[str, Any] | None = None) -> None:
        """And then it finishes."""
        self.say(tokens=0, finish=Finish(reason, usage))

    def fail(self, error: Exception) -> None:
        """And then it breaks."""
        self.said.put_nowait(error)

    # --- what a pump does

    def can_continue(self, prefix: Prefix, model: Model) -> bool:
        """As the test has it."""
        del prefix, model
        return self.continues

    @asynccontextmanager
    async def open(
        self, request: StreamRequest, model: Model, *, started_at: float, prefix: Prefix | None = None
    ) -> AsyncIterator["Scripted"]:
        """Note it, and refuse when told to."""
        del request, model, started_at
        self.asked += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.accepts.wait()
            if self.refusal is not None:
                raise self.refusal
            self.opened.append(prefix)
            yield self
        finally:
            self.at_once -= 1
            self.closed += 1

    async def read(self) -> Batch:
        """What was said."""
        if self.fountain:
            await asyncio.sleep(0)
            self.reads += 1
            return Batch([content(LINE)], 1)
        said = await self.said.get()
        self.reads += 1
        if isinstance(said, Exception):
            raise said
        return said

    def skip(self, seconds: float) -> None:
        """Note it."""
        self.skipped.append(seconds)


class Plant:
    """Everything around a generation: a worker's workshop with a scripted source, and the queue."""

    def __init__(self, workshop: Workshop, claims: Wire, source: Scripted) -> None:
        self.shop = workshop
        self.claims = claims
        self.source = source

    @property
    def metrics(self) -> Metrics:
        """The worker's."""
        return self.shop.metrics

    async def submit(self, response_id: str = "r1", **fields: Any) -> Journal:
        """A response, opened and queued as an API node does it."""
        request = StreamRequest.model_validate({"model": "m", "prompt": "Say it.", **fields})
        journal = self.shop.topology.journal(response_id)
        await journal.open(
            retention_s=self.shop.settings.retention_s,
            owner="o",
            model=request.model,
            request=request.model_dump_json(exclude_unset=True),
        )
        await self.shop.jobs.submit(request.queue, response_id)
        return journal

    async def job(self, deliveries: int = 1) -> GenerationJob:
        """The next job, claimed from the queue and not run yet."""
        (job,) = await self.shop.jobs.claim(self.claims, self.shop.worker_id, 1, 1)
        return GenerationJob(self.shop, job._replace(deliveries=deliveries))

    async def taken(self, **fields: Any) -> tuple[Journal, GenerationJob]:
        """A response and its job: submitted, claimed and not run yet."""
        return await self.submit(**fields), await self.job()

    async def job_again(self) -> GenerationJob:
        """The one job that a lost worker had, taken over."""
        (job,) = await self.shop.jobs.orphans(self.shop.worker_id, 0, 1)
        return GenerationJob(self.shop, job)

    async def depth(self) -> int:
        """How many jobs there are."""
        return await self.shop.jobs.depth()


@asynccontextmanager
async def running(generation: GenerationJob) -> AsyncIterator[asyncio.Task[None]]:
    """Run it for as long as the block lasts."""
    task = asyncio.create_task(generation.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def run(generation: GenerationJob) -> None:
    """Run it to its end, which must not take long."""
    async with asyncio.timeout(20):
        await generation.run()


async def over(task: asyncio.Task[None]) -> None:
    """One that runs comes to its end, which must not take long."""
    async with asyncio.timeout(10):
        await task


@asynccontextmanager
async def open_plant(
    url: str, source: Scripted | None = None, *, worker_id: str = "w1", **settings: Any
) -> AsyncIterator[Plant]:
    """A workshop on the server at `url`."""
    given = {"window_bytes": WINDOW, "flush_ms": 0, **settings}
    configured = Settings(redis_url=url, **given)
    source = source or Scripted()
    sources: dict[str, Source] = {"simulated": source}
    registry = Registry({"m": Model(name="m", source="simulated")})
    async with open_topology(configured, name=worker_id) as topology, open_wire(url) as claims:
        jobs = Jobs(topology)
        await jobs.prepare()
        shop = Workshop(worker_id, configured, topology, jobs, registry, sources, Metrics())
        yield Plant(shop, claims, source)


Open = Callable[..., Any]


@pytest.fixture
async def plants(embedded_url: str) -> AsyncIterator[Open]:
    """Opens plants that live as long as the test."""
    async with AsyncExitStack() as stack:

        async def opened(url: str = embedded_url, **given: Any) -> Plant:
            return await stack.enter_async_context(open_plant(url, **given))

        yield opened


@pytest.fixture
async def plant(plants: Open) -> Plant:
    """One, with the defaults of this file."""
    made: Plant = await plants()
    return made


# --- what a response says


async def placed(journal: Journal) -> list[Placed]:
    """Every record in the journal."""
    return [item async for some in journal.read(0, 1 << 30) for item in some]


async def events(journal: Journal, channel: Channel) -> list[dict[str, Any]]:
    """The data of the records of one channel."""
    return [
        json.loads(item.record.payload) for item in await placed(journal) if item.record.channel == channel
    ]


async def done(journal: Journal) -> dict[str, Any]:
    """The data of the one `done`, the last record; its digest is that of the content."""
    (data,) = await events(journal, Channel.DONE)
    records = [item.record for item in await placed(journal)]
    assert records[-1].channel is Channel.DONE
    text = b"".join(record.payload for record in records if record.channel is Channel.CONTENT)
    assert data["text_bytes"] == len(text)
    assert data["sha256"] == hashlib.sha256(text).hexdigest()
    return data


async def error(journal: Journal) -> dict[str, Any]:
    """The data of the one `error`, the last record."""
    (data,) = await events(journal, Channel.ERROR)
    assert (await placed(journal))[-1].record.channel is Channel.ERROR
    return data


async def notices(journal: Journal) -> list[tuple[str, int]]:
    """The kinds and levels of the notices."""
    return [(data["kind"], data["level"]) for data in await events(journal, Channel.NOTICE)]


async def text(journal: Journal) -> str:
    """The content."""
    return b"".join([piece async for piece in journal.text(1 << 30)]).decode()


async def snapshot(journal: Journal) -> Snapshot:
    """The meta and the head."""
    return await journal.snapshot()


# --- who reads it


class Consumer:
    """A connection that reads nothing by itself: a test says how far its client is."""

    def __init__(self, journal: Journal, name: str = "c") -> None:
        self.journal = journal
        self.name = name
        self.position = 0

    async def attach(self) -> "Consumer":
        """Begin at the start, as a reader that is there before the first token."""
        await self.journal.attach(self.name, "1", None, limit=1, retention_s=600)
        return self

    async def confirm(self, offset: int) -> None:
        """The client has it up to `offset`."""
        assert self.position <= offset
        self.position = offset
        self.journal.post_moved(self.name, offset)
        await self.journal.send_seen(self.name, "1")

    async def leave(self) -> None:
        """The connection has ended; the place is kept."""
        self.journal.post_detach(self.name, "1", self.position, keep=True)
        await self.journal.wire.call("PING")


async def reader(journal: Journal, name: str = "c") -> Consumer:
    """A consumer that is attached."""
    return await Consumer(journal, name).attach()


def looks(generation: GenerationJob) -> Callable[[], int]:
    """How often the pump has looked for its readers since now."""
    count = 0
    assert generation.pump is not None
    look = generation.pump.governor.look

    async def counted() -> None:
        nonlocal count
        await look()
        count += 1

    generation.pump.governor.look = counted  # type: ignore[method-assign]
    return lambda: count


async def stalled(generation: GenerationJob, source: Scripted) -> int:
    """Wait until the source is not read any more though it has text; how much was produced."""
    await until(lambda: generation.pump is not None, "the pump begins")
    count = looks(generation)
    while True:
        before, reads = count(), source.reads
        await until(lambda before=before: count() >= before + 3, "it looks for room three times")
        if source.reads == reads:
            assert generation.pump is not None
            return generation.pump.writer.produced


# --- the text


async def test_a_generation_is_pumped_to_its_end(plant: Plant) -> None:
    """Start, text, done; the response is completed, and the job and the lease are gone."""
    journal = await plant.submit()
    for word in ("Grüße, ", "世界", " 🌊"):
        plant.source.say(word, tokens=2)
    plant.source.end(usage={"completion_tokens": 6})
    await run(await plant.job())
    assert await text(journal) == "Grüße, 世界 🌊"
    assert (await done(journal))["finish_reason"] == "stop"
    assert (await done(journal))["usage"] == {"completion_tokens": 6}
    (start,) = await events(journal, Channel.START)
    assert (await placed(journal))[0].record.channel is Channel.START
    assert (start["id"], start["model"]) == ("r1", "m")
    meta = (await snapshot(journal)).meta
    assert (meta["status"], meta["finish_reason"], meta["level"]) == ("completed", "stop", "0")
    assert json.loads(meta["usage"]) == {"completion_tokens": 6}
    assert (meta["text_bytes"], meta["sha256"]) == (
        str((await done(journal))["text_bytes"]),
        (await done(journal))["sha256"],
    )
    assert not await journal.wire.call("EXISTS", journal.keys.lease)
    assert await plant.depth() == 0
    assert (plant.source.opened, plant.source.closed) == ([None], 1)
    assert plant.metrics.tokens == 6
    assert +plant.metrics.outcomes == {"completed": 1}
    assert (plant.metrics.running, plant.metrics.paused) == (0, 0)


async def test_the_first_text_does_not_wait_for_the_flush_interval(plants: Open) -> None:
    """Neither the start nor the first token: the interval is the floor between later appends."""
    plant = await plants(flush_ms=500)
    journal, job = await plant.taken()
    async with running(job):
        await until(lambda: plant.source.opened, "the source is open")
        await until(lambda: job.pump.writer.head, "the start is there")
        job.pump.writer.flush_s = LONG_S
        plant.source.say("first")
        await until(lambda: _has_text(journal), "the text is there")
        plant.source.say(" second")
        await until(lambda: plant.source.reads == 2, "it is read")
        assert await text(journal) == "first"


async def _has_text(journal: Journal) -> bool:
    return await text(journal) == "first"


async def test_the_digest_is_of_the_content_alone(plant: Plant) -> None:
    """Reasoning and tool calls are delivered as they come, and are not text."""
    journal = await plant.submit()
    said = [
        Record(Channel.REASONING, b"hm"),
        content("answer"),
        Record(Channel.TOOL_CALL, b'{"index":0,"id":"c","name":"f"}'),
        Record(Channel.TOOL_ARGUMENTS, b"\0{}"),
    ]
    plant.source.say(*said, finish=Finish("tool_calls"))
    await run(await plant.job())
    assert (await done(journal))["text_bytes"] == len("answer")
    assert (await done(journal))["finish_reason"] == "tool_calls"
    assert [item.record for item in await placed(journal)][1:-1] == said


async def test_a_response_ends_at_its_largest_size(plants: Open) -> None:
    """Well-formed: a notice, a length finish, and no more text than one read over the bound."""
    plant = await plants(max_response_bytes=4096, window_bytes=4096)
    journal = await plant.submit(background=True)
    plant.source.fountain = True
    await run(await plant.job())
    assert (await done(journal))["finish_reason"] == "length"
    assert await notices(journal) == [("shortened", 4)]
    assert 4096 <= (await snapshot(journal)).head <= 4096 + 2 * SLACK
    assert plant.source.closed == 1
    assert (await snapshot(journal)).status == "completed"


# --- the window


async def test_the_source_is_not_read_past_the_window(plant: Plant) -> None:
    """A reader that takes nothing: the window is filled, and then the source stands still."""
    journal = await plant.submit()
    await reader(journal)
    plant.source.fountain = True
    job = await plant.job()
    async with running(job):
        produced = await stalled(job, plant.source)
        assert WINDOW - SLACK // 4 <= produced <= WINDOW + SLACK
        assert (await snapshot(journal)).head <= WINDOW + SLACK


async def test_a_request_may_have_a_window_of_its_own(plants: Open) -> None:
    """Instead of the deployment's."""
    plant = await plants(window_bytes=8192)
    journal = await plant.submit(window_bytes=1024)
    await reader(journal)
    plant.source.fountain = True
    job = await plant.job()
    async with running(job):
        # Merging saves headers, so a little less than was counted when it stopped.
        assert 1024 - SLACK // 4 <= await stalled(job, plant.source) <= 1024 + SLACK


async def test_the_source_is_read_again_at_half_of_the_window(plant: Plant) -> None:
    """Not before: a source is not switched on and off for every byte."""
    journal = await plant.submit()
    consumer = await reader(journal)
    plant.source.fountain = True
    job = await plant.job()
    async with running(job):
        await stalled(job, plant.source)
        await until(lambda: job.pump.governor.is_paused, "it has been paused")
        produced, reads = job.pump.writer.produced, plant.source.reads
        await consumer.confirm(produced - WINDOW // 2 - 1)
        count = looks(job)
        await until(lambda: count() >= 3, "it has looked three times")
        assert (job.pump.writer.produced, plant.source.reads) == (produced, reads)
        await consumer.confirm(produced - WINDOW // 2)
        await until(lambda: plant.source.reads > reads, "it goes on")
        # A window from where the reader is; as above, less what merging saves.
        filled = await stalled(job, plant.source) - consumer.position
        assert WINDOW - SLACK // 4 <= filled <= WINDOW + SLACK


async def test_a_pause_is_told_when_it_lasts(plant: Plant) -> None:
    """Paused after half a second, resumed when the reader has caught up, and the status says so."""
    journal = await plant.submit()
    consumer = await reader(journal)
    plant.source.fountain = True
    job = await plant.job()
    async with running(job) as task:
        await until(lambda: job.pump and job.pump.governor.is_paused, "it is paused")
        assert plant.metrics.paused == 1
        await job.renew()
        assert (await snapshot(journal)).status == "paused"
        plant.source.fountain = False
        plant.source.end()
        await consumer.confirm(job.pump.writer.produced)
        await over(task)
    assert await notices(journal) == [("paused", 3), ("resumed", 2)]
    assert +plant.metrics.steps == {"paused": 1, "resumed": 1}
    assert plant.metrics.paused == 0
    assert plant.metrics.throttled_s["window"] >= NOTICE_AFTER_S
    await done(journal)


async def test_a_short_pause_is_told_to_nobody(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is flow control; but the source hears for how long it was not read."""
    # These pauses take milliseconds, and would take half a second where a busy machine stops the test for it.
    monkeypatch.setattr(ladder, "TOLD_AFTER_S", 8.0)
    journal = await plant.submit()
    consumer = await reader(journal)
    plant.source.fountain = True
    job = await plant.job()
    async with running(job) as task:
        await until(lambda: job.pump, "it runs")
        for _ in range(10):
            # It stands still for as long as one look takes, and this many times.
            before = job.pump.writer.head  # read first: by the time it is confirmed the window may be full
            await consumer.confirm(before)
            await until(lambda before=before: job.pump.writer.head >= before + WINDOW // 2, "it goes on")
        plant.source.fountain = False
        plant.source.end()
        await consumer.confirm(job.pump.writer.head)
        await over(task)
    assert await notices(journal) == []
    assert plant.metrics.throttled_s["window"] > 0
    assert sum(plant.source.skipped) == pytest.approx(plant.metrics.throttled_s["window"])
    assert all(0 <= seconds < ladder.TOLD_AFTER_S for seconds in plant.source.skipped)


async def test_the_best_live_reader_paces(plant: Plant) -> None:
    """One frozen tab does not stop the others; when the good reader leaves, the frozen one is who is left."""
    journal = await plant.submit()
    await reader(journal, "frozen")
    good = await reader(journal, "good")
    plant.source.fountain = True
    job = await plant.job()
    async with running(job):
        await until(lambda: job.pump, "it runs")
        while good.position < 5 * WINDOW:
            await good.confirm(job.pump.writer.head)
            await asyncio.sleep(0.001)
        produced = await stalled(job, plant.source)
        assert good.position < produced <= good.position + WINDOW + SLACK
        reads = plant.source.reads
        await good.leave()
        await stalled(job, plant.source)  # a notice of the pause may come meanwhile, and nothing else
        assert plant.source.reads == reads


async def test_without_any_reader_yet_the_window_is_filled_and_no_more(plant: Plant) -> None:
    """Whoever comes finds text at once, and nobody pays for a response that nobody reads."""
    journal = await plant.submit()
    plant.source.fountain = True
    job = await plant.job()
    async with running(job):
        produced = await stalled(job, plant.source)
        assert WINDOW - SLACK // 4 <= produced <= WINDOW + SLACK
        reads = plant.source.reads
        consumer = await reader(journal)
        await consumer.confirm(job.pump.writer.head)
        await until(lambda: plant.source.reads > reads, "it goes on for the first reader")


async def test_a_pause_is_bounded(plants: Open) -> None:
    """A live reader that keeps up with nothing: the answer ends well, shorter."""
    plant = await plants(pause_max_s=0.2)
    journal = await plant.submit()
    await reader(journal)
    plant.source.fountain = True
    await run(await plant.job())
    assert (await done(journal))["finish_reason"] == "length"
    assert ("shortened", 4) in await notices(journal)
    assert (await snapshot(journal)).status == "completed"
    assert plant.source.closed == 1
    assert plant.metrics.steps["shortened"] == 1
    assert plant.metrics.paused == 0
    assert await plant.depth() == 0


async def test_nothing_is_told_after_the_end(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that falls due while the response is being closed is not worth a record after the last one."""
    journal = await plant.submit()
    await reader(journal)
    job = await plant.job()
    close = scripts.close_response

    async def closed(*args: Any, **given: Any) -> int:
        head = await close(*args, **given)
        await job.pump.governor.look()
        await until(lambda: job.pump.writer.head == job.pump.writer.produced, "all of it is there")
        return head

    monkeypatch.setattr(pump_module.scripts, "close_response", closed)
    async with running(job) as task:
        await until(lambda: plant.source.opened, "the source is open")
        job.pump.governor._ladder = _Restless()
        plant.source.say("text", finish=Finish("stop"))
        await over(task)
    assert (await done(journal))["finish_reason"] == "stop"
    assert (await snapshot(journal)).head == (await placed(journal))[-1].end


class _Restless:
    """A ladder that takes a step at every look."""

    def observe(self, _seen: Observation) -> Decision:
        """The same step each time."""
        return Decision(Level.LIVE, 0.0, steps=(Step(Kind.LIVE, Level.LIVE, "restless"),))


async def test_a_response_that_nobody_reads_is_cancelled(plants: Open) -> None:
    """After abandon_after_s without a live consumer; whoever returns finds a well-formed end."""
    plant = await plants(abandon_after_s=0.2)
    journal = await plant.submit()
    plant.source.fountain = True
    await run(await plant.job())
    assert (await done(journal))["finish_reason"] == "cancelled"
    assert (await snapshot(journal)).status == "cancelled"
    assert plant.source.closed == 1
    assert +plant.metrics.outcomes == {"cancelled": 1}
    assert await plant.depth() == 0


async def test_a_quiet_source_is_cancelled_when_nobody_reads(plants: Open) -> None:
    """Somebody looks who reads, also where no text comes."""
    plant = await plants(abandon_after_s=0.1)
    journal, job = await plant.taken()
    async with running(job) as task:
        await until(lambda: plant.source.opened, "the source is open")

        async def looked() -> bool:
            await job.pump.governor.look()
            return task.done()

        await until(looked, "it is cancelled")
    assert (await done(journal))["finish_reason"] == "cancelled"


async def test_a_reader_that_left_and_came_back_keeps_its_response(plants: Open) -> None:
    """The clock counts from when the last one was seen."""
    plant = await plants(abandon_after_s=0.3)
    journal, job = await plant.taken()
    async with running(job) as task:
        await until(lambda: plant.source.opened, "the source is open")
        consumer = await reader(journal)
        loop = asyncio.get_running_loop()
        began = loop.time()
        while loop.time() - began < 0.7:
            await consumer.leave()
            await job.pump.governor.look()
            await consumer.attach()
            await job.pump.governor.look()
            await asyncio.sleep(0.02)
        assert not task.done()
        assert job.pump.stopped is None


async def test_a_background_response_is_neither_paused_nor_abandoned(plants: Open) -> None:
    """It was asked for to be made, read or not."""
    plant = await plants(abandon_after_s=0.1, pause_max_s=0.1, max_response_bytes=65_536)
    journal, job = await plant.taken(background=True)
    async with running(job) as task:
        await until(lambda: plant.source.opened, "the source is open")
        plant.source.fountain = True
        plant.source.say("")
        await until(lambda: job.pump.writer.produced > 8 * WINDOW, "it is far ahead of nobody")
        plant.source.fountain = False
        job.pump.governor._readers.watched_s += 3600
        await job.pump.governor.look()
        plant.source.end()
        await over(task)
    assert (await done(journal))["finish_reason"] == "stop"
    assert await notices(journal) == []


# --- cancel


async def test_a_cancel_is_heard_with_the_next_append(plant: Plant, redis: Redis) -> None:
    """Where the control channel's message was lost."""
    journal, job = await plant.taken()
    async with running(job) as task:
        # Else the append of the start might hear of it, before there is any text.
        await until(lambda: job.pump and job.pump.writer.head, "the start is there")
        redis.hset(journal.keys.meta, "cancel", "1")
        plant.source.say("some text")
        await over(task)
    assert (await done(journal))["finish_reason"] == "cancelled"
    assert await text(journal) == "some text"
    assert plant.source.closed == 1


async def test_a_cancel_is_heard_with_the_next_renewal(plant: Plant, redis: Redis) -> None:
    """Where no text comes either."""
    journal, job = await plant.taken()
    async with running(job) as task:
        await until(lambda: plant.source.opened, "the source is open")
        redis.hset(journal.keys.meta, "cancel", "1")
        await job.renew()
        await over(task)
    assert (await done(journal))["finish_reason"] == "cancelled"


async def test_a_cancel_before_the_claim_opens_no_source(plant: Plant, redis: Redis) -> None:
    """The response ends at once, and no upstream hears of it."""
    journal = await plant.submit()
    redis.hset(journal.keys.meta, "cancel", "1")
    await run(await plant.job())
    assert (await done(journal))["finish_reason"] == "cancelled"
    assert (await snapshot(journal)).status == "cancelled"
    assert plant.source.opened == []
    assert await plant.depth() == 0


# --- what fails


async def test_a_source_that_fails_ends_the_response_with_its_error(plant: Plant) -> None:
    """What came before it stays; the readers hear what happened and whether to try again."""
    journal = await plant.submit()
    plant.source.say("so far")
    plant.source.fail(SourceFailed("upstream_cut", "it hung up", retryable=True))
    await run(await plant.job())
    said = {"code": "upstream_cut", "message": "it hung up", "retryable": True}
    assert await error(journal) == said
    assert await text(journal) == "so far"
    meta = (await snapshot(journal)).meta
    assert (meta["status"], meta["finish_reason"], json.loads(meta["error"])) == ("failed", "error", said)
    assert await plant.depth() == 0
    assert plant.source.closed == 1
    assert +plant.metrics.outcomes == {"failed": 1}


async def test_a_source_that_refuses_ends_the_response_with_its_error(plant: Plant) -> None:
    """Before the first text."""
    journal = await plant.submit()
    plant.source.refusal = SourceFailed("upstream_auth", "no", retryable=False)
    await run(await plant.job())
    assert (await error(journal))["code"] == "upstream_auth"
    assert (await snapshot(journal)).status == "failed"
    assert await plant.depth() == 0


async def test_a_model_that_was_taken_away_is_an_error_of_the_response(plant: Plant) -> None:
    """Between the create and the claim the models file was changed."""
    journal = await plant.submit(model="gone")
    await run(await plant.job())
    assert (await error(journal))["code"] == "model_not_found"
    assert await plant.depth() == 0


@pytest.mark.parametrize("stored", ["", "not JSON", '{"model":"m"}', '{"model":"m","prompt":"p","new":1}'])
async def test_a_stored_request_that_cannot_be_read_fails_its_response(
    plant: Plant, redis: Redis, stored: str
) -> None:
    """Written by another version: an error of this response, not a worker that crashes again and again."""
    journal = await plant.submit()
    redis.hset(journal.keys.meta, "request", stored)
    await run(await plant.job())
    assert (await error(journal))["code"] == "malformed_job"
    assert (await snapshot(journal)).status == "failed"
    assert await plant.depth() == 0


async def lose_workers(plant: Plant, journal: Journal, redis: Redis, count: int) -> None:
    """So many workers claim the response and are not heard of again."""
    for number in range(count):
        await claim(journal, f"lost-{number}")
        redis.delete(journal.keys.lease)


async def claim(journal: Journal, owner: str) -> Claimed:
    """The lease, for somebody else."""
    claimed = await scripts.claim_response(
        journal.wire, journal.keys, owner=owner, lease_ms=60_000, retention_s=600
    )
    assert isinstance(claimed, Claimed)
    return claimed


async def test_a_job_that_ended_three_workers_is_poison(plant: Plant, redis: Redis) -> None:
    """The fourth does not try; the third delivery is still a good one."""
    journal = await plant.submit()
    await lose_workers(plant, journal, redis, MAX_LOST)
    await run(await plant.job(deliveries=MAX_LOST + 1))
    assert (await error(journal))["code"] == "poison"
    assert plant.source.opened == []
    other = await plant.submit("r2")
    await lose_workers(plant, other, redis, MAX_LOST - 1)
    plant.source.end()
    await run(await plant.job(deliveries=MAX_LOST))
    assert (await done(other))["finish_reason"] == "stop"


async def test_workers_that_outlive_their_claims_were_not_ended_by_it(plant: Plant, redis: Redis) -> None:
    """Cut off from Redis one after the other, each is refused later and says so: the next one tries it."""
    journal = await plant.submit()
    plant.source.continues = True
    jobs = [await plant.job()]
    async with AsyncExitStack() as stack:
        for before in range(MAX_LOST + 2):
            await stack.enter_async_context(running(jobs[-1]))
            await until(lambda before=before: len(plant.source.opened) > before, "it is tried")  # type: ignore[misc]
            for earlier in jobs[:-1]:
                await earlier.renew()
            await until(lambda before=before: plant.metrics.fenced == before, "all before are refused")  # type: ignore[misc]
            redis.delete(journal.keys.lease)
            jobs.append(await plant.job_again())
    await lose_workers(plant, journal, redis, MAX_LOST - 1)  # and the last one above: nobody has heard of it
    await run(jobs[-1])
    assert (await error(journal))["code"] == "poison"


async def test_a_delivery_without_a_claim_poisons_nothing(plant: Plant) -> None:
    """Redis was at maxmemory, or the lease was held: the job went round, and no worker was lost by it."""
    journal = await plant.submit()
    plant.source.say("fine", finish=Finish("stop"))
    await run(await plant.job(deliveries=10 * MAX_LOST))
    assert await text(journal) == "fine"


async def test_a_response_that_is_gone_or_has_ended_takes_its_job_with_it(plant: Plant, redis: Redis) -> None:
    """A job queued twice, or one whose response expired: nothing is left to do."""
    journal = await plant.submit()
    plant.source.end()
    await run(await plant.job())
    await plant.shop.jobs.submit("interactive", "r1")
    before = await snapshot(journal)
    await run(await plant.job())
    assert await snapshot(journal) == before
    await plant.shop.jobs.submit("interactive", "never-made")
    await run(await plant.job())
    assert await plant.depth() == 0


async def test_a_response_held_by_another_worker_is_left_to_it(plant: Plant) -> None:
    """The job stays pending: should that worker be lost, it is found."""
    journal = await plant.submit()
    await claim(journal, "w2")
    before = await snapshot(journal)
    await run(await plant.job())
    assert await snapshot(journal) == before
    assert await plant.depth() == 1
    assert plant.source.opened == []


# --- take over


async def simulated_plant(plants: Open, **given: Any) -> Plant:
    """A plant whose source is the simulated one."""
    plant: Plant = await plants(**given)
    plant.shop.sources["simulated"] = SimulatedSource()
    return plant


@pytest.mark.parametrize("cut", [0, 1, 7, 180, 401])
async def test_a_simulated_text_goes_on_exactly_where_the_lost_worker_stopped(
    plants: Open, redis: Redis, cut: int
) -> None:
    """In mid-token if need be, under a new epoch, and the digest is of the whole."""
    plant = await simulated_plant(plants)
    tokens, seed = 200, 7
    whole = simulation.text(seed, 0, tokens)
    journal = await plant.submit(
        background=True, simulation={"tokens": tokens, "tokens_per_second": 0, "seed": seed}
    )
    lost = await claim(journal, "lost")
    delivered = encode(Record(Channel.START, b'{"id":"r1"}')) + encode(content(whole[:cut]))
    await scripts.append_records(
        journal.wire, journal.keys, epoch=lost.epoch, base=0, data=delivered, cap=100, retention_s=600
    )
    redis.delete(journal.keys.lease)
    await run(await plant.job(deliveries=2))
    assert await text(journal) == whole
    assert (await done(journal))["finish_reason"] == "stop"
    found = await snapshot(journal)
    assert found.meta["starts"] == f"{lost.epoch}:0,{found.epoch}:{len(delivered)}"
    assert len(await events(journal, Channel.START)) == 1


async def test_a_text_that_was_whole_when_its_worker_was_lost_is_only_closed(
    plants: Open, redis: Redis
) -> None:
    """The last append was there and the close was not."""
    plant = await simulated_plant(plants)
    journal = await plant.submit(simulation={"tokens": 20, "tokens_per_second": 0, "seed": 3})
    lost = await claim(journal, "lost")
    whole = simulation.text(3, 0, 20)
    await scripts.append_records(
        journal.wire, journal.keys,
        epoch=lost.epoch, base=0, data=encode(content(whole)), cap=100, retention_s=600,
    )  # fmt: skip
    redis.delete(journal.keys.lease)
    await run(await plant.job(deliveries=2))
    assert await text(journal) == whole
    assert (await done(journal))["finish_reason"] == "stop"


async def test_a_source_that_cannot_go_on_says_that_its_worker_was_lost(plant: Plant, redis: Redis) -> None:
    """A typed, retryable error; what was delivered stays, and no source is opened."""
    journal = await plant.submit()
    lost = await claim(journal, "lost")
    await scripts.append_records(
        journal.wire, journal.keys,
        epoch=lost.epoch, base=0, data=encode(content("half")), cap=100, retention_s=600,
    )  # fmt: skip
    redis.delete(journal.keys.lease)
    await run(await plant.job(deliveries=2))
    said = await error(journal)
    assert (said["code"], said["retryable"]) == ("worker_lost", True)
    assert await text(journal) == "half"
    assert plant.source.opened == []
    assert await plant.depth() == 0


async def test_a_source_that_can_go_on_is_given_what_was_delivered(plants: Open, redis: Redis) -> None:
    """Content and reasoning; the digest counts what the lost worker delivered."""
    plant = await plants(source=Scripted(continues=True))
    journal = await plant.submit()
    lost = await claim(journal, "lost")
    delivered = encode(Record(Channel.REASONING, b"why")) + encode(content("one "))
    await scripts.append_records(
        journal.wire, journal.keys, epoch=lost.epoch, base=0, data=delivered, cap=100, retention_s=600
    )
    redis.delete(journal.keys.lease)
    plant.source.say("two", finish=Finish("stop"))
    await run(await plant.job(deliveries=2))
    assert plant.source.opened == [Prefix("one ", "why", tokens=1)]
    assert await text(journal) == "one two"
    await done(journal)


async def test_a_source_that_goes_on_is_told_how_many_tokens_were_spent(plants: Open, redis: Redis) -> None:
    """As noted with the last renewal, and by the same rate for what came after it; also a second time."""
    lost = await plants(worker_id="lost", lease_s=2, lease_renew_s=0.1)
    journal = await lost.submit(max_tokens=100)
    job = await lost.job()
    async with running(job):
        lost.source.say("one ", tokens=10)
        await until(lambda: job.pump and job.pump.tokens == 10, "ten tokens")
        await job.renew()
        lost.source.say("two ", tokens=7)
        await until(lambda: job.pump.tokens == 17, "seven more")
        await job.pump.writer.drain()
    redis.delete(journal.keys.lease)
    second = await plants(worker_id="w2", source=Scripted(continues=True))
    taken = await second.job_again()
    async with running(taken):
        second.source.say("three", tokens=5)
        await until(lambda: taken.pump and taken.pump.tokens == 25, "five on top of twenty")
        await taken.renew()
        await taken.pump.writer.drain()
    redis.delete(journal.keys.lease)
    third = await plants(worker_id="w3", source=Scripted(continues=True))
    third.source.end()
    await run(await third.job_again())
    assert second.source.opened == [Prefix("one two ", tokens=20)]
    assert third.source.opened == [Prefix("one two three", tokens=25)]


async def test_a_cancel_of_a_half_made_response_has_the_digest_of_what_is_there(
    plant: Plant, redis: Redis
) -> None:
    """Its worker was lost, and then it was cancelled: whoever takes it over only ends it."""
    journal = await plant.submit()
    lost = await claim(journal, "lost")
    await scripts.append_records(
        journal.wire, journal.keys,
        epoch=lost.epoch, base=0, data=encode(content("half")), cap=100, retention_s=600,
    )  # fmt: skip
    redis.hset(journal.keys.meta, "cancel", "1")
    redis.delete(journal.keys.lease)
    await run(await plant.job(deliveries=2))
    assert (await done(journal))["finish_reason"] == "cancelled"
    assert await text(journal) == "half"
    assert plant.source.opened == []


# --- what Redis does meanwhile


async def test_a_generation_that_was_taken_over_ends_without_a_word(plant: Plant, redis: Redis) -> None:
    """Fenced: nothing more of it gets in, and the job is the other worker's to finish."""
    journal, job = await plant.taken()
    async with running(job) as task:
        plant.source.say("mine")
        await until(lambda: job.pump and plant.source.reads and job.pump.writer.head, "some text")
        redis.delete(journal.keys.lease)
        await claim(journal, "w2")
        plant.source.say("too late")
        await over(task)
    assert await text(journal) == "mine"
    assert (await snapshot(journal)).status == "running"
    assert await plant.depth() == 1
    assert plant.metrics.fenced == 1
    assert +plant.metrics.outcomes == {}
    assert plant.source.closed == 1


async def test_a_renewal_tells_a_quiet_generation_that_it_was_taken_over(plant: Plant, redis: Redis) -> None:
    """It stops paying for an upstream whose text nobody will see."""
    journal, job = await plant.taken()
    async with running(job) as task:
        await until(lambda: plant.source.opened, "the source is open")
        redis.delete(journal.keys.lease)
        await claim(journal, "w2")
        await job.renew()
        await over(task)
    assert plant.source.closed == 1
    assert plant.metrics.fenced == 1


async def test_a_flush_in_mid_stream_ends_the_generation(plant: Plant, redis: Redis) -> None:
    """There is nothing left to write to: the source is closed and no key is made again."""
    _, job = await plant.taken()
    async with running(job) as task:
        plant.source.say("some")
        await until(lambda: plant.source.reads, "some text")
        redis.flushall()
        plant.source.say("more")
        await over(task)
    assert plant.source.closed == 1
    assert redis.dbsize() == 0


async def test_a_flush_tells_a_quiet_generation_with_the_next_renewal(plant: Plant, redis: Redis) -> None:
    """No text comes, and the upstream is not paid for until one does."""
    _, job = await plant.taken()
    async with running(job) as task:
        await until(lambda: plant.source.opened, "the source is open")
        redis.flushall()
        await job.renew()
        await over(task)
    assert plant.source.closed == 1


async def test_text_that_is_lost_for_good_ends_the_response_with_an_error(
    plant: Plant, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failover lost more than is kept for a resend: its readers hear it, and wait for nothing."""
    monkeypatch.setattr(writer_module, "KEPT_ENTRIES", 2)
    journal = await plant.submit(background=True)
    replica = {key: await journal.wire.call("DUMP", key) for key in journal.keys[:4]}
    job = await plant.job()
    async with running(job) as task:
        for index in range(10):
            plant.source.say(f"{index} ")
            await until(lambda index=index: plant.source.reads > index, "it is read")
            await job.pump.writer.drain()
        meta = await journal.wire.call("DUMP", journal.keys.meta)
        await journal.wire.call("DEL", *journal.keys[:3])
        for key, value in {**replica, journal.keys.meta: meta}.items():
            if value is not None:
                await journal.wire.call("RESTORE", key, 600_000, value)
        plant.source.say("more")
        await over(task)
    assert (await error(journal))["code"] == "stream_lost"
    assert (await snapshot(journal)).status == "failed"
    assert await plant.depth() == 0


@pytest.mark.usefixtures("quick_retries")
async def test_memory_that_runs_out_in_mid_stream_costs_nothing_but_time(plant: Plant, redis: Redis) -> None:
    """It goes on where it was, and the response ends as if nothing had been."""
    journal = await plant.submit()
    await reader(journal)
    job = await plant.job()
    async with running(job) as task:
        plant.source.say("before, ")
        await until(lambda: plant.source.reads, "some text")
        await job.pump.writer.drain()
        with out_of_memory(redis):
            plant.source.say("during, ")
            await until(lambda: plant.metrics.out_of_memory >= 2, "refused, and tried again")
            await job.renew()
        plant.source.say("after", finish=Finish("stop"))
        await over(task)
    assert await text(journal) == "before, during, after"
    assert (await done(journal))["finish_reason"] == "stop"


@pytest.mark.usefixtures("quick_retries")
async def test_a_background_source_waits_for_a_redis_that_takes_nothing(plant: Plant, redis: Redis) -> None:
    """No reader holds it back, but what Redis has not got gathers in the worker: a window of it at most."""
    journal, job = await plant.taken(background=True)
    async with running(job) as task:
        await until(lambda: plant.source.opened, "the source is open")
        with out_of_memory(redis):
            plant.source.fountain = True
            plant.source.say("")
            await until(lambda: plant.metrics.out_of_memory >= 3, "refused, and tried again")
            reads = -1
            while reads != plant.source.reads:
                reads = plant.source.reads
                tries = plant.metrics.out_of_memory
                await until(lambda tries=tries: plant.metrics.out_of_memory > tries + 3, "tried again")
            assert job.pump.writer.produced - job.pump.writer.head <= WINDOW + SLACK
        before = job.pump.writer.produced
        await until(lambda: job.pump.writer.produced > before + 2 * WINDOW, "it goes on")
        plant.source.fountain = False
        plant.source.end()
        await over(task)
    assert plant.metrics.throttled_s["memory"] > 0
    assert await notices(journal) == []
    await done(journal)


@pytest.mark.usefixtures("quick_retries")
async def test_a_response_can_be_closed_at_maxmemory(plant: Plant, redis: Redis) -> None:
    """Its last record, and then the memory comes back."""
    journal, job = await plant.taken()
    async with running(job) as task:
        plant.source.say("text")
        await until(lambda: plant.source.reads, "some text")
        await job.pump.writer.drain()
        with out_of_memory(redis):
            plant.source.end()
            await over(task)
    assert (await done(journal))["finish_reason"] == "stop"
    assert await plant.depth() == 0


@pytest.mark.usefixtures("quick_retries")
async def test_what_was_not_taken_at_maxmemory_goes_with_the_end(plant: Plant, redis: Redis) -> None:
    """A reader of a response that is cancelled then need not wait until there is memory again."""
    journal, job = await plant.taken()
    async with running(job) as task:
        plant.source.say("text")
        await until(lambda: plant.source.reads, "some text")
        await job.pump.writer.drain()
        with out_of_memory(redis):
            plant.source.say(" that Redis does not take")
            await until(lambda: plant.metrics.out_of_memory >= 2, "refused, and tried again")
            job.pump.stop("cancelled")
            await over(task)
            assert (await done(journal))["finish_reason"] == "cancelled"
    assert await plant.depth() == 0


async def test_scripts_that_redis_forgot_are_not_missed(plant: Plant, redis: Redis) -> None:
    """Claim, append, renew and close."""
    journal = await plant.submit()
    redis.script_flush()
    job = await plant.job()
    async with running(job) as task:
        await until(lambda: plant.source.opened, "the source is open")
        redis.script_flush()
        await job.renew()
        plant.source.say("some ")
        await until(lambda: plant.source.reads, "some text")
        redis.script_flush()
        plant.source.say("more", finish=Finish("stop"))
        await over(task)
    assert await text(journal) == "some more"
    await done(journal)


# --- Redis away


@pytest.fixture
async def line(embedded_url: str) -> AsyncIterator[Proxy]:
    """What is cut between the worker and Redis."""
    async with proxy(embedded_url) as line:
        yield line


@asynccontextmanager
async def away(line: Proxy, plant: Plant) -> AsyncIterator[None]:
    """No connection to Redis inside the block; at its end there is one again."""
    wire = plant.shop.topology.wires()[0]
    line.turns_away = True
    line.cut()
    await until(lambda: not wire.is_connected, "the break")
    try:
        yield
    finally:
        line.turns_away = False
    await until(lambda: wire.is_connected, "the connection is back")


@pytest.mark.usefixtures("quick_retries")
async def test_a_close_whose_reply_was_lost_is_repeated(plants: Open, line: Proxy) -> None:
    """One done, and the job is finished."""
    plant = await plants(line.url)
    journal, job = await plant.taken()
    plant.source.say("text")
    async with running(job) as task:
        await until(lambda: plant.source.reads, "some text")
        await job.pump.writer.drain()
        line.lose_reply(scripts.CLOSE.sha.encode())
        plant.source.end()
        async with asyncio.timeout(20):
            await task
    assert line.lost == 1
    assert await text(journal) == "text"
    await done(journal)
    assert await plant.depth() == 0


async def test_a_whole_text_is_closed_however_long_redis_takes(
    plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that loads a large file says so for minutes; given up, the text would end as worker_lost."""
    monkeypatch.setattr(pump_module, "CLOSE_RETRY_S", 0.001)
    loads = iter(range(100))
    close = scripts.close_response

    async def loading(*args: Any, **given: Any) -> int:
        if next(loads, None) is not None:
            raise Unavailable("LOADING Redis is loading the dataset in memory")
        return await close(*args, **given)

    monkeypatch.setattr(pump_module.scripts, "close_response", loading)
    journal = await plant.submit()
    plant.source.say("text", finish=Finish("stop"))
    await run(await plant.job())
    assert await text(journal) == "text"
    await done(journal)


@pytest.mark.usefixtures("quick_retries")
async def test_time_without_redis_is_not_time_without_readers(plants: Open, line: Proxy) -> None:
    """Nobody can be seen while Redis is away: readers who return with it keep their response."""
    plant = await plants(line.url, abandon_after_s=2.0)
    journal = await plant.submit()
    consumer = await reader(journal)
    job = await plant.job()
    loop = asyncio.get_running_loop()
    real, shift = loop.time, 0.0
    async with running(job) as task:
        await until(lambda: plant.source.opened, "the source is open")
        await job.pump.governor.look()
        async with away(line, plant):
            await job.pump.governor.look()
        # Two minutes have passed for everybody; the reader's node is not back yet.
        await consumer.leave()
        shift = 120.0
        job.pump.governor._readers._loop = _Later(loop, real, shift)
        await job.pump.governor.look()
        assert job.pump.stopped is None
        await consumer.attach()
        await job.pump.governor.look()
        assert job.pump.stopped is None
        assert not task.done()


class _Later:
    """A loop whose clock is ahead."""

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float], by_s: float) -> None:
        self._loop = loop
        self._clock = clock
        self._by_s = by_s

    def time(self) -> float:
        """Later than it is."""
        return self._clock() + self._by_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


# --- hand over


async def test_a_drained_worker_hands_its_responses_over(plants: Open) -> None:
    """Everything produced is in Redis, the lease is free, and the next worker goes on exactly."""
    first = await simulated_plant(plants, worker_id="old")
    second = await simulated_plant(plants, worker_id="new", window_bytes=65_536)
    tokens = 1000  # more than a window, at which the old worker stands until it is told to go
    journal = await first.submit(simulation={"tokens": tokens, "tokens_per_second": 0, "seed": 5})
    job = await first.job()
    async with running(job) as task:
        await until(lambda: job.pump and job.pump.writer.head > WINDOW // 2, "some text")
        job.pump.stop("handover")
        await over(task)
    assert (await snapshot(journal)).head == job.pump.writer.produced
    assert (await snapshot(journal)).status == "queued"
    assert not await journal.wire.call("EXISTS", journal.keys.lease)
    assert await first.depth() == 1
    assert +first.metrics.outcomes == {}
    await run(await second.job())
    assert await text(journal) == simulation.text(5, 0, tokens)
    await done(journal)
    assert (await snapshot(journal)).epoch // scripts.EPOCH_NONCES == 2
    assert await second.depth() == 0


# --- the worker


@asynccontextmanager
async def at_work(
    plant: Plant, url: str, concurrency: int = 8
) -> AsyncIterator[tuple[Worker, asyncio.Task[None]]]:
    """A worker that claims, and is told to stop at the end of the block."""
    async with open_wire(url) as blocking:
        worker = Worker(plant.shop, blocking, concurrency=concurrency)
        task = asyncio.create_task(worker.run())
        try:
            yield worker, task
        finally:
            worker.stop.set()
            await _ended(task)


async def _ended(task: asyncio.Task[None]) -> None:
    try:
        async with asyncio.timeout(20):
            await task
    except TimeoutError:
        pytest.fail("the worker does not end")


async def cancel(journal: Journal) -> None:
    """What an API node does for DELETE."""
    await scripts.cancel_response(journal.wire, journal.keys)


async def has_ended(journal: Journal) -> bool:
    """Whether the response is in a terminal state."""
    return (await snapshot(journal)).status in {"completed", "failed", "cancelled"}


async def test_a_worker_makes_all_that_is_queued_and_no_more_at_once_than_it_may(
    plants: Open, embedded_url: str
) -> None:
    """Three slots, ten responses: each ends well, in its turn."""
    plant = await plants()
    journals = [await plant.submit(f"r{number}") for number in range(10)]
    plant.source.accepts.clear()
    async with at_work(plant, embedded_url, concurrency=3):
        await until(lambda: plant.source.asked == 3, "three are begun")
        await until(lambda: plant.metrics.running == 3, "three run")
        plant.source.accepts.set()
        for number in range(10):
            plant.source.say(f"{number}", finish=Finish("stop"))
        for journal in journals:
            await until(lambda journal=journal: has_ended(journal), "it has ended")
    assert plant.source.most_at_once == 3
    assert [(await snapshot(journal)).status for journal in journals] == ["completed"] * 10
    assert sorted([await text(journal) for journal in journals]) == [f"{number}" for number in range(10)]
    assert await plant.depth() == 0
    assert plant.metrics.running == 0


async def test_a_cancel_reaches_a_quiet_generation_at_once(plants: Open, embedded_url: str) -> None:
    """By the control channel, long before the next renewal."""
    plant = await plants(lease_s=200, lease_renew_s=100)
    journal = await plant.submit()
    async with at_work(plant, embedded_url):
        await until(lambda: plant.source.opened, "the source is open")
        await cancel(journal)
        await until(lambda: has_ended(journal), "it is cancelled")
    assert (await done(journal))["finish_reason"] == "cancelled"
    assert plant.source.closed == 1


async def test_a_cancel_does_not_wait_for_an_upstream_to_accept(plants: Open, embedded_url: str) -> None:
    """An upstream with a long queue answers after minutes; a caller who cancels does not."""
    plant = await plants(lease_s=200, lease_renew_s=100)
    plant.source.accepts.clear()
    journal = await plant.submit()
    async with at_work(plant, embedded_url):
        await until(lambda: plant.source.asked, "the upstream is asked")
        await cancel(journal)
        await until(lambda: has_ended(journal), "it is cancelled")
    assert (await done(journal))["finish_reason"] == "cancelled"
    assert (plant.source.opened, plant.source.closed) == ([], 1)


@pytest.mark.parametrize("reason", ["cancelled", "handover"])
async def test_a_stop_while_the_response_is_being_claimed_is_not_lost(plant: Plant, reason: str) -> None:
    """It holds from the moment the job is known."""
    journal, job = await plant.taken()
    job.stop(reason)
    await run(job)
    assert plant.source.opened == []
    assert (await snapshot(journal)).status == {"cancelled": "cancelled", "handover": "queued"}[reason]
    assert await plant.depth() == {"cancelled": 0, "handover": 1}[reason]


async def test_a_defect_in_one_generation_does_not_stop_the_others(
    plants: Open, embedded_url: str, redis: Redis
) -> None:
    """Its job is found without a lease, and tried again."""
    plant = await plants(lease_s=200, lease_renew_s=100, source=Scripted(continues=True))
    bad, good = await plant.submit("bad"), None
    async with at_work(plant, embedded_url) as (_, task):
        await until(lambda: plant.source.opened, "the source is open")
        plant.source.fail(RuntimeError("a defect"))
        await until(lambda: plant.source.closed, "it crashes")
        good = await plant.submit("good")
        plant.source.say("good", finish=Finish("stop"))
        await until(lambda: has_ended(good), "the other one ends")
        assert not task.done()
        plant.source.say("bad", finish=Finish("stop"))
        redis.delete(bad.keys.lease)  # it has run out: not before, or both would ask for the same text
        await until(lambda: has_ended(bad), "it is tried again")
    assert [await text(journal) for journal in (bad, good)] == ["bad", "good"]
    assert plant.metrics.reclaimed == 1


async def test_a_lost_worker_s_response_is_taken_over_when_its_lease_has_run_out(
    plants: Open, embedded_url: str
) -> None:
    """Within the lease and a little more."""
    lost = await plants(worker_id="lost", lease_s=0.5, lease_renew_s=0.1)
    journal = await lost.submit()
    job = await lost.job()
    async with running(job):
        lost.source.say("one ")
        await until(lambda: lost.source.reads, "some text")
        await job.pump.writer.drain()
        plant = await plants(lease_s=0.5, lease_renew_s=0.1, source=Scripted(continues=True))
        plant.source.say("two", finish=Finish("stop"))
        async with at_work(plant, embedded_url):
            await until(lambda: has_ended(journal), "it is taken over", timeout_s=15)
    assert await text(journal) == "one two"
    assert plant.source.opened == [Prefix("one ", tokens=1)]
    assert plant.metrics.reclaimed == 1


async def test_orphans_and_new_jobs_share_the_slots(
    plants: Open, embedded_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A claim that waits for a job while orphans take the slots gives it back: nothing runs beyond them."""
    plant = await plants(lease_s=0.5, lease_renew_s=0.1)
    waits, found = asyncio.Event(), asyncio.Event()
    claim, orphans = plant.shop.jobs.claim, plant.shop.jobs.orphans

    async def held(*given: Any) -> Any:
        """A claim that was asked for as much as was free, and answers after the slots were taken."""
        jobs = await claim(*given)
        if jobs:
            waits.set()
            await found.wait()
        return jobs

    async def late(*given: Any) -> Any:
        await waits.wait()
        return await orphans(*given)

    monkeypatch.setattr(plant.shop.jobs, "claim", held)
    monkeypatch.setattr(plant.shop.jobs, "orphans", late)
    lost = [await plant.submit(f"lost{number}") for number in range(2)]
    for _ in lost:
        await plant.shop.topology.wires()[0].call(
            "XREADGROUP", "GROUP", JOBS_GROUP, "dead", "COUNT", 1, "STREAMS", JOBS_INTERACTIVE, ">"
        )
    new = [await plant.submit(f"new{number}") for number in range(2)]
    async with at_work(plant, embedded_url, concurrency=2):
        await until(lambda: plant.metrics.running == 2, "the orphans run")
        found.set()
        plant.source.say("a", finish=Finish("stop"))
        plant.source.say("b", finish=Finish("stop"))
        plant.source.say("c", finish=Finish("stop"))
        plant.source.say("d", finish=Finish("stop"))
        for journal in (*lost, *new):
            await until(lambda journal=journal: has_ended(journal), "it has ended")
        await until(lambda: _no_jobs(plant), "the queue is empty")
    assert plant.source.most_at_once == 2
    assert plant.metrics.reclaimed == 2


async def _no_jobs(plant: Plant) -> bool:
    return await plant.depth() == 0


async def test_many_orphans_are_taken_over_in_one_go(
    plants: Open, embedded_url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than one look brings: the next follows at once, not after the time between two looks."""
    plant = await plants(lease_s=200, lease_renew_s=100)
    count = 2 * CLAIM_BATCH + 1
    for number in range(count):
        await plant.submit(f"r{number}")
    await plant.shop.topology.wires()[0].call(
        "XREADGROUP", "GROUP", JOBS_GROUP, "dead", "COUNT", count, "STREAMS", JOBS_INTERACTIVE, ">"
    )
    await until(lambda: _is_old(redis), "the jobs are old enough to be taken over")
    waits = iter([0.0])
    monkeypatch.setattr(
        worker_module, "random", SimpleNamespace(uniform=lambda _least, _most: next(waits, 1e6))
    )
    async with at_work(plant, embedded_url, concurrency=count):
        await until(lambda: plant.metrics.running == count, "all run after one wait")
        for _ in range(count):
            plant.source.end()
    assert plant.metrics.reclaimed == count


async def test_a_node_that_does_not_answer_costs_no_other_response_its_lease(
    plants: Open, embedded_url: str, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One renewal that hangs is left alone after a while, and the others are sent as before."""
    plant = await plants(lease_s=1, lease_renew_s=0.2)
    stuck, well = await plant.submit("stuck"), await plant.submit("well")
    renew, renewed = GenerationJob.renew, 0

    async def hangs(job: GenerationJob) -> None:
        nonlocal renewed
        if job.journal.id == "stuck":
            await asyncio.Event().wait()
        await renew(job)
        renewed += 1

    monkeypatch.setattr(GenerationJob, "renew", hangs)
    async with at_work(plant, embedded_url):
        await until(lambda: plant.metrics.running == 2, "both run")
        await until(lambda: not redis.exists(stuck.keys.lease), "the one that hangs loses its lease")
        # Counted, for on a busy machine any lease of a second may run out between two renewals.
        before = renewed
        await until(lambda: renewed >= before + 3, "the other one is renewed as before")
        await until(lambda: redis.exists(well.keys.lease), "and has its lease")
        assert not redis.exists(stuck.keys.lease)
        monkeypatch.undo()
        plant.source.end()
        plant.source.end()


async def test_a_worker_told_to_stop_finishes_what_it_can(plants: Open, embedded_url: str) -> None:
    """It claims nothing new, and ends as soon as the last response has."""
    plant = await plants(worker_drain_s=30)
    journal = await plant.submit()
    async with at_work(plant, embedded_url) as (worker, task):
        await until(lambda: plant.source.opened, "the source is open")
        worker.stop.set()
        await until(lambda: not plant.shop.topology.wires()[0].inflight, "it drains")
        plant.source.say("to the end", finish=Finish("stop"))
        await _ended(task)
        await plant.submit("later")
    assert await text(journal) == "to the end"
    assert await plant.depth() == 1


async def test_a_worker_told_to_stop_hands_over_what_it_cannot_finish(
    plants: Open, embedded_url: str
) -> None:
    """After its drain time: everything produced is there, and the next worker goes on."""
    plant = await plants(worker_drain_s=0)
    journal = await plant.submit()
    async with at_work(plant, embedded_url) as (worker, task):
        plant.source.say("one ")
        await until(lambda: plant.source.reads, "some text")
        worker.stop.set()
        await _ended(task)
    assert (await snapshot(journal)).status == "queued"
    assert await text(journal) == "one "
    second = await plants(worker_id="w2", source=Scripted(continues=True))
    second.source.say("two", finish=Finish("stop"))
    await run(await second.job())
    assert await text(journal) == "one two"
    await done(journal)


async def test_a_worker_told_to_stop_ends_though_redis_is_away(plants: Open, line: Proxy) -> None:
    """It cannot hand over; after a lease its responses are anybody's, and it need not wait longer."""
    plant = await plants(line.url, worker_drain_s=0, lease_s=0.5, lease_renew_s=0.1)
    await plant.submit()
    async with at_work(plant, line.url) as (worker, task):
        await until(lambda: plant.source.opened, "the source is open")
        async with away(line, plant):
            plant.source.say("never to arrive")
            await until(lambda: plant.source.reads, "it is read")
            worker.stop.set()
            await _ended(task)
    assert plant.source.closed == 1
    assert plant.metrics.running == 0


async def test_after_redis_was_away_a_worker_keeps_its_responses(
    plants: Open, embedded_url: str, redis: Redis
) -> None:
    """All leases ran out meanwhile: who holds a response renews first, before others look for orphans."""
    # No renewal comes by itself in the time of a test, nor do the others lose their patience in it.
    leases = {"lease_s": 200, "lease_renew_s": 100}
    async with proxy(embedded_url) as line, proxy(embedded_url) as other_line:
        plant = await plants(line.url, **leases)
        other = await plants(other_line.url, worker_id="w2", **leases)
        journal = await plant.submit()
        async with at_work(plant, line.url), at_work(other, other_line.url):
            await until(lambda: plant.source.opened or other.source.opened, "the source is open")
            holder = plant if plant.source.opened else other
            await until(lambda: _is_old(redis), "the job is old enough to be taken over")
            async with away(line, plant), away(other_line, other):
                redis.delete(journal.keys.lease)
            await until(lambda: redis.exists(journal.keys.lease), "the lease is renewed")
            holder.source.say("still mine", finish=Finish("stop"))
            await until(lambda: has_ended(journal), "it ends")
        assert await text(journal) == "still mine"
        assert (await done(journal))["finish_reason"] == "stop"
        assert plant.metrics.reclaimed + other.metrics.reclaimed == 0


async def test_a_look_for_orphans_that_waited_for_redis_takes_none(
    plants: Open, line: Proxy, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began before the break and goes on after it: whoever holds the response has not renewed yet."""
    plant = await plants(line.url, lease_s=200, lease_renew_s=100)
    begun, go, found = asyncio.Event(), asyncio.Event(), []
    orphans = plant.shop.jobs.orphans

    async def held(*given: Any) -> Any:
        begun.set()
        await go.wait()
        found.append(await orphans(*given))
        return found[-1]

    monkeypatch.setattr(plant.shop.jobs, "orphans", held)
    journal = await plant.submit()
    await plant.shop.topology.wires()[0].call(
        "XREADGROUP", "GROUP", JOBS_GROUP, "cut off", "COUNT", 1, "STREAMS", JOBS_INTERACTIVE, ">"
    )
    await until(lambda: _is_old(redis), "the job is old enough to be taken over")
    async with at_work(plant, line.url):
        await begun.wait()
        async with away(line, plant):
            go.set()
        await until(lambda: found, "the look ends")
    assert found == [[]]
    assert plant.metrics.reclaimed == 0
    assert (await snapshot(journal)).status == "queued"


def _is_old(redis: Redis) -> bool:
    return bool(redis.xpending_range(JOBS_INTERACTIVE, JOBS_GROUP, "-", "+", 1, idle=1500))


async def test_a_claim_that_redis_has_no_memory_for_is_tried_again_later(plant: Plant, redis: Redis) -> None:
    """Neither the response nor the worker is the worse for it."""
    journal, job = await plant.taken()
    with out_of_memory(redis), pytest.raises(OutOfMemory):
        await job.run()
    assert (await snapshot(journal)).status == "queued"
    assert await plant.depth() == 1
    plant.source.say("fine", finish=Finish("stop"))
    await run(job)
    assert await text(journal) == "fine"
