"""The application: routes, errors and limits around a node's parts."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from api import errors
from api.limits import BodyLimit
from api.reference.document import complete
from api.routes import console, events, health, openai, streams
from api.state import State
from api.traced import Traced
from relay import tracing
from relay.errors import RelayError


def create_app(state: State) -> FastAPI:
    """An ASGI app. Only pure ASGI middleware: others hold a stream's first bytes or cost on every event."""
    app = FastAPI(
        title="relay",
        version="0.1.0",
        description="LLM token streams with backpressure: create a response, read it by SSE, resume.",
        # Every call but health needs a key where there are keys, and FastAPI's own pages ask for none.
        openapi_url=None if state.locks.required else "/openapi.json",
        redoc_url=None,
    )
    app.state.relay = state
    app.include_router(streams.router)
    app.include_router(events.router)
    app.include_router(openai.router)
    app.include_router(health.router)
    app.include_router(console.router)
    complete(app)
    app.add_exception_handler(RelayError, errors.on_relay_error)
    app.add_exception_handler(RequestValidationError, errors.on_invalid)
    app.add_exception_handler(HTTPException, errors.on_http)
    app.add_exception_handler(Exception, errors.on_defect)
    app.add_middleware(BodyLimit, largest=state.settings.max_body_bytes)
    if tracing.is_on():
        app.add_middleware(Traced)
    return app
