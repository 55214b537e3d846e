"""Creating responses and telling how they are: the use cases behind the routes, without HTTP."""

import hashlib
import secrets
from contextlib import suppress
from typing import Any, NamedTuple

import orjson
from pydantic_core import PydanticSerializationError

from api.admission import Admission
from api.auth import token_digest
from api.condition import Health
from relay import keys, scripts, tracing
from relay.errors import Conflict, Fenced, InvalidValue, Unavailable
from relay.events import Channel, encode, event
from relay.ids import new_id
from relay.jobs import Jobs
from relay.journal import HEALTH, LIVE_MS, ConsumerState, Journal, Snapshot
from relay.lifecycle import TERMINAL, FinishReason, Status
from relay.models import Registry
from relay.position import Position, valid_offset
from relay.requests import StreamRequest
from relay.settings import Settings
from relay.topology import Topology

IDEMPOTENCY_S = 86_400
RECENT = 100  # responses listed for an owner
_NO_UNICODE = (orjson.JSONEncodeError, PydanticSerializationError, UnicodeEncodeError)


class Created(NamedTuple):
    """What a create answers with."""

    id: str
    token: str
    status: str
    model: str
    created_at: float


class Responses:
    """The responses of a deployment, seen from an API node."""

    def __init__(
        self, settings: Settings, topology: Topology, jobs: Jobs, registry: Registry, admission: Admission
    ) -> None:
        self._settings = settings
        self._topology = topology
        self._jobs = jobs
        self._registry = registry
        self._admission = admission

    async def create(self, request: StreamRequest, owner: str, idempotency_key: str | None) -> Created:
        """Open a response and queue its job.

        Raises NotFound (model), InvalidValue, Conflict (the key was used for another body), Overloaded,
        Draining or Unavailable. Without an idempotency key, a retry makes another response.
        """
        model = self._registry.get(request.model)
        stored, metadata = _stored(request)
        ticket = {"id": new_id(self._topology.server_time()), "token": secrets.token_urlsafe(24)}
        if idempotency_key is not None:
            ticket, earlier = await self._reserve(owner, idempotency_key, stored, ticket)
            if earlier is not None:
                await self.requeue(ticket["id"])
                return _created(ticket, earlier)
        request, notices = await self._admission.admit(request, model)
        journal = self._topology.journal(ticket["id"])
        context = tracing.fields()
        created_at = await journal.open(
            retention_s=self._settings.retention_s,
            owner=owner,
            model=request.model,
            request=_stored(request)[0] if notices else stored,
            token=token_digest(ticket["token"]),
            priority=request.queue,
            metadata=metadata,
            notices=orjson.dumps(notices),
            **context,
        )
        if created_at is None:  # two requests with one idempotency key, and the other was quicker
            return _created(ticket, await journal.snapshot())
        self._remember(owner, journal.id, created_at)  # first: it is in the list before its id is told
        await self._jobs.submit(request.queue, journal.id, **context)
        return Created(journal.id, ticket["token"], Status.QUEUED, request.model, created_at)

    async def requeue(self, response_id: str) -> bool:
        """Queue a response that has not ended, no worker has, and no job is for; False where that is not so.

        Two at once queue it twice, which is harmless: only one claim succeeds.
        """
        journal = self._topology.journal(response_id)
        if await journal.wire.call("EXISTS", journal.keys.lease):
            return False
        found = await journal.find()
        if found is None or found.status in TERMINAL:
            return False
        queue = found.meta["priority"]
        if await self._jobs.has(queue, journal.id):
            return False
        await self._jobs.submit(queue, journal.id)
        return True

    async def recent(self, owner: str) -> list[str]:
        """The ids of the owner's newest responses, newest first."""
        index = keys.owner_index(owner)
        found = await self._topology.wire(index).call("ZRANGE", index, 0, RECENT - 1, "REV")
        return [item.decode() for item in found]

    async def cancel(self, journal: Journal) -> None:
        """Stop it wherever it is: a running one within a second, one that no worker holds here and now.

        The wish is kept with the response: a worker that did not hear of it finds it with its next append,
        its next renewal, or when it takes the response over; this node need not live for that.
        """
        if await scripts.cancel_response(journal.wire, journal.keys) in TERMINAL:
            return
        claimed = await scripts.claim_response(
            journal.wire,
            journal.keys,
            owner="api",
            lease_ms=int(self._settings.lease_s * 1000),
            retention_s=self._settings.retention_s,
        )
        # Not claimed: a worker has it, and has been told.
        if isinstance(claimed, scripts.NotClaimed):
            return
        # What a worker left that drained or was lost: the digest is of that, mostly of nothing.
        digest, text_bytes = hashlib.sha256(), 0
        async for piece in journal.text(claimed.head):
            digest.update(piece)
            text_bytes += len(piece)
        ended: dict[str, str | int] = {
            "finish_reason": FinishReason.CANCELLED,
            "text_bytes": text_bytes,
            "sha256": digest.hexdigest(),
        }
        # Fenced: this node was stopped past its lease, and the worker that has it now knows of the wish.
        with suppress(Fenced):
            await scripts.close_response(
                journal.wire,
                journal.keys,
                epoch=claimed.epoch,
                base=claimed.head,
                data=encode(event(Channel.DONE, {**ended, "usage": {}})),
                retention_s=self._settings.retention_s,
                fields={"status": Status.CANCELLED, **ended},
            )

    @staticmethod
    async def consumers(journal: Journal, snapshot: Snapshot) -> list[dict[str, Any]]:
        """The JSON of a response's consumers: position, lag in bytes and entries, state."""
        found = [(state, _position(state, snapshot)) for state in await journal.consumers()]
        entries = [await journal.entries_after(position) for _, position in found]
        return [_consumer(*one, count, snapshot) for one, count in zip(found, entries, strict=True)]

    @staticmethod
    def describe(response_id: str, snapshot: Snapshot, consumers: list[dict[str, Any]]) -> dict[str, Any]:
        """The JSON of a response."""
        meta = snapshot.meta
        return {
            "id": response_id,
            "status": snapshot.status,
            "model": meta["model"],
            "created_at": float(meta["created_at"]),
            "ended_at": float(meta["ended_at"]) if "ended_at" in meta else None,
            "position": snapshot.head,
            "epoch": snapshot.epoch,
            "claims": len(snapshot.starts),
            "text_bytes": int(meta["text_bytes"]) if "text_bytes" in meta else None,
            "level": int(meta["level"]),
            "finish_reason": meta.get("finish_reason"),
            "sha256": meta.get("sha256"),
            "usage": orjson.loads(meta.get("usage") or "null"),
            "error": orjson.loads(meta.get("error") or "null"),
            "metadata": orjson.loads(meta.get("metadata") or "{}"),
            "consumers": consumers,
        }

    async def _reserve(
        self, owner: str, key: str, stored: str, ticket: dict[str, str]
    ) -> tuple[dict[str, str], Snapshot | None]:
        """The ticket that this key stands for, and its response if that was made."""
        name = keys.idempotency(owner, hashlib.sha256(key.encode()).hexdigest()[:32])
        wire = self._topology.wire(name)
        body = hashlib.sha256(stored.encode()).hexdigest()
        mine = orjson.dumps({**ticket, "body": body})
        if await wire.call("SET", name, mine, "NX", "EX", IDEMPOTENCY_S) is not None:
            return ticket, None
        kept = await wire.call("GET", name)
        if kept is None:
            raise Unavailable("the idempotency key expired in this moment: try again")
        theirs: dict[str, str] = orjson.loads(kept)
        if theirs["body"] != body:
            raise Conflict("this Idempotency-Key was used for another body", param="Idempotency-Key")
        found = await self._topology.journal(theirs["id"]).find()
        return theirs, found

    def _remember(self, owner: str, response_id: str, created_at: float) -> None:
        index = keys.owner_index(owner)
        wire = self._topology.wire(index)
        wire.post("ZADD", index, created_at, response_id)
        wire.post("ZREMRANGEBYRANK", index, 0, -RECENT - 1)
        wire.post("EXPIRE", index, self._settings.retention_s)


def _stored(request: StreamRequest) -> tuple[str, bytes]:
    """The request and its metadata as Redis keeps them. Raises InvalidValue for text that is no Unicode."""
    try:
        return request.model_dump_json(exclude_unset=True), orjson.dumps(request.metadata)
    except _NO_UNICODE as error:
        name = _broken_field(request)
        raise InvalidValue(f"{name}: holds text that is not valid Unicode", param=name) from error


def _broken_field(request: StreamRequest) -> str:
    for name in request.model_fields_set - {"metadata"}:
        try:
            request.model_dump_json(include={name})
        except _NO_UNICODE:
            return name
    return "metadata"


def _created(ticket: dict[str, str], snapshot: Snapshot) -> Created:
    meta = snapshot.meta
    return Created(ticket["id"], ticket["token"], snapshot.status, meta["model"], float(meta["created_at"]))


def _position(consumer: ConsumerState, snapshot: Snapshot) -> int:
    """Where its client goes on when it comes back by name.

    An explicit ack may lie within an entry, of which Redis's group knows no part, or have come when the
    connection was over.
    """
    acked = Position.parse(snapshot.meta.get(scripts.ACKED + consumer.id, "0-0"))
    return max(consumer.position, min(snapshot.head, valid_offset(acked, snapshot.starts)))


def _consumer(consumer: ConsumerState, position: int, lag_entries: int, snapshot: Snapshot) -> dict[str, Any]:
    health, _, cause = snapshot.meta.get(HEALTH + consumer.id, Health.LIVE).partition(" ")
    if consumer.idle_ms is None or consumer.idle_ms > LIVE_MS:
        health, cause = Health.DETACHED, ""
    return {
        "id": consumer.id,
        "position": position,
        "lag_bytes": max(0, snapshot.head - position),
        "lag_entries": lag_entries,
        "idle_ms": consumer.idle_ms,
        "state": health,
        "cause": cause or None,
    }
