"""A connection of many responses: one id that tells of all, and sinks that share one socket."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import sse
from api.lane import Board, Lane, Tagged, read_id
from relay.errors import Malformed
from relay.events import MAX_PAYLOAD, Channel, Record, content, encode, event
from relay.position import START, Position
from relay.sse import Parser
from tests.support.consumer import FakeSocket, Rig

A, B, C = (f"rs_{digit * 24}" for digit in "abc")
positions = st.builds(Position, st.integers(0, 10**15 - 1), st.integers(0, 10**9 - 1))


@given(st.lists(positions, min_size=1, max_size=6), st.lists(positions, max_size=6), st.data())
def test_the_id_says_where_to_go_on(
    fixed: list[Position], added: list[Position], data: st.DataObject
) -> None:
    """Whatever moved, joined and left: what is read from the id is what is still served, where it stood."""
    names = [f"rs_{at:024x}" for at in range(len(fixed) + len(added))]
    listed, truth = names[: len(fixed)], dict(zip(names, [*fixed, *added], strict=True))
    board = Board(listed)
    for name, position in truth.items():
        board.move(name, str(position).encode())
    for name in data.draw(st.sets(st.sampled_from(names))):
        board.leave(name, removed=True)
        del truth[name]
    text = bytes(board).decode()
    assert read_id(text, listed) == truth
    assert not set(text) & set("\0\r\n ")


def test_one_that_has_ended_keeps_its_place_or_is_forgotten() -> None:
    """Of the address it keeps its end, and is not read again; one that was added is asked for no more."""
    board = Board([A, B])
    board.move(A, b"9-1")
    board.move(C, b"7-1")
    board.leave(A, removed=False)
    board.leave(C, removed=False)
    assert bytes(board) == b"9-1,0-0"


@pytest.mark.parametrize("text", ["", "1-1", "1-1,", "1-1,x", "1-1,2-2,3-3", "1-1,2-2,rs_x", "--,1-1"])
def test_an_id_that_was_never_given_is_refused(text: str) -> None:
    """Too few positions, or what is none: nothing is guessed."""
    with pytest.raises(Malformed):
        read_id(text, [A, B])


@pytest.mark.parametrize(
    "record",
    [
        content('"\n\r\0'),
        content("x" * (MAX_PAYLOAD // 2)),
        Record(Channel.REASONING, b"why"),
        Record(Channel.TOOL_ARGUMENTS, b'\x02{"a"'),
        event(Channel.TOOL_CALL, {"index": 0, "id": "c", "name": "f"}),
        event(Channel.NOTICE, {"kind": "pacing"}),
        Record(Channel.DONE, b"{}"),
    ],
)
def test_a_tagged_event_is_the_plain_one_with_its_response(record: Record) -> None:
    """The data is the same JSON, with `stream` and `position` before it."""
    board = Board([A, B])
    (plain,) = Parser().feed(sse.frame(record, 40, 3))
    (tagged,) = Parser().feed(Tagged(board, B).frame(record, 40, 3))
    assert tagged.event == plain.event
    assert tagged.id == "0-0,40-3"
    assert json.loads(tagged.data) == {"stream": B, "position": "40-3", **json.loads(plain.data)}


def test_each_response_has_its_own_credit_and_the_acknowledged_bytes_are_shared() -> None:
    """Two consumers on one socket: one stops at its credit, the other goes on, and bytes count for both."""
    socket, board = FakeSocket(), Board([A, B])
    rigs = []
    for name in (A, B):
        rig = Rig(size=1024)
        lane = Lane(socket, name, Tagged(board, name), None)
        outlet = rig.consumer.outlet
        outlet.socket, outlet.form = lane, lane.form
        rigs.append(rig)
    first, second = rigs
    for rig in rigs:
        rig.begin()
    for _ in range(30):
        first.append("x" * 100, ring=False)
    first.consumer.ring(len(encode(content("x" * 100))) * 30)
    for _ in range(200):
        if not (first.wire.execute() or first.wire.deliver()):
            break
    assert 0 < first.consumer.ledger.unconfirmed <= 1024
    held = first.consumer.ledger.sent
    second.append("mine")
    for _ in range(20):
        second.wire.deliver()
        second.wire.execute()
    assert second.consumer.ledger.sent > 0
    assert second.consumer.outlet.acknowledged() == 0
    socket.take()
    assert first.consumer.outlet.acknowledged() == held
    assert second.consumer.outlet.acknowledged() == second.consumer.ledger.sent


def test_a_lane_that_was_let_go_writes_no_more() -> None:
    """Its reader is told at once, also one that asks later; the socket stays the others'."""
    socket, told = FakeSocket(), []
    lane = Lane(socket, A, Tagged(Board([A]), A), START)
    assert lane.position is None
    lane.on_lost(lambda: told.append(1))
    lane.write(sse.KEEPALIVE)  # said once for all, by the connection
    assert socket.data == b""
    lane.lose()
    lane.write(b"data: x\n\n")
    lane.on_lost(lambda: told.append(2))
    assert (socket.data, told) == (b"", [1, 2])
