"""Waiting for something to become true, instead of sleeping and hoping."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, TypeVar, cast

T = TypeVar("T")

_POLL_INTERVAL_S = 0.01


def wait_until(predicate: Callable[[], T], description: str, timeout_s: float = 30.0) -> T:
    """The first true answer of `predicate`, asked every 10 ms.

    Raises:
        AssertionError: still false after `timeout_s`; the message has the description and the last answer.
    """
    deadline = time.monotonic() + timeout_s
    while not (answer := predicate()):
        _check(deadline, description, timeout_s, answer)
        time.sleep(_POLL_INTERVAL_S)
    return answer


async def wait_until_async(
    predicate: Callable[[], Awaitable[T] | T], description: str, timeout_s: float = 30.0
) -> T:
    """`wait_until` for the event loop; `predicate` may be a plain or an async function."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = predicate()
        if isawaitable(answer):
            answer = await answer
        if answer:
            return cast("T", answer)
        _check(deadline, description, timeout_s, answer)
        await asyncio.sleep(_POLL_INTERVAL_S)


def _check(deadline: float, description: str, timeout_s: float, answer: Any) -> None:
    if time.monotonic() > deadline:
        raise AssertionError(f"waited {timeout_s:g} s for: {description}. The last answer was {answer!r}.")
