"""Positions: how they are written, read, and overruled by a failover."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from relay.errors import Malformed
from relay.position import START, Position, valid_offset

offsets = st.integers(0, 10**15 - 1)
epochs = st.integers(0, 10**9 - 1)
histories = st.lists(st.integers(0, 100), max_size=6).map(
    lambda rest: [(10 * number, start) for number, start in enumerate([0, *rest], 1)]
)


@given(offsets, epochs)
def test_round_trip(offset: int, epoch: int) -> None:
    """A position is read as it was written."""
    position = Position(offset, epoch)
    assert Position.parse(str(position)) == position


@pytest.mark.parametrize(
    "text",
    ["", "-", "5", "5-", "-5", "+5-1", " 5-1", "5-1 ", "5-1\n", "05-1", "5-01", "5 -1", "1.5-1", "0x5-1",
     "5-1-1", "5--1", "\u0665-1", "5\u20131", "1e3-1", "1000000000000000-1", "5-1000000000", "$", ">", "*"],
)  # fmt: skip
def test_not_a_position(text: str) -> None:
    """Anything but two plain decimal numbers is malformed, and the error shows it cut short."""
    with pytest.raises(Malformed) as caught:
        Position.parse(text)
    assert len(caught.value.message) < 150


@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    """Any text is either a position that prints as that text, or malformed."""
    try:
        position = Position.parse(text)
    except Malformed:
        return
    assert str(position) == text


def test_start_is_always_valid() -> None:
    """The start of a response is valid under any history."""
    assert valid_offset(START, []) == valid_offset(START, [(1, 0), (2, 100), (3, 80)]) == 0


def test_valid_offset_after_a_failover() -> None:
    """A position in text that a later epoch overruled goes back to where that epoch began."""
    starts = [
        (1, 0),
        (2, 100),
        (3, 80),
    ]  # epoch 2 went on at 100; a failover lost 20 bytes, and epoch 3 began at 80
    assert valid_offset(Position(70, 1), starts) == 70
    assert valid_offset(Position(90, 1), starts) == 80
    assert valid_offset(Position(100, 2), starts) == 80
    assert valid_offset(Position(150, 3), starts) == 150


@given(histories, st.integers(0, 200), st.data())
def test_valid_offset_is_the_earliest_later_start(
    starts: list[tuple[int, int]], offset: int, data: st.DataObject
) -> None:
    """The valid offset never grows, and lies behind the start of no later epoch."""
    epoch = data.draw(st.sampled_from([epoch for epoch, _ in starts]))
    later = [start for one, start in starts if one > epoch]
    valid = valid_offset(Position(offset, epoch), starts)
    assert valid <= offset
    assert all(valid <= start for start in later)
    assert valid == offset or valid in later


@given(histories, st.integers(0, 200), st.integers(0, 10**9))
def test_nothing_of_an_unknown_epoch_is_certain(
    starts: list[tuple[int, int]], offset: int, epoch: int
) -> None:
    """A claim that a failover lost left text that cannot be placed: such a reader starts over."""
    assume(all(one != epoch for one, _ in starts))
    assert valid_offset(Position(offset, epoch), starts) == 0
