"""One connection, without a socket: what leaves in which write, and which reply is whose."""

import asyncio
import gc
from typing import Any

import pytest

from relay.errors import (
    ConnectionLost,
    OutOfMemory,
    Redirected,
    Refused,
    RelayError,
    SettingsInvalid,
    Unavailable,
)
from relay.link import Link, Reply


class FakeTransport(asyncio.Transport):
    """Keeps what is written, and tells of its end on the next turn as real ones do."""

    def __init__(self, protocol: Link) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.aborted = False
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """One call is one write."""
        self.writes.append(bytes(data))

    def abort(self) -> None:
        """Gone on the next turn."""
        self.aborted = True
        asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    def close(self) -> None:
        """The same: nothing is buffered here."""
        asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)


class Rig:
    """A link on a fake transport, with what it told its owner."""

    def __init__(self, max_inflight: int = 100) -> None:
        self.pushed: list[tuple[str, bytes]] = []
        self.lost: list[Link] = []
        self.link = Link("nowhere:1", max_inflight, self._push, self.lost.append)
        self.transport = FakeTransport(self.link)
        self.link.connection_made(self.transport)

    def _push(self, channel: str, payload: bytes) -> None:
        self.pushed.append((channel, payload))

    def echo(self, *words: str) -> list[Reply]:
        """Send an ECHO for each."""
        return [self.link.send(("ECHO", word)) for word in words]

    def answer(self, *words: str) -> None:
        """Receive the replies to so many ECHOs, in one piece."""
        self.link.data_received(b"".join(b"+%s\r\n" % word.encode() for word in words))


async def turn() -> None:
    """Let the loop turn once."""
    await asyncio.sleep(0)


def packed(*words: str) -> bytes:
    """The ECHOs of these words as one piece of wire."""
    return b"".join(b"*2\r\n$4\r\nECHO\r\n$%d\r\n%s\r\n" % (len(word), word.encode()) for word in words)


def smessage(channel: bytes, payload: bytes) -> bytes:
    """A sharded message as it goes on the wire."""
    return b">3\r\n$8\r\nsmessage\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (
        len(channel),
        channel,
        len(payload),
        payload,
    )


def confirmation(kind: bytes, channel: bytes) -> bytes:
    """The push that confirms a subscription or its end."""
    return b">3\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n:1\r\n" % (len(kind), kind, len(channel), channel)


# --- writing


async def test_the_commands_of_one_turn_leave_in_one_write() -> None:
    """However many tasks send in a turn of the loop, there is one system call."""
    rig = Rig()
    words = [str(number) for number in range(50)]
    rig.echo(*words)
    assert rig.transport.writes == []
    await turn()
    assert rig.transport.writes == [packed(*words)]


async def test_the_next_turn_has_its_own_write() -> None:
    """A command does not wait for replies to earlier ones."""
    rig = Rig()
    rig.echo("a")
    await turn()
    rig.echo("b")
    await turn()
    assert rig.transport.writes == [packed("a"), packed("b")]


async def test_a_full_socket_gathers_commands_into_one_write() -> None:
    """While the transport is paused nothing is handed to it; afterwards all of it goes at once."""
    rig = Rig()
    rig.link.pause_writing()
    rig.echo("a")
    await turn()
    rig.echo("b")
    await turn()
    assert rig.transport.writes == []
    rig.link.resume_writing()
    assert rig.transport.writes == [packed("a", "b")]


async def test_close_writes_what_is_queued() -> None:
    """A notification sent in the last turn still leaves; its reply is lost and says so."""
    rig = Rig()
    (reply,) = rig.echo("a")
    await rig.link.close(within_s=1)
    assert rig.transport.writes == [packed("a")]
    with pytest.raises(ConnectionLost):
        await reply


# --- replies


async def test_replies_resolve_in_the_order_of_the_commands() -> None:
    """The first reply is the first command's, whatever arrived together."""
    rig = Rig()
    replies = rig.echo("a", "b", "c")
    rig.answer("A")
    rig.answer("B", "C")
    assert [await reply for reply in replies] == [b"A", b"B", b"C"]
    assert rig.link.inflight == 0


async def test_a_cancelled_waiter_keeps_its_place() -> None:
    """Its reply is dropped, not handed to the next."""
    rig = Rig()
    first, second, third = rig.echo("a", "b", "c")
    first.cancel()
    third.cancel()
    rig.answer("A", "B", "C")
    assert await second == b"B"
    assert rig.link.inflight == 0


# One of each kind that we meet: a status, numbers, a bulk string with line ends in it, a null, a nested
# array, a map, an error, and messages between them.
CONVERSATION = b"".join(
    [
        b"+OK\r\n",
        smessage(b"bell", b"one"),
        b":42\r\n",
        b"$6\r\n\r\n$1\r\n\r\n",
        b"_\r\n",
        confirmation(b"ssubscribe", b"bell"),
        b"*2\r\n*2\r\n$1\r\na\r\n:1\r\n$-1\r\n",
        b"%1\r\n$3\r\nkey\r\n$5\r\nvalue\r\n",
        b"-NOGROUP no such group\r\n",
        smessage(b"bell", b""),
    ]
)
MEANING = [b"OK", 42, b"\r\n$1\r\n", None, [[b"a", 1], None], {b"key": b"value"}, "NOGROUP no such group"]


def start_conversation() -> tuple[Rig, list[Reply]]:
    """The commands that the conversation answers."""
    rig = Rig()
    replies = rig.echo("1", "2", "3", "4")
    rig.link.send_subscription("SSUBSCRIBE", "bell")
    return rig, replies + rig.echo("5", "6", "7")


async def heard(replies: list[Reply]) -> list[Any]:
    """What the replies say, errors by their message; all must have come."""
    assert all(reply.done() for reply in replies)
    answers = await asyncio.gather(*replies, return_exceptions=True)
    return [str(answer) if isinstance(answer, Refused) else answer for answer in answers]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, len(CONVERSATION)])
async def test_replies_may_be_cut_into_pieces_of_any_size(size: int) -> None:
    """TCP keeps no message boundaries."""
    rig, replies = start_conversation()
    for at in range(0, len(CONVERSATION), size):
        rig.link.data_received(CONVERSATION[at : at + size])
    assert await heard(replies) == MEANING
    assert rig.pushed == [("bell", b"one"), ("bell", b"")]
    assert rig.link.inflight == 0


async def test_replies_may_be_cut_at_any_byte() -> None:
    """Every single place to cut gives the same conversation."""
    for cut in range(1, len(CONVERSATION)):
        rig, replies = start_conversation()
        rig.link.data_received(CONVERSATION[:cut])
        rig.link.data_received(CONVERSATION[cut:])
        assert await heard(replies) == MEANING, cut
        assert rig.pushed == [("bell", b"one"), ("bell", b"")], cut


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", OutOfMemory),
        ("LOADING Redis is loading the dataset in memory", Unavailable),
        ("READONLY You can't write against a read only replica.", Unavailable),
        ("CLUSTERDOWN The cluster is down", Unavailable),
        ("BUSY Redis is busy running a script.", Unavailable),
        ("WRONGPASS invalid username-password pair or user is disabled.", SettingsInvalid),
        ("NOAUTH Authentication required.", SettingsInvalid),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", Refused),
        ("NOSCRIPT No matching script.", Refused),
        ("ERR unknown command", Refused),
    ],
)
async def test_an_error_reply_has_the_type_of_its_first_word(message: str, error: type[RelayError]) -> None:
    """Callers choose by type, and see the server's own words."""
    rig = Rig()
    (reply,) = rig.echo("a")
    rig.link.data_received(f"-{message}\r\n".encode())
    with pytest.raises(error) as raised:
        await reply
    assert type(raised.value) is error
    assert message in str(raised.value)
    if isinstance(raised.value, Refused):
        assert raised.value.prefix == message.partition(" ")[0]


# --- the bound


async def test_commands_over_the_bound_wait_in_line() -> None:
    """At most `max_inflight` are unanswered on the wire; each turn of replies lets as many go on."""
    rig = Rig(max_inflight=2)
    replies = rig.echo("a", "b", "c", "d")
    await turn()
    assert rig.transport.writes == [packed("a", "b")]
    assert rig.link.inflight == 4
    rig.answer("A", "B")
    await turn()
    assert rig.transport.writes[1:] == [packed("c", "d")]
    rig.answer("C", "D")
    assert [await reply for reply in replies] == [b"A", b"B", b"C", b"D"]


async def test_a_line_that_is_full_refuses() -> None:
    """As many again may wait; then the caller hears it at once, and nothing else is disturbed."""
    rig = Rig(max_inflight=2)
    replies = rig.echo("a", "b", "c", "d")
    with pytest.raises(Unavailable, match="4 commands wait"):
        rig.echo("e")
    rig.answer("A")
    replies += rig.echo("f")
    rig.answer("B", "C")
    rig.answer("D", "F")
    assert [await reply for reply in replies] == [b"A", b"B", b"C", b"D", b"F"]


async def test_a_listener_that_sends_does_not_jump_the_line() -> None:
    """A command sent from a push, in the middle of the replies, comes after those that waited before."""
    rig = Rig(max_inflight=2)
    replies = rig.echo("a", "b", "c")
    rig.link._on_push = lambda _channel, _payload: replies.extend(rig.echo("d"))
    rig.link.data_received(b"+A\r\n" + smessage(b"bell", b"1"))
    rig.answer("B")
    await turn()
    assert b"".join(rig.transport.writes) == packed("a", "b", "c", "d")
    rig.answer("C", "D")
    assert [await reply for reply in replies] == [b"A", b"B", b"C", b"D"]


async def test_subscriptions_always_find_room_in_the_line() -> None:
    """One left out would leave its reader deaf; there are never more of them than of readers."""
    rig = Rig(max_inflight=1)
    replies = rig.echo("a", "b")
    for channel in ("x", "y", "z"):
        rig.link.send_subscription("SSUBSCRIBE", channel)
    with pytest.raises(Unavailable):
        rig.echo("c")
    rig.answer("A")
    rig.answer("B")
    for confirmed in (b"x", b"y", b"z"):
        rig.link.data_received(confirmation(b"ssubscribe", confirmed))
    assert [await reply for reply in replies] == [b"A", b"B"]
    assert rig.link.inflight == 0


# --- push messages


async def test_a_confirmation_takes_the_place_of_a_reply() -> None:
    """A subscription between two commands does not shift their replies."""
    rig = Rig()
    replies = rig.echo("a")
    rig.link.send_subscription("SSUBSCRIBE", "bell")
    replies += rig.echo("b")
    rig.link.data_received(b"+A\r\n" + confirmation(b"ssubscribe", b"bell") + b"+B\r\n")
    assert [await reply for reply in replies] == [b"A", b"B"]


async def test_a_refused_subscription_does_not_shift_replies() -> None:
    """The server answers it with an error in order, and no push comes."""
    rig = Rig()
    rig.link.send_subscription("SSUBSCRIBE", "bell")
    (reply,) = rig.echo("a")
    rig.link.data_received(b"-NOPERM no rights on the channel\r\n+A\r\n")
    assert await reply == b"A"


async def test_a_subscription_ended_by_the_server_does_not_shift_replies() -> None:
    """When a slot moves, a cluster says `sunsubscribe` without being asked."""
    rig = Rig()
    rig.link.send_subscription("SSUBSCRIBE", "bell")
    rig.link.data_received(confirmation(b"ssubscribe", b"bell"))
    (reply,) = rig.echo("a")
    rig.link.data_received(confirmation(b"sunsubscribe", b"bell") + b"+A\r\n")
    assert await reply == b"A"


# --- its end


async def test_a_break_fails_everything_in_flight() -> None:
    """Commands on the wire and those in line alike: they may or may not have run."""
    rig = Rig(max_inflight=2)
    rig.link.send_subscription("SSUBSCRIBE", "bell")
    replies = rig.echo("a", "b", "c")
    replies[1].cancel()
    rig.link.connection_lost(ConnectionResetError("reset by peer"))
    for reply in (replies[0], replies[2]):
        with pytest.raises(ConnectionLost, match="nowhere:1: reset by peer"):
            await reply
    assert rig.lost == [rig.link]
    assert rig.link.inflight == 0
    assert not rig.link.is_open


async def test_after_a_break_nothing_is_taken() -> None:
    """A link lives once."""
    rig = Rig()
    rig.link.connection_lost(None)
    with pytest.raises(Unavailable, match="no connection"):
        rig.echo("a")
    await turn()
    assert rig.transport.writes == []


@pytest.mark.parametrize("broken", [True, False])
async def test_a_failure_that_nobody_waits_for_makes_no_noise(broken: bool) -> None:
    """A caller that gave up on the first reply of three is not reproached for the others."""
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: noise.append(context))
    rig = Rig()
    replies = rig.echo("a", "b", "c")
    if broken:
        rig.link.connection_lost(None)
    else:
        rig.link.data_received(b"-LOADING wait\r\n" * 3)
    with pytest.raises(Unavailable):
        await replies[0]
    del replies
    gc.collect()
    await turn()
    assert noise == []


@pytest.mark.parametrize(
    "said",
    [b"+nobody asked\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"],
    ids=["a reply too many", "no RESP"],
)
async def test_a_server_out_of_step_is_dropped(said: bytes) -> None:
    """Nothing that follows can be trusted, so the connection goes."""
    rig = Rig()
    rig.link.data_received(said)
    assert rig.transport.aborted
    await turn()
    assert rig.lost == [rig.link]


class Clock:
    """The part of a loop that a link uses, with hands that a test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.call_soon = asyncio.get_running_loop().call_soon
        self.create_future = asyncio.get_running_loop().create_future

    def time(self) -> float:
        """Where the hands are."""
        return self.now_s


async def test_silence_counts_from_the_first_command_owed_and_ends_with_any_data() -> None:
    """An idle connection is not a silent one, and a long reply on its way is not silence."""
    rig = Rig()
    clock = Clock()
    rig.link._loop = clock  # type: ignore[assignment]
    clock.now_s += 50
    assert rig.link.silent_s() == 0
    replies = rig.echo("a")
    clock.now_s += 5
    replies += rig.echo("b")
    clock.now_s += 1
    assert rig.link.silent_s() == 6
    rig.link.data_received(b"$1")
    assert rig.link.silent_s() == 0
    clock.now_s += 2
    assert rig.link.silent_s() == 2
    rig.link.data_received(b"\r\nA\r\n+B\r\n")
    clock.now_s += 50
    assert rig.link.silent_s() == 0
    assert [await reply for reply in replies] == [b"A", b"B"]


# --- a cluster, and a primary that is one no more


async def test_a_redirection_is_told_before_its_command_fails() -> None:
    """Whoever keeps the map knows the new place when the caller tries again."""
    told: list[Redirected] = []
    link = Link("nowhere:1", 100, lambda *_: None, lambda _: None, on_redirect=told.append)
    link.connection_made(FakeTransport(link))
    moved, asked = (link.send(("GET", "k")) for _ in range(2))
    link.data_received(b"-MOVED 12 10.0.0.1:7000\r\n-ASK 13 :7001\r\n")
    with pytest.raises(Redirected):
        await moved
    with pytest.raises(Redirected):
        await asked
    assert [(one.slot, one.host, one.port, one.asking) for one in told] == [
        (12, "10.0.0.1", 7000, False),
        (13, "", 7001, True),
    ]


async def test_a_server_that_is_read_only_is_left() -> None:
    """It was a primary: its caller hears that it is unavailable, and the connection goes."""
    rig = Rig()
    reply, other = rig.echo("a", "b")
    rig.link.data_received(b"-READONLY You can't write against a read only replica.\r\n")
    assert rig.transport.aborted
    with pytest.raises(Unavailable):
        await reply
    with pytest.raises(ConnectionLost):
        await other


async def test_a_moved_channel_does_not_shift_replies() -> None:
    """The server ends a subscription while its end and a new one are on their way, and refuses this."""
    deaf: list[str] = []
    link = Link("nowhere:1", 100, lambda *_: None, lambda _: None, on_deaf=deaf.append)
    link.connection_made(FakeTransport(link))
    link.send_subscription("SUNSUBSCRIBE", "c")
    link.send_subscription("SSUBSCRIBE", "c")
    reply = link.send(("ECHO", "a"))
    link.data_received(
        confirmation(b"sunsubscribe", b"c")  # the server's own
        + confirmation(b"sunsubscribe", b"c")  # the one that was asked for
        + b"-MOVED 12 10.0.0.1:7000\r\n"
        + b"+a\r\n"
    )
    assert await reply == b"a"
    assert link.inflight == 0
    assert deaf[-1] == "c"
