"""A bound on request bodies: pure ASGI, before anything reads them."""

from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import answer
from relay.errors import TooLarge


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
            await self._refuse(scope, receive, send)
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

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = TooLarge(f"the body is over {self._largest} bytes")
        response = answer(error)
        # The rest of the body is not read: the connection cannot be used again.
        response.headers["connection"] = "close"
        await response(scope, receive, send)


class _OverLimitError(Exception):
    pass
