"""What a new response must pass: bounds that protect those that run.

The full controller (memory, queue wait, degradation) will stand here; now there is the bound on
responses queued and running.
"""

import asyncio
import random

from api.metrics import Metrics
from relay.errors import Draining, InvalidValue, Overloaded
from relay.jobs import Jobs
from relay.models import Model
from relay.requests import StreamRequest
from relay.settings import Settings

RETRY_S = (1.0, 5.0)
# The bound is soft by what other nodes let in meanwhile; a round trip for each create would cost more.
DEPTH_FOR_S = 0.1


class Admission:
    """Lets new work in, or says why not."""

    def __init__(self, settings: Settings, jobs: Jobs, metrics: Metrics) -> None:
        self._settings = settings
        self._jobs = jobs
        self._metrics = metrics
        self.draining = False
        self._depth = 0
        self._look_again_at = 0.0

    async def admit(self, request: StreamRequest, model: Model) -> None:
        """Raises Draining, Overloaded (with a jittered retry_after_s) or InvalidValue."""
        if self.draining:
            raise Draining("this node is going away: ask another")
        limit = request.token_limit
        if model.max_tokens is not None and limit is not None and limit > model.max_tokens:
            raise InvalidValue(
                f"max_tokens: {limit} is over the {model.max_tokens} of model {model.name}",
                param="max_tokens",
            )
        active = await self._active()
        if active >= self._settings.max_active:
            self._metrics.shed["active"] += 1
            raise Overloaded(
                f"{active} responses are queued or running, as many as may be: try again later",
                retry_after_s=random.uniform(*RETRY_S),
            )

    async def _active(self) -> int:
        """Responses queued or running, this request included; a look at the queue serves for DEPTH_FOR_S."""
        now = asyncio.get_running_loop().time()
        if now >= self._look_again_at:
            self._look_again_at = now + DEPTH_FOR_S
            self._depth = await self._jobs.depth()
        self._depth += 1
        return self._depth - 1
