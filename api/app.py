"""The application: routes, errors and limits around a node's parts."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from api import errors
from api.limits import BodyLimit
from api.reference.document import complete
from api.routes import console, docs, events, health, openai, streams
from api.state import State
from api.traced import Traced
from relay import tracing
from relay.errors import RelayError

ROUTERS = (streams.router, events.router, openai.router, health.router, console.router)


def create_app(state: State) -> FastAPI:
    """An ASGI app. Only pure ASGI middleware: others hold a stream's first bytes or cost on every event."""
    app = FastAPI(
        title="relay",
        version="0.1.0",
        description="LLM token streams with backpressure: create a response, read it by SSE, resume.",
        # Every call but health needs a key where there are keys, and FastAPI's own pages ask for none.
        openapi_url=None if state.locks.required else "/openapi.json",
        docs_url=None,  # it has scripts of another host in it; ours is below
        redoc_url=None,
        # A redirect names a scheme and a host: behind a proxy the wrong ones, and the key would follow.
        redirect_slashes=False,
    )
    app.state.relay = state
    for router in ROUTERS:
        app.include_router(router)
    if not state.locks.required:
        app.include_router(docs.router)
    complete(app)
    app.add_exception_handler(RelayError, errors.on_relay_error)
    app.add_exception_handler(RequestValidationError, errors.on_invalid)
    app.add_exception_handler(HTTPException, errors.on_http)
    app.add_exception_handler(405, _on_method)
    app.add_exception_handler(Exception, errors.on_defect)
    app.add_middleware(BodyLimit, largest=state.settings.max_body_bytes)
    if tracing.is_on():
        app.add_middleware(Traced)
    return app


async def _on_method(request: Request, error: Exception) -> JSONResponse:
    """No such method: with all that the path has, of which the framework names one route's."""
    routers = (*ROUTERS, docs.router)
    routes = [route for router in routers for route in router.routes if isinstance(route, Route)]
    there = [route.methods or () for route in routes if route.path_regex.match(request.scope["path"])]
    answer = await errors.on_http(request, error)
    answer.headers["Allow"] = ", ".join(sorted(set().union(*there)))
    return answer
