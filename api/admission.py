"""What a new response must pass: running answers never pay for new ones.

    pressure 1   max_tokens is lowered                      notice `limited`
    pressure 2   and the model's fallback is taken          notice `fallback`; background work is refused
    pressure 3   everything new is refused, 429

A request with `"degrade": false` is refused where it would be degraded. Refusals carry a jittered
Retry-After from the measured wait in the queue, 1 to 30 s.
"""

import asyncio
import random
from typing import NamedTuple

import structlog

from api.metrics import Metrics
from api.watch import Watch
from relay.errors import Draining, InvalidValue, Overloaded
from relay.jobs import Jobs
from relay.models import Model, Registry
from relay.requests import StreamRequest
from relay.settings import Settings

log = structlog.get_logger("relay.api")

RETRY_LEAST_S, RETRY_MOST_S = 1.0, 30.0
# Those who are refused together must not come back together, however long the queue: so is the spread.
RETRY_SPREAD_S = 10.0
# A refusal is cheap, and a flood of them must not become a flood of lines: at most one for each reason.
SHED_LINE_EVERY_S = 1.0
# The bound is soft by what other nodes let in meanwhile; a round trip for each create would cost more.
DEPTH_FOR_S = 0.1


class Admitted(NamedTuple):
    """A request as it was let in, and the notices of what was taken from it."""

    request: StreamRequest
    notices: list[dict[str, str | int]]


class Admission:
    """Lets new work in, as much of it as the deployment can carry, or says why not."""

    def __init__(
        self, settings: Settings, jobs: Jobs, registry: Registry, watch: Watch, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._jobs = jobs
        self._registry = registry
        self._watch = watch
        self._metrics = metrics
        self.draining = False
        self._depth = 0
        self._look_again_at = 0.0
        self._told: dict[str, tuple[float, float]] = {}  # by reason: when it was logged, and the count then

    async def admit(self, request: StreamRequest, model: Model) -> Admitted:
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
            raise self._shed("active", f"{active} responses are queued or running, as many as may be")
        self._depth += 1
        level, reason = self._watch.pressure
        if level >= 3:
            raise self._shed(reason, f"the deployment is at its limit ({reason})")
        if level >= 2 and request.queue == "background":
            raise self._shed("background", f"background work waits while the deployment is busy ({reason})")
        return self._degraded(request, model, level, reason) if level else Admitted(request, [])

    def _degraded(self, request: StreamRequest, model: Model, level: int, reason: str) -> Admitted:
        """Less of what was asked for, told by notices. Raises Overloaded for one that does not want that."""
        changes: dict[str, int | str | None] = {}
        notices: list[dict[str, str | int]] = []
        most = self._settings.limited_tokens
        if request.token_limit is None or request.token_limit > most:
            changes |= {"max_tokens": most, "max_completion_tokens": None}
            notices.append(
                _notice("limited", level, f"max_tokens is {most} while the deployment is busy ({reason})")
            )
        if level >= 2 and model.fallback is not None:
            self._registry.get(model.fallback)
            changes["model"] = model.fallback
            why = f"{model.fallback} answers for {model.name} while the deployment is busy ({reason})"
            notices.append(_notice("fallback", level, why))
        if not notices:
            return Admitted(request, [])
        if not request.degrade:
            raise self._shed("degrade", f"it would have to be degraded now ({reason}), and asks not to be")
        for notice in notices:
            self._metrics.degraded[str(notice["kind"])] += 1
            log.info("degraded", kind=notice["kind"], reason=notice["reason"], pressure=level)
        return Admitted(request.model_copy(update=changes), notices)

    def _shed(self, reason: str, message: str) -> Overloaded:
        self._metrics.shed[reason] += 1
        self._log_shed(reason)
        return Overloaded(
            f"{message}: try again later", retry_after_s=retry_after_s(self._watch.queue_wait_s)
        )

    def _log_shed(self, reason: str) -> None:
        now, count = asyncio.get_running_loop().time(), self._metrics.shed[reason]
        told_at, told = self._told.get(reason, (-SHED_LINE_EVERY_S, 0))
        if now - told_at >= SHED_LINE_EVERY_S:
            self._told[reason] = now, count
            log.warning("shed", reason=reason, refused=count - told, pressure=self._watch.pressure.level)

    async def _active(self) -> int:
        """Responses queued or running, and those let in since; a look at the queue serves for DEPTH_FOR_S."""
        now = asyncio.get_running_loop().time()
        if now >= self._look_again_at:
            self._look_again_at = now + DEPTH_FOR_S
            self._depth = await self._jobs.depth()
        return self._depth


def retry_after_s(queue_wait_s: float) -> float:
    """When to come back: about when the queue as it is will have passed, spread, within the bounds."""
    earliest = min(max(RETRY_LEAST_S, 0.75 * queue_wait_s), RETRY_MOST_S - RETRY_SPREAD_S)
    latest = min(max(earliest + 2.0, 1.5 * queue_wait_s), RETRY_MOST_S)
    return random.uniform(earliest, latest)


def _notice(kind: str, level: int, reason: str) -> dict[str, str | int]:
    return {"kind": kind, "level": level, "reason": reason}
