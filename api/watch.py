"""What a node watches of the deployment: the queues, Redis's memory, its own loop, and so the pressure.

Nodes see the same signals and come to the same level; a level above 0 is also left in Redis for a few
seconds, so that a node that has just started, or whose own loop is not the late one, agrees at once.
"""

import asyncio

import structlog

from api.metrics import Metrics
from relay.errors import RelayError
from relay.fitness import parse_info
from relay.jobs import Jobs, QueueState
from relay.keys import PRESSURE
from relay.pressure import ClusterPressure, Pressure, Signals
from relay.settings import Settings
from relay.topology import Topology

log = structlog.get_logger("relay.api")

EVERY_S = 0.5
NO_EVICTION = "noeviction"
SHARED_MS = 2000  # a level left in Redis counts for so long; whoever sees it does not leave it again
CALM = Pressure(0, "none")


class Watch:
    """The last sample. Every node takes its own: a scrape of any one shows the whole deployment."""

    def __init__(self, settings: Settings, topology: Topology, jobs: Jobs, metrics: Metrics) -> None:
        self._settings = settings
        self._topology = topology
        self._jobs = jobs
        self._controller = ClusterPressure()
        self._loop_lag_s = 0.0
        self.queues: dict[str, QueueState] = {}
        self.memory_bytes = 0
        self.budget_bytes = settings.memory_budget_bytes or 0
        self.evicts = False  # checked at the start, and may be changed at any time
        self.pressure = CALM
        metrics.watch(self)

    @property
    def queue_wait_s(self) -> float:
        """How long the oldest interactive job has waited."""
        state = self.queues.get("interactive")
        return state.oldest_s if state is not None else 0.0

    async def workers(self) -> int:
        """How many workers there are now. Raises RelayError when Redis does not answer."""
        return await self._jobs.workers()

    async def run(self) -> None:
        """Sample until cancelled; while Redis is away the last sample stands."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self.sample(loop.time())
            except RelayError as error:
                log.debug("watch_failed", error=error.message)
            due = loop.time() + EVERY_S
            await asyncio.sleep(EVERY_S)
            self._loop_lag_s = max(0.0, loop.time() - due)

    async def sample(self, now_s: float) -> None:
        """Look once and judge. Raises RelayError when Redis does not answer."""
        self.queues = await self._jobs.states()
        infos = [parse_info(await wire.call("INFO", "memory")) for wire in self._topology.wires()]
        self.memory_bytes = sum(int(info.get("used_memory", 0)) for info in infos)
        limit = sum(int(info.get("maxmemory", 0)) for info in infos)
        self.evicts = any(info.get("maxmemory_policy", NO_EVICTION) != NO_EVICTION for info in infos)
        self.budget_bytes = self._settings.memory_budget_bytes or limit
        own = self._controller.observe(now_s, self._signals())
        shared = await self._share(own)
        pressure = max(own, shared, key=lambda pressure: pressure.level)
        if pressure != self.pressure:
            log.info("pressure", pressure=pressure.level, reason=pressure.reason, before=self.pressure.level)
        self.pressure = pressure

    def _signals(self) -> Signals:
        active = sum(state.waiting + state.pending for state in self.queues.values())
        return Signals(
            memory_ratio=self.memory_bytes / self.budget_bytes if self.budget_bytes else None,
            oldest_job_s=self.queue_wait_s,
            active_ratio=active / self._settings.max_active,
            loop_lag_s=self._loop_lag_s,
        )

    async def _share(self, own: Pressure) -> Pressure:
        """Leave this node's level for the others, unless a higher one is there; what there was."""
        wire = self._topology.wire(PRESSURE)
        kept = await wire.call("GET", PRESSURE)
        shared = CALM
        if kept is not None:
            level, _, reason = kept.decode().partition(" ")
            shared = Pressure(int(level), reason)
        if own.level and own.level >= shared.level and own.reason != "loop":  # a late loop is the node's own
            wire.post("SET", PRESSURE, f"{own.level} {own.reason}", "PX", SHARED_MS)
        return shared
