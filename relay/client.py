"""The Python client: create a response, and read it to its end across cuts, deploys and failovers.

    async with Client("http://127.0.0.1:8000") as client:
        created = await client.create(model="simulated", prompt="hello")
        async with client.stream(created.id, token=created.token) as events:
            async for event in events:
                if isinstance(event, Delta):
                    print(event.text, end="")

A stream resumes by itself from the last position it saw. What it yields is exact: positions only grow,
except after a `Rewind`, and the content's SHA-256 is compared with the one in `done`. The socket is read
only when the caller asks for the next event, so that a slow caller is a slow reader to the relay too.
"""

from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import httpx

from relay.client_events import (
    Delta,
    DigestMismatch,
    Disconnected,
    Done,
    Event,
    Failed,
    Notice,
    OutOfOrder,
    Reconnect,
    Rewind,
    Start,
    refusal,
)
from relay.client_stream import Stream
from relay.errors import InvalidValue, WireProtocol
from relay.position import START, Position

__all__ = [
    "Client", "Created", "Delta", "DigestMismatch", "Disconnected", "Done", "Event", "Failed", "Notice",
    "OutOfOrder", "Reconnect", "Rewind", "Start", "Stream",
]  # fmt: skip


class Created(NamedTuple):
    """The answer to a create. `token` is short-lived and opens this response alone."""

    id: str
    status: str
    model: str
    created_at: float
    events_url: str
    text_url: str
    token: str | None


class Client:
    """Speaks to one relay address. An async context manager; safe for many streams at once.

    Args:
        url: where the relay is, such as `http://127.0.0.1:8000`.
        api_key: sent as a bearer token, when given.
        retries: attempts in a row without a single event before a stream gives up.
        backoff_s: the first pause between two attempts; doubled each time, with jitter, at most 30 s.
        silence_s: a connection without a byte for this long is given up; keep-alives come every 15 s.
        max_streams: connections at once; a further stream waits, at most 10 s, for a free one.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        retries: int = 10,
        backoff_s: float = 0.25,
        silence_s: float = 45.0,
        max_streams: int = 1000,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise InvalidValue(
                f"not a relay's address: {url[:100]!r}; expected http://HOST:PORT", param="url"
            )
        headers = {b"Accept-Encoding": b"identity"}
        if api_key:
            headers[b"Authorization"] = f"Bearer {api_key}".encode()
        self.retries = retries
        self.backoff_s = backoff_s
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/"),
            headers=headers,
            timeout=httpx.Timeout(silence_s, connect=5.0, write=10.0, pool=10.0),
            limits=httpx.Limits(max_connections=max_streams, max_keepalive_connections=20),
            trust_env=False,  # a proxy of the environment would buffer what must not be buffered
            follow_redirects=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection."""
        await self._http.aclose()

    async def create(self, *, idempotency_key: str | None = None, **body: Any) -> Created:
        """`POST /v1/streams` with `body`. Not retried; with an `idempotency_key` you may repeat it.

        Raises the RelayError that the server names, or Unavailable when there is no answer.
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        answer = _json(await self._call("POST", "/v1/streams", json=body, headers=headers))
        return Created._make(answer.get(name) for name in Created._fields)

    async def status(self, response_id: str) -> dict[str, Any]:
        """The state of a response and its consumers, as `GET /v1/streams/{id}` gives it."""
        return _json(await self._call("GET", _path(response_id)))

    async def recent(self) -> list[dict[str, Any]]:
        """The caller's recent responses, as `GET /v1/streams` gives them."""
        found: list[dict[str, Any]] = _json(await self._call("GET", "/v1/streams")).get("data", [])
        return found

    async def pressure(self) -> dict[str, Any]:
        """How the deployment does, as `GET /v1/pressure` gives it: level, queue, workers, Redis's memory."""
        return _json(await self._call("GET", "/v1/pressure"))

    async def cancel(self, response_id: str) -> None:
        """Stop the generation. Idempotent."""
        await self._call("DELETE", _path(response_id))

    async def text(self, response_id: str) -> str:
        """The content so far."""
        return (await self._call("GET", _path(response_id, "text"))).text

    async def ack(
        self, response_id: str, consumer: str, position: Position | int, token: str | None = None
    ) -> None:
        """Confirm everything up to `position` for a consumer with explicit acks. Idempotent."""
        offset = position.offset if isinstance(position, Position) else position
        path = _path(response_id, "consumers", consumer, "ack")
        await self._call("POST", path, json={"position": offset}, params={"token": token} if token else {})

    def stream(
        self,
        response_id: str,
        after: Position | str | None = None,
        consumer: str | None = None,
        window: int | None = None,
        token: str | None = None,
    ) -> Stream:
        """The events of a response after a position, its beginning by default.

        With `window` the relay counts what is confirmed explicitly: an event is confirmed when the next
        one is asked for. `consumer` names this reader across connections; else the relay makes a name.
        """
        start = Position.parse(after) if isinstance(after, str) else after or START
        params: dict[str, str] = {"consumer": consumer} if consumer else {}
        if window:
            params["window"] = str(window)
        if token:
            params["token"] = token
        return Stream(self, response_id, _path(response_id, "events"), start, params)

    async def _call(self, method: str, path: str, **given: Any) -> httpx.Response:
        try:
            answer = await self._http.request(method, path, **given)
        except httpx.TransportError as error:
            raise Disconnected(
                f"no answer from {self._http.base_url}: {error or type(error).__name__}"
            ) from error
        if not answer.is_success:
            raise refusal(answer.status_code, answer.content, answer.headers.get("retry-after"))
        return answer

    async def connect(self, path: str, params: dict[str, str], last_id: str | None) -> httpx.Response:
        """Open one event stream, its body unread: what `Stream` does for each of its connections.

        Raises RelayError for a refusal and httpx.TransportError for no answer.
        """
        headers = {"Accept": "text/event-stream"}
        if last_id:
            headers["Last-Event-ID"] = last_id
        request = self._http.build_request("GET", path, params=params, headers=headers)
        answer = await self._http.send(request, stream=True)
        if answer.is_success:
            return answer
        try:
            raise refusal(answer.status_code, await answer.aread(), answer.headers.get("retry-after"))
        finally:
            await answer.aclose()


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError as error:
        raise WireProtocol(f"{answer.url}: not JSON; is this a relay?") from error
    if not isinstance(found, dict):
        raise WireProtocol(f"{answer.url}: not an object; is this a relay?")
    return found


def _path(response_id: str, *more: str) -> str:
    return "/".join(["/v1/streams", *(quote(part, safe="") for part in (response_id, *more))])
