"""Many responses on one connection: /v1/events."""

import asyncio
import secrets
from typing import Annotated, Any, NamedTuple

import orjson
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from api.auth import Caller
from api.lane import Board, read_id
from api.many import STREAMS_MAX, Many, channel
from api.opening import client_of, found, holds
from api.routes.streams import WINDOW
from api.state import State, state_of
from relay.errors import InvalidValue, NotFound, RelayError
from relay.lifecycle import TERMINAL
from relay.position import Position

router = APIRouter(prefix="/v1/events", tags=["streams"])

_STREAM = r"^rs_[0-9a-f]{24}(@[0-9]{1,15}-[0-9]{1,9})?$"
_TOKENS_MAX = STREAMS_MAX


class Wanted(NamedTuple):
    """A response, and where to go on; None: from its start."""

    id: str
    position: Position | None


class Change(BaseModel):
    """What joins and what leaves a connection. Each is an id; one that joins may be `ID@POSITION`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    add: list[Annotated[str, Field(pattern=_STREAM)]] = Field(
        default=[], max_length=STREAMS_MAX, examples=[["rs_69227a1b0123456789abcdef@143-1"]]
    )
    remove: list[str] = Field(default=[], max_length=STREAMS_MAX)


@router.get("", response_class=Response)
async def events(  # noqa: PLR0917 FastAPI's parameters are by name
    request: Request,
    streams: str = "",
    after: str | None = None,
    consumer: str | None = None,
    window: Annotated[int | None, Query(ge=WINDOW[0], le=WINDOW[1])] = None,
    keep: bool = False,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Any:
    """Read many responses as server-sent events: `streams` is `ID[@POSITION]`, comma-separated, at most 32.

    Each event's data has its `stream` and its own `position`; its id is where all of them stand, for
    Last-Event-ID. Each response has a credit of its own, and with `window` explicit acks of its own, so that
    one that is slow holds no other. The connection ends when all are over, or with `keep=true` stays open
    for more: `POST /v1/events/{connection}/streams`. `token` may be several, comma-separated.

    204 when all are over and were read: an EventSource then stops.
    """
    state = state_of(request)
    socket = client_of(request, consumer)
    callers = _callers(state, request)
    fixed, wanted = _wanted(streams, last_event_id or after, keep=keep)
    results = await _looked(state, callers, wanted)
    if not keep and wanted and all(result is True for result in results):
        state.metrics.resumes["done"] += len(wanted)
        return Response(status_code=204)
    board = Board(fixed)
    for name in set(fixed) - {one.id for one in wanted}:
        board.leave(name, removed=True)
    many = Many(
        state,
        socket,
        connection=f"ev_{secrets.token_hex(16)}",
        owner=callers[0].owner,
        consumer=consumer,
        window=window,
        keep=keep,
        board=board,
    )
    for one, result in zip(wanted, results, strict=True):
        many.join(one.id, one.position, result if isinstance(result, RelayError) else None)
    return many


@router.post("/{connection}/streams", status_code=202)
async def change(request: Request, connection: str, body: Change) -> JSONResponse:
    """Add responses to an open connection, or remove them, at any node; the connection's events confirm it.

    `joined`, `removed` and `refused` tell what became of each. 404 when no such connection of this caller is
    open, whose id is in `Relay-Connection` and in its first event.
    """
    state = state_of(request)
    callers = _callers(state, request)
    wanted = _listed(",".join(body.add))
    for one in wanted:
        await found(state, callers, one.id)
    where = channel(connection[:64], callers[0].owner)
    add = [[one.id, str(one.position) if one.position else None] for one in wanted]
    message = orjson.dumps({"add": add, "remove": body.remove})
    heard = await state.topology.wire(where).call("SPUBLISH", where, message)
    if not heard:
        raise NotFound(f"no connection {connection[:64]!r} is open: it has ended, or is another caller's")
    return JSONResponse(
        {"connection": connection, "add": [one.id for one in wanted], "remove": body.remove}, status_code=202
    )


def _callers(state: State, request: Request) -> list[Caller]:
    """Who asks: a key's owner, or whoever has the tokens of responses. Raises as `Locks.caller` does."""
    caller = state.locks.caller(request)
    if caller.token is None:
        return [caller]
    tokens = caller.token.split(",")
    if len(tokens) > _TOKENS_MAX:
        raise InvalidValue(f"token: at most {_TOKENS_MAX}", param="token")
    return [Caller(None, token) for token in tokens]


def _listed(streams: str) -> list[Wanted]:
    """`ID[@POSITION],...`. Raises InvalidValue or Malformed."""
    found_: dict[str, Position | None] = {}
    for part in streams.split(",") if streams else ():
        name, _, position = part.partition("@")
        if name in found_:
            raise InvalidValue(f"streams: {name[:64]!r} twice", param="streams")
        found_[name] = Position.parse(position) if position else None
    if len(found_) > STREAMS_MAX:
        raise InvalidValue(f"streams: at most {STREAMS_MAX}", param="streams")
    return [Wanted(*pair) for pair in found_.items()]


def _wanted(streams: str, given: str | None, *, keep: bool) -> tuple[list[str], list[Wanted]]:
    """The ids of the address, and what is to be served. Raises InvalidValue or Malformed."""
    listed = _listed(streams)
    fixed = [one.id for one in listed]
    wanted = [Wanted(*pair) for pair in read_id(given, fixed).items()] if given else listed
    if not (listed or wanted or keep):
        raise InvalidValue("streams: at least one id, or keep=true", param="streams")
    if len(wanted) > STREAMS_MAX:
        raise InvalidValue(f"streams: at most {STREAMS_MAX}", param="streams")
    return fixed, wanted


async def _looked(state: State, callers: list[Caller], wanted: list[Wanted]) -> list[bool | RelayError]:
    """Of each, whether it is over and read, or what is wrong with it. Raises where that is so of all."""
    results = await asyncio.gather(*(_look(state, callers, one) for one in wanted), return_exceptions=True)
    told: list[bool | RelayError] = []
    for result in results:
        # Of what is gone, or is not the caller's, the connection tells; the others are served.
        if isinstance(result, BaseException) and not isinstance(result, RelayError):
            raise result
        told.append(result)
    errors = [result for result in told if isinstance(result, RelayError)]
    if errors and len(errors) == len(told):
        raise errors[0]
    return told


async def _look(state: State, callers: list[Caller], one: Wanted) -> bool:
    """Whether there is nothing more to read of it. Raises what is wrong with it."""
    journal, snapshot = await found(state, callers, one.id)
    if one.position is None or not await holds(journal, snapshot, one.position, state):
        return False
    return one.position.offset >= snapshot.head and snapshot.status in TERMINAL
