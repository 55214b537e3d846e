"""The OpenAI-compatible endpoints: what the official SDKs ask for, where only their base_url is changed."""

import re
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Body, Header, Query, Request, Response
from starlette.responses import JSONResponse

from api.openai import errors, response_object, serve
from api.openai.chat import ChatAnswer, ChatFrames
from api.openai.requests import parse
from api.openai.response_events import STEP, ResponseEvents, ResponseFrames
from api.opening import client_of
from api.protocol import ClientSocket
from api.state import State, state_of
from relay.errors import InvalidValue, NotFound, RelayError
from relay.events import Channel
from relay.journal import Journal, Snapshot
from relay.lifecycle import Status
from relay.position import Position
from relay.requests import StreamRequest

router = APIRouter(prefix="/v1", tags=["openai"])

_CREATED = 1_735_689_600  # models are not dated here; the SDKs want a number
_ID = re.compile(r"resp_[0-9a-f]{24}")
# Of a response that no record says more of.
_STATUS = {Status.QUEUED: "queued", Status.CANCELLED: "cancelled", Status.FAILED: "failed"}
Json = Annotated[dict[str, Any], Body()]
Key = Annotated[str | None, Header(alias="Idempotency-Key")]


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """The models that have an entry here; others may be taken by the upstream."""
    state = state_of(request)
    state.locks.owner(request)
    return {"object": "list", "data": [_model(name) for name in state.registry.names]}


@router.get("/models/{name:path}")
async def model(request: Request, name: str) -> Response:
    """One model, if it can be asked for."""
    state = state_of(request)
    try:
        state.locks.owner(request)
        state.registry.get(name)
    except RelayError as error:
        return errors.refused(error)
    return JSONResponse(_model(name))


@router.post("/chat/completions", response_class=JSONResponse)
async def chat_completions(request: Request, body: Json, idempotency_key: Key = None) -> Response:
    """A chat completion, as a stream of chunks or whole.

    `Relay-Stream` names the response: a stream that was cut goes on at `/v1/streams/{id}/events`.
    """
    try:
        state, owner, socket = _parts(request)
        chat = parse(body)
        made = await state.responses.create(chat.request, owner, idempotency_key)
        journal = state.topology.journal(made.id)
        about = (made.id, made.model, made.created_at)
        if chat.stream:
            form = ChatFrames(*about, include_usage=chat.include_usage)
            return await serve.stream(state.node, journal, socket, form)
        await serve.ended(state.node, journal, socket)
        answer = ChatAnswer(*about)
        async for _, record in serve.records(journal, (await journal.snapshot()).head):
            answer.add(record)
    except RelayError as error:
        return errors.refused(error)
    if answer.error is not None:
        return errors.failed(made.id, answer.error)
    return JSONResponse(answer.body(), headers={"Relay-Stream": made.id})


@router.post("/responses", response_class=JSONResponse)
async def create_response(request: Request, body: Json, idempotency_key: Key = None) -> Response:
    """A response in the form of the Responses API: streamed, whole, or (in the background) at once."""
    try:
        state, owner, socket = _parts(request)
        asked = response_object.parse(body)
        made = await state.responses.create(asked.request, owner, idempotency_key)
        journal = state.topology.journal(made.id)
        about = response_object.about(made.id, made.model, made.created_at, asked.request)
        if asked.stream:
            return await serve.stream(state.node, journal, socket, ResponseFrames(ResponseEvents(about)))
        if not asked.request.background:
            await serve.ended(state.node, journal, socket)
        return await _described(journal, may_fail=not asked.request.background)
    except RelayError as error:
        return errors.refused(error)


@router.get("/responses/{response_id}", response_class=JSONResponse)
async def get_response(
    request: Request,
    response_id: str,
    *,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """A response as it is; or, with `stream`, its events after a sequence number."""
    try:
        state, _, socket = _parts(request)
        journal, snapshot = await _find(request, response_id)
        if not stream:
            return await _described(journal)
        after = -1 if starting_after is None else starting_after
        offset = max(0, after) // STEP
        if offset > snapshot.head:
            raise InvalidValue("starting_after: beyond the last event", param="starting_after")
        if offset < snapshot.head:
            await journal.check_boundary(offset)
        events = ResponseEvents(_about(journal, snapshot))
        async for end, record in serve.records(journal, offset):
            events.take(record, end)  # what was open there
        position = Position(offset, snapshot.epoch)
        return await serve.stream(state.node, journal, socket, ResponseFrames(events, after), position)
    except RelayError as error:
        return errors.refused(error)


@router.post("/responses/{response_id}/cancel", response_class=JSONResponse)
async def cancel_response(request: Request, response_id: str) -> Response:
    """Stop the generation; idempotent."""
    try:
        journal, _ = await _find(request, response_id)
        await state_of(request).responses.cancel(journal)
        return await _described(journal)
    except RelayError as error:
        return errors.refused(error)


async def _described(journal: Journal, *, may_fail: bool = False) -> Response:
    """The object; or, where it `may_fail` and did before it said anything, the error."""
    snapshot = await journal.snapshot()
    events = ResponseEvents(_about(journal, snapshot))
    record = None
    async for end, record in serve.records(journal, snapshot.head):
        events.take(record, end)
    found = events.object()
    if may_fail and record is not None and record.channel is Channel.ERROR and not found["output"]:
        return errors.failed(journal.id, orjson.loads(record.payload))
    if not events.is_over:
        found["status"] = _STATUS.get(Status(snapshot.status), "in_progress")
    return JSONResponse(found, headers={"Relay-Stream": journal.id})


def _about(journal: Journal, snapshot: Snapshot) -> dict[str, Any]:
    meta = snapshot.meta
    if "request" in meta:
        request = StreamRequest.model_validate_json(meta["request"])
    else:  # it is let go of at the end, for it may be larger than the answer
        request = StreamRequest(
            model=meta["model"], prompt="-", metadata=orjson.loads(meta.get("metadata") or "{}")
        )
    return response_object.about(journal.id, meta["model"], float(meta["created_at"]), request)


async def _find(request: Request, response_id: str) -> tuple[Journal, Snapshot]:
    state = state_of(request)
    caller = state.locks.caller(request)
    if not _ID.fullmatch(response_id):
        raise NotFound(f"no response {response_id[:64]!r}: never made, or its retention has ended")
    journal = state.topology.journal(response_object.native_id(response_id))
    snapshot = await journal.snapshot()
    state.locks.may_open(caller, snapshot.meta)
    return journal, snapshot


def _parts(request: Request) -> tuple[State, str, ClientSocket]:
    state = state_of(request)
    return state, state.locks.owner(request), client_of(request)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": "relay"}
