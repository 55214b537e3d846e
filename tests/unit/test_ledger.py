"""What is sent and not confirmed: confirmations never run ahead of the client, and never go back."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from api.ledger import Ledger


class Written(NamedTuple):
    """An event as the test knows it: where it ends in the response, and in the socket's output."""

    end: int
    socket_bytes: int


def test_a_new_ledger_owes_nothing() -> None:
    """A consumer begins with all before its position confirmed, and nothing on the way."""
    ledger = Ledger(500)
    assert (ledger.sent, ledger.confirmed, ledger.unconfirmed, ledger.pending) == (500, 500, 0, 0)
    assert ledger.frames == 0
    assert ledger.acknowledged(10**9) == 500


def test_an_event_is_acknowledged_with_its_last_byte() -> None:
    """A byte short of a frame's end its record is not confirmed; with the last byte it is."""
    ledger = Ledger(0)
    ledger.wrote(100, 40)
    assert ledger.acknowledged(99) == 0
    assert ledger.acknowledged(100) == 40


def test_entries_are_acknowledged_with_what_they_hold() -> None:
    """An entry's ID comes back once, when the client has the whole of it."""
    ledger = Ledger(0)
    ledger.read(10, b"10-1")
    ledger.read(25, b"25-1")
    ledger.wrote(50, 10)
    ledger.wrote(90, 25)
    assert ledger.confirm(ledger.acknowledged(60)) == [b"10-1"]
    assert ledger.confirm(ledger.acknowledged(60)) == []
    assert ledger.pending == 1
    assert ledger.confirm(ledger.acknowledged(90)) == [b"25-1"]
    assert (ledger.pending, ledger.unconfirmed, ledger.frames) == (0, 0, 0)


def test_an_entry_that_was_on_its_way_already_is_owed_only_its_acknowledgement() -> None:
    """An entry delivered again ends before what was sent: it is confirmed with that."""
    ledger = Ledger(0)
    ledger.wrote(50, 30)
    ledger.read(10, b"10-1")
    ledger.read(30, b"30-1")
    assert ledger.confirm(ledger.acknowledged(50)) == [b"10-1", b"30-1"]


class LedgerMachine(RuleBasedStateMachine):
    """A connection in any order: entries are read, frames written, and the kernel takes what it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.start = 100
        self.ledger = Ledger(self.start)
        self.written = 0
        self.taken = 0
        self.events: list[Written] = []
        self.read: list[tuple[int, bytes]] = []
        self.ids: list[bytes] = []
        self.was_confirmed = self.start

    @rule(record=st.integers(1, 300), framing=st.integers(0, 80), from_log=st.booleans())
    def write(self, record: int, framing: int, from_log: bool) -> None:
        """A frame goes out, of an entry or from the journal."""
        end = self.ledger.sent + record
        if from_log:
            self.read.append((end, b"%d-1" % end))
            self.ledger.read(*self.read[-1])
        self.written += record + framing
        self.events.append(Written(end, self.written))
        self.ledger.wrote(self.written, end)

    @rule(share=st.floats(0, 1))
    def take(self, share: float) -> None:
        """The client's kernel acknowledges some more, which may end inside a frame."""
        self.taken += int((self.written - self.taken) * share)

    @rule()
    def confirm(self) -> None:
        """The node looks, and confirms."""
        offset = self.ledger.acknowledged(self.taken)
        whole = [event.end for event in self.events if event.socket_bytes <= self.taken]
        assert offset == max([self.was_confirmed, *whole])
        self.ids += self.ledger.confirm(offset)

    @rule(share=st.floats(0, 1))
    def acknowledge(self, share: float) -> None:
        """The client itself confirms something that it was sent."""
        offset = self.ledger.confirmed + int(self.ledger.unconfirmed * share)
        self.ids += self.ledger.confirm(offset)

    @invariant()
    def confirmed_is_between(self) -> None:
        """Confirmed never goes back, and never exceeds what was sent."""
        assert self.was_confirmed <= self.ledger.confirmed <= self.ledger.sent
        assert self.ledger.unconfirmed == self.ledger.sent - self.ledger.confirmed
        self.was_confirmed = self.ledger.confirmed

    @invariant()
    def entries_are_owed_once(self) -> None:
        """Every entry that was read is either pending or acknowledged, in order and once."""
        done = [entry_id for end, entry_id in self.read if end <= self.ledger.confirmed]
        assert self.ids == done
        assert self.ledger.pending == len(self.read) - len(done)

    @invariant()
    def frames_are_owed(self) -> None:
        """Every frame that the client has not taken is counted as on its way."""
        assert self.ledger.frames >= sum(event.socket_bytes > self.taken for event in self.events)


TestLedgerMachine = LedgerMachine.TestCase


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.data())
def test_acknowledging_more_never_confirms_less(sizes: list[int], data: st.DataObject) -> None:
    """The offset is monotonic in what the kernel has, however often and in whatever steps one asks."""
    ledger, whole, at = Ledger(0), Ledger(0), 0
    for end in range(1, len(sizes) + 1):
        at += sizes[end - 1]
        ledger.wrote(at, end)
        whole.wrote(at, end)
    steps = sorted(data.draw(st.lists(st.integers(0, at), max_size=10)))
    offsets = []
    for taken in [*steps, at]:
        offsets.append(ledger.acknowledged(taken))
        ledger.confirm(offsets[-1])
    assert offsets == sorted(offsets)
    assert offsets[-1] == whole.acknowledged(at) == len(sizes)


@pytest.mark.parametrize("taken", [0, -1, -(10**6)])
def test_a_kernel_that_has_nothing_confirms_nothing(taken: int) -> None:
    """More outstanding than was written for this response (an earlier one on the connection): nothing yet."""
    ledger = Ledger(7)
    ledger.wrote(10, 20)
    assert ledger.acknowledged(taken) == 7
