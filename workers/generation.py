"""One job from claim to its end: what is written for every way a generation can go."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import orjson
import structlog
from pydantic import ValidationError

from relay import scripts
from relay.errors import Fenced, Gap, NotFound, Refused, RelayError, SourceFailed, StreamLost
from relay.events import Channel, Record, encode, event
from relay.jobs import Job, Jobs
from relay.journal import Journal
from relay.ladder import Level
from relay.lifecycle import FinishReason, Status
from relay.models import Registry
from relay.requests import StreamRequest
from relay.settings import Settings
from relay.topology import Topology
from workers.metrics import Metrics
from workers.poison import is_poison, note_lived
from workers.prefix import delivered, post_spent
from workers.pump import Pump
from workers.sources.base import Finish, Generation, Prefix, Source
from workers.trace import Follower

log = structlog.get_logger("relay.worker")

BROKEN = ("WRONGTYPE", "ERR")  # a key is no longer what it was, or the log is ahead of the journal


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every generation of a worker shares."""

    worker_id: str
    settings: Settings
    topology: Topology
    jobs: Jobs
    registry: Registry
    sources: dict[str, Source]
    metrics: Metrics
    trace: Follower | None = None

    @property
    def lease_ms(self) -> int:
        """The lease, as Redis takes it."""
        return int(self.settings.lease_s * 1000)


class GenerationJob:
    """A claimed job. `run` ends when the response has ended or belongs to somebody else."""

    def __init__(self, workshop: Workshop, job: Job) -> None:
        self._shop = workshop
        self._job = job
        self.journal: Journal = workshop.topology.journal(job.response_id)
        self.pump: Pump | None = None
        self.epoch = 0
        self._stopped_early: str | None = None
        self._told = Level.LIVE  # the level that the status shows

    def stop(self, reason: str) -> None:
        """End it, as `Pump.stop` does; also while it is being claimed."""
        if self.pump is not None:
            self.pump.stop(reason)
        else:
            self._stopped_early = self._stopped_early or reason

    async def run(self) -> None:
        """Claim, generate, close, finish the job.

        Raises Unavailable when Redis stays away and OutOfMemory when it cannot take the claim: the job
        stays pending, and is found without a lease.
        """
        shop = self._shop
        try:
            claimed = await self._claim()
        except Refused as broken:
            await self._end_lost(broken)
            await shop.jobs.finish(self._job)
            return
        if isinstance(claimed, scripts.NotClaimed):
            if claimed.why != "held":  # gone or done: nothing is left to do
                await shop.jobs.finish(self._job)
            return
        self.epoch = claimed.epoch
        request = _read_request(claimed.request)
        self.pump = pump = Pump(
            journal=self.journal,
            claimed=claimed,
            request=request,
            settings=shop.settings,
            metrics=shop.metrics,
            server_time=shop.topology.server_time,
        )
        if shop.trace is not None:
            shop.trace.follow(self.journal.id, pump.writer)
        if reason := "cancelled" if claimed.cancelled else self._stopped_early:
            pump.stop(reason)
        shop.metrics.running += 1
        try:
            await self._generate(pump, claimed, request)
        except Fenced:
            shop.metrics.fenced += 1
            log.warning("fenced", response=self.journal.id, epoch=self.epoch)
            note_lived(self.journal, claimed.number)
        except (StreamLost, Refused) as lost:
            await self._end_lost(lost)
            await shop.jobs.finish(self._job)
        else:
            if pump.stopped != "handover":
                await shop.jobs.finish(self._job)
        finally:
            shop.metrics.running -= 1
            pump.writer.stop()
            pump.governor.end()

    async def _claim(self) -> scripts.Claimed | scripts.NotClaimed:
        return await scripts.claim_response(
            self.journal.wire,
            self.journal.keys,
            owner=self._shop.worker_id,
            lease_ms=self._shop.lease_ms,
            retention_s=self._shop.settings.retention_s,
        )

    async def renew(self) -> None:
        """Renew the lease; called every few seconds. Never raises a RelayError."""
        if self.pump is None:
            return
        level = self._told = self.pump.governor.level
        try:
            cancelled = await scripts.renew_lease(
                self.journal.wire,
                self.journal.keys,
                epoch=self.epoch,
                owner=self._shop.worker_id,
                lease_ms=self._shop.lease_ms,
                retention_s=self._shop.settings.retention_s,
                status=Status.PAUSED if level is Level.PAUSE else Status.RUNNING,
                level=int(level),
            )
            post_spent(self.journal, self.pump.tokens, self.pump.text_bytes)
            if cancelled:
                self.pump.stop("cancelled")
        except (Fenced, StreamLost) as error:
            self.pump.stop(error)
        except RelayError:
            return  # the next renewal comes well before the lease ends

    async def watch(self) -> None:
        """Look at the readers when that is due, and tell a new level at once. Never raises a RelayError."""
        if self.pump is None or self.pump.stopped is not None:
            return
        governor = self.pump.governor
        if governor.is_due:
            await governor.look()
        if governor.level is not self._told:
            await self.renew()

    async def _generate(self, pump: Pump, claimed: scripts.Claimed, request: StreamRequest | None) -> None:
        finish = None
        try:
            request = await self._checked(claimed, request)
            prefix = await delivered(self.journal, claimed.head) if claimed.head else None
            if prefix is not None:
                pump.resume_after(prefix)
            if pump.stopped is None:
                finish = await pump.run(self._open(pump, claimed, request, prefix))
        except SourceFailed as failure:
            await self._fail(pump, failure)
            return
        except NotFound as error:  # the model was taken out of the models file meanwhile
            await self._fail(pump, SourceFailed("model_not_found", error.message, retryable=False))
            return
        if finish is None:
            await self._stopped(pump)
        else:
            await self._complete(pump, Status.COMPLETED, finish)

    async def _checked(self, claimed: scripts.Claimed, request: StreamRequest | None) -> StreamRequest:
        """The request of a job that can be done. Raises SourceFailed for one that nobody should try."""
        if await is_poison(self.journal, claimed.number, self._job.deliveries):
            raise SourceFailed("poison", "this request ended several workers", retryable=False)
        if request is None:
            raise SourceFailed("malformed_job", "the stored request cannot be read", retryable=False)
        return request

    def _open(
        self, pump: Pump, claimed: scripts.Claimed, request: StreamRequest, prefix: Prefix | None
    ) -> AbstractAsyncContextManager[Generation]:
        """Begin, or go on where an earlier worker was lost. Raises SourceFailed or NotFound."""
        started_at = self._shop.topology.server_time()
        model = self._shop.registry.get(request.model)
        source = self._shop.sources[model.source]
        if prefix is None:
            about = {"id": self.journal.id, "model": request.model, "created_at": claimed.created_at}
            pump.start({**about, "started_at": started_at}, orjson.loads(claimed.notices))
        elif not source.can_continue(prefix, model):
            raise SourceFailed(
                "worker_lost", "the worker was lost and this source cannot continue", retryable=True
            )
        return source.open(request, model, started_at=started_at, prefix=prefix)

    async def _complete(self, pump: Pump, status: Status, finish: Finish) -> None:
        data = pump.summary(finish)
        await self._close(pump, status, event(Channel.DONE, data), finish.reason, data)

    async def _stopped(self, pump: Pump) -> None:
        reason = pump.stopped
        if isinstance(reason, RelayError):
            raise reason
        if reason == "handover":
            await pump.writer.drain()
            await scripts.release_lease(
                self.journal.wire, self.journal.keys, epoch=self.epoch, owner=self._shop.worker_id
            )
            await self._shop.jobs.hand_over(self._job)
            return
        log.info("stopped", response=self.journal.id, reason=reason)
        pump.saved("abandon" if reason == "abandoned" else "cancel")
        await self._complete(pump, Status.CANCELLED, Finish(FinishReason.CANCELLED))

    async def _fail(self, pump: Pump, failure: SourceFailed) -> None:
        log.warning("source_failed", response=self.journal.id, **failure.logged)
        data = {
            "code": failure.failure_code,
            "message": failure.message[:500],
            "retryable": failure.failure_retryable,
        }
        if failure.retry_after_s is not None:
            data["retry_after_s"] = failure.retry_after_s
        if failure.upstream is not None:
            data["upstream"] = failure.upstream
        await self._close(pump, Status.FAILED, event(Channel.ERROR, data), "error", {"error": data})

    async def _end_lost(self, lost: StreamLost | Refused) -> None:
        """Text is gone that cannot be sent again, or a key is broken: say so to whoever reads it.

        The response ends after what is there, under a new epoch, so that readers who are past it go back.
        Where that cannot be, it is deleted. Raises what is refused for other reasons.
        """
        if isinstance(lost, Refused) and lost.prefix not in BROKEN:
            raise lost
        log.warning("stream_lost", response=self.journal.id, error=lost.message)
        self._shop.metrics.outcomes[Status.FAILED.value] += 1
        try:
            if isinstance(lost, StreamLost) and await self._close_lost(lost):
                return
        except Fenced:
            return
        except (Gap, StreamLost, Refused) as error:
            log.warning("cannot_be_closed", response=self.journal.id, error=error.message)
        await scripts.forget_response(self.journal.wire, self.journal.keys, epoch=self.epoch or None)

    async def _close_lost(self, lost: StreamLost) -> bool:
        """Close it after what is there. False when there is no such response any more."""
        wire, keys = self.journal.wire, self.journal.keys
        await scripts.release_lease(wire, keys, epoch=self.epoch, owner=self._shop.worker_id)
        claimed = await self._claim()
        if isinstance(claimed, scripts.NotClaimed):
            return claimed.why != "gone"
        self.epoch = claimed.epoch
        data = {"code": lost.code, "message": lost.message[:500], "retryable": lost.retryable}
        await scripts.close_response(
            wire,
            keys,
            epoch=claimed.epoch,
            base=claimed.head,
            data=encode(event(Channel.ERROR, data)),
            retention_s=self._shop.settings.retention_s,
            fields={"status": Status.FAILED, "finish_reason": "error", "error": orjson.dumps(data).decode()},
        )
        return True

    async def _close(
        self, pump: Pump, status: Status, last: Record, finish_reason: str, data: dict[str, Any]
    ) -> None:
        self._shop.metrics.outcomes[status.value] += 1
        await pump.finish(
            status,
            last,
            finish_reason=finish_reason,
            sha256=str(data.get("sha256", "")),
            usage=orjson.dumps(data.get("usage", {})).decode(),
            error=orjson.dumps(data["error"]).decode() if "error" in data else "",
        )


def _read_request(stored: bytes) -> StreamRequest | None:
    """The request as the API node stored it; None when another version of it cannot be read."""
    try:
        return StreamRequest.model_validate_json(stored)
    except ValidationError:
        return None
