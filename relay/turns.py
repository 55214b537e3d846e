"""Hundreds of things to visit, a few at a time: in one go they would hold the loop, and all else be late."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

_T = TypeVar("_T")


async def in_turns(
    present: Sequence[_T], *, over_s: float, at_a_time: int, most_turns: int
) -> AsyncIterator[Sequence[_T]]:
    """The items in slices of about `at_a_time`, evenly over `over_s` seconds; the first comes after a wait.

    There are at most `most_turns`, whatever the slices grow to, and at least one, which may be empty.
    """
    turns = min(max(1, len(present) // at_a_time), most_turns)
    for turn in range(turns):
        await asyncio.sleep(over_s / turns)
        yield present[turn::turns]
