"""A worker: claims jobs up to its concurrency, renews their leases, takes over orphans, and drains.

run
├── claim    waits for jobs while there are free slots
├── renew    every lease_renew_s, a few leases at a time
├── watch    looks at the readers of each response that nobody holds up, a few at a time
├── gate     claims nothing while it cannot carry more
├── reclaim  jobs whose worker lost its lease
└── a task for each generation
"""

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import structlog

from relay import process, tracing
from relay.cluster import Affects
from relay.errors import OutOfMemory, RelayError, Unavailable
from relay.jobs import Job
from relay.turns import in_turns
from relay.wire import Wire
from workers.gate import Gate, keep
from workers.generation import GenerationJob, Workshop
from workers.governor import LOOK_BEHIND_S, LOOK_LIVE_S

log = structlog.get_logger("relay.worker")

BLOCK_MS = 1000  # of one claim; bounds how long a stop waits for it
CLAIM_BATCH = 128  # jobs of one read
ORPHAN_AGE_MS = 1000  # since it was claimed: its worker may not have come to the lease yet
RETRY_S = 0.5
AT_A_TIME, MOST_TURNS = 8, 32  # of the generations that renew or look: some 0.5 ms with the replies


class Worker:
    """Runs until `stop` is set; `run` returns when every generation has ended or was handed over."""

    def __init__(self, workshop: Workshop, blocking: Wire, *, concurrency: int) -> None:
        self._shop = workshop
        self._blocking = blocking
        self._concurrency = concurrency
        self._running: dict[str, GenerationJob] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # one for each of those
        self._freed = asyncio.Event()
        self._is_back = asyncio.Event()  # Redis was away: leases may have run out
        self._reclaims_from = 0.0  # loop time
        self.stop = asyncio.Event()
        self._gate = Gate(
            workshop.metrics,
            memory_bytes=workshop.settings.worker_memory_bytes,
            reopened=self._freed.set,
        )
        workshop.metrics.slots = concurrency
        workshop.topology.on_change(self._reconnected)

    async def run(self) -> None:
        """Work until `stop`, then finish what runs within the drain time and hand over the rest."""
        async with asyncio.TaskGroup() as tasks:
            loops = [
                tasks.create_task(self._claim(tasks)),
                tasks.create_task(self._renew()),
                tasks.create_task(self._reclaim(tasks)),
                tasks.create_task(self._watch()),
                tasks.create_task(keep(self._gate, self._shop.topology)),
                tasks.create_task(process.tidy()),
            ]
            await self.stop.wait()
            self._shop.metrics.drains()
            loops[2].cancel()
            # The claim ends by itself: cancelled in mid-reply it would lose a job until the reclaim. One that
            # does not waits for a Redis that is away, and has nothing to lose.
            self._freed.set()
            deadline = asyncio.get_running_loop().time() + self._shop.settings.worker_drain_s
            await asyncio.wait([loops[0]], timeout=2 * BLOCK_MS / 1000)
            await self._drain(deadline)
            for loop in loops:
                loop.cancel()

    # --- claiming

    async def _claim(self, tasks: asyncio.TaskGroup) -> None:
        while not self.stop.is_set():
            if self._free <= 0:
                self._freed.clear()
                await self._freed.wait()
                continue
            try:
                jobs = await self._shop.jobs.claim(
                    self._blocking, self._shop.worker_id, min(self._free, CLAIM_BATCH), BLOCK_MS
                )
            except RelayError as error:
                log.warning("claim_failed", error=error.message)
                await asyncio.sleep(RETRY_S)
                continue
            for job in jobs:
                # The gate may have closed while the claim waited.
                if self.stop.is_set() or self._free <= 0 or not self._start(tasks, job):
                    await self._give_back(job)

    async def _give_back(self, job: Job) -> None:
        """We drain, or orphans took the last slot while the claim waited: it is for whoever has room."""
        with suppress(RelayError):  # else it stays pending without a lease, and is found as an orphan
            await self._shop.jobs.hand_over(job)

    async def _reclaim(self, tasks: asyncio.TaskGroup) -> None:
        every_s = min(1.0, self._shop.settings.lease_s / 4)
        while True:
            # Jitter, so that workers do not all look at once.
            await asyncio.sleep(every_s * random.uniform(0.75, 1.25))
            # A full batch is followed at once by the next: many responses may have lost their worker.
            while (most := min(self._room, CLAIM_BATCH)) > 0 and not self._waits_for_others:
                if await self._take_over(tasks, most) < most:
                    break

    async def _take_over(self, tasks: asyncio.TaskGroup, most: int) -> int:
        """Look for orphans once; how many were found, at most `most`."""
        try:
            jobs = await self._shop.jobs.orphans(
                self._shop.worker_id, ORPHAN_AGE_MS, most, lambda: not self._waits_for_others
            )
        except RelayError:
            return 0  # Redis is away; the next look finds them
        for job in jobs:
            is_ours = job.response_id in self._running  # and was without its lease for a moment
            # Without a slot, for a claim took it meanwhile, it is left pending for the next look of anyone.
            if self._start(tasks, job) and not is_ours:
                self._shop.metrics.reclaimed += 1
                log.info("reclaimed", response=job.response_id, deliveries=job.deliveries)
        return len(jobs)

    @property
    def _room(self) -> int:
        """Slots for what another worker has lost: a running answer does not pay for a loop that is late."""
        return self._concurrency - len(self._running)

    @property
    def _free(self) -> int:
        """Slots for new jobs."""
        return self._room if self._gate.is_open else 0

    @property
    def _waits_for_others(self) -> bool:
        """Whether Redis was away so recently that other workers may not have renewed their leases yet."""
        return asyncio.get_running_loop().time() < self._reclaims_from

    def _start(self, tasks: asyncio.TaskGroup, job: Job) -> bool:
        """Run it. False when there is no slot: claim and reclaim both count on the same ones."""
        if job.response_id in self._running:
            return True  # also when it was queued twice: one of it is enough
        if self._room <= 0:
            return False
        generation = GenerationJob(self._shop, job)
        self._running[job.response_id] = generation
        task = tasks.create_task(self._generate(generation, job), name=f"generation {job.response_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _generate(self, generation: GenerationJob, job: Job) -> None:
        """One response. Whatever goes wrong with it stays with it: the others go on."""
        response_id, wire = generation.journal.id, generation.journal.wire
        control = generation.journal.keys.control
        wire.subscribe(control, lambda message: self._control(generation, message))
        context = tracing.job(response_id, job.context, job.queued_s)
        try:
            with tracing.generation(response_id, context, self._shop.worker_id):
                await generation.run()
        except (Unavailable, OutOfMemory) as error:
            self._shop.metrics.out_of_memory += isinstance(error, OutOfMemory)
            log.warning("gave_up", response=response_id, error=error.message)
        except Exception:
            # A defect of ours: the job stays pending, another worker tries it, three times at most.
            log.exception("generation_crashed", response=response_id)
        finally:
            wire.unsubscribe(control)
            self._running.pop(response_id, None)
            self._freed.set()

    @staticmethod
    def _control(generation: GenerationJob, message: bytes) -> None:
        if message == b"cancel":
            generation.stop("cancelled")

    # --- leases

    async def _renew(self) -> None:
        every_s = self._shop.settings.lease_renew_s
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s * 3 / 4):
                    await self._is_back.wait()
            over_s = 0.0 if self._is_back.is_set() else every_s / 4
            self._is_back.clear()
            await self._each(GenerationJob.renew, over_s=over_s, within_s=every_s)

    async def _watch(self) -> None:
        """Have every generation that is due look at its readers."""
        while True:
            await self._each(GenerationJob.watch, over_s=LOOK_BEHIND_S, within_s=LOOK_LIVE_S)

    async def _each(
        self, does: Callable[[GenerationJob], Coroutine[Any, Any, None]], *, over_s: float, within_s: float
    ) -> None:
        """Do it for every generation, spread over a time, and cancel what is not done within another.

        None waits for the reply to another: a Redis node that does not answer must not hold up the rest.
        """
        turns = in_turns(list(self._running), over_s=over_s, at_a_time=AT_A_TIME, most_turns=MOST_TURNS)
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s), asyncio.TaskGroup() as tasks:
                async for response_ids in turns:
                    for response_id in response_ids:
                        generation = self._running.get(response_id)
                        if generation is not None:  # and has not ended meanwhile
                            tasks.create_task(does(generation))

    def _reconnected(self, _affects: Affects) -> None:
        """Renew at once what may have run out, and give the others as much time before it is an orphan."""
        self._is_back.set()
        self._reclaims_from = asyncio.get_running_loop().time() + self._shop.settings.lease_renew_s

    # --- the end

    async def _drain(self, deadline: float) -> None:
        log.info("draining", running=len(self._running))
        while self._running and asyncio.get_running_loop().time() < deadline:
            self._freed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._freed.wait()
        for generation in self._running.values():
            generation.stop("handover")
        if self._tasks:
            # Redis is away, or at maxmemory: after a lease somebody else goes on with what it has.
            _, late = await asyncio.wait(self._tasks, timeout=self._shop.settings.lease_s)
            for task in late:
                task.cancel()
