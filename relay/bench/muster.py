"""Readers of several kinds at once, of each so many, and what became of them, kind by kind.

Whoever runs them says what each reads: a response of its own, one that all share, any request at all.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from relay.bench.histogram import Histogram
from relay.bench.kinds import read
from relay.bench.readers import Habits, Kind, Target
from relay.bench.reception import Ended, OnEvent, Outcome

COUNT_MAX = 2000  # of one kind: eight kinds of them are 16,000 sockets
CALLS_AT_ONCE = 32
_PROBLEMS = 5  # of what went wrong; a thousand lines help nobody
_EVERY_S = 0.5

MakeTarget = Callable[[Kind], Awaitable[Target]]
Progress = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class Group:
    """The readers of one kind."""

    kind: Kind
    gaps: Histogram = field(default_factory=Histogram)
    outcomes: list[Outcome] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """What became of them, for a table or as JSON."""
        outcomes, first_bytes = self.outcomes, Histogram()
        for outcome in outcomes:
            if outcome.first_byte_s is not None:
                first_bytes.record(int(outcome.first_byte_s * 1e6))
        return {
            "kind": self.kind.value,
            "readers": len(outcomes),
            "connected": sum(outcome.connections > 0 for outcome in outcomes),
            "connections": sum(outcome.connections for outcome in outcomes),
            "ended": _counts(outcome.ended.value for outcome in outcomes),
            "finish_reasons": _counts(outcome.finish_reason for outcome in outcomes if outcome.finish_reason),
            "events": sum(outcome.events for outcome in outcomes),
            "received_bytes": sum(outcome.received_bytes for outcome in outcomes),
            "unread_bytes": sum(outcome.unread_bytes for outcome in outcomes),
            "text_bytes": sum(outcome.text_bytes for outcome in outcomes),
            "first_byte_ms": first_bytes.summary_ms(),
            "gaps_ms": self.gaps.summary_ms(),
            "notices": _counts(kind for outcome in outcomes for kind in outcome.notices),
            "exact": {
                "right": sum(outcome.exact is True for outcome in outcomes),
                "wrong": sum(outcome.exact is False for outcome in outcomes),
                "unknown": sum(outcome.exact is None for outcome in outcomes),
            },
            "problems": list(_counts(outcome.problem for outcome in outcomes if outcome.problem))[:_PROBLEMS],
        }


class Muster:
    """`count` readers of each kind, for `seconds`. Its groups can be looked at while it runs."""

    def __init__(self, kinds: Iterable[Kind], *, count: int, seconds: float, habits: Habits) -> None:
        self.groups = [Group(kind) for kind in dict.fromkeys(kinds)]
        self.count = count
        self.seconds = seconds
        self.habits = habits

    async def run(
        self, make: MakeTarget, progress: Progress = lambda _: None, on_event: OnEvent | None = None
    ) -> None:
        """Send them all, and wait for the last. Raises what `make` raises."""
        gate = asyncio.Semaphore(CALLS_AT_ONCE)

        async def target(group: Group) -> tuple[Group, Target]:
            async with gate:
                return group, await make(group.kind)

        found = await asyncio.gather(*(target(group) for group in self.groups for _ in range(self.count)))
        until = asyncio.get_running_loop().time() + self.seconds
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(self._watch(progress))
            readers = []
            for group, one in found:
                outcome = Outcome(gaps=group.gaps)
                group.outcomes.append(outcome)
                reading = read(group.kind, one, self.habits, until=until, outcome=outcome, on_event=on_event)
                readers.append(tasks.create_task(reading))
            await asyncio.wait(readers)
            watch.cancel()

    async def _watch(self, progress: Progress) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            progress({"done": loop.time() - began})
            await asyncio.sleep(_EVERY_S)

    def result(self) -> dict[str, Any]:
        """Each kind's summary."""
        return {
            "count": self.count,
            "seconds": self.seconds,
            "kinds": [group.summary() for group in self.groups],
        }


def faults(result: dict[str, Any]) -> list[str]:
    """What is wrong whatever the readers were like: text that was not exact, or nobody who got in."""
    wrong = [row for row in result["kinds"] if row["exact"]["wrong"]]
    refused = [row["kind"] for row in result["kinds"] if Ended.REFUSED in row["ended"]]
    found = [f"{row['kind']}: {row['exact']['wrong']} with wrong text" for row in wrong]
    return found + ([f"refused: {', '.join(refused)}"] if refused else [])


def _counts(found: Iterable[str]) -> dict[str, int]:
    return dict(Counter(found))
