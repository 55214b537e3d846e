"""With fast readers nothing is held back: at 80 % of what the machine carries no level above 0 is entered."""

import http.client
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from relay.bench import run
from relay.bench.load import Plan
from relay.bench.report import step_line
from relay.bench.run import Progress, drive
from relay.bench.system import Shape, System, running
from relay.errors import Unavailable

SHARE = 0.8
_STEPS = (200, 400, 600, 800, 1000, 1300, 1600)
_LIMIT_MS = 200.0  # of p99: what counts as carried
_STEP = Plan([], 1, tokens=250, rate=50.0)
_LADDER = "relay_ladder_steps_total"


def capacity(logs: Shape, say: Callable[[str], None], progress: Progress) -> dict[str, Any]:
    """How many responses of 50 tokens a second the machine carries, coarsely; see `relay bench capacity`."""

    def step(responses: int) -> dict[str, Any]:
        return run.measure(logs, replace(_STEP, responses=responses), progress)

    return run.capacity(_STEPS, _LIMIT_MS, step, lambda row: say(f"capacity: {step_line(row)}"))


def no_harm(shape: Shape, responses: int, tokens: int, progress: Progress) -> dict[str, Any]:
    """Load with fast readers alone; how many steps of the ladder there were, and notices of any kind."""
    plan = replace(_STEP, responses=responses, tokens=tokens)
    with running(shape, responses=responses) as system:
        result = drive(replace(plan, urls=system.urls, key=shape.key), progress)
        steps = ladder_steps(system)
    return {
        "responses": responses,
        "steps": steps,
        "notices": result["notices"],
        "latency_ms": result["latency_ms"],
        "delivered": result["delivered"],
        "wrong": run.faults(result),
    }


def ladder_steps(system: System) -> dict[str, int]:
    """Steps of the ladder by their kind, over all workers, from their metrics."""
    found: dict[str, int] = {}
    for url in system.metrics_urls:
        for line in _get(url).splitlines():
            if line.startswith(_LADDER + "{"):
                labels, _, value = line.rpartition(" ")
                kind = labels.partition('"')[2].rpartition('"')[0]
                found[kind] = found.get(kind, 0) + int(float(value))
    return {kind: count for kind, count in found.items() if count}


def _get(url: str) -> str:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=10)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{url}: {error}") from error
    finally:
        connection.close()
