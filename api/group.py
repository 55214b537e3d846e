"""A consumer's group in Redis: what is asked of it, the answers, and how far it is told that the client is.

At most one read is in flight, or one reset: that takes the place of a read before it, whose answer is not
heard any more. Without a connection nothing is asked: the next reconnect or sweep of the consumer comes back.
"""

from typing import TYPE_CHECKING

from api.ending import Ending
from relay.acks import read_acked, send_acked
from relay.errors import OutOfMemory, Unavailable
from relay.journal import read_entries, read_epochs
from relay.link import Reply

if TYPE_CHECKING:
    from api.stream import Consumer


class Group:
    """One consumer's group. Asks for no more entries than the credit will probably hold."""

    __slots__ = (
        "_asked",
        "_commands",
        "_connection",
        "_consumer",
        "_journal",
        "_name",
        "entry_bytes",
        "is_reading",
        "told",
    )

    def __init__(self, consumer: "Consumer") -> None:
        self._consumer = consumer
        self._journal = consumer.journal
        self._name = consumer.name
        self._connection = consumer.connection
        self._commands: dict[int, bytes] = {}
        self._asked: Reply | None = None
        self.is_reading = False
        self.entry_bytes = 64.0  # moving average
        self.told = 0  # the position that it was last moved to

    def note(self, size: int) -> None:
        """An entry of `size` bytes has come."""
        self.entry_bytes += (size - self.entry_bytes) / 8

    def count(self, room_bytes: int, room_entries: int) -> int:
        """How many entries fit, as a round number: so that few commands are packed. 0: none."""
        count = int(min(room_bytes / self.entry_bytes, room_entries))
        return 1 << (count.bit_length() - 1) if count > 0 else 0

    # --- asking

    def read_log(self, count: int) -> None:
        """Ask for the next entries: `Consumer.on_entries` gets them."""
        command = self._commands.get(count)
        if command is None:
            command = self._journal.read_command(self._name, self._connection, count)
            self._commands[count] = command
        try:
            reply = self._journal.wire.send_packed(command)
        except Unavailable:
            return
        self._ask(reply)
        reply.add_done_callback(self._on_log)

    def read_journal(self, start: int, size: int) -> None:
        """Ask for bytes of the journal: `Consumer.on_bytes` gets them, with the epochs."""
        try:
            data = self._journal.send_range(start, size)
            epochs = self._journal.send_epochs()
        except Unavailable:
            return
        self._ask(epochs)
        epochs.add_done_callback(lambda epochs: self._on_journal(data, epochs))

    def reset(self, offset: int) -> None:
        """Put it back to `offset` after a break: `Consumer.on_reset`, or the consumer ends."""
        try:
            reply = self._journal.send_reset(self._name, self._connection, offset)
        except Unavailable:
            return
        self.told = offset
        self._ask(reply)  # a cluster changes while its nodes answer: a read may be under way
        reply.add_done_callback(self._on_reset)

    def seen(self) -> None:
        """Say that its connection is still there; an error says that the group is not.

        Where acks are explicit and one is missing, look for it: the bell may have rung unheard.
        """
        consumer = self._consumer
        try:
            self._journal.send_seen(self._name, self._connection).add_done_callback(self._has_value)
            if consumer.outlet.credit.explicit and consumer.ledger.unconfirmed:
                send_acked(self._journal, self._name).add_done_callback(self._on_acked)
        except Unavailable:
            return

    # --- telling

    def acknowledge(self, ids: list[bytes]) -> None:
        """These entries are confirmed."""
        self._journal.post_ack(self._name, ids)

    def move(self, offset: int) -> None:
        """Everything up to `offset` is confirmed, and what follows is to be read."""
        self.told = offset
        self._journal.post_moved(self._name, offset)

    # --- the answers

    def _ask(self, reply: Reply) -> None:
        self._asked = reply
        self.is_reading = True

    def _is_answer(self, reply: Reply) -> bool:
        """Whether it is what was asked for last, with a value."""
        if reply is not self._asked:
            return False
        self._asked = None
        self.is_reading = False
        return self._has_value(reply)

    def _on_log(self, reply: Reply) -> None:
        if self._is_answer(reply):
            self._consumer.on_entries(read_entries(reply.result()))

    def _on_journal(self, data: Reply, epochs: Reply) -> None:
        if self._is_answer(epochs) and self._has_value(data):
            self._consumer.on_bytes(data.result(), read_epochs(epochs.result()))

    def _on_acked(self, reply: Reply) -> None:
        if self._has_value(reply):
            self._consumer.acknowledge(read_acked(reply.result()))

    def _on_reset(self, reply: Reply) -> None:
        if self._is_answer(reply):
            found = reply.result()
            if found == 1:
                self._consumer.on_reset()
            elif found == 0:
                self._consumer.node.supersede(self._consumer)
            else:
                self._consumer.end(Ending.LOST)

    def _has_value(self, reply: Reply) -> bool:
        """Whether a reply has a value that is still wanted."""
        if not self._consumer.is_open or not reply.done() or reply.cancelled():
            return False
        error = reply.exception()
        # NOGROUP, or WRONGTYPE and the like: the log or the group is gone. Without a connection, or while
        # the server is busy, the reader waits: the next sweep asks again.
        if error is not None and not isinstance(error, Unavailable | OutOfMemory):
            self._consumer.end(Ending.LOST)
        return error is None
