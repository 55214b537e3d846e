"""Visits in turns: everybody once, few at a time, evenly."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.turns import in_turns


async def visited(count: int, at_a_time: int, most_turns: int) -> tuple[list[list[int]], list[float]]:
    """The slices of `count` items, and the waits before them."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relay.turns.asyncio.sleep", sleep)
        turns = in_turns(range(count), over_s=2.0, at_a_time=at_a_time, most_turns=most_turns)
        return [list(few) async for few in turns], waits


@given(st.integers(0, 500), st.integers(1, 40), st.integers(1, 40))
def test_everybody_has_one_turn_and_the_turns_fill_the_time(count: int, at_a_time: int, most: int) -> None:
    """Of any number, within any bounds; a slice is twice its size at most where there are turns enough."""
    slices, waits = asyncio.run(visited(count, at_a_time, most))
    assert sorted(item for few in slices for item in few) == list(range(count))
    assert len(slices) == len(waits) <= most
    assert sum(waits) == pytest.approx(2.0)
    assert max(waits) - min(waits) == 0
    if len(slices) < most:
        assert max(map(len, slices)) < 2 * at_a_time
    assert max(map(len, slices)) - min(map(len, slices)) <= 1


async def test_nobody_is_one_wait() -> None:
    """A loop over nobody does not spin."""
    assert await visited(0, 8, 32) == ([[]], [2.0])


async def test_each_turn_lets_the_loop_do_other_things() -> None:
    """Also where there is no time to spread them over."""
    done: list[str] = []
    loop = asyncio.get_running_loop()
    async for few in in_turns("abcd", over_s=0.0, at_a_time=1, most_turns=4):
        done.append(few)
        loop.call_soon(done.append, "-")
    assert done == ["a", "-", "b", "-", "c", "-", "d"]
