"""The console: a page that shows the relay at work. It holds no data: what it shows it asks for."""

from importlib import resources

from fastapi import APIRouter, Request, Response

from api.state import state_of
from relay.errors import NotFound

router = APIRouter(tags=["console"], include_in_schema=False)

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}
_HEADERS = {
    # Nothing of another origin is loaded or asked, and nothing frames the page.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def _load() -> dict[str, bytes]:
    """Every file of the page, read once: paths cannot lead out of what is here."""
    root = resources.files("api") / "console"
    folders = {"": root, "client/": root / "client"}
    return {
        prefix + file.name: file.read_bytes()
        for prefix, folder in folders.items()
        for file in folder.iterdir()
        if file.name.rpartition(".")[2] in _TYPES
    }


_FILES = _load()


@router.head("/", include_in_schema=False)
@router.get("/")
async def page() -> Response:
    """The page."""
    return _file("index.html")


@router.head("/console/{name:path}", include_in_schema=False)
@router.get("/console/{name:path}")
async def asset(name: str) -> Response:
    """What it is made of."""
    return _file(name)


@router.get("/v1/pressure", include_in_schema=True)
async def pressure(request: Request) -> dict[str, object]:
    """How the deployment does: the level for new work and why, the queue, the workers, and Redis's memory."""
    state = state_of(request)
    state.locks.owner(request)
    watch = state.watch
    return {
        "level": watch.pressure.level,
        "reason": watch.pressure.reason,
        "waiting": sum(queue.waiting for queue in watch.queues.values()),
        "active": sum(queue.pending for queue in watch.queues.values()),
        "workers": await watch.workers(),
        "oldest_seconds": round(watch.queue_wait_s, 3),
        "memory_bytes": watch.memory_bytes,
        "memory_budget_bytes": watch.budget_bytes,
    }


def _file(name: str) -> Response:
    data = _FILES.get(name)
    if data is None:
        raise NotFound(f"no file {name[:64]!r} in the console")
    return Response(data, headers={**_HEADERS, "Content-Type": _TYPES[name.rpartition(".")[2]]})
