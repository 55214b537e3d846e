"""What a reader asks for, before it is served: the response, if the caller may open it, and the position."""

import re
from collections.abc import Sequence

from starlette.requests import Request

from api.auth import Caller
from api.protocol import EXTENSION, ClientSocket
from api.state import State, state_of
from relay.errors import Expired, Forbidden, InvalidValue, Malformed, NotFound, Unauthorized, Unavailable
from relay.ids import has_expired
from relay.journal import Journal, Snapshot
from relay.lifecycle import TERMINAL
from relay.position import Position, valid_offset
from relay.scripts import EPOCH_NONCES

ID = re.compile(r"rs_[0-9a-f]{24}")
CONSUMER = re.compile(r"[A-Za-z0-9._-]{1,64}")


def client_of(request: Request, consumer: str | None = None) -> ClientSocket:
    """The connection to be streamed to, under a consumer's name. Raises Unavailable or InvalidValue."""
    socket: ClientSocket | None = request.scope.get("extensions", {}).get(EXTENSION)
    if socket is None:
        raise Unavailable("this server cannot stream: run it by `relay api`")
    if consumer is not None and not CONSUMER.fullmatch(consumer):
        raise InvalidValue("consumer: 1 to 64 of A-Z a-z 0-9 . _ -", param="consumer")
    return socket


async def find(request: Request, response_id: str) -> tuple[Journal, Snapshot]:
    """The response and its meta, if the caller may open it. Raises as `found` does, and Unauthorized."""
    state = state_of(request)
    return await found(state, [state.locks.caller(request)], response_id)


async def found(state: State, callers: Sequence[Caller], response_id: str) -> tuple[Journal, Snapshot]:
    """The response and its meta, if one of these may open it. An id that we never make is not looked up.

    Raises NotFound, Expired, Unauthorized or Forbidden.
    """
    if not ID.fullmatch(response_id):
        raise NotFound(f"no response {response_id[:64]!r}: never made, or its retention has ended")
    journal = state.topology.journal(response_id)
    snapshot = await journal.find()
    if snapshot is None:
        if has_expired(response_id, state.topology.server_time(), state.settings.retention_s):
            raise Expired("this response is gone: its retention has ended")
        raise NotFound(f"no response {response_id!r}: never made, or lost with its Redis")
    refusal: Forbidden | None = None
    for caller in callers:
        try:
            state.locks.may_open(caller, snapshot.meta)
        except Forbidden as error:
            refusal = error
        else:
            return journal, snapshot
    raise refusal or Unauthorized("this call needs a key, or the token of the response")


async def holds(journal: Journal, snapshot: Snapshot, position: Position, state: State) -> bool:
    """Whether a position still holds; one in text that a failover lost does not, and the attach rewinds it.

    Raises Malformed for a position that was never given out by this response.
    """
    if position.offset and position.epoch < EPOCH_NONCES:
        raise Malformed(f"not the id of an event of this response: {position}")
    if valid_offset(position, snapshot.starts) < position.offset:
        return False
    if position.offset < snapshot.head:
        await journal.check_boundary(position.offset)
    elif position.offset > snapshot.head and not await state.node.catches_up(journal, position.offset):
        now = await journal.snapshot()
        if valid_offset(position, now.starts) < position.offset:
            return False
        if now.status not in TERMINAL:
            # Perhaps lost with its worker: whoever takes the response over says what is still true.
            raise Unavailable(f"the text up to {position} is not here now", retry_after_s=1)
        raise Malformed(f"beyond the end of this response: {position}")
    return True
