"""What a soak looks at: the figures of a process and of Redis, and whether one of them grows."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from redis import Redis

from tests.chaos.connection import call
from tests.chaos.stage import Role, Stage
from tests.support.system import Process

# How far the line may rise from end to end: of the median, or this much, whichever is more.
GROWTH = 0.05
LEAST = {"memory": 2 * 1024 * 1024, "redis": 256 * 1024, "count": 8.0}


class Curve(NamedTuple):
    """What became of one figure: its median, and how much the line through it rises from end to end."""

    name: str
    kind: str
    median: float
    rise: float
    is_flat: bool


def judge(name: str, kind: str, samples: Sequence[tuple[float, float]]) -> Curve:
    """Fit a line by Theil and Sen: the median of the slopes, which a few spikes do not move."""
    thinned = samples[:: max(1, len(samples) // 200)]
    slopes = sorted(
        (later - value) / (at - before)
        for index, (before, value) in enumerate(thinned)
        for at, later in thinned[index + 1 :]
    )
    values = sorted(value for _, value in samples)
    median = values[len(values) // 2]
    slope = slopes[len(slopes) // 2] if slopes else 0.0
    rise = slope * (samples[-1][0] - samples[0][0])
    return Curve(name, kind, median, rise, rise <= max(LEAST[kind], GROWTH * median))


def of_process(name: str, process: Process) -> dict[tuple[str, str], float]:
    """From /proc: resident memory, descriptors, threads."""
    folder = Path(f"/proc/{process.pid}")
    fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
    return {
        (f"{name} memory", "memory"): float(fields["VmRSS"].split()[0]) * 1024,
        (f"{name} descriptors", "count"): float(len(list((folder / "fd").iterdir()))),
        (f"{name} threads", "count"): float(fields["Threads"]),
    }


async def of_metrics(role: Role, play: Stage) -> dict[tuple[str, str], float]:
    """Tasks, and who is served: from /metrics."""
    process = play.process(role)
    port = getattr(process, "metrics_port", None) or getattr(process, "port", 0)
    text = (await call(port, "GET", "/metrics")).body.decode()
    wanted = {
        "relay_asyncio_tasks": "tasks",
        "relay_consumers": "consumers",
        "relay_worker_responses": "responses",
    }
    found: dict[tuple[str, str], float] = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        short = wanted.get(name.partition("{")[0])
        if short is not None:
            key = (f"{role.name} {short}", "count")
            found[key] = found.get(key, 0.0) + float(value)
    return found


def of_redis(url: str) -> dict[tuple[str, str], float]:
    """Memory, keys, and the groups and consumers of all logs."""
    with Redis.from_url(url) as redis:
        groups = consumers = 0
        for key in redis.scan_iter(match="relay:{*}:log", count=500, _type="stream"):
            with suppress(Exception):
                for group in redis.xinfo_groups(key):
                    groups += 1
                    consumers += group["consumers"]
        return {
            ("redis memory", "redis"): float(redis.info("memory")["used_memory"]),
            ("redis keys", "count"): float(redis.dbsize()),
            ("redis groups", "count"): float(groups),
            ("redis consumers", "count"): float(consumers),
            ("redis connections", "count"): float(redis.info("clients")["connected_clients"]),
        }
