"""`make soak`: a steady load with readers of every speed, and nothing may grow.

    python -m tests.chaos.soak --minutes 60

New responses arrive at a fixed rate; 70 % of the readers are fast, 20 % slow, 8 % stall for good, 2 %
vanish without a word. Every few seconds it looks at each process's memory, descriptors, threads and
event-loop tasks, at Redis's memory, keys, groups and consumers. After the warm-up a straight line through
each must be flat; after the drain all is back where it began, and only the permanent keys are left. Every
response's history is judged as by `make chaos`. Exit code 1 when anything grows, is left behind, or is wrong.
"""

import argparse
import asyncio
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from redis import Redis

from relay.keys import PERMANENT
from tests.chaos.connection import connected
from tests.chaos.figures import Curve, judge, of_metrics, of_process, of_redis
from tests.chaos.life import Life, Plan
from tests.chaos.observer import Observer
from tests.chaos.readers import Reader
from tests.chaos.stage import Stage, run_to_end, stage

RETENTION_S = 30
SETTINGS: dict[str, object] = {
    "retention_s": RETENTION_S,
    "abandon_after_s": 5,
    "pause_max_s": 5,
    "user_timeout_s": 10,
    "log_level": "warning",
}
RATE_PER_S = 1.5  # responses that arrive
TOKENS, TOKENS_PER_S = (60, 180), 10.0
READERS = ("fast", "drip", "frozen", "vanishing")
SHARES = (70, 20, 8, 2)
VANISH_S = (1.0, 8.0)
SAMPLE_S = 3.0
WARM_UP = 0.25  # of the whole time, and at least so long:
WARM_UP_S = 2 * RETENTION_S
REPORT_EVERY_S = 60.0
DRAIN_S = 60.0  # for what is in flight at the end; then the retention has to pass
JUDGED = 12  # samples at least


class Soak:
    """One run."""

    def __init__(self, play: Stage, seed: int, keep: Path) -> None:
        self.stage = play
        self.observer = Observer(play.redis, play.folder)
        self.problems: list[str] = []
        self.curves: list[Curve] = []
        self.endings: Counter[str] = Counter()
        self.lives: set[Life] = set()
        self.left: dict[str, tuple[float, float]] = {}  # at the start, and after the drain
        self._rng = random.Random(seed)
        self._keep = keep
        self._samples: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        self._began = time.monotonic()
        self._made = 0

    async def run(self, seconds: float) -> None:
        """Load for so long, then the drain, then the judgement."""
        before = await self._look()
        warm_at = time.monotonic() + min(max(WARM_UP * seconds, WARM_UP_S), seconds / 2)
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(self.observer.watch(lambda: self.lives))
            sampling = tasks.create_task(self._sample(warm_at))
            await self._load(tasks, time.monotonic() + seconds)
            sampling.cancel()
            await self._drained()
            watching.cancel()
        self.curves = [
            judge(name, kind, samples)
            for (name, kind), samples in sorted(self._samples.items())
            if len(samples) >= JUDGED
        ]
        self.problems += [
            f"{curve.name} grows: {curve.rise:+.0f} at {curve.median:.0f}"
            for curve in self.curves
            if not curve.is_flat
        ]
        await self._left_behind(before)
        await self.observer.close()

    # --- the load

    async def _load(self, tasks: asyncio.TaskGroup, until: float) -> None:
        """Arrivals by the clock: one that is late is not put off."""
        due = time.monotonic()
        while due < until:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += 1 / RATE_PER_S
            self._made += 1
            kinds = tuple(self._rng.choices(READERS, SHARES, k=self._rng.choices((1, 2), (80, 20))[0]))
            plan = Plan(
                self._made, "simulated", self._rng.randrange(2**31), self._rng.randint(*TOKENS), TOKENS_PER_S,
                kinds, None, self._rng.randrange(2**31),
            )  # fmt: skip
            tasks.create_task(self._live(Life(self.stage, plan)))

    async def _live(self, life: Life) -> None:
        self.lives.add(life)
        rng = random.Random(life.plan.reader_seed)
        bound_s = life.plan.nominal_s * 2 + 60
        try:
            async with asyncio.timeout(bound_s):
                await life.create(rng, once=False)  # a key is remembered for a day
                async with asyncio.TaskGroup() as tasks:
                    for index, kind in enumerate(life.plan.readers):
                        tasks.create_task(_read(life, kind, f"{kind}-{index}", rng.randrange(2**31)))
                lives = {each.id: each for each in self.lives}
                if not await self.observer.finish(life, lives, bound_s=60.0):
                    self._wrong(life, f"hang: {life.standing}")
            self.endings[life.history.ending] += 1
            for violation in life.history.violations:
                self._wrong(life, f"{violation.rule}: {violation.seen}")
        except TimeoutError:
            self._wrong(life, f"hang: not over after {bound_s:.0f} s: {life.standing}")
        finally:
            self.lives.discard(life)

    def _wrong(self, life: Life, what: str) -> None:
        self._keep.mkdir(parents=True, exist_ok=True)
        path = self._keep / f"{life.id}-{life.plan.number}.jsonl"
        path.write_text(life.dump())
        self.problems.append(f"{life.id} {'+'.join(life.plan.readers)}: {what} -> {path}")
        print(f"VIOLATION {self.problems[-1]}", flush=True)

    # --- the figures

    async def _sample(self, warm_at: float) -> None:
        reported = time.monotonic()
        while True:
            await asyncio.sleep(SAMPLE_S)
            now = time.monotonic()
            found = await self._look()
            if now >= warm_at:
                for key, value in found.items():
                    self._samples[key].append((now, value))
            if now - reported >= REPORT_EVERY_S:
                reported = now
                self._say(found)

    async def _look(self) -> dict[tuple[str, str], float]:
        found: dict[tuple[str, str], float] = {}
        for role in self.stage.roles:
            found |= await asyncio.to_thread(of_process, role.name, self.stage.process(role))
            with suppress(OSError):
                found |= await of_metrics(role, self.stage)
        found |= await asyncio.to_thread(of_redis, self.stage.redis.data[0].url)
        found["driver: responses in flight", "count"] = len(self.lives)
        return found

    def _say(self, found: dict[tuple[str, str], float]) -> None:
        memory = {name: value for (name, kind), value in found.items() if kind in {"memory", "redis"}}
        shown = ", ".join(
            f"{name.removesuffix(' memory')} {value / 2**20:.1f}" for name, value in memory.items()
        )
        print(
            f"{time.monotonic() - self._began:7.0f} s  {len(self.lives)} in flight, "
            f"{sum(self.endings.values())} ended, {found['redis keys', 'count']:.0f} keys; MiB: {shown}",
            flush=True,
        )

    # --- the end

    async def _drained(self) -> None:
        deadline = time.monotonic() + DRAIN_S
        while self.lives and time.monotonic() < deadline:  # noqa: ASYNC110 many lives, one look
            await asyncio.sleep(0.5)
        await asyncio.sleep(RETENTION_S + 15)  # what is kept goes by its own time, and connections by theirs

    async def _left_behind(self, before: dict[tuple[str, str], float]) -> None:
        after = await self._look()
        for (name, kind), value in sorted(after.items()):
            was = before.get((name, kind), 0.0)
            self.left[name] = (was, value)
            if kind == "count" and value > was + 2 and not name.startswith("redis"):
                self.problems.append(f"{name}: {value:.0f} after the drain, {was:.0f} at the start")
        with Redis.from_url(self.stage.redis.data[0].url, decode_responses=True) as redis:
            left = sorted(set(redis.scan_iter(count=500)) - PERMANENT)
            queued = [f"{key} holds {redis.xlen(key)}" for key in PERMANENT if redis.xlen(key)]
        self.problems += [f"the key {key} is left" for key in left[:10]]
        self.problems += queued

    def summary(self) -> str:
        """The figures."""
        lines = ["", f"  {'figure':<38} {'median':>14} {'rise':>12}   at the start   after the drain"]
        for name, kind, median, rise, is_flat in self.curves:
            was, is_now = self.left.get(name, (0.0, 0.0))
            scale = 2**20 if kind in {"memory", "redis"} else 1
            lines.append(
                f"  {name:<38} {median / scale:14.2f} {rise / scale:+12.3f}   {was / scale:12.2f}   "
                f"{is_now / scale:12.2f}{'' if is_flat else '   GROWS'}"
            )
        ends = ", ".join(f"{ending or '?'} {count}" for ending, count in self.endings.most_common())
        lines += [
            "",
            f"  responses ended {sum(self.endings.values())}: {ends}",
            f"  problems {len(self.problems)}",
        ]
        return "\n".join(lines + [f"    {problem}" for problem in self.problems])


async def _read(life: Life, kind: str, name: str, seed: int) -> None:
    """One reader: fast and slow ones to the end, the others not."""
    if kind in {"fast", "drip"}:
        await Reader(life, kind, name, seed).run()
        return
    rng = random.Random(seed)
    life.note("left", name)
    path = f"/v1/streams/{life.id}/events"
    with suppress(OSError):
        async with connected(life.stage.port(rng), "GET", path, {}, receive_buffer=4096) as connection:
            life.attach(1)
            try:
                await connection.head()
                if kind == "vanishing":
                    async with asyncio.timeout(rng.uniform(*VANISH_S)):
                        while True:
                            await connection.read()
                # Frozen: it has the beginning, and takes nothing more until the relay gives it up.
                await asyncio.sleep(life.plan.nominal_s + 5)
            finally:
                life.attach(-1)


async def soak(minutes: float, seed: int, keep: Path) -> Soak:
    """A whole run, its stage included."""
    async with stage("single", workers=2, lines=False, **SETTINGS) as play:
        run = Soak(play, seed, keep)
        await run.run(minutes * 60)
        return run


def main(arguments: Sequence[str]) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("soak-violations"))
    given = parser.parse_args(arguments)
    run = run_to_end(soak(given.minutes, given.seed, given.keep))
    print(run.summary())
    return 1 if run.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
