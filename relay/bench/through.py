"""What it costs to go through relay: the same chat completions directly and through it, in turn.

Time to the first token, how late each token is (where the upstream stamps them), and the CPU time of relay's
processes for each token. Rounds alternate, so that what else the machine does falls on both alike.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from relay.bench import machine
from relay.bench.stand_in import STAMP_BYTES
from relay.bench.system import System
from relay.errors import Unavailable

_TIMEOUT_S = 120.0
_PROMPT = "Count, one number a line, and go on."
WAYS = ("direct", "relay")


@dataclass(frozen=True, slots=True)
class Load:
    """Completions at once, their length, and who is asked."""

    responses: int
    tokens: int
    model: str = "stand-in"
    key: str | None = None
    stamped: bool = True  # each token is the time at which it was sent
    ramp_s: float = 1.0


@dataclass(slots=True)
class Seen:
    """What the readers of one way saw, in seconds."""

    first_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    whole_s: list[float] = field(default_factory=list)
    text_bytes: int = 0
    chunks: int = 0
    problems: list[str] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=dict)


async def compare(
    system: System, upstream_url: str, load: Load, rounds: int, told: Callable[[int], None]
) -> dict[str, Any]:
    """Both ways, `rounds` times each; `told` hears how many rounds are over."""
    seen = {way: Seen() for way in WAYS}
    urls = {"direct": upstream_url, "relay": f"{system.urls[0]}/v1"}
    for way in WAYS:  # connections, code paths and caches are warm before anything is counted
        await _round(urls[way], Load(2, 8, load.model, load.key, load.stamped, 0.0), Seen())
    for number in range(2 * rounds):
        way = WAYS[number % 2]
        before = _cpu(system)
        await _round(urls[way], load, seen[way])
        after = _cpu(system)
        for role, spent in after.items():
            seen[way].cpu_s[role] = seen[way].cpu_s.get(role, 0.0) + spent - before[role]
        told(number + 1)
    return {
        "load": {"responses": load.responses, "tokens": load.tokens, "rounds": rounds},
        **{way: _figures(seen[way], load) for way in WAYS},
        "problems": [f"{way}: {problem}" for way in WAYS for problem in seen[way].problems[:20]],
    }


def _cpu(system: System) -> dict[str, float]:
    spent: dict[str, float] = {}
    for role, pid in system.pids:
        spent[role] = spent.get(role, 0.0) + machine.usage(pid).cpu_s
    return spent


async def _round(base_url: str, load: Load, seen: Seen) -> None:
    headers = {"authorization": f"Bearer {load.key}"} if load.key else {}
    limits = httpx.Limits(max_connections=load.responses)
    async with (
        httpx.AsyncClient(headers=headers, timeout=_TIMEOUT_S, limits=limits) as client,
        asyncio.TaskGroup() as readers,
    ):
        for number in range(load.responses):
            wait_s = load.ramp_s * number / load.responses
            readers.create_task(_one(client, base_url, load, seen, wait_s))


async def _one(client: httpx.AsyncClient, base_url: str, load: Load, seen: Seen, wait_s: float) -> None:
    """One completion, read as fast as it comes."""
    await asyncio.sleep(wait_s)
    body = {
        "model": load.model,
        "messages": [{"role": "user", "content": _PROMPT}],
        "max_tokens": load.tokens,
        "stream": True,
    }
    asked = time.perf_counter()
    text_bytes, is_whole, has_begun = 0, False, False
    try:
        async with client.stream("POST", f"{base_url}/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                seen.problems.append(f"status {answer.status_code}: {(await answer.aread())[:200]!r}")
                return
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    is_whole = True
                    continue
                text = _content(line)
                if text and not has_begun:
                    has_begun = True
                    seen.first_s.append(time.perf_counter() - asked)
                if text:
                    text_bytes += len(text)
                    seen.chunks += 1
                    if load.stamped:
                        seen.late_s.extend(_late(text, time.time()))
    except (httpx.HTTPError, Unavailable) as error:
        seen.problems.append(str(error) or type(error).__name__)
        return
    seen.text_bytes += text_bytes
    seen.whole_s.append(time.perf_counter() - asked)
    if not is_whole or (load.stamped and text_bytes != load.tokens * STAMP_BYTES):
        seen.problems.append(f"{text_bytes} bytes of text, and {'a' if is_whole else 'no'} proper end")


def _content(line: str) -> str:
    chunk = orjson.loads(line[len("data: ") :])
    if chunk.get("error"):
        raise Unavailable(str(chunk["error"])[:200])
    choices = chunk.get("choices") or [{}]
    return (choices[0].get("delta") or {}).get("content") or ""


def _late(text: str, now: float) -> list[float]:
    """How late each token in a text is, from the time that it says it was sent at."""
    return [now - float(text[at : at + STAMP_BYTES]) for at in range(0, len(text), STAMP_BYTES)]


def _figures(seen: Seen, load: Load) -> dict[str, Any]:
    tokens = seen.text_bytes / STAMP_BYTES if load.stamped else seen.chunks
    figures: dict[str, Any] = {
        "completions": len(seen.whole_s),
        "tokens": round(tokens),
        "chunks": seen.chunks,
        "first_token_ms": percentiles_ms(seen.first_s),
        "whole_ms": percentiles_ms(seen.whole_s),
        "cpu_us_per_token": {
            role: round(1e6 * spent / max(tokens, 1), 1) for role, spent in seen.cpu_s.items()
        },
    }
    if load.stamped:
        figures["token_late_ms"] = percentiles_ms(seen.late_s)
    return figures


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and the largest, in milliseconds, by nearest rank; {} of nothing."""
    ranked = sorted(seconds)
    if not ranked:
        return {}
    last = len(ranked) - 1
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {name: round(1000 * ranked[round(part * last)], 2) for name, part in at.items()}
