"""The constants of the cost model from a benchmark's JSON, in the place of the committed ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from relay.cost import Constants
from relay.errors import InvalidValue

# The constants are of a system at about the utilisation that is planned for: of the steps of a search, the
# highest at this share of the most that held.
SHARE = 0.7
_KINDS = "relay bench latency, capacity or backpressure --only fast"


def with_bench(constants: Constants, path: Path) -> Constants:
    """The constants that a file tells, the others as they are. Raises InvalidValue when it tells none."""
    try:
        document: dict[str, Any] = orjson.loads(path.read_bytes())
        run = _run(document)
        return replace(constants, **_told(run), sources=(_source(path, document, run), *constants.sources))
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a result with tokens in it"
        raise InvalidValue(f"--bench {path}: {reason}; give the JSON of {_KINDS}", param="--bench") from error


def _run(document: dict[str, Any]) -> dict[str, Any]:
    """The run that counts."""
    kind, result = document["benchmark"], document["result"]
    if kind == "latency":
        return dict(result)
    found = result if kind == "capacity" else result["relay"]["fast"]["capacity"]
    held = [step for step in found["steps"] if step["holds"]]
    most = held[-1]["responses"] * SHARE
    return dict(([step for step in held if step["responses"] <= most] or held[:1])[-1])


def _told(run: dict[str, Any]) -> dict[str, float]:
    cpu, tokens = run["cpu"]["us_per_token"], run["tokens"]
    return {
        "api_us": float(cpu["api"]),
        "worker_us": float(cpu["worker"]),
        "redis_us": float(cpu["redis"]),
        "tokens_per_frame": float(run["tokens_per_frame"]),
        "text_bytes": round(run["text_bytes"] / tokens, 2),
        "egress_bytes": round(run["received_bytes"] / tokens, 2),
    }


def _source(path: Path, document: dict[str, Any], run: dict[str, Any]) -> str:
    machine = document["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, Linux {machine['kernel']}"
    what = f"relay bench {document['benchmark']}, {run['responses']} responses, on {where}"
    return f"CPU, tokens_per_frame, text_bytes, egress_bytes: {path.name}: {what}"
