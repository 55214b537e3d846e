"""One typed function per Lua file in `relay/lua`; callers never see KEYS and ARGV.

Scripts are loaded when a wire is opened and after each reconnect; a server that has forgotten one
(SCRIPT FLUSH, a failover) is given its text with the call. Each file's header states what it returns,
why it is atomic, and what a retry does.
"""

import hashlib
import random
from collections.abc import Mapping
from importlib.resources import files
from typing import Any, NamedTuple

from relay.errors import Fenced, Gap, Overloaded, Refused, StreamLost, WireProtocol
from relay.keys import Keys
from relay.line import Line
from relay.link import Argument, Reply, pack
from relay.wire import Wire


class Script:
    """A Lua file of this package and its digest."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = files("relay").joinpath("lua", f"{name}.lua").read_text()
        self.sha = hashlib.sha1(self.text.encode()).hexdigest()  # noqa: S324 Redis names scripts so

    async def run(self, wire: Line, keys: tuple[str, ...], args: tuple[Argument, ...]) -> Any:
        """Call it, with its text when the server has forgotten it."""
        try:
            return await wire.call("EVALSHA", self.sha, len(keys), *keys, *args)
        except Refused as error:
            if error.prefix != "NOSCRIPT":
                raise
            return await wire.call("EVAL", self.text, len(keys), *keys, *args)


OPEN = Script("open_response")
CLAIM = Script("claim_response")
APPEND = Script("append_records")
CLOSE = Script("close_response")
RENEW = Script("renew_lease")
RELEASE = Script("release_lease")
CANCEL = Script("cancel_response")
ATTACH = Script("attach_consumer")
DETACH = Script("detach_consumer")
NOTE = Script("note_field")
COUNT = Script("count_entries")
RESET = Script("reset_consumer")
FORGET = Script("forget_response")
ACK = Script("ack_consumer")
ACKED = "acked:"  # prefix of a consumer's field in the meta: see `relay.acks`
ALL = tuple(script for script in globals().values() if isinstance(script, Script))


async def load(wire: Wire) -> None:
    """Load every script now."""
    for reply in [wire.send("SCRIPT", "LOAD", script.text) for script in ALL]:
        await reply


def keep_loaded(wire: Wire) -> None:
    """Load every script after each reconnect, before anything else is sent."""

    def again() -> None:
        for script in ALL:
            wire.post("SCRIPT", "LOAD", script.text)

    wire.on_reconnect(again)


async def open_response(
    wire: Line, keys: Keys, *, retention_s: int, fields: Mapping[str, Argument]
) -> float | None:
    """Write the meta of a new response. Its creation time (Unix seconds), None when the id exists."""
    flat = [part for pair in fields.items() for part in pair]
    created_at = await OPEN.run(wire, (keys.meta,), (retention_s, *flat))
    return None if created_at is None else float(created_at)


EPOCH_NONCES = 1_000_000  # of each claim; see lua/claim_response.lua


class Claimed(NamedTuple):
    """A lease: the new epoch, the head it starts from, and what is to be generated."""

    epoch: int
    head: int
    request: bytes
    created_at: float
    cancelled: bool
    notices: bytes = b"[]"  # JSON: what admission took from the request

    @property
    def number(self) -> int:
        """How often this response has been claimed, this time included."""
        return self.epoch // EPOCH_NONCES


class NotClaimed(NamedTuple):
    """Why there is no lease: gone, done, or held by another."""

    why: str


async def claim_response(
    wire: Line, keys: Keys, *, owner: str, lease_ms: int, retention_s: int
) -> Claimed | NotClaimed:
    """Take the lease and raise the epoch. Not idempotent: each success is a new epoch, unique for ever."""
    nonce = random.randrange(EPOCH_NONCES)
    reply = await CLAIM.run(
        wire, (keys.meta, keys.journal, keys.lease, keys.log), (owner, lease_ms, retention_s, nonce)
    )
    if reply[0] != b"OK":
        return NotClaimed(reply[0].decode().lower())
    _, epoch, head, request, created_at, cancel, notices = reply
    return Claimed(epoch, head, request, float(created_at), cancel == b"1", notices)


class Appended(NamedTuple):
    """The head after an append, and whether somebody wants the generation to stop."""

    head: int
    cancelled: bool


class AppendCommand:
    """`append_records` for one writer, packed once but for base and data. Read replies with `read_append`."""

    __slots__ = ("_before", "_behind", "_wire")

    def __init__(self, wire: Line, keys: Keys, *, epoch: int, cap: int, retention_s: int) -> None:
        self._wire = wire
        # EVALSHA sha 3 KEYS ARGV is 12 words: these seven, the base, the data, and the last three.
        fixed = pack("EVALSHA", APPEND.sha, 3, keys.meta, keys.journal, keys.log, epoch)
        self._before = fixed.replace(b"*7\r\n", b"*12\r\n", 1)
        self._behind = pack(cap, retention_s, keys.bell).removeprefix(b"*3\r\n")

    def send(self, base: int, data: bytes) -> Reply:
        """Send it in this turn's write. Raises Unavailable."""
        at = b"%d" % base
        return self._wire.send_packed(
            b"%b$%d\r\n%b\r\n$%d\r\n%b\r\n%b" % (self._before, len(at), at, len(data), data, self._behind)
        )


def read_append(reply: Any) -> Appended:
    """What an append answered. Raises Fenced, Gap or StreamLost."""
    if type(reply) is int:
        return Appended(reply, cancelled=False)
    if reply[0] == b"CANCEL":
        return Appended(reply[1], cancelled=True)
    raise _refusal(reply)


async def append_records(
    wire: Line, keys: Keys, *, epoch: int, base: int, data: bytes, cap: int, retention_s: int
) -> Appended:
    """Append `data` at `base`. Idempotent. Raises Fenced, Gap or StreamLost, and OutOfMemory."""
    reply = await APPEND.run(
        wire, (keys.meta, keys.journal, keys.log), (epoch, base, data, cap, retention_s, keys.bell)
    )
    return read_append(reply)


async def close_response(
    wire: Line,
    keys: Keys,
    *,
    epoch: int,
    base: int,
    data: bytes,
    retention_s: int,
    fields: Mapping[str, Argument],
) -> int:
    """Append the terminal records and write how it ended. Idempotent. Returns the final head.

    Raises Fenced, Gap or StreamLost.
    """
    flat = [part for pair in fields.items() for part in pair]
    reply = await CLOSE.run(
        wire,
        (keys.meta, keys.journal, keys.log, keys.lease),
        (epoch, base, data, retention_s, keys.bell, *flat),
    )
    if reply[0] == b"OK":
        return int(reply[1])
    raise _refusal(reply)


async def renew_lease(
    wire: Line,
    keys: Keys,
    *,
    epoch: int,
    owner: str,
    lease_ms: int,
    retention_s: int,
    status: str,
    level: int,
) -> bool:
    """Renew the lease, tell the status. True when somebody wants it to stop. Raises Fenced, StreamLost."""
    reply = await RENEW.run(
        wire,
        (keys.meta, keys.journal, keys.log, keys.lease),
        (epoch, owner, lease_ms, retention_s, status, level),
    )
    if reply[0] != b"OK":
        raise _refusal(reply)
    return bool(reply[1] == b"1")


async def release_lease(wire: Line, keys: Keys, *, epoch: int, owner: str) -> bool:
    """Give the lease up for the next worker. False when it was not ours any more."""
    return bool(await RELEASE.run(wire, (keys.meta, keys.lease), (epoch, owner)))


async def forget_response(wire: Line, keys: Keys, *, epoch: int | None) -> bool:
    """Delete a broken response; False when a newer epoch than `epoch` has it. Idempotent."""
    who = "" if epoch is None else epoch
    return bool(await FORGET.run(wire, (keys.meta, keys.journal, keys.log, keys.lease), (who,)))


async def cancel_response(wire: Line, keys: Keys) -> str | None:
    """Ask for a stop; the status it found, None when there is no such response. Idempotent."""
    reply = await CANCEL.run(wire, (keys.meta,), (keys.control,))
    return reply.decode() if reply is not None else None


class Attached(NamedTuple):
    """Where a consumer goes on, and the first bytes from there (whole and cut records)."""

    offset: int
    head: int
    status: str
    epoch: int
    data: bytes
    rewound: bool


async def attach_consumer(
    wire: Line,
    keys: Keys,
    *,
    consumer: str,
    connection: str,
    offset: int,
    epoch: int,
    limit: int,
    retention_s: int,
    most: int,
) -> Attached:
    """Attach `connection` to the group `consumer` at `offset` (-1: where it was).

    Raises StreamLost when there is no such response, Overloaded when it has `most` groups. A second
    call with the same arguments leaves the same state.
    """
    reply = await ATTACH.run(
        wire,
        (keys.meta, keys.journal, keys.log),
        (consumer, connection, offset, epoch, limit, retention_s, most, keys.bell, ACKED + consumer),
    )
    if reply[0] == b"FULL":
        raise Overloaded(f"this response has {most} consumers, the most it may have", retry_after_s=5)
    if reply[0] != b"OK":
        raise _refusal(reply)
    _, at, head, status, now, data, rewound = reply
    return Attached(at, head, status.decode(), int(now), data, bool(rewound))


def post_detach(wire: Line, keys: Keys, *, consumer: str, connection: str, offset: int, keep: bool) -> None:
    """Record a connection's end without waiting; if it is lost, the consumer's idle time tells."""
    wire.post("EVALSHA", DETACH.sha, 1, keys.log, consumer, connection, offset, "1" if keep else "0")


async def count_entries(wire: Line, keys: Keys, offset: int) -> int:
    """How many entries of the log end after `offset`."""
    return int(await COUNT.run(wire, (keys.log,), (offset,)))


def send_reset(wire: Line, keys: Keys, consumer: str, connection: str, offset: int) -> Reply:
    """Put a consumer back to what is confirmed; with its text, for the server may be a new one."""
    return wire.send("EVAL", RESET.text, 1, keys.log, consumer, connection, offset)


def post_note(wire: Line, keys: Keys, field: str, value: str) -> None:
    """Note a field of the meta without waiting: for what may be lost, or is said again."""
    wire.post("EVALSHA", NOTE.sha, 1, keys.meta, field, value)


def _refusal(reply: list[Any]) -> Exception:
    word = reply[0]
    if word == b"FENCED":
        return Fenced("another worker has taken this response over")
    if word == b"GAP":
        return Gap(int(reply[1]))
    if word == b"GONE":
        return StreamLost("the response is gone from Redis")
    return WireProtocol(f"a script answered {word!r}")
