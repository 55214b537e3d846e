"""When the refused are told to come back."""

import math

import pytest

from api.admission import RETRY_LEAST_S, RETRY_MOST_S, retry_after_s


@pytest.mark.parametrize("queue_wait_s", [0, 0.1, 1, 2, 5, 15, 25, 40, 3600])
def test_retry_after_is_within_its_bounds_and_spread(queue_wait_s: float) -> None:
    """1 to 30 s, spread over two seconds at least also where the wait is over every bound."""
    waits = [retry_after_s(queue_wait_s) for _ in range(500)]
    assert min(waits) >= RETRY_LEAST_S
    assert math.ceil(max(waits)) <= RETRY_MOST_S
    assert max(waits) - min(waits) > 1.5


def test_retry_after_follows_the_queue() -> None:
    """A queue of 10 s asks for about as much, not for one second and not for thirty."""
    waits = [retry_after_s(10.0) for _ in range(500)]
    assert min(waits) >= 7.5
    assert max(waits) <= 15.0
