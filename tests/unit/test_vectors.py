"""The vectors that hold the two clients together; the TypeScript client's tests read the same files."""

import json
from pathlib import Path
from typing import Any

import pytest

from relay.client_events import DigestMismatch, Done, Failed, Ledger, OutOfOrder, Rewind, typed
from relay.errors import Malformed, WireProtocol
from relay.position import Position
from relay.sse import Event, Parser

VECTORS = Path(__file__).parents[1] / "vectors"
ERRORS = {"out_of_order": OutOfOrder, "digest_mismatch": DigestMismatch, "protocol": WireProtocol}


def load(name: str) -> Any:
    """One file of vectors."""
    return json.loads((VECTORS / f"{name}.json").read_text())


def named(name: str) -> Any:
    """Its cases, as parameters."""
    return [pytest.param(case, id=case["name"]) for case in load(name)]


@pytest.mark.parametrize("case", named("sse"))
def test_an_event_stream_cut_anywhere(case: dict[str, Any]) -> None:
    """Whole, byte by byte, and in two pieces cut at each place: the events are the same."""
    stream = case["bytes"].encode("latin-1")
    cuts = [[stream], [stream[at : at + 1] for at in range(len(stream))]]
    cuts += [[stream[:at], stream[at:]] for at in range(1, len(stream))]
    for pieces in cuts:
        parser = Parser()
        events = [event for piece in pieces for event in parser.feed(piece)]
        assert events == [Event(**event) for event in case["events"]]
        assert parser.last_event_id == case["last_event_id"]
        assert parser.retry_ms == case["retry_ms"]


def test_positions() -> None:
    """What is a position, and what only looks like one."""
    found = load("positions")
    for text, offset, epoch in found["valid"]:
        assert Position.parse(text) == Position(offset, epoch)
        assert str(Position(offset, epoch)) == text
    for text in found["invalid"]:
        with pytest.raises(Malformed):
            Position.parse(text)


@pytest.mark.parametrize("case", named("ledger"))
def test_a_reader_s_ledger(case: dict[str, Any]) -> None:
    """Order, digest and rewinds of a sequence of events."""
    ledger = Ledger(Position.parse(case["after"]))
    for sse, expected in zip(case["events"], case["expect"], strict=True):
        if expected is not None and "error" in expected:
            with pytest.raises(ERRORS[expected["error"]]):
                typed(Event(**sse), ledger)
            continue
        event = typed(Event(**sse), ledger)
        if expected is None:
            assert event is None
            continue
        assert event is not None
        name = "error" if isinstance(event, Failed) else type(event).__name__.lower()
        assert (name, str(event.position)) == (expected["type"], expected["position"])
        if isinstance(event, Done):
            assert event.verified is expected["verified"]
        if isinstance(event, Rewind):
            assert event.exact is expected["exact"]
        if isinstance(event, Failed):
            assert event.retryable is expected["retryable"]
