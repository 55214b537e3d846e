"""In which words a consumer is served: the native events, or another API's for the same records."""

from typing import Any, Protocol

from api import sse
from relay.events import Record


class Form(Protocol):
    """How records, and what is said to one reader alone, become bytes on a connection."""

    def frame(self, record: Record, end: int, epoch: int) -> bytes:
        """A record that ends at `end`; empty where it has no place in this form."""
        ...

    def private(self, name: str, data: dict[str, Any]) -> bytes:
        """An event about this reader: rewind, reconnect, error. Empty where the form has no such thing."""
        ...


class Native:
    """The events of the contract."""

    frame = staticmethod(sse.frame)

    @staticmethod
    def private(name: str, data: dict[str, Any]) -> bytes:
        """As it is named; a reconnect also in EventSource's own word."""
        return sse.reconnect(data["retry_ms"]) if name == "reconnect" else sse.private(name, data)


NATIVE = Native()
