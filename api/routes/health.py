"""Health, readiness and metrics: no key needed for the first two."""

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse

from api.errors import answer
from api.state import state_of
from relay.errors import Draining, RelayError, Unavailable

router = APIRouter(tags=["operations"])


@router.get("/healthz")
async def health() -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok"}


@router.get("/readyz", response_class=JSONResponse)
async def ready(request: Request) -> JSONResponse:
    """It takes work: 503 while it drains or has no Redis."""
    state = state_of(request)
    if state.node.draining or state.admission.draining:
        return answer(Draining("this node drains"))
    try:
        if not state.topology.is_connected:
            raise Unavailable("no connection to Redis")
        await state.topology.synchronise()
    except RelayError as error:
        return answer(Unavailable(error.message))
    return JSONResponse({"status": "ready"})


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Everything measured, for Prometheus."""
    state = state_of(request)
    state.locks.owner(request)
    return Response(state.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)
