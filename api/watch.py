"""What a node watches of the deployment, once a second: the queues and Redis's memory."""

import asyncio

import structlog

from api.metrics import Metrics
from relay.errors import RelayError
from relay.fitness import parse_info
from relay.jobs import Jobs, QueueState
from relay.settings import Settings
from relay.topology import Topology

log = structlog.get_logger("relay.api")

EVERY_S = 1.0


class Watch:
    """The last sample. Every node takes its own: a scrape of any one shows the whole queue."""

    def __init__(self, settings: Settings, topology: Topology, jobs: Jobs, metrics: Metrics) -> None:
        self._settings = settings
        self._topology = topology
        self._jobs = jobs
        self.queues: dict[str, QueueState] = {}
        self.memory_bytes = 0
        self.budget_bytes = settings.memory_budget_bytes or 0
        metrics.watch(self)

    async def run(self) -> None:
        """Sample until cancelled; while Redis is away the last sample stands."""
        while True:
            try:
                await self.sample()
            except RelayError as error:
                log.debug("watch_failed", error=error.message)
            await asyncio.sleep(EVERY_S)

    async def sample(self) -> None:
        """Look once. Raises RelayError when Redis does not answer."""
        self.queues = await self._jobs.states()
        infos = [parse_info(await wire.call("INFO", "memory")) for wire in self._topology.wires()]
        self.memory_bytes = sum(int(info.get("used_memory", 0)) for info in infos)
        limit = sum(int(info.get("maxmemory", 0)) for info in infos)
        self.budget_bytes = self._settings.memory_budget_bytes or limit
