"""The states of a response."""

from relay.lifecycle import TERMINAL, FinishReason, Status


def test_what_ends_a_response() -> None:
    """Three states are final; the other three are work that waits, runs or is held."""
    assert set(Status) - TERMINAL == {Status.QUEUED, Status.RUNNING, Status.PAUSED}


def test_public_names() -> None:
    """The names are those of the contract."""
    assert [str(status) for status in Status] == [
        "queued", "running", "paused", "completed", "failed", "cancelled",
    ]  # fmt: skip
    assert [str(reason) for reason in FinishReason] == ["stop", "length", "cancelled"]
