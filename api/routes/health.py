"""Health, readiness and metrics: no key needed for the first two."""

import asyncio

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse

from api.errors import answer
from api.state import state_of
from relay.errors import Draining, RelayError, Unavailable

REDIS_WITHIN_S = 2.0  # a server that hangs is none; that its connection is lost shows only later

router = APIRouter(tags=["operations"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def health() -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", response_class=JSONResponse)
async def ready(request: Request) -> JSONResponse:
    """It takes work: 503 while it drains or has no Redis."""
    state = state_of(request)
    if state.node.draining or state.admission.draining:
        return answer(Draining("this node drains"))
    try:
        if not state.topology.is_connected:
            raise Unavailable("no connection to Redis")
        async with asyncio.timeout(REDIS_WITHIN_S):
            await state.topology.synchronise()
    except TimeoutError:
        return answer(Unavailable(f"Redis has not answered for {REDIS_WITHIN_S:g} s"))
    except RelayError as error:
        return answer(Unavailable(error.message))
    return JSONResponse({"status": "ready"})


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Everything measured, for Prometheus."""
    state = state_of(request)
    state.locks.owner(request)
    return Response(state.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
