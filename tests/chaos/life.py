"""One response of the driver: its plan, its readers, and its history, from the create to the verdict."""

import asyncio
import json
import random
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from tests.chaos.connection import call
from tests.chaos.history import History, Record
from tests.chaos.stage import CONTINUING, PLAIN, Stage

KEPT_RECORDS = 20_000  # of one response, for a replay; older ones go first
CREATE_WITHIN_S = 90.0
MOST_TOKENS = 240  # of a response: a minute at the slowest rate
PROGRESS_EVERY_S, KEPT_PROGRESS = 0.05, 2048  # of the moments that are kept: no closer, and so many
RETRY_S = (0.1, 0.5)
RETRY_AFTER_MAX_S = 2.0
BUSY = frozenset((429, 503))
# Who reads as fast as it can whatever happens: by these it is judged whether the system has recovered.
LIVELY = ("fast", "hopper", "acker", "client")
OTHERS = ("fast", "hopper", "acker", "client", "drip", "stalled", "late", "twins", "named")


class Plan(NamedTuple):
    """What a response is to be; all of it from the seed."""

    number: int
    model: str
    text_seed: int
    tokens: int
    rate: float  # tokens a second; 0: as fast as it is let
    readers: tuple[str, ...]
    cancel_after_s: float | None
    reader_seed: int

    @property
    def nominal_s(self) -> float:
        """How long it takes when nothing goes wrong."""
        return self.tokens / self.rate if self.rate else 2.0

    @property
    def exact(self) -> bool:
        """Whether somebody reads it fast, so that nothing may shorten it."""
        return any(kind in LIVELY for kind in self.readers)

    @property
    def continues(self) -> bool:
        """Whether a lost worker is no reason for an error."""
        return self.model != PLAIN

    @property
    def body(self) -> dict[str, object]:
        """Of the create."""
        if self.model == "simulated":
            simulation = {
                "tokens": self.tokens,
                "tokens_per_second": self.rate,
                "seed": self.text_seed,
            }
            return {"model": self.model, "prompt": "Say it.", "simulation": simulation}
        prompt = json.dumps({"seed": self.text_seed, "tokens": self.tokens, "rate": self.rate or 50})
        return {"model": self.model, "prompt": prompt}


def plan(rng: random.Random, number: int, most_tokens: int = MOST_TOKENS) -> Plan:
    """The next response of a run: mostly simulated, one fast reader at least but for one in twenty."""
    model = rng.choices(("simulated", CONTINUING, PLAIN), (88, 7, 5))[0]
    rate, tokens = rng.choice((4.0, 6.0, 10.0)), rng.randint(most_tokens // 4, most_tokens)
    if rng.random() < 0.06 and model == "simulated":
        rate, tokens = 0.0, rng.randint(2000, 6000)
    first = rng.choice(LIVELY) if rng.random() < 0.95 else rng.choice(("drip", "stalled"))
    more = rng.choices(OTHERS, k=rng.choices((0, 1, 2), (35, 45, 20))[0])
    return Plan(
        number,
        model,
        text_seed=rng.randrange(2**31),
        tokens=tokens,
        rate=rate,
        readers=(first, *more),
        cancel_after_s=rng.uniform(1, 10) if rng.random() < 0.04 else None,
        reader_seed=rng.randrange(2**31),
    )


class Life:
    """A response in flight. `done` says that all its readers have finished."""

    def __init__(self, stage: Stage, planned: Plan) -> None:
        self.stage = stage
        self.plan = planned
        self.id = ""
        self.history = History()
        self.records: deque[tuple[float, Record]] = deque(maxlen=KEPT_RECORDS)
        self.progress: deque[float] = deque(maxlen=KEPT_PROGRESS)  # when a lively reader got something
        self.lively = 0  # lively readers that have not finished
        self.attached = 0  # readers connected now
        self._alone_since: float | None = None
        self.looking = asyncio.Lock()
        self.seen_end = 0  # of the log, by the observer
        self.seen_id = "0-0"
        self.note("plan", planned.text_seed, planned.tokens, planned.exact, planned.continues)

    def note(self, kind: str, *fields: object) -> None:
        """Take a record into the history, and keep it for a replay."""
        record = (kind, *fields)
        self.records.append((round(time.time(), 4), record))
        self.history.take(record)

    def went_on(self) -> None:
        """A lively reader got something, or has finished."""
        now = time.monotonic()
        if not self.progress or now - self.progress[-1] > PROGRESS_EVERY_S:
            self.progress.append(now)

    def went_on_after(self, at: float) -> float | None:
        """When that first was after `at`, if it was; a response with nobody lively left needs no more."""
        if not self.progress or self.progress[-1] <= at:
            return None if self.lively else at
        return self.progress[bisect_right(self.progress, at)]

    def attach(self, change: int) -> None:
        """One reader more, or less: how long nobody reads is what may end a response."""
        self.attached += change
        now = time.monotonic()
        if self.attached and self._alone_since is not None:
            self.count_alone()
            self._alone_since = None
        elif not self.attached:
            self._alone_since = now

    def count_alone(self) -> None:
        """Note for how long nobody has read by now."""
        if self._alone_since is not None:
            self.note("alone", round(time.monotonic() - self._alone_since, 3))

    @property
    def is_lively(self) -> bool:
        """Whether its progress tells of the system's: begun, somebody fast reads, and not over."""
        return bool(self.progress) and self.lively > 0

    @property
    def standing(self) -> str:
        """Where it and its readers are, for a message."""
        readers = [
            f"{who.name} at {who.offset}{' ended' if who.has_ended else ' away' if who.is_away else ''}"
            for who in self.history.readers.values()
        ]
        ago_s = time.monotonic() - self.progress[-1] if self.progress else -1
        return (
            f"the log ends at {self.seen_id}; {self.attached} attached, last progress {ago_s:.0f} s ago; "
            + ", ".join(readers)
        )

    async def create(self, rng: random.Random, *, once: bool = True) -> None:
        """Make it, under one Idempotency-Key however often that takes; without, where nothing fails.

        Raises TimeoutError.
        """
        key = {"Idempotency_Key": f"chaos-{self.plan.number}-{self.plan.reader_seed}"} if once else {}
        async with asyncio.timeout(CREATE_WITHIN_S):
            while not self.id:
                wait_s = rng.uniform(*RETRY_S)
                with suppress(OSError):
                    answer = await call(self.stage.port(rng), "POST", "/v1/streams", self.plan.body, **key)
                    if answer.status == 201:
                        self.id = json.loads(answer.body)["id"]
                        break
                    if answer.status not in BUSY:
                        raise AssertionError(f"a create was answered {answer.status}: {answer.body[:300]!r}")
                    wait_s = retry_after(answer.headers)
                await asyncio.sleep(wait_s)
        self._alone_since = time.monotonic()

    async def cancel(self, rng: random.Random) -> None:
        """DELETE it, until somebody says that it is cancelled or gone."""
        assert self.plan.cancel_after_s is not None
        await asyncio.sleep(self.plan.cancel_after_s)
        self.note("cancel")
        while True:
            with suppress(OSError):
                answer = await call(self.stage.port(rng), "DELETE", f"/v1/streams/{self.id}")
                if answer.status in {202, 404}:
                    return
            await asyncio.sleep(rng.uniform(*RETRY_S))

    def dump(self) -> str:
        """The history as JSON lines: what `replay` reads."""
        lines = [json.dumps({"id": self.id, "plan": self.plan._asdict()})]
        lines += [json.dumps([at, *record]) for at, record in self.records]
        return "\n".join(lines) + "\n"


def retry_after(headers: dict[str, str]) -> float:
    """What a refusal asks for, within the driver's own bound."""
    return min(float(headers.get("retry-after", 0.5)), RETRY_AFTER_MAX_S)


def replay(text: str, tell: Callable[[str], None]) -> History:
    """Run the checker over a kept history; `tell` is given each violation with its record."""
    history = History()
    for line in text.splitlines()[1:]:
        at, *record = json.loads(line)
        before = len(history.violations)
        history.take(tuple(record))
        for violation in history.violations[before:]:
            tell(f"{at} {record[:4]}: {violation.rule}: {violation.seen}")
    return history
