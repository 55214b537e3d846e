"""`make chaos`: responses in flight, readers of every kind, faults one after the other, and a verdict.

    python -m tests.chaos.run --minutes 3 --seed 1 --topology single --responses 200

The plans of the responses and the order, the targets and the lengths of the faults are the seed's; what
meets what is the machine's. Exit code 1 on any violation or hang; the history of each is kept in `--keep`
and can be judged again: `python -m tests.chaos.run --replay FILE`.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.chaos import nemesis
from tests.chaos.fault import EVERYWHERE, Fault, Scene, bag
from tests.chaos.life import MOST_TOKENS, Life, plan, replay
from tests.chaos.observer import Observer
from tests.chaos.readers import Reader, readers_of
from tests.chaos.stage import Stage, run_to_end, stage

RECOVER_WITHIN_S = 45.0
SETTLED_S = 0.3  # what was under way already is no sign of recovery
QUIET_S = (0.5, 1.5)  # between a recovery and the next fault
REPORT_EVERY_S = 10.0
BOUND_S = 150.0  # over twice the nominal length of a response: then it hangs
BY_FAULT, BY_ITSELF = "fault", "itself"
PRIMARIES_EVERY_S = 0.5
FAILED_OVER_WITHIN_S = 30.0
ENDED_WITHIN_S = 30.0  # a response that nobody reads any more
END_WITHIN_S = 120.0  # after the last fault; twice of what stalled and late readers take
KEPT_CALLS = 1000
SLOW_S = 5.0
SHOWN = 3  # violations of one response


class Chaos:
    """One run."""

    def __init__(
        self,
        play: Stage,
        *,
        seed: int,
        responses: int,
        keep: Path,
        only: str = "",
        most_tokens: int = MOST_TOKENS,
        least_faults: int = 0,
    ) -> None:
        self.stage = play
        self.observer = Observer(play.redis, play.folder)
        self.lives: set[Life] = set()
        self.problems: list[str] = []
        self.faults: Counter[str] = Counter()
        self.endings: Counter[str] = Counter()
        self.recoveries: dict[str, list[float]] = defaultdict(list)
        self.checked = self.readers = 0
        self._rng = random.Random(seed)
        self._plans = random.Random(seed + 1)
        self._responses = responses
        self._keep = keep
        self._only = only
        self._most_tokens = most_tokens
        self._least_faults = least_faults  # however long they take
        self._is_over = False
        self._made = 0
        self._losing: set[str] = set()  # why a response that is made now may be lost with what Redis loses
        self._began = time.monotonic()

    # --- the run

    async def run(self, seconds: float) -> bool:
        """Faults for so long, then the end of everything; whether all was well."""
        async with asyncio.TaskGroup() as tasks:
            helpers = [
                tasks.create_task(self.observer.watch(lambda: self.lives)),
                tasks.create_task(self._report()),
                tasks.create_task(self._watch_primaries()),
            ]
            crowd = [tasks.create_task(self._crowd(index)) for index in range(self._responses)]
            self._until = time.monotonic() + seconds
            await self._torment()
            self._is_over = True
            nemesis.heal(self.stage)
            self._say("the last fault is healed")
            _, late = await asyncio.wait(crowd, timeout=END_WITHIN_S)
            for life in list(self.lives) if late else ():
                self._wrong(life, f"hang after the last fault was healed: {life.standing}")
            for task in [*late, *helpers]:
                task.cancel()
        await self.observer.close()
        self.stage.keep_logs()
        return not self.problems

    async def _crowd(self, index: int) -> None:
        """One place among the responses in flight: a life after the other."""
        await asyncio.sleep(index * 5.0 / self._responses)  # they need not all begin in one instant
        while not self._is_over:
            self._made += 1
            life = Life(self.stage, plan(self._plans, self._made, self._most_tokens))
            await self._live(life)

    async def _live(self, life: Life) -> None:
        rng = random.Random(life.plan.reader_seed)
        bound_s = life.plan.nominal_s * 2 + BOUND_S
        if self._losing:
            life.note("loss")
        try:
            async with asyncio.timeout(bound_s):
                self.lives.add(life)
                await life.create(rng)
                async with asyncio.TaskGroup() as tasks:
                    if life.plan.cancel_after_s is not None:
                        tasks.create_task(life.cancel(rng))
                    for run in readers_of(life):
                        self.readers += 1
                        tasks.create_task(run())
                if not await self._finish(life):
                    self._wrong(life, "hang: its readers are done, and it has not ended")
        except TimeoutError:
            self._wrong(life, f"hang: not over after {bound_s:.0f} s: {life.standing}")
        except BaseExceptionGroup as group:
            errors = [error for error in _leaves(group) if not isinstance(error, asyncio.CancelledError)]
            for error in errors:
                self._wrong(life, f"{type(error).__name__}: {error}")
            if not errors:
                raise
        except AssertionError as error:
            self._wrong(life, str(error))
        finally:
            self.lives.discard(life)
            self.checked += life.history.checked

    async def _finish(self, life: Life) -> bool:
        lives = {each.id: each for each in self.lives}
        life.note("killed", *self.stage.killed)
        if not await self.observer.finish(life, lives, bound_s=ENDED_WITHIN_S):
            if not life.history.is_lossy:
                return False
            # A failover took its end back, and who had seen it has gone: it is told again to whoever comes.
            await Reader(life, "fast", "afterwards", life.plan.reader_seed).run()
            if not await self.observer.finish(life, lives, bound_s=ENDED_WITHIN_S):
                return False
        self.endings[life.history.ending] += 1
        found = life.history.violations
        for violation in found[:SHOWN]:
            self._wrong(life, f"{violation.rule}: {violation.seen}")
        if len(found) > SHOWN:
            self._wrong(life, f"and {len(found) - SHOWN} more")
        return True

    # --- faults

    async def _torment(self) -> None:
        scene = Scene(self.stage, self._rng, lambda: self._lost(BY_FAULT))
        await asyncio.sleep(8)
        while True:
            for fault in bag(self.stage.redis.shape, self._rng, self._only):
                if time.monotonic() > self._until and self.faults.total() >= self._least_faults:
                    return
                await self._inflict(fault, scene)
                await asyncio.sleep(self._rng.uniform(*QUIET_S))
                if len(self.stage.upstream.calls) > KEPT_CALLS:
                    self.stage.upstream.calls.clear()

    async def _inflict(self, fault: Fault, scene: Scene) -> None:
        self.faults[fault.name] += 1
        watched = [life for life in self.lives if life.is_lively]
        try:
            at = await fault.act(scene)
        except AssertionError as error:
            self._problem(f"{fault.name}: {error}")
            nemesis.heal(self.stage)
            at = time.monotonic()
        if BY_FAULT in self._losing:
            await self.observer.has_promoted()  # which was meant
            self._lost(BY_FAULT)  # those made meanwhile, too
            self._losing.discard(BY_FAULT)
        took_s = await self._recovered(watched, at)
        if took_s is None:
            stuck = [life for life in watched if life.went_on_after(at + SETTLED_S) is None]
            self._problem(f"{fault.name}: {len(stuck)} responses went on for nobody")
            for life in stuck[:3]:
                self._wrong(life, f"stuck: {life.standing}")
        else:
            self.recoveries[fault.name].append(took_s)
        shown = "not recovered" if took_s is None else f"all go on {took_s:.2f} s after"
        self._say(f"{fault.name}: {shown} ({len(watched)} watched)")
        if took_s is not None and took_s > SLOW_S:
            slow = [life for life in watched if (life.went_on_after(at + SETTLED_S) or at) - at > SLOW_S]
            self._say(f"  slower than {SLOW_S:g} s: {len(slow)}, such as")
            for life in slow[:SHOWN]:
                self._keep_history(life)
                self._say(f"    {life.id} {'+'.join(life.plan.readers)}: {life.standing}")

    async def _recovered(self, watched: list[Life], at: float) -> float | None:
        """How long after `at` the last of them went on or had ended; None when one did not."""
        deadline = time.monotonic() + RECOVER_WITHIN_S
        while True:
            moments = [life.went_on_after(at + SETTLED_S) for life in watched]
            if None not in moments:
                return max([at, *(moment for moment in moments if moment is not None)]) - at
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(0.1)

    async def _watch_primaries(self) -> None:
        """A failover loses writes, also when no fault meant it: a pause too long, a machine too slow."""
        while self.stage.redis.shape != "single":
            await asyncio.sleep(PRIMARIES_EVERY_S)
            if await self.observer.has_promoted() and not self._losing:
                self._say("redis failed over by itself")
                self._lost(BY_ITSELF)
                with suppress(AssertionError):
                    await asyncio.to_thread(self.stage.redis.wait_replicated, FAILED_OVER_WITHIN_S)
                self._lost(BY_ITSELF)
                self._losing.discard(BY_ITSELF)

    def _lost(self, why: str) -> None:
        self._losing.add(why)
        for life in self.lives:
            life.note("loss")

    # --- words

    def _wrong(self, life: Life, what: str) -> None:
        path = self._keep_history(life)
        self._problem(f"{life.id} {'+'.join(life.plan.readers)} {life.plan.model}: {what} -> {path}")

    def _keep_history(self, life: Life) -> Path:
        self._keep.mkdir(parents=True, exist_ok=True)
        path = self._keep / f"{life.id or 'unmade'}-{life.plan.number}.jsonl"
        path.write_text(life.dump())
        return path

    def keep_logs(self) -> None:
        """Beside the histories."""
        self._keep.mkdir(parents=True, exist_ok=True)
        for log in self.stage.folder.glob("*.log"):
            (self._keep / log.name).write_bytes(log.read_bytes())

    def _problem(self, text: str) -> None:
        self.problems.append(text)
        self._say(f"VIOLATION {text}")

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:7.1f} s  {text}", flush=True)

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            active = sum(life.history.checked for life in self.lives) + self.checked
            self._say(
                f"{len(self.lives)} in flight, {sum(self.endings.values())} ended, {active} records checked,"
                f" {sum(self.faults.values())} faults, {len(self.problems)} violations"
            )

    def summary(self) -> str:
        """The figures."""
        rows = [
            f"  {name:<45} {count:4}   {_worst(self.recoveries[name])}"
            for name, count in sorted(self.faults.items())
        ]
        ends = ", ".join(f"{ending or '?'} {count}" for ending, count in self.endings.most_common())
        return "\n".join([
            "",
            "  fault                                         times  recovery, worst / median (s)",
            *rows,
            "",
            f"  faults injected   {sum(self.faults.values())}",
            f"  responses ended   {sum(self.endings.values())}: {ends}",
            f"  readers           {self.readers}",
            f"  records checked   {self.checked} ({self.observer.traced} of them by workers)",
            f"  violations        {len(self.problems)}",
        ])  # fmt: skip


def _worst(seconds: list[float]) -> str:
    return f"{max(seconds):6.2f} / {statistics.median(seconds):.2f}" if seconds else "     -"


def _leaves(group: BaseExceptionGroup) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


async def chaos(shape: str, *, minutes: float, keep_logs: bool = False, **given: Any) -> Chaos:
    """A whole run, its stage included; `given` is for `Chaos`."""
    async with stage(shape) as play:
        run = Chaos(play, **given)
        try:
            await run.run(minutes * 60)
        finally:
            if keep_logs or run.problems:
                play.keep_logs()
                run.keep_logs()
        return run


def main(arguments: Sequence[str]) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=None, help="default: one is chosen, and printed")
    parser.add_argument("--topology", choices=EVERYWHERE, default="single")
    parser.add_argument("--responses", type=int, default=200, help="in flight")
    parser.add_argument("--keep", type=Path, default=Path("chaos-violations"))
    parser.add_argument("--logs", action="store_true", help="keep what the processes log in any case")
    parser.add_argument("--only", default="", help="faults with one of these words in their name, by commas")
    parser.add_argument("--replay", type=Path, default=None, help="judge a kept history again")
    given = parser.parse_args(arguments)
    if given.replay is not None:
        return 1 if replay(given.replay.read_text(), print).violations else 0
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    print(
        f"seed {seed}, {given.topology}, {given.responses} responses, {given.minutes:g} minutes", flush=True
    )
    run = run_to_end(
        chaos(
            given.topology,
            minutes=given.minutes,
            keep_logs=given.logs,
            seed=seed,
            responses=given.responses,
            keep=given.keep,
            only=given.only,
        )
    )
    print(run.summary())
    if not (run.faults and run.endings["stop"]):
        print("nothing was proven: no fault was injected, or no response ended whole")
        return 1
    return 1 if run.problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
