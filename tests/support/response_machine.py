"""What can happen to a response whatever reads it: the rules for one reader and for many."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from api.stream import Consumer
from relay.events import TERMINAL, Channel, content, encode, event
from tests.support.consumer import Stage


class ResponseMachine(RuleBasedStateMachine):
    """Whoever inherits it sets `stage` when it begins, and adds who reads."""

    stage: Stage
    done = False
    trimmed = False

    @precondition(lambda self: not self.done)
    @rule(
        sizes=st.lists(st.integers(0, 400), min_size=1, max_size=5), notice=st.booleans(), ring=st.booleans()
    )
    def append(self, sizes: list[int], notice: bool, ring: bool) -> None:
        """The worker appends an entry; its ring may be lost."""
        records = [content("é" * (size // 2) + "." * (size % 2)) for size in sizes]
        if notice:
            records.insert(len(records) // 2, event(Channel.NOTICE, {"kind": "live"}))
        self.stage.append_records(*records, ring=ring)

    @precondition(lambda self: not self.done)
    @rule()
    def another_worker(self) -> None:
        """A new epoch begins at the head."""
        self.stage.another_worker()

    @precondition(lambda self: not self.done)
    @rule()
    def finish(self) -> None:
        """The response ends."""
        self.done = True
        self.stage.finish()

    @rule(count=st.integers(1, 4))
    def execute(self, count: int) -> None:
        """The server comes to the next commands."""
        self.stage.wire.execute(count)

    @rule(count=st.integers(1, 4))
    def deliver(self, count: int) -> None:
        """What the server said arrives."""
        self.stage.wire.deliver(count)

    @rule(seconds=st.sampled_from([0.001, 0.05, 0.2]))
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self.stage.loop.advance(seconds)

    @rule()
    def turn(self) -> None:
        """The node's tenth of a second."""
        self.stage.turn()

    @rule()
    def sweep(self) -> None:
        """The node's second."""
        self.stage.sweep()

    @rule(count=st.integers(1, 4))
    def trim(self, count: int) -> None:
        """The cap of the log bites; the newest entry is never trimmed."""
        self.trimmed = True
        self.stage.trim(min(count, len(self.stage.server.log) - 1))

    @rule()
    def lose_rings(self) -> None:
        """Rings on their way are lost."""
        self.stage.wire.lose_pushes()

    def assert_within_credit(self, consumer: Consumer) -> None:
        """What is unconfirmed fits the credit, but for one record and the end.

        That one went with nothing out, or with less than half where acks are explicit.
        """
        ledger, credit = consumer.ledger, consumer.outlet.credit
        over = [
            item
            for item in self.stage.placed
            if ledger.confirmed + credit.size < item.end <= ledger.sent
            and item.record.channel not in TERMINAL
        ]
        assert len(over) <= 1
        before = [item.end - len(encode(item.record)) - ledger.confirmed for item in over]
        assert all(out <= 0 or (credit.explicit and out * 2 < credit.size) for out in before)
