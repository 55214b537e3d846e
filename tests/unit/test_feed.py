"""Many viewers of one response on one node: one read for all of them, and each as exact as if alone."""

import random
from typing import Any, cast

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from api.ending import Ending
from api.feed import Feed
from api.ledger import Credit
from api.metrics import Metrics
from api.recent import KEPT_BYTES, MAX_BATCHES, Recent
from api.stream import Consumer
from relay.events import content, decode, encode
from relay.journal import Entry
from relay.position import Position
from relay.scripts import Attached
from tests.support.consumer import FakeSocket, Stage, a_node
from tests.support.response_machine import ResponseMachine

READS = ("XRANGE", "XREADGROUP", "GETRANGE")


class Viewer:
    """One consumer and its client."""

    def __init__(self, house: "House", name: str, *, size: int, entries: int, explicit: bool) -> None:
        self.house = house
        self.socket = FakeSocket()
        self.consumer = Consumer(
            a_node(house.loop, house.metrics),
            house.journal,
            name=name,
            connection="k" + name,
            socket=self.socket.as_client(),
            credit=Credit(size, entries, explicit),
            keep=True,
        )
        self.takes = True  # its client takes what it is sent, and acks it where it must
        self.from_offset = 0

    def take(self) -> None:
        """The client has all of it."""
        self.socket.take()
        if self.consumer.outlet.credit.explicit:
            self.consumer.acknowledge(self.consumer.ledger.sent)

    @property
    def text(self) -> str:
        """What it was sent."""
        return self.socket.text

    @property
    def is_exact(self) -> bool:
        """Whether it was sent all that follows on where it began, in order and once."""
        return self.text == self.house.text_from(self.from_offset) and self.is_beginning

    @property
    def is_beginning(self) -> bool:
        """Whether it was sent a beginning of that."""
        ids = self.socket.ids
        return self.house.text_from(self.from_offset).startswith(self.text) and ids == sorted(set(ids))

    @property
    def has(self) -> int:
        """The offset up to which the client has whole events."""
        return max(self.socket.taken_offset, self.from_offset)


class House(Stage):
    """A feed with its viewers, between a fake server and fake clients."""

    settle_steps = 3000

    def __init__(self, kept_bytes: int = KEPT_BYTES) -> None:
        super().__init__()
        loop = cast("Any", self.loop)
        self.feed = Feed(loop, self.metrics, lambda: 0.0, self.journal, Recent(kept_bytes))
        self.viewers: list[Viewer] = []
        self._made = 0
        self.listen(self.feed.ring)

    def attach(
        self,
        *,
        size: int = 16_384,
        entries: int = 64,
        explicit: bool = False,
        position: Position | None = None,
    ) -> tuple[Viewer, Attached]:
        """One more, attached and not begun."""
        self._made += 1
        viewer = Viewer(self, f"v{self._made}", size=size, entries=entries, explicit=explicit)
        self.viewers.append(viewer)
        self.feed.join(viewer.consumer)
        consumer = viewer.consumer
        attached = self.server.attach(consumer.name, consumer.connection, position, size)
        viewer.from_offset = attached.offset
        return viewer, attached

    def view(self, **options: Any) -> Viewer:
        """One more, begun."""
        viewer, attached = self.attach(**options)
        viewer.consumer.begin(attached)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """As the node's detach does it."""
        self.viewers.remove(viewer)
        viewer.socket.lose()
        assert self.feed.leave(viewer.consumer)
        assert not self.feed.leave(viewer.consumer)
        confirmed = viewer.consumer.ledger.confirmed
        self.journal.post_detach(viewer.consumer.name, viewer.consumer.connection, confirmed, keep=True)

    def flow(self) -> None:
        """Replies and rings until none is on its way; no time passes."""
        while self.wire.execute() + self.wire.deliver():
            pass

    def turn(self) -> None:
        """A tenth of a second of the node."""
        self.loop.advance(0.1)
        for viewer in tuple(self.viewers):
            viewer.consumer.step()
        self.loop.run()

    def sweep(self) -> None:
        """The node's second."""
        for viewer in tuple(self.viewers):
            viewer.consumer.sweep()
        self.feed.look()
        self.loop.run()

    def settle(self) -> None:
        """Everything comes to rest; clients that take have taken all."""

        def take() -> None:
            for viewer in self.viewers:
                if viewer.takes:
                    viewer.take()

        self.rest(take)

    def reads(self, since: int = 0) -> list[str]:
        """The names of the commands that read, of those that were sent after the first `since`."""
        sent = [args for args in self.wire.commands[since:] if args[0].decode() in READS]
        return [args[0].decode() for args in sent if not args[-1].startswith(b"18446744073709551615-")]

    def position(self, viewer: Viewer) -> int:
        """Where Redis says that a viewer is."""
        return self.server.position(viewer.consumer.name.encode())


def a_house(viewers: int, **options: Any) -> House:
    """A house with so many viewers, who have seen a first entry."""
    house = House()
    for _ in range(viewers):
        house.view(**options)
    house.append("0 ")
    house.settle()
    return house


# --- one read


@pytest.mark.parametrize("viewers", [2, 50])
def test_an_append_is_read_once_for_all(viewers: int) -> None:
    """Two viewers or fifty: each append costs one command, and every one of them is sent it."""
    house = a_house(viewers)
    before = len(house.wire.commands)
    for number in range(10):
        house.append(f"{number} ")
        house.flow()
    assert house.reads(before) == ["XRANGE"] * 10
    assert all(viewer.is_exact for viewer in house.viewers)


def test_one_viewer_alone_reads_the_log_of_its_group() -> None:
    """Without company nothing is shared: the group's own reads and acknowledgements, and no look beside."""
    house = a_house(1)
    before = len(house.wire.commands)
    for number in range(10):
        house.append(f"{number} ")
        house.flow()
    assert house.reads(before) == ["XREADGROUP"] * 10
    house.feed.look()
    assert house.wire.named("XRANGE") == []
    assert house.viewers[0].is_exact


def test_those_at_one_place_are_sent_the_same_bytes() -> None:
    """A frame is made once for all who stand at one offset: they are handed the same object."""
    house = a_house(3)
    written: list[bytes] = []
    for viewer in house.viewers:
        viewer.socket.write = written.append  # type: ignore[method-assign]
    house.append("same")
    house.flow()
    assert len(written) == 3
    assert all(data is written[0] for data in written)


def test_rings_during_a_read_make_one_more_read() -> None:
    """At most one read is in flight for all of them; what rings meanwhile comes together with the next."""
    house = a_house(5)
    before = len(house.wire.commands)
    house.append("a")
    house.wire.deliver()
    house.wire.execute()
    for text in "bcdef":
        house.append(text)
        house.wire.coming.rotate(1)
        house.wire.deliver(1)
    house.flow()
    assert house.reads(before) == ["XRANGE"] * 2
    assert all(viewer.is_exact for viewer in house.viewers)


def test_their_places_in_redis_are_told_together_and_seldom() -> None:
    """Each group is moved to what its client has, at most every 50 ms, however many tokens that is."""
    house = a_house(4)
    before = len(house.wire.commands)
    for number in range(100):  # a second, at 100 tokens a second
        house.append(f"{number} ")
        house.flow()
        for viewer in house.viewers:
            viewer.take()
        house.loop.advance(0.01)
    house.settle()
    moves = [args for args in house.wire.commands[before:] if args[0] == b"XGROUP"]
    assert 4 * 10 <= len(moves) <= 4 * 25
    assert all(house.position(viewer) == len(house.server.journal) for viewer in house.viewers)
    assert not any(group.pending for group in house.server.groups.values())


def test_delivery_is_measured_for_each_who_was_sent_it() -> None:
    """The histogram of delivery counts viewers, not reads."""
    house = a_house(3)
    stalled = house.viewers[0]
    stalled.consumer.end(Ending.DISCONNECTED)
    before = _deliveries(house.metrics)
    house.append("x")
    house.flow()
    assert _deliveries(house.metrics) - before == 2


def _deliveries(metrics: Metrics) -> int:
    text = metrics.exposition().decode()
    line = next(line for line in text.splitlines() if line.startswith("relay_delivery_seconds_count"))
    return int(float(line.split()[1]))


# --- slow ones disturb nobody


def test_a_stalled_viewer_delays_nobody_and_costs_no_reads() -> None:
    """One that takes nothing fills its credit and stops; the others get every append in its own turn."""
    house = a_house(3)
    stalled, *brisk = house.viewers
    stalled.takes = False
    before = len(house.wire.commands)
    for _ in range(100):
        house.append("x" * 400)
        house.flow()
        assert all(viewer.is_exact for viewer in brisk)
        for viewer in brisk:
            viewer.take()
        house.loop.advance(0.02)
    assert stalled.consumer.ledger.unconfirmed <= 16_384
    assert stalled.is_beginning
    assert house.reads(before) == ["XRANGE"] * 100
    stalled.takes = True
    house.settle()
    assert stalled.is_exact


def test_when_nobody_takes_nothing_is_read() -> None:
    """All of them stalled: rings, timers and turns read nothing, and the first that takes goes on."""
    house = a_house(3, size=1024)
    for viewer in house.viewers:
        viewer.takes = False
    for _ in range(30):
        house.append("x" * 100)
        house.settle()
    before = len(house.wire.commands)
    for _ in range(30):
        house.append("x" * 100)
        house.settle()
    house.sweep()
    house.settle()
    assert house.reads(before) == []
    assert all(viewer.consumer.lag == len(house.server.journal) - 3 for viewer in house.viewers)
    for viewer in house.viewers:
        viewer.takes = True
    house.settle()
    assert all(viewer.is_exact for viewer in house.viewers)


def test_a_slow_one_catches_up_in_few_large_frames() -> None:
    """What a viewer missed comes merged, out of what is kept, without a read of its own."""
    house = a_house(2)
    slow, brisk = house.viewers
    slow.takes = False
    for number in range(1000):
        house.append(f"{number} ")
        house.flow()
        brisk.take()
        house.loop.advance(0.02)
    frames, before = len(slow.socket.events), len(house.wire.commands)
    slow.takes = True
    house.settle()
    assert slow.is_exact
    assert len(slow.socket.events) - frames <= 10
    assert house.reads(before) == []


def test_what_is_kept_is_bounded_and_older_text_is_the_journal_s() -> None:
    """One that fell behind what is kept reads its own part of the journal until it is inside again."""
    house = a_house(3)
    slow, *brisk = house.viewers
    slow.takes = False
    while len(house.server.journal) < 3 * KEPT_BYTES:
        house.append("x" * 900)
        house.settle()
        assert house.feed.recent.end - house.feed.recent.start <= KEPT_BYTES
    assert all(viewer.is_exact for viewer in brisk)
    before = len(house.wire.commands)
    slow.takes = True
    house.settle()
    assert slow.is_exact
    assert 0 < len(house.reads(before)) <= 2 * 3 * KEPT_BYTES / 16_384
    assert set(house.reads(before)) == {"GETRANGE"}


def test_a_late_one_with_a_long_history_holds_nobody_up() -> None:
    """History is read by who lacks it; the appends meanwhile reach the others in their own turn."""
    house = a_house(2)
    for _ in range(300):
        house.append("x" * 1000)
        house.settle()
    first = house.viewers[0]
    late = house.view()
    for number in range(5):
        house.append(f"{number} ")
        house.flow()
        assert first.is_exact
    house.settle()
    assert late.is_exact
    before = len(house.wire.commands)
    house.append("all of them")
    house.flow()
    assert house.reads(before) == ["XRANGE"]


def test_a_small_window_is_kept_to() -> None:
    """With explicit acks a viewer has no more than its window, though the feed has more for it."""
    house = a_house(1)
    processor = house.view(size=300, explicit=True)
    processor.takes = False
    for _ in range(20):
        house.append("x" * 98)
        house.settle()
    assert processor.consumer.ledger.unconfirmed <= 300
    house.settle()
    commands = len(house.wire.commands)
    for _ in range(50):
        house.turn()
    assert len(house.wire.commands) == commands  # nothing is tried before an ack
    processor.takes = True
    house.settle()
    assert processor.is_exact


# --- coming and going


def test_the_second_makes_it_shared_and_the_last_goes_on_alone() -> None:
    """Whoever comes and goes, nobody loses a byte, gets one twice or waits for another ring."""
    house = a_house(1)
    first = house.viewers[0]
    for round_ in range(5):
        house.append(f"alone {round_} ")
        house.flow()
        second = house.view()
        for number in range(10):
            house.append(f"{number} ")
            house.flow()
        house.settle()
        assert second.is_exact
        house.leave(second)
        house.append("left ")
        house.flow()
        assert first.is_exact
        house.settle()
        assert house.position(first) == len(house.server.journal)


def test_a_read_of_its_own_that_is_under_way_is_not_given_twice() -> None:
    """The second viewer comes while the first one's read is on its way: what it brings counts, once."""
    house = a_house(1)
    first = house.viewers[0]
    house.append("on its way ")
    house.wire.deliver()
    house.wire.execute()  # given out to the group
    second = house.view()
    house.append("and more ")
    house.settle()
    assert first.is_exact
    assert second.is_exact
    assert house.server.groups[b"v1"].pending == []
    assert house.position(first) == len(house.server.journal)


def test_a_shared_read_that_comes_too_late_is_for_nobody() -> None:
    """The second viewer leaves while the shared read is on its way: the first reads for itself, at once."""
    house = a_house(2)
    first, second = house.viewers
    house.append("on its way ")
    house.wire.deliver()
    assert house.reads()[-1] == "XRANGE"
    house.leave(second)
    house.flow()
    assert first.is_exact
    assert not first.consumer.ended.done()


def test_text_between_the_attach_and_the_start_is_not_lost() -> None:
    """What is appended, and rung, before a new viewer begins reaches it with what follows."""
    house = a_house(2)
    viewer, attached = house.attach()
    house.append("between ")
    house.flow()
    viewer.consumer.begin(attached)
    house.settle()
    assert viewer.is_exact


def test_one_that_knows_more_than_was_read_waits_for_the_read() -> None:
    """A viewer whose attach brought more than the others have: it is sent only what follows on that."""
    house = a_house(2)
    house.append("its ring is late ", ring=False)
    late = house.view()
    assert late.is_exact
    house.append("next")
    house.settle()
    assert all(viewer.is_exact for viewer in house.viewers)


def test_what_a_newer_viewer_had_with_its_attach_is_told_to_the_others() -> None:
    """A lost ring, and nothing read in common yet: the newcomer's attach is the word that there is more."""
    house = House()
    first = house.view()
    house.append("its ring is lost", ring=False)
    house.view()
    house.settle()
    assert first.is_exact


def test_an_epoch_that_only_newcomers_have_seen_stops_nobody() -> None:
    """Another worker has begun, those who came since know by their attach, and then a ring is lost."""
    house = a_house(2)
    house.another_worker()
    for earlier in tuple(house.viewers):
        house.view()
        house.leave(earlier)
    house.append("its ring is lost", ring=False)
    house.sweep()
    house.settle()
    assert all(viewer.is_exact for viewer in house.viewers)


@pytest.mark.parametrize("seed", range(20))
def test_the_end_reaches_everyone(seed: int) -> None:
    """Brisk, slow, late and windowed viewers of one response: each gets all of it, then its end."""
    choose = random.Random(seed)
    house = House()
    for number in range(150):
        if number % 15 == 0:
            explicit = choose.random() < 0.3
            house.view(size=choose.choice([300, 2000, 16_384]), explicit=explicit)
        for viewer in house.viewers:
            viewer.takes = choose.random() < 0.5
        house.append("x" * choose.randint(0, 600))
        house.settle() if choose.random() < 0.3 else house.flow()
    house.finish()
    for viewer in house.viewers:
        viewer.takes = True
    house.settle()
    for viewer in house.viewers:
        assert viewer.is_exact
        assert viewer.consumer.ended.result() is Ending.TERMINAL
    assert house.loop.timers == 0


# --- faults


def test_a_hole_that_the_cap_made_is_read_from_the_journal_once() -> None:
    """Entries trimmed before the feed read them are no loss, and one read repairs it for all."""
    house = a_house(5)
    for text in "abcd":
        house.append(text, ring=False)
    del house.server.log[:3]
    before = len(house.wire.commands)
    house.append("e")
    house.flow()
    assert all(viewer.is_exact for viewer in house.viewers)
    assert house.metrics.trims_repaired == 1
    assert house.reads(before) == ["XRANGE", "GETRANGE"]


def test_a_lost_ring_is_found_by_one_look() -> None:
    """A ring that never came delays the text by a sweep, and the sweep looks once for all of them."""
    house = a_house(5)
    house.append("missed", ring=False)
    before = len(house.wire.commands)
    house.sweep()
    house.flow()
    assert all(viewer.is_exact for viewer in house.viewers)
    assert house.reads(before) == ["XRANGE"]


def test_every_viewer_says_that_it_is_there() -> None:
    """Each second each group hears of its connection, though nobody reads by it."""
    house = a_house(3)
    before = len(house.wire.commands)
    house.sweep()
    seen = [args for args in house.wire.commands[before:] if args[0] == b"XREADGROUP"]
    assert len(seen) == 3


def test_a_lost_group_ends_its_viewer_alone() -> None:
    """One whose group is gone is told apart; the others go on."""
    house = a_house(3)
    del house.server.groups[b"v2"]
    house.sweep()
    house.flow()
    house.append("more")
    house.flow()
    one, two, three = house.viewers
    assert two.consumer.ended.result() is Ending.LOST
    assert one.is_exact
    assert three.is_exact


def test_after_a_break_everyone_goes_on_where_it_was() -> None:
    """The connection breaks with a read in flight: groups are put back, and one read goes on for all."""
    house = a_house(4)
    house.append("lost on the way ")
    house.wire.deliver()
    house.wire.execute()
    house.wire.break_connection()
    house.append("meanwhile ", ring=False)
    house.sweep()
    house.turn()
    house.wire.connected = True
    before = len(house.wire.commands)
    house.feed.recover()
    house.settle()
    assert all(viewer.is_exact for viewer in house.viewers)
    assert all(house.position(viewer) == len(house.server.journal) for viewer in house.viewers)
    assert house.reads(before).count("XRANGE") <= 2


def test_text_that_a_failover_lost_is_waited_for() -> None:
    """A head that is gone with a primary is asked for in time, not as fast as Redis answers."""
    house = a_house(3)
    lost = encode(content("lost and made again"))
    house.feed.ring(len(house.server.journal) + len(lost))
    before = len(house.wire.commands)
    house.flow()
    assert len(house.reads(before)) <= 2
    house.loop.advance(0.05)
    house.flow()
    house.server.append(lost)
    house.wire.push(b"%d" % len(house.server.journal))
    house.settle()
    assert all(viewer.is_exact for viewer in house.viewers)


def test_ids_follow_the_epoch() -> None:
    """Text of a new worker has the new epoch in its ids for every viewer, and none goes back to the old."""
    house = a_house(2)
    house.another_worker()
    late = house.view()
    house.append("a")
    house.settle()
    for viewer in house.viewers:
        epochs = [int(got.id.partition("-")[2]) for got in viewer.socket.events if got.id]
        assert epochs[-1] == 2
        assert epochs == sorted(epochs)
    assert late.is_exact


@pytest.mark.parametrize("size", [1, 40])
def test_text_that_another_worker_overruled_is_not_gone_on_from(size: int) -> None:
    """A failover lost what two had, and not a third: those attach anew, and it is sent what is there."""
    house = a_house(2)
    house.append("kept by all ")
    behind = house.view(explicit=True, size=len(house.server.journal))
    behind.takes = False  # it has what is kept, and no room for more
    house.settle()
    house.append("lost with its worker")
    house.settle()
    kept = house.server.log[:-1]
    lost = [viewer for viewer in house.viewers if viewer is not behind]
    had = [viewer.text for viewer in lost]
    house.server.log, house.server.journal = kept, house.server.journal[: kept[-1][0].end]
    house.another_worker()
    house.feed.recover()
    house.settle()
    house.append("other text " * size)  # shorter than what was lost, or longer
    house.settle()
    house.feed.look()
    house.settle()
    assert [viewer.consumer.ended.done() for viewer in house.viewers] == [True, True, False]
    assert [viewer.consumer.ended.result() for viewer in lost] == [Ending.LOST] * 2
    assert [viewer.text for viewer in lost] == had
    for _ in range(5):  # it does not come to rest: more was heard of than is there now
        behind.take()
        house.flow()
        house.turn()
    assert behind.consumer.outlet.epoch == 2
    assert behind.is_beginning


# --- what is kept


def test_rendered_batches_are_bounded() -> None:
    """However many offsets viewers stand at, only so many batches are kept."""
    recent = Recent()
    recent.begin_at(0)
    ends = [0]
    for _ in range(50):
        data = encode(content("x"))
        ends.append(ends[-1] + len(data))
        recent.take_entries([Entry(b"", ends[-1], 1, data, b"0.0")])
    for end in ends[:-1]:
        assert decode(recent.slice(end, 1000), end)[1] == ends[-1]
        assert recent.batch(end, 1).placed[-1].end == ends[-1]
        assert len(recent._batches) <= MAX_BATCHES


# --- in any order


class FeedMachine(ResponseMachine):
    """Everything that can happen to the viewers of one response, in any order."""

    house: House

    @initialize(before=st.integers(0, 10))
    def begin(self, before: int) -> None:
        """A response that may have begun."""
        self.stage = self.house = House(kept_bytes=2000)
        for number in range(before):
            self.house.append(f"{number} ", ring=False)

    @precondition(lambda self: len(self.house.viewers) < 5)
    @rule(
        size=st.sampled_from([64, 300, 2000, 16_384]),
        entries=st.sampled_from([1, 4, 64]),
        explicit=st.booleans(),
        at=st.one_of(st.none(), st.integers(0, 1000)),
        between=st.booleans(),
    )
    def come(self, size: int, entries: int, explicit: bool, at: int | None, between: bool) -> None:
        """One more, from anywhere."""
        position = None
        if at is not None:
            ends = [0, *(item.end for item in decode(self.house.server.journal)[0])]
            position = Position(ends[at % len(ends)], self.house.server.epoch)
        viewer, attached = self.house.attach(size=size, entries=entries, explicit=explicit, position=position)
        if between and not self.done:
            self.house.append("between ")
            self.house.wire.deliver()
        viewer.consumer.begin(attached)

    @precondition(lambda self: self.house.viewers)
    @rule(which=st.integers(0, 100))
    def go(self, which: int) -> None:
        """One less."""
        self.house.leave(self.house.viewers[which % len(self.house.viewers)])

    @precondition(lambda self: not self.done)
    @rule()
    def append_a_lot(self) -> None:
        """More than is kept."""
        for _ in range(3):
            self.house.append_records(*[content("x" * 300)] * 3)

    @rule()
    def flow(self) -> None:
        """All of it arrives."""
        self.house.flow()

    @precondition(lambda self: self.house.viewers)
    @rule(which=st.integers(0, 100), share=st.floats(0, 1))
    def take(self, which: int, share: float) -> None:
        """A client's kernel takes some."""
        viewer = self.house.viewers[which % len(self.house.viewers)]
        viewer.socket.take(int(viewer.socket.outstanding() * share))
        if viewer.consumer.outlet.credit.explicit and share > 0.5:
            viewer.consumer.acknowledge(viewer.has)
        self.house.loop.run()

    @rule()
    def break_the_connection(self) -> None:
        """And it is there again."""
        self.house.wire.break_connection()
        self.house.wire.connected = True
        self.house.feed.recover()

    @rule()
    def change_the_cluster(self) -> None:
        """A slot moves, or a node is replaced: what is in flight is answered all the same."""
        self.house.feed.recover()

    @invariant()
    def a_beginning_of_the_response(self) -> None:
        """Everyone was sent a beginning of what follows on its position, in order, nothing twice."""
        for viewer in self.house.viewers:
            assert viewer.is_beginning

    @invariant()
    def bounded(self) -> None:
        """What is kept is within its bound, and what is unconfirmed within the credit but for one record."""
        recent = self.house.feed.recent
        assert recent.end - recent.start <= recent.kept_bytes
        for viewer in self.house.viewers:
            self.assert_within_credit(viewer.consumer)

    @invariant()
    def never_ahead_of_the_client(self) -> None:
        """Nothing is taken for confirmed that the client does not have, here or in Redis."""
        for viewer in self.house.viewers:
            assert viewer.consumer.ledger.confirmed <= viewer.has
            if not viewer.consumer.group.is_reading and not self.house.wire.sent:
                assert self.house.position(viewer) <= viewer.has

    def teardown(self) -> None:
        """Left to themselves with clients that take all, everyone arrives at the end."""
        if not hasattr(self, "house"):
            return
        house = self.house
        for _ in range(1500):
            for viewer in house.viewers:
                viewer.take()
            if not house.wire.execute() + house.wire.deliver():
                house.turn()
                house.sweep()
            if all(viewer.has == len(house.server.journal) for viewer in house.viewers):
                house.settle()
                break
        for viewer in house.viewers:
            assert viewer.is_exact
            if self.done and viewer.socket.events:
                assert viewer.consumer.ended.result() is Ending.TERMINAL
            elif not self.done:
                assert not viewer.consumer.ended.done()
                assert viewer.consumer.lag == 0
                assert house.server.groups[viewer.consumer.name.encode()].last.end <= viewer.has


TestFeedMachine = FeedMachine.TestCase
TestFeedMachine.settings = hypothesis_settings(
    max_examples=100, stateful_step_count=40, deadline=None, report_multiple_bugs=False
)
