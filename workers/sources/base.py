"""What a source of text is: something that can be read, and that stands still when it is not.

A source is opened for one generation as an async context manager, and everything it holds (a
connection, a timer) is let go when that closes: leaving the block is how a generation is cancelled.
The pump calls `read` whenever it has room, and does not call it while it has none; nothing may be
produced or buffered without bound between two calls.
"""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from relay.events import Record
from relay.models import Model
from relay.requests import StreamRequest


@dataclass(frozen=True, slots=True)
class Finish:
    """How a generation ended: the reason in OpenAI's words, and the usage when the source told it."""

    reason: str
    usage: dict[str, Any] | None = None


@dataclass(slots=True)
class Batch:
    """What was there to be read: at least one record, or the finish, or both."""

    records: list[Record] = field(default_factory=list)
    tokens: int = 0  # how many tokens (or upstream chunks, where tokens are not told) the records hold
    finish: Finish | None = None


@dataclass(frozen=True, slots=True)
class Prefix:
    """What an earlier worker already delivered, for a source that continues from there.

    `tokens` is how many of the request's tokens that took: an estimate, a few tokens off at most where the
    worker lived to renew its lease. `extra`: a refusal, logprobs, or what else an upstream says aside.
    """

    content: str
    reasoning: str = ""
    tool_calls: bool = False
    extra: bool = False
    tokens: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether a fresh start says nothing twice."""
        return not (self.content or self.reasoning or self.tool_calls or self.extra)


class Generation(Protocol):
    """One running generation."""

    async def read(self) -> Batch:
        """Wait for the next text and return all that is there now.

        Raises SourceFailed when the source cannot go on. After a batch with a finish it is not
        called again. Cancelling it loses nothing: what was not returned is returned by the next call.
        """
        ...

    def skip(self, seconds: float) -> None:
        """The pump did not read for this long, on purpose: a schedule, if there is one, moves by it."""
        ...


class Source(Protocol):
    """A kind of generator."""

    def can_continue(self, prefix: Prefix, model: Model) -> bool:
        """Whether a generation of `model` can go on exactly, or well enough, after `prefix`."""
        ...

    def open(
        self,
        request: StreamRequest,
        model: Model,
        *,
        started_at: float,
        prefix: Prefix | None = None,
    ) -> AbstractAsyncContextManager[Generation]:
        """Begin a generation, or continue one after `prefix`.

        `started_at` is a Unix time in seconds: the zero of a source that has a schedule. Entering
        raises SourceFailed when the source refuses.
        """
        ...
