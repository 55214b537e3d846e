"""The native endpoints: /v1/streams."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, StreamingResponse

from api.opening import client_of, find, holds
from api.response import EventStream
from api.state import state_of
from relay.errors import InvalidValue, NotFound
from relay.lifecycle import TERMINAL
from relay.position import Position
from relay.requests import StreamRequest

router = APIRouter(prefix="/v1/streams", tags=["streams"])

WINDOW = (256, 1_048_576)
KEY_MAX = 255


class Ack(BaseModel):
    """An explicit acknowledgement: everything up to this offset has been processed."""

    model_config = ConfigDict(extra="forbid", strict=True)

    position: int | str = Field(description="an offset, or an event id")


@router.post("", status_code=201)
async def create(
    request: Request,
    body: StreamRequest,
    idempotency_key: Annotated[str | None, Header()] = None,
) -> JSONResponse:
    """Start a response: it is queued, and its events can be read at once."""
    state = state_of(request)
    owner = state.locks.owner(request)
    if idempotency_key is not None and not 1 <= len(idempotency_key) <= KEY_MAX:
        raise InvalidValue(f"Idempotency-Key: 1 to {KEY_MAX} characters", param="Idempotency-Key")
    made = await state.responses.create(body, owner, idempotency_key)
    url = f"/v1/streams/{made.id}"
    return JSONResponse(
        {
            "id": made.id,
            "status": made.status,
            "model": made.model,
            "created_at": made.created_at,
            "events_url": f"{url}/events",
            "text_url": f"{url}/text",
            "token": made.token,
        },
        status_code=201,
        headers={"Location": url, "Relay-Stream": made.id},
    )


@router.head("", include_in_schema=False)
@router.get("")
async def recent(request: Request) -> dict[str, Any]:
    """The caller's recent responses, newest first."""
    state = state_of(request)
    owner = state.locks.owner(request)
    ids = await state.responses.recent(owner)
    journals = [state.topology.journal(response_id) for response_id in ids]
    found = [(journal, await journal.find()) for journal in journals]
    data = []
    for journal, snapshot in found:
        if snapshot is not None:
            # Of what has ended nobody's lag is news.
            is_over = snapshot.status in TERMINAL
            consumers = [] if is_over else await state.responses.consumers(journal, snapshot)
            data.append(state.responses.describe(journal.id, snapshot, consumers))
    return {"object": "list", "data": data}


@router.head("/{response_id}", include_in_schema=False)
@router.get("/{response_id}")
async def status(request: Request, response_id: str) -> dict[str, Any]:
    """How a response is: position, level, and each consumer's lag."""
    state = state_of(request)
    journal, snapshot = await find(request, response_id)
    described = state.responses.describe(
        response_id, snapshot, await state.responses.consumers(journal, snapshot)
    )
    if described["text_bytes"] is None:  # known for certain only at the end: counted until then
        described["text_bytes"] = sum([len(piece) async for piece in journal.text(snapshot.head)])
    return described


@router.delete("/{response_id}", status_code=202)
async def cancel(request: Request, response_id: str) -> dict[str, Any]:
    """Stop the generation everywhere; the readers get `done` with finish_reason `cancelled`."""
    state = state_of(request)
    journal, _ = await find(request, response_id)
    await state.responses.cancel(journal)
    return {"id": response_id, "status": (await journal.snapshot()).status}


@router.head("/{response_id}/text", include_in_schema=False)
@router.get("/{response_id}/text")
async def text(request: Request, response_id: str) -> Response:
    """The content so far, as it is; read in slices, so that its size is nobody's memory."""
    journal, snapshot = await find(request, response_id)

    async def pieces() -> AsyncIterator[bytes]:
        async for piece in journal.text(snapshot.head):
            yield piece

    headers = {"Relay-Position": f"{snapshot.head}-{snapshot.epoch}", "Relay-Status": snapshot.status}
    return StreamingResponse(pieces(), media_type="text/plain; charset=utf-8", headers=headers)


@router.get("/{response_id}/events", response_class=Response)
async def events(  # noqa: PLR0917 FastAPI's parameters are by name
    request: Request,
    response_id: str,
    after: str | None = None,
    consumer: str | None = None,
    window: Annotated[int | None, Query(ge=WINDOW[0], le=WINDOW[1])] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Any:
    """Read a response as server-sent events, from the start or after a position.

    204 when the position is at or past the end of a response that has ended: an EventSource then stops.
    """
    state = state_of(request)
    socket = client_of(request, consumer)
    journal, snapshot = await find(request, response_id)
    given = last_event_id or after
    position = Position.parse(given) if given else None
    if position is not None:
        is_true = await holds(journal, snapshot, position, state)
        if is_true and position.offset >= snapshot.head and snapshot.status in TERMINAL:
            state.metrics.resumes["done"] += 1
            return Response(status_code=204)
    reader, attached = await state.node.attach(
        journal, socket, name=consumer, position=position, window=window
    )
    if attached.status in TERMINAL and attached.offset >= attached.head:
        state.node.detach(reader)
        return Response(status_code=204)
    if position is not None and position.offset:
        state.metrics.resumes["log" if attached.offset == attached.head else "journal"] += 1
    begins = f"{attached.offset}-{attached.epoch}".encode()
    return EventStream(state.node, reader, attached, [(b"relay-position", begins)])


@router.post("/{response_id}/consumers/{consumer}/ack", status_code=204)
async def acknowledge(request: Request, response_id: str, consumer: str, ack: Ack) -> Response:
    """Say that a consumer with `?window=` has processed up to a position; idempotent."""
    journal, snapshot = await find(request, response_id)
    offset = ack.position if isinstance(ack.position, int) else Position.parse(ack.position).offset
    if not 0 <= offset <= snapshot.head:
        raise InvalidValue(f"position: 0 to {snapshot.head}, the end of the response", param="position")
    if offset < snapshot.head:
        await journal.check_boundary(offset)  # who returns by name begins there
    known = {state.id for state in await journal.consumers()}
    if consumer not in known:
        raise NotFound(f"this response has no consumer {consumer[:64]!r}")
    # The node that holds the connection may be another one: it hears of this by the bell, or it looks.
    if not await state_of(request).acks.acknowledge(journal, consumer, offset):
        raise NotFound("the response is gone")
    return Response(status_code=204)
