"""What slow readers cost the fast ones beside them, in lateness, and their node, in memory."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from relay.bench import machine
from relay.bench.crowd import crowd
from relay.bench.load import Plan
from relay.bench.readers import Kind
from relay.bench.run import Progress, drive, faults
from relay.bench.system import System
from relay.errors import ServerUnfit

READERS = 100  # of each kind: stalled, dripping, fast
_SLOW = {Kind.STALLED: READERS, Kind.DRIPPING: READERS}
_RATE = 50.0
# So that the crowd's buffers are full, and the ladder has come to rest, before anything is measured.
_SETTLE_S = 8.0
_APART_S = 1.0
_MEMORY_S = 6.0
_SAMPLE_EVERY_S = 0.25
_WARM_UP = Plan([], responses=20, tokens=50, rate=_RATE, ramp_s=0.2)


def isolation(
    system: System,
    *,
    rounds: int,
    tokens: int,
    slow_rate: float,
    say: Callable[[str], None],
    progress: Progress,
) -> dict[str, Any]:
    """Fast readers beside slow ones and alone, in turn: what the machine does meanwhile hits both alike.

    The fast ones' sources give 50 tokens a second, and latency is that of each token against its schedule.
    The slow ones' give `slow_rate`, or at 0 as fast as they are let: at 50 a second, 1 KB/s is not slow.
    """
    plan = Plan(system.urls[:1], READERS, tokens, _RATE)
    drive(replace(_WARM_UP, urls=plan.urls), lambda _: None)
    together, alone = [], []
    endings: dict[str, int] = {}
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}: {READERS} stalled, {READERS} dripping, {READERS} fast")
        with crowd(plan.urls[0], _SLOW, tokens_per_s=slow_rate) as slow:
            time.sleep(_SETTLE_S)
            together.append(_measured(system, plan, progress))
            endings = slow.endings
        time.sleep(_APART_S)
        say(f"round {number + 1} of {rounds}: {READERS} fast alone")
        alone.append(_measured(system, plan, progress))
    p99 = {
        "together": [run["latency_ms"]["p99"] for run in together],
        "alone": [run["latency_ms"]["p99"] for run in alone],
    }
    medians = {name: statistics.median(values) for name, values in p99.items()}
    return {
        "p99_ms": p99,
        "together_ms": medians["together"],
        "alone_ms": medians["alone"],
        "ratio": round(medians["together"] / medians["alone"], 2) if medians["alone"] else 0.0,
        "cores": {"together": together[-1]["cores"], "alone": alone[-1]["cores"]},
        "slow_endings": endings,
        "wrong": sorted({reason for run in together + alone for reason in faults(run)}),
        "delivered": min(run["delivered"] for run in together + alone),
    }


def _measured(system: System, plan: Plan, progress: Progress) -> dict[str, Any]:
    """A load's result, and beside it how many cores each role used meanwhile; `others`: what is not ours."""
    spent, busy, own = _cpu_s(system), machine.busy_s(), time.process_time()
    result = drive(plan, progress)
    roles = {role: cpu_s - spent[role] for role, cpu_s in _cpu_s(system).items()}
    roles |= {"load": result["cpu_s"], "readers": time.process_time() - own}
    roles["others"] = max(0.0, machine.busy_s() - busy - sum(roles.values()))
    return result | {"cores": {role: round(cpu_s / result["wall_s"], 2) for role, cpu_s in roles.items()}}


def _cpu_s(system: System) -> dict[str, float]:
    """By role."""
    found: dict[str, float] = {}
    for role, pid in system.pids:
        found[role] = found.get(role, 0.0) + machine.usage(pid).cpu_s
    return found


def memory(system: System, *, progress: Callable[[float], None]) -> dict[str, Any]:
    """Resident memory that a stalled consumer costs the node, in KiB; its source gives what it is let.

    A few that stalled before and are gone have paid for what any process allocates once.
    """
    url, pids = system.urls[0], system.pids_of("api")
    with crowd(url, {Kind.STALLED: READERS // 10}, tokens_per_s=0):
        time.sleep(_APART_S)
    before = sum(map(machine.rss_kib, pids))
    most = 0
    with crowd(url, {Kind.STALLED: READERS}, tokens_per_s=0) as slow:
        began = time.monotonic()
        while (gone_s := time.monotonic() - began) < _MEMORY_S:
            time.sleep(_SAMPLE_EVERY_S)
            most = max(most, sum(map(machine.rss_kib, pids)) - before)
            progress(gone_s)
        if len(slow.outcomes) != READERS or slow.endings.get("open") != READERS:
            raise ServerUnfit(f"stalled readers did not stay: {slow.endings}")
    return {"consumers": READERS, "kib_per_consumer": round(most / READERS, 1), "grown_kib": most}
