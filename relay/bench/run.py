"""One measured run of the load client against a system, and what is made of several."""

import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import orjson

from relay.bench import machine
from relay.bench.load import Plan
from relay.bench.system import Shape, System, running
from relay.errors import RelayError, ServerUnfit

Progress = Callable[[dict[str, Any]], None]

LEAST_DELIVERED = 0.98
_ENDINGS_THAT_COUNT = frozenset(("stop", "length"))
# What is imported, compiled or connected on first use is paid once in a process's life, not by each response.
_WARM_UP = Plan([], responses=10, tokens=25, rate=50.0, ramp_s=0.2)
DISTURBING_CORES = 0.2
_LATE_S = 30.0  # past its own limit the load client hangs, and is ended


def measure(shape: Shape, plan: Plan, progress: Progress) -> dict[str, Any]:
    """Start the system, carry the plan out, stop the system; the load's result with CPU time beside it.

    The plan's `urls` and `key` come from the shape. CPU time is counted from just before the first request
    to just after the last response, of each process that we started. Raises ServerUnfit when one of them
    did not start or did not live to the end.
    """
    with running(shape, responses=plan.responses, viewers=plan.viewers) as system:
        drive(replace(_WARM_UP, urls=system.urls, key=shape.key), lambda _: None)
        before, others = _usages(system), _Others()
        result = drive(replace(plan, urls=system.urls, key=shape.key), progress)
        after, others_s = _usages(system), others.spent_s()
    roles: dict[str, float] = {}
    for process, spent in after.items():
        roles[process[0]] = roles.get(process[0], 0.0) + spent.cpu_s - before[process].cpu_s
    others_s -= sum(roles.values())  # the load client is not in it: it has been reaped
    roles["load"] = result["cpu_s"]
    return result | {
        "nodes": len(system.urls),
        "workers": shape.workers if not shape.urls else None,
        "server": system.server,
        "settings": system.settings,
        "cpu": {
            "seconds": {role: round(spent, 3) for role, spent in roles.items()},
            "us_per_token": _per_token(roles, result["tokens"]),
            "cores_busy": round(sum(roles.values()) / result["wall_s"], 2),
            # Other programs, and what the kernel charges to nobody: much of it spoils a run.
            "others_s": round(max(0.0, others_s), 2),
        },
        "rss_mib": {f"{role}-{pid}": spent.rss_mib for (role, pid), spent in after.items()},
    }


def drive(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Run the load client in a process of its own. Raises ServerUnfit when it fails."""
    command = [sys.executable, "-m", "relay.bench.load"]
    result: dict[str, Any] | None = None
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as load:
        watchdog = threading.Timer(plan.limit_s + _LATE_S, load.kill)
        watchdog.start()
        try:
            if load.stdin is None or load.stdout is None:
                raise ServerUnfit("the load client has no pipes")
            with load.stdin as pipe:
                pipe.write(orjson.dumps(plan))
            for line in load.stdout:
                message = orjson.loads(line)
                if "progress" in message:
                    progress(message["progress"])
                result = message.get("result", result)
        finally:
            watchdog.cancel()
            load.kill()  # at its end already, or not wanted any more
    if result is None:
        raise ServerUnfit(f"the load client ended with {load.returncode} and no result")
    return result


def repeat(times: int, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run several times; the run with the median p99 (the worse of two), and every p99 in order."""
    results = [run() for _ in range(times)]
    ranked = sorted(results, key=lambda result: float(result["latency_ms"]["p99"]))
    return ranked[times // 2] | {"p99_ms_of_runs": [result["latency_ms"]["p99"] for result in results]}


def faults(result: dict[str, Any]) -> list[str]:
    """What makes a run's figures worthless, whatever they are: text that was wrong, or did not come."""
    found = []
    if result["digests"]["bad"]:
        found.append(f"{result['digests']['bad']} wrong digests")
    found += [
        f"{count} responses ended with {outcome}"
        for outcome, count in result["outcomes"].items()
        if outcome not in _ENDINGS_THAT_COUNT
    ]
    if result["delivered"] < LEAST_DELIVERED:
        found.append(f"only {result['delivered']:.1%} of the tokens were delivered")
    return found


def disturbance(result: dict[str, Any]) -> str | None:
    """A warning when other programs took a share of the machine that must have shown in the figures."""
    cores = result["cpu"]["others_s"] / result["wall_s"]
    if cores < DISTURBING_CORES:
        return None
    return f"disturbed: other programs used {cores:.1f} cores meanwhile; run it again on a quiet machine"


def capacity(
    steps: Iterable[int], limit_ms: float, run: Callable[[int], dict[str, Any]], show: Progress
) -> dict[str, Any]:
    """Run with more and more responses until one step does not hold; the highest that does.

    A step holds when nothing is wrong with it (`faults`), its p99 is within `limit_ms`, and so many really
    ran at once: a system that is slow to start them never carries them. One that dies has not held it.
    """
    rows: list[dict[str, Any]] = []
    highest = 0
    for responses in steps:
        row: dict[str, Any] = {"responses": responses}
        try:
            row |= run(responses)
            row["why"] = faults(row)
            p99, peak = row["latency_ms"]["p99"], row["peak_streaming"]
            if p99 > limit_ms:
                row["why"].append(f"p99 {p99:.0f} ms is over {limit_ms:.0f} ms")
            if peak < LEAST_DELIVERED * responses:
                row["why"].append(f"only {peak} ran at once")
        except RelayError as error:
            row["why"] = [error.message]
        row["holds"] = not row["why"]
        rows.append(row)
        show(row)
        if not row["holds"]:
            break
        highest = responses
    return {"limit_ms": limit_ms, "least_delivered": LEAST_DELIVERED, "highest": highest, "steps": rows}


def _usages(system: System) -> dict[tuple[str, int], machine.Usage]:
    return {(role, pid): machine.usage(pid) for role, pid in system.pids}


def _per_token(roles: dict[str, float], tokens: int) -> dict[str, float]:
    spent_s = roles | {"total": sum(roles.values())}
    return {role: round(spent * 1e6 / tokens, 2) if tokens else 0.0 for role, spent in spent_s.items()}


class _Others:
    """CPU seconds of the whole machine, less this process's and those of the children it has reaped."""

    def __init__(self) -> None:
        self._before = self._now_s()

    def spent_s(self) -> float:
        return self._now_s() - self._before

    @staticmethod
    def _now_s() -> float:
        reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
        return machine.busy_s() - time.process_time() - reaped.ru_utime - reaped.ru_stime
