"""The OpenAI-compatible endpoints: what the official SDKs ask for, where only their base_url is changed."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Header, Request, Response
from starlette.responses import JSONResponse

from api.openai import errors, serve
from api.openai.chat import ChatAnswer, ChatFrames
from api.openai.requests import parse
from api.protocol import EXTENSION
from api.state import State, state_of
from relay.errors import RelayError, Unavailable

router = APIRouter(prefix="/v1", tags=["openai"])

_CREATED = 1_735_689_600  # models are not dated here; the SDKs want a number


@router.post("/chat/completions", response_class=JSONResponse)
async def chat_completions(
    request: Request,
    body: Annotated[dict[str, Any], Body()],
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Response:
    """A chat completion, as a stream of chunks or whole.

    `Relay-Stream` names the response: a stream that was cut goes on at `/v1/streams/{id}/events`.
    """
    try:
        return await _complete(request, body, idempotency_key)
    except RelayError as error:
        return errors.refused(error)


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


async def _complete(request: Request, body: dict[str, Any], idempotency_key: str | None) -> Response:
    state: State = state_of(request)
    owner = state.locks.owner(request)
    socket = request.scope.get("extensions", {}).get(EXTENSION)
    if socket is None:
        raise Unavailable("this server cannot stream: run it by `relay api`")
    chat = parse(body)
    made = await state.responses.create(chat.request, owner, idempotency_key)
    journal = state.topology.journal(made.id)
    about = (made.id, made.model, made.created_at)
    if not chat.stream:
        return await serve.whole(state.node, journal, socket, ChatAnswer(*about))
    form = ChatFrames(*about, include_usage=chat.include_usage)
    return await serve.stream(state.node, journal, socket, form, [(b"relay-stream", made.id.encode())])


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": _CREATED, "owned_by": "relay"}
