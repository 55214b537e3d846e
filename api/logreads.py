"""How much of the log to ask for at once, and the asking."""

from relay.journal import Journal
from relay.link import Reply


class LogReads:
    """The reads of one consumer's group. Asks for no more entries than the credit will probably hold."""

    __slots__ = ("_commands", "_connection", "_journal", "_name", "entry_bytes")

    def __init__(self, journal: Journal, name: str, connection: str) -> None:
        self._journal = journal
        self._name = name
        self._connection = connection
        self._commands: dict[int, bytes] = {}
        self.entry_bytes = 64.0  # moving average

    def note(self, size: int) -> None:
        """An entry of `size` bytes has come."""
        self.entry_bytes += (size - self.entry_bytes) / 8

    def count(self, room_bytes: int, room_entries: int) -> int:
        """How many entries fit, as a round number: so that few commands are packed. 0: none."""
        count = int(min(room_bytes / self.entry_bytes, room_entries))
        return 1 << (count.bit_length() - 1) if count > 0 else 0

    def send(self, count: int) -> Reply:
        """Ask for them. Raises Unavailable."""
        command = self._commands.get(count)
        if command is None:
            command = self._journal.read_command(self._name, self._connection, count)
            self._commands[count] = command
        return self._journal.wire.send_packed(command)
