"""What a figure was measured on, and what each process spent on it, from Linux's /proc (proc(5))."""

import os
import platform
import sys
from pathlib import Path
from typing import Any, NamedTuple

from relay.errors import ServerUnfit
from relay.fitness import judge, parse_info
from relay.wire import Wire

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_NEEDS_LINUX = "the benchmarks read CPU time from /proc and need Linux"


class Usage(NamedTuple):
    """CPU seconds of a process since it began (user and system, all threads), and its largest RSS."""

    cpu_s: float
    rss_mib: float


def usage(pid: int) -> Usage:
    """Of one process, to the 10 ms of a clock tick. Raises ServerUnfit when it is gone."""
    try:
        # The name in parentheses may hold anything; the fields that count stand behind the last one.
        stat = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        status = (_PROC / str(pid) / "status").read_text()
    except OSError as error:
        raise ServerUnfit(f"process {pid} ended while it was measured") from error
    peak = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")), "0")
    return Usage((int(stat[11]) + int(stat[12])) / _TICKS, round(int(peak) / 1024, 1))


def rss_kib(pid: int) -> int:
    """The resident memory of a process, now. Raises ServerUnfit when it is gone."""
    try:
        status = (_PROC / str(pid) / "status").read_text()
    except OSError as error:
        raise ServerUnfit(f"process {pid} ended while it was measured") from error
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")), 0)


def busy_s() -> float:
    """CPU seconds that all cores have spent on anything but waiting, since the machine started."""
    try:
        user, nice, system, _idle, _iowait, irq, softirq, steal = (
            int(field) for field in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:9]
        )
    except (OSError, ValueError) as error:
        raise ServerUnfit(_NEEDS_LINUX) from error
    return (user + nice + system + irq + softirq + steal) / _TICKS


def describe() -> dict[str, Any]:
    """Cores, processor, kernel, Python, and how busy the machine was before the run."""
    if not sys.platform.startswith("linux"):
        raise ServerUnfit(_NEEDS_LINUX)
    models = [
        line.partition(":")[2].strip()
        for line in (_PROC / "cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": models[0] if models else platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
    }


async def server(wire: Wire) -> str:
    """Name and version of the server, as `relay doctor` says them."""
    return judge(parse_info(await wire.call("INFO", "server")), {})[0].what
