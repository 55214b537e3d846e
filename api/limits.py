"""A bound on request bodies: pure ASGI, before anything reads them."""

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import answer
from relay.errors import TooLarge

# The rest of a body that is too large is read and dropped, within these bounds: a client that sends all of
# it before it reads would else find its connection reset, and never see why (RFC 9112 section 9.6).
DROP_BYTES, DROP_WITHIN_S, DROP_IDLE_S = 64 * 1024 * 1024, 10.0, 1.0


class BodyLimit:
    """Answers 413 to a body over `largest` bytes, told by Content-Length or counted as it comes."""

    def __init__(self, app: ASGIApp, largest: int) -> None:
        self._app = app
        self._largest = largest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, with a `receive` that counts."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._largest:
            is_coming = dict(scope["headers"]).get(b"expect", b"").lower() != b"100-continue"
            await self._refuse(scope, receive, send, is_coming=is_coming)
            return
        size, started = 0, False

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._largest:
                raise _OverLimitError
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            if size > self._largest and not started:
                return  # what the application makes of a body that breaks off: the answer is ours
            started = True
            await send(message)

        with suppress(_OverLimitError):
            await self._app(scope, counted, noted)
        if size > self._largest and not started:
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, *, is_coming: bool = True) -> None:
        response = answer(TooLarge(f"the body is over {self._largest} bytes"))
        response.headers["connection"] = "close"  # it cannot be used again

        async def unended(message: Message) -> None:
            # The answer is out at once; its end closes the connection.
            await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

        await response(scope, receive, unended)
        if is_coming:
            with suppress(TimeoutError):
                async with asyncio.timeout(DROP_WITHIN_S):
                    await _drop(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drop(receive: Receive) -> None:
    size = 0
    while size <= DROP_BYTES:
        async with asyncio.timeout(DROP_IDLE_S):
            message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body", False):  # also of a disconnect
            return


class _OverLimitError(Exception):
    pass
