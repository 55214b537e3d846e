"""The server span of each request, where tracing is on. Pure ASGI, once a request: never once an event."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from relay import tracing

_UNTOLD = frozenset(("/healthz", "/readyz", "/metrics"))  # asked for each second, and of no news


class Traced:
    """Takes up a caller's `traceparent`; the span is named by the route, for ids belong in attributes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it in its span."""
        if scope["type"] != "http" or scope["path"] in _UNTOLD:
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        parent = headers.get(tracing.TRACEPARENT.encode(), b"").decode("latin-1")
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with tracing.span(scope["method"], parent=parent, kind="server") as span:
            await self.app(scope, receive, answer)
            if span is None:
                return
            route = getattr(scope.get("route"), "path", "")
            span.update_name(f"{scope['method']} {route}".rstrip())
            span.set_attributes(
                {
                    "http.request.method": scope["method"],
                    "http.route": route,
                    "http.response.status_code": status,
                }
            )
            if response_id := scope.get("path_params", {}).get("response_id"):
                span.set_attribute("relay.response", response_id)
