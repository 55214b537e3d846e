"""The states of a response and the moves between them."""

from itertools import product

import pytest

from relay.lifecycle import MOVES, TERMINAL, FinishReason, Status, may_move


def test_every_state_has_its_moves() -> None:
    """The table speaks of every state."""
    assert MOVES.keys() == set(Status)


@pytest.mark.parametrize("before", sorted(TERMINAL))
def test_terminal_is_final(before: Status) -> None:
    """Nothing leaves a terminal state, not even to itself."""
    assert not any(may_move(before, after) for after in Status)


@pytest.mark.parametrize("before", sorted(set(Status) - TERMINAL))
def test_every_other_state_can_end(before: Status) -> None:
    """A response can complete, fail and be cancelled from wherever it is."""
    assert all(may_move(before, after) for after in TERMINAL)


def test_the_moves_of_a_live_response() -> None:
    """Work begins, pauses, goes on, and begins again under a new epoch; nothing returns to the queue."""
    alive = set(Status) - TERMINAL
    allowed = {(before, after) for before, after in product(alive, alive) if may_move(before, after)}
    assert allowed == {
        (Status.QUEUED, Status.RUNNING),
        (Status.RUNNING, Status.RUNNING),
        (Status.RUNNING, Status.PAUSED),
        (Status.PAUSED, Status.RUNNING),
    }


def test_public_names() -> None:
    """The names are those of the contract."""
    assert [str(status) for status in Status] == [
        "queued", "running", "paused", "completed", "failed", "cancelled",
    ]  # fmt: skip
    assert [str(reason) for reason in FinishReason] == ["stop", "length", "cancelled"]
