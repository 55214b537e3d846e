"""`relay bench tune`: one setting moved, everything else as it is, and what rises and what falls.

window   a stalled reader and one of 1 KB/s before a flooding upstream: what is read ahead of them
credit   a fast reader of the same upstream: what it gets; stalled ones: what each costs the node
flush    readers that keep up: how late a token is, and what it costs
cap      the same: what a response's log costs Redis

Each point is a fresh system, for memory that one has left behind would hide the next one's growth.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from relay.bench import flood, inflight, isolation, machine, run
from relay.bench.flood import Upstream
from relay.bench.inflight import Stack, Watched
from relay.bench.load import Plan
from relay.bench.run import drive
from relay.bench.system import Shape, System, running
from relay.errors import ServerUnfit
from relay.fitness import parse_info
from relay.settings import MIB
from relay.wire import Wire

_WARM_UP_S = 2.0
_WARM_UP = Plan([], responses=20, tokens=50, rate=50.0, ramp_s=0.2)
_LOAD = Plan([], responses=100, tokens=250, rate=50.0)
_LONG = Plan([], responses=40, tokens=1200, rate=100.0)
# So that flow control, and not the bound of a response, is what ends the flood.
_UNBOUNDED = ("RELAY_MAX_RESPONSE_BYTES", str(256 * MIB))


@dataclass(frozen=True, slots=True)
class Lever:
    """A setting, the values it is measured at (its default among them), and what is looked at."""

    setting: str
    values: tuple[float, ...]
    measure: Callable[["Point"], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Point:
    """One setting of one lever. `seconds`: of each watched reader."""

    setting: str
    value: float
    seconds: float
    logs: Path | None = None

    @property
    def _given(self) -> tuple[str, str]:
        return self.setting, f"{self.value:g}" if self.value % 1 else str(int(self.value))

    @contextmanager
    def flooded(self) -> Iterator[Callable[[str], Watched]]:
        """A function that watches one reader of a kind; each call has a fresh system."""
        with flood.flooding() as upstream:
            yield lambda kind: self._watch(kind, upstream)

    def _watch(self, kind: str, upstream: Upstream) -> Watched:
        settings = (_UNBOUNDED, self._given, ("RELAY_UPSTREAM_BASE_URL", upstream.base_url))
        with running(Shape(logs=self.logs, settings=settings), responses=16) as system:
            stack = Stack("relay", system, upstream)
            inflight.watch(stack, "stalled", _WARM_UP_S, lambda _: None)
            return inflight.watch(stack, kind, self.seconds, lambda _: None)

    @contextmanager
    def system(self, responses: int) -> Iterator[System]:
        """A system with this setting, without an upstream."""
        shape = Shape(logs=self.logs, settings=(_UNBOUNDED, self._given))
        with running(shape, responses=responses) as system:
            yield system


def window(point: Point) -> dict[str, float]:
    """Text read ahead of a slow reader, tokens made for nobody, and what reaches a slow but steady one."""
    with point.flooded() as watch:
        stalled, dripping = watch("stalled"), watch("dripping")
    return {
        "stalled: read ahead, KiB": _kib(stalled.in_flight_bytes),
        "stalled: tokens for nobody": stalled.tokens_for_nobody,
        "1 KB/s: read ahead, KiB": _kib(dripping.in_flight_bytes),
        "redis grown, KiB": stalled.grown_kib["redis"],
    }


def credit(point: Point) -> dict[str, float]:
    """What a fast reader gets of all it can take, and what each stalled one costs its node."""
    with point.flooded() as watch:
        fast = watch("fast")
    with point.system(4 * isolation.READERS) as system:
        found = isolation.memory(system, progress=lambda _: None)
    return {
        "fast: KiB of text a second": round(fast.confirmed_bytes / 1024 / fast.seconds),
        "fast: read ahead, KiB": _kib(fast.in_flight_bytes),
        "node, KiB per stalled reader": found["kib_per_consumer"],
    }


def flush(point: Point) -> dict[str, float]:
    """How late a token is, how many share a frame, and the CPU of all processes for each."""
    result, _ = _load(point, _LOAD)
    return {
        "p50, ms": result["latency_ms"]["p50"],
        "p99, ms": result["latency_ms"]["p99"],
        "tokens per frame": result["tokens_per_frame"],
        "CPU per token, us": round(result["cpu_s_of_ours"] * 1e6 / max(1, result["tokens"]), 1),
    }


def cap(point: Point) -> dict[str, float]:
    """What a response costs Redis, log and journal and groups together."""
    result, grown_bytes = _load(point, _LONG)
    text, responses = result["text_bytes"], result["responses"]
    return {
        "frames per response": round(result["frames"] / responses),
        "redis beside the text, KiB per response": _kib((grown_bytes - text) // responses),
        "p99, ms": result["latency_ms"]["p99"],
    }


def _load(point: Point, plan: Plan) -> tuple[dict[str, Any], int]:
    """A load of readers that keep up, and by how many bytes Redis's data has grown. Raises ServerUnfit."""
    with point.system(plan.responses) as system:
        drive(replace(_WARM_UP, urls=system.urls), lambda _: None)
        before, spent = _used_bytes(system), _cpu_s(system)
        result = drive(replace(plan, urls=system.urls), lambda _: None)
        grown, spent = _used_bytes(system) - before, _cpu_s(system) - spent
    if wrong := run.faults(result):
        raise ServerUnfit(f"{point.setting}={point.value:g}: {'; '.join(wrong)}: run it on a quiet machine")
    return result | {"cpu_s_of_ours": spent}, grown


def _cpu_s(system: System) -> float:
    return sum(machine.usage(pid).cpu_s for _, pid in system.pids)


def _used_bytes(system: System) -> int:
    async def asked() -> int:
        wire = await Wire.connect(system.redis_url)
        try:
            return int(parse_info(await wire.call("INFO", "memory"))["used_memory"])
        finally:
            await wire.close()

    return asyncio.run(asked())


def _kib(size_bytes: int) -> float:
    return round(size_bytes / 1024, 1)


LEVERS = {
    "window": Lever("RELAY_WINDOW_BYTES", (8_192, 32_768, 131_072, 524_288), window),
    "credit": Lever("RELAY_CREDIT_BYTES", (4_096, 16_384, 65_536, 262_144), credit),
    "flush": Lever("RELAY_FLUSH_MS", (0, 5, 15, 50, 150), flush),
    "cap": Lever("RELAY_LOG_ENTRIES", (16, 64, 256, 1024), cap),
}


def curve(
    name: str, seconds: float, logs: Path | None, told: Callable[[float], None]
) -> list[dict[str, float]]:
    """Every point of a lever, its value first. `told` is called with the value of each as it starts."""
    lever = LEVERS[name]
    rows = []
    for value in lever.values:
        told(value)
        rows.append({lever.setting: value} | lever.measure(Point(lever.setting, value, seconds, logs)))
    return rows
