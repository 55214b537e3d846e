"""The openai source: any upstream that streams `POST {base_url}/chat/completions`.

The bytes are `http.py`'s, their meaning is `openai_chunks.py`'s, refusals are `openai_errors.py`'s. Here
they meet: the request, the order of things, and when a stream is over.
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson

from relay.errors import SourceFailed
from relay.models import Model
from relay.requests import StreamRequest
from workers.sources import http
from workers.sources.base import Batch, Finish, Prefix
from workers.sources.openai_chunks import Chunks
from workers.sources.openai_errors import refusal

MAX_CONNECTIONS = 1024  # of one process; a worker's concurrency stays far below
ERROR_BODY_MAX_BYTES = 64 * 1024
ERROR_BODY_TIMEOUT_S = 5.0
# After the finish reason only the usage and [DONE] can come: not worth the idle timeout.
TAIL_TIMEOUT_S = 5.0


class OpenAIGeneration:
    """One running stream. Implements `base.Generation`."""

    def __init__(self, exchange: http.Exchange, model: Model, prefix_tokens: int = 0) -> None:
        self._exchange = exchange
        self._model = model
        self._prefix_tokens = prefix_tokens
        self._chunks = Chunks(secret=model.key)
        self._failure: SourceFailed | None = None
        self._began = False

    async def read(self) -> Batch:
        """All complete events of the next socket read that has any.

        Raises SourceFailed: upstream_timeout, upstream_cut, upstream_malformed, and the codes of
        `openai_errors` for an error in the stream. Text that came before it is returned first.
        """
        while True:
            if self._failure is not None:
                raise self._failure
            batch = await self._read_once()
            if batch.records or batch.finish is not None:
                self._began = True
                return batch

    def skip(self, seconds: float) -> None:
        """There is no schedule: time without a read is not counted as the upstream's silence."""

    async def _read_once(self) -> Batch:
        chunks = self._chunks
        over = False
        try:
            body = await self._exchange.read(self._patience_s())
            over = not body
            # A last event without its empty line is whole if its line is: [DONE] often comes so.
            chunks.feed(body or b"\n\n")
        except SourceFailed as failure:
            self._failure = http.cut("the upstream's last event was cut") if over else failure
        ended = over or chunks.done or self._failure is not None
        if ended:
            chunks.end()
        records, tokens = chunks.take()
        batch = Batch(records, tokens)
        if ended and (chunks.finish_reason or chunks.done):
            # The text is whole; what broke after it is not worth failing it for.
            usage = _whole(chunks.usage, self._prefix_tokens)
            batch.finish = Finish(chunks.finish_reason or "stop", usage)
        elif over and self._failure is None:
            self._failure = http.cut("the upstream ended the stream without a finish")
        return batch

    def _patience_s(self) -> float:
        if not self._began:
            return self._model.first_token_timeout_s
        if self._chunks.finish_reason:
            return min(TAIL_TIMEOUT_S, self._model.idle_timeout_s)
        return self._model.idle_timeout_s


class _NothingLeft:
    """A generation whose tokens were all spent before its worker was lost. Implements `base.Generation`."""

    async def read(self) -> Batch:
        """The end, and nothing before it."""
        return Batch(finish=Finish("length"))

    def skip(self, seconds: float) -> None:
        """There is no schedule."""


class OpenAISource:
    """Streams from OpenAI-compatible upstreams. Implements `base.Source`; one serves a whole process.

    Every generation has a connection of its own, at most `max_connections` together; beyond that `open`
    refuses with upstream_unreachable, to be tried again. `aclose` drops all that are open.
    """

    def __init__(self, *, max_connections: int = MAX_CONNECTIONS, tls: ssl.SSLContext | None = None) -> None:
        self._max_connections = max_connections
        self._tls = tls
        self._open: set[http.Exchange] = set()

    def can_continue(self, prefix: Prefix, model: Model) -> bool:
        """Afresh while nothing was delivered; after content only where `model.continues`.

        Never after a tool call or reasoning: an upstream does not take them back half written, and begun
        afresh they would be said twice.
        """
        if prefix.is_empty:
            return True
        return bool(prefix.content) and model.continues and not (prefix.tool_calls or prefix.reasoning)

    @asynccontextmanager
    async def open(
        self, request: StreamRequest, model: Model, *, started_at: float, prefix: Prefix | None = None
    ) -> AsyncIterator[OpenAIGeneration | _NothingLeft]:
        """Send the request and wait until the upstream accepts it; leaving closes its connection at once.

        After a prefix it asks for the tokens that are left of the limit, and for none when that is spent.
        Raises SourceFailed: source_cannot_continue, upstream_unreachable, upstream_timeout, and the
        codes of `openai_errors`.
        """
        del started_at  # an upstream has no schedule
        if prefix is not None and not self.can_continue(prefix, model):
            raise SourceFailed(
                "source_cannot_continue", f"{model.name} cannot go on after delivered text", retryable=False
            )
        spent = prefix.tokens if prefix is not None and prefix.content else 0
        limit = _token_limit(request, model)
        if spent and limit is not None and spent >= limit:
            yield _NothingLeft()
            return
        exchange = await self._post(model, _payload(request, model, prefix))
        self._open.add(exchange)
        try:
            await _accepted(exchange, model)
            yield OpenAIGeneration(exchange, model, spent)
        finally:
            self._open.discard(exchange)
            exchange.close()

    async def aclose(self) -> None:
        """Drop every connection: their generations fail with upstream_cut."""
        for exchange in tuple(self._open):
            exchange.close()

    async def _post(self, model: Model, payload: dict[str, Any]) -> http.Exchange:
        if len(self._open) >= self._max_connections:
            raise http.unreachable(f"this worker has {self._max_connections} upstream connections open")
        parts = urlsplit(model.base_url or "")
        secure = parts.scheme == "https"
        if secure and self._tls is None:
            # Once: reading the certificates takes tens of milliseconds. Honours SSL_CERT_FILE.
            self._tls = httpx.create_ssl_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        body = orjson.dumps(payload)
        lines = [
            f"POST {parts.path.rstrip('/')}/chat/completions HTTP/1.1",
            f"Host: {parts.netloc}",
            "User-Agent: relay",
            "Accept: text/event-stream",
            "Accept-Encoding: identity",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            *_authorization(model),
        ]
        return await http.post(
            parts.hostname or "",
            parts.port or (443 if secure else 80),
            "\r\n".join([*lines, "", ""]).encode("ascii"),
            body,
            timeout_s=model.connect_timeout_s,
            tls=self._tls if secure else None,
        )


def _authorization(model: Model) -> list[str]:
    """The header line, if there is a key. Raises SourceFailed (upstream_auth) for an unusable one."""
    key = (model.key or "").strip()
    if not key:
        if model.api_key_env:
            raise SourceFailed("upstream_auth", f"{model.api_key_env} is not set", retryable=False)
        return []
    if not key.isascii() or not key.isprintable() or " " in key:
        raise SourceFailed("upstream_auth", f"the key of {model.name} is not a header value", retryable=False)
    return [f"Authorization: Bearer {key}"]


def _token_limit(request: StreamRequest, model: Model) -> int | None:
    limits = [limit for limit in (request.token_limit, model.max_tokens) if limit is not None]
    return min(limits, default=None)


def _whole(usage: dict[str, Any] | None, prefix_tokens: int) -> dict[str, Any] | None:
    """The usage of the whole answer: to an upstream that continues, what was delivered is prompt."""
    if usage is None or not prefix_tokens:
        return usage
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if type(prompt) is not int or type(completion) is not int:
        return usage
    moved = min(prefix_tokens, prompt)
    return {**usage, "prompt_tokens": prompt - moved, "completion_tokens": completion + moved}


def _payload(request: StreamRequest, model: Model, prefix: Prefix | None) -> dict[str, Any]:
    """The request's body."""
    payload: dict[str, Any] = {
        **request.sampling(),
        "model": model.upstream_model or model.name,
        "messages": request.chat_messages,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    limit = _token_limit(request, model)
    # The newer name only for who uses it: not every upstream knows it, and some know no other.
    name = "max_tokens" if request.max_completion_tokens is None else "max_completion_tokens"
    if limit is not None:
        payload[name] = limit
    if prefix is not None and prefix.content:
        if limit is not None:
            payload[name] = limit - prefix.tokens
        payload["messages"] = [*request.chat_messages, {"role": "assistant", "content": prefix.content}]
        payload |= {"continue_final_message": True, "add_generation_prompt": False}
    return payload


async def _accepted(exchange: http.Exchange, model: Model) -> None:
    """Wait for the head. Raises SourceFailed unless it begins an event stream."""
    await exchange.head(model.first_token_timeout_s)
    kind = exchange.headers.get("content-type", "text/event-stream").partition(";")[0].strip().lower()
    if exchange.headers.get("content-encoding", "identity").lower() != "identity":
        raise http.malformed("the upstream compresses the stream, which was not asked for")
    if exchange.status == 200 and kind == "text/event-stream":
        return
    body = b""
    try:
        while len(body) < ERROR_BODY_MAX_BYTES and (piece := await exchange.read(ERROR_BODY_TIMEOUT_S)):
            body += piece
    except SourceFailed:
        pass  # what there is of the body must do
    if exchange.status == 200:
        raise http.malformed(f"the upstream answers {kind[:100]!r}, not an event stream")
    raise refusal(exchange.status, exchange.headers, body, secret=model.key)
