"""The wire on real servers, and on a fake one for what no real server can be made to do."""

import asyncio
import os
import random
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis import Redis

import relay.wire
from relay.embedded import EmbeddedServer
from relay.errors import (
    ConnectionLost,
    OutOfMemory,
    Refused,
    SettingsInvalid,
    Unavailable,
)
from relay.link import Reply
from relay.wire import Wire, open_wire
from tests.support.fake_redis import Command, fake_redis, mute, polite
from tests.support.ports import nobody_listens
from tests.support.servers import admin, out_of_memory, writes_paused
from tests.support.wait import wait_until_async

NAME = "wire-under-test"


class Writes:
    """Stands before a wire's transport and counts what is written to it."""

    def __init__(self, wire: Wire) -> None:
        assert wire._link is not None
        self.sizes: list[int] = []
        self._transport = wire._link._transport
        wire._link._transport = self  # type: ignore[assignment]

    def write(self, data: bytes) -> None:
        """Count and pass on."""
        self.sizes.append(len(data))
        assert self._transport is not None
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def with_user(url: str, user: str, password: str) -> str:
    """The same server, seen by another user."""
    parts = urlsplit(url)
    netloc = f"{user}:{password}@{parts.hostname}:{parts.port}"
    return parts._replace(netloc=netloc).geturl()


def with_database(url: str, database: int) -> str:
    """The same server, another database."""
    return urlsplit(url)._replace(path=f"/{database}").geturl()


def kill_client(client: Redis, name: str = NAME) -> None:
    """End the connection of that name from the server's side.

    The newest: one that has left may be listed for a moment more.
    """
    client.client_kill_filter(_id=max(int(row["id"]) for row in client.client_list() if row["name"] == name))


async def outcomes(replies: list[Reply]) -> list[Any]:
    """What became of each, errors as values."""
    async with asyncio.timeout(30):
        return await asyncio.gather(*replies, return_exceptions=True)


def be_patient(wire: Wire) -> None:
    """From here on no reply is late, however busy the machine is."""
    wire._reply_timeout_s = 60.0


# --- many commands on one connection


async def test_commands_of_one_turn_leave_in_one_write(redis_url: str) -> None:
    """A hundred tasks that call in one turn cost one system call, not a hundred."""
    async with open_wire(redis_url, name=NAME) as wire:
        writes = Writes(wire)
        answers = await asyncio.gather(*(wire.call("ECHO", str(number)) for number in range(100)))
        assert answers == [b"%d" % number for number in range(100)]
        assert len(writes.sizes) == 1


async def test_every_task_gets_its_own_reply(redis_url: str) -> None:
    """Two hundred tasks on one connection, each with commands of its own and pauses of its own."""

    async def task(number: int) -> None:
        dice = random.Random(number)
        for step in range(20):
            word = f"{number}:{step}"
            assert await wire.call("ECHO", word) == word.encode()
            for _ in range(dice.randrange(3)):
                await asyncio.sleep(0)

    async with open_wire(redis_url, name=NAME) as wire, asyncio.TaskGroup() as tasks:
        for number in range(200):
            tasks.create_task(task(number))


async def test_commands_run_in_the_order_they_were_sent(redis_url: str) -> None:
    """A pump may send the next append before the last is answered."""
    async with open_wire(redis_url, name=NAME) as wire:
        replies = [wire.send("APPEND", "order", f"{number},") for number in range(300)]
        assert await asyncio.gather(*replies) == sorted(await asyncio.gather(*replies))
        assert await wire.call("GET", "order") == b"".join(b"%d," % number for number in range(300))
        assert await wire.call("DEL", "order") == 1


async def test_cancelled_waiters_do_not_disturb_the_others(redis_url: str) -> None:
    """A client that disconnects in mid-reply takes nobody else's reply with it."""

    async def task(number: int) -> int:
        assert await wire.call("ECHO", str(number)) == b"%d" % number
        return number

    async with open_wire(redis_url, name=NAME) as wire:
        tasks = [asyncio.create_task(task(number)) for number in range(300)]
        await asyncio.sleep(0)  # all have sent, none is answered
        for doomed in tasks[::3]:
            doomed.cancel()
        kept = [number for number in range(300) if number % 3]
        assert await asyncio.gather(*(tasks[number] for number in kept)) == kept
        assert all(doomed.cancelled() for doomed in tasks[::3])
        assert await wire.call("ECHO", "after") == b"after"
        assert wire.inflight == 0


async def test_big_binary_values_come_back_whole(redis_url: str) -> None:
    """Several megabytes in each direction, over the socket's buffers many times."""
    value = random.Random(7).randbytes(3_000_000)
    async with open_wire(redis_url, name=NAME) as wire:
        echo, number = wire.send("ECHO", value), wire.send("ECHO", 12)
        assert await echo == value
        assert await number == b"12"


async def test_a_reply_that_comes_a_byte_at_a_time_is_whole() -> None:
    """A server behind a slow network is slow, not wrong."""
    words = ["", "a", "\r\n$1\r\n", "e" * 300]
    async with fake_redis(drips=True) as fake, open_wire(fake.url) as wire:
        answers = await asyncio.gather(*(wire.call("ECHO", word) for word in words))
        assert answers == [word.encode() for word in words]


async def test_the_fake_server_says_what_a_real_one_says(redis_url: str) -> None:
    """The stand-in of these tests is held against the real thing."""
    commands = (("PING",), ("ECHO", "x"), ("SELECT", "0"))
    async with fake_redis() as fake, open_wire(fake.url) as faked, open_wire(redis_url) as real:
        for command in commands:
            assert await faked.call(*command) == await real.call(*command)
        assert (await faked.call("HELLO", "3"))[b"proto"] == (await real.call("HELLO", "3"))[b"proto"]


# --- the bound


async def test_commands_over_the_bound_wait_in_line_and_then_are_refused(redis_url: str) -> None:
    """Four on the wire, four in line, and the ninth hears at once that Redis is not keeping up."""
    async with open_wire(redis_url, name=NAME, max_inflight=4) as wire:
        writes = Writes(wire)
        replies = [wire.send("ECHO", number) for number in range(8)]
        assert wire.inflight == 8
        with pytest.raises(Unavailable, match="8 commands wait"):
            wire.send("ECHO", 8)
        wire.post("ECHO", 9)  # nobody needs it, so nobody hears that there was no room
        assert await asyncio.gather(*replies) == [b"%d" % number for number in range(8)]
        assert len(writes.sizes) == 2
        assert await wire.call("ECHO", "room again") == b"room again"


# --- push messages


async def test_messages_reach_their_listener_and_no_other(redis_url: str) -> None:
    """Each channel has one listener; after `unsubscribe` it hears nothing more."""
    heard: list[tuple[str, bytes]] = []
    async with open_wire(redis_url, name=NAME) as wire, open_wire(redis_url) as other:
        wire.subscribe("bell:1", lambda payload: heard.append(("bell:1", payload)))
        wire.subscribe("bell:2", lambda payload: heard.append(("bell:2", payload)))
        assert await wire.call("PING") == b"PONG"  # comes after the confirmations
        assert await other.call("SPUBLISH", "bell:1", "a") == 1
        assert await other.call("SPUBLISH", "bell:2", b"\x00\xff") == 1
        await wait_until_async(lambda: len(heard) == 2, "both messages")
        assert heard == [("bell:1", b"a"), ("bell:2", b"\x00\xff")]
        wire.unsubscribe("bell:1")
        wire.unsubscribe("never subscribed")
        assert await wire.call("PING") == b"PONG"
        assert await other.call("SPUBLISH", "bell:1", "b") == 0
        assert await other.call("SPUBLISH", "bell:2", "c") == 1
        await wait_until_async(lambda: len(heard) == 3, "the third message")
        assert heard[2] == ("bell:2", b"c")


async def test_messages_between_replies_do_not_shift_them(redis_url: str) -> None:
    """A bell that rings all the time, on the connection that commands travel on."""
    heard: list[bytes] = []
    async with open_wire(redis_url, name=NAME) as wire:
        wire.subscribe("bell", heard.append)
        replies = []
        for number in range(200):
            replies += [wire.send("SPUBLISH", "bell", number), wire.send("ECHO", number)]
        answers = await asyncio.gather(*replies)
        assert answers == [answer for number in range(200) for answer in (1, b"%d" % number)]
        assert await wire.call("PING") == b"PONG"  # the last message may have come after the last reply
        assert heard == [b"%d" % number for number in range(200)]


async def test_subscriptions_are_made_again_after_a_break(redis_url: str) -> None:
    """A listener hears again after the connection was killed, and is told that it may have missed some."""
    heard: list[bytes] = []
    told: list[int] = []
    async with open_wire(redis_url, name=NAME) as wire, open_wire(redis_url) as other:
        wire.subscribe("bell", heard.append)
        wire.subscribe("other", heard.append)
        wire.unsubscribe("other")
        wire.on_reconnect(lambda: told.append(wire.reconnects))
        assert await wire.call("PING") == b"PONG"
        with admin(redis_url) as client:
            kill_client(client)
        await wait_until_async(lambda: told == [1], "the wire says that it is back")
        assert wire.reconnects == 1
        assert wire.is_connected
        assert await wire.call("PING") == b"PONG"
        assert await other.call("SPUBLISH", "other", "no") == 0
        assert await other.call("SPUBLISH", "bell", "yes") == 1
        await wait_until_async(lambda: heard == [b"yes"], "the ring")


async def test_a_listener_that_raises_costs_nobody_the_connection(redis_url: str) -> None:
    """A defect in one listener is logged; the replies behind it come, and the other listeners hear."""
    heard: list[bytes] = []

    def broken(_payload: bytes) -> None:
        raise ZeroDivisionError

    async with open_wire(redis_url, name=NAME) as wire:
        wire.subscribe("broken", broken)
        wire.subscribe("bell", heard.append)
        replies = [wire.send("SPUBLISH", channel, "yes") for channel in ("broken", "bell")]
        assert await asyncio.gather(*replies, wire.send("PING")) == [1, 1, b"PONG"]
        assert heard == [b"yes"]
        assert wire.reconnects == 0


async def test_a_reconnect_callback_that_raises_does_not_end_the_keeper(redis_url: str) -> None:
    """The callbacks after it are called, and the next break is mended too."""
    told: list[int] = []

    def broken() -> None:
        raise ZeroDivisionError

    async with open_wire(redis_url, name=NAME) as wire:
        wire.on_reconnect(broken)
        wire.on_reconnect(lambda: told.append(wire.reconnects))
        for count in (1, 2):
            with admin(redis_url) as client:
                kill_client(client)
            await wait_until_async(lambda count=count: len(told) == count, "the wire is back")  # type: ignore[misc]
        assert told == [1, 2]


async def test_a_refused_subscription_is_made_again() -> None:
    """Busy, loading, or a cluster that is down for a moment: nobody stays deaf for that."""
    heard: list[bytes] = []
    refusals = [b"-LOADING not yet\r\n", b"-CLUSTERDOWN not now\r\n"]

    def answer(command: Command) -> bytes | None:
        if command[0] != b"SSUBSCRIBE":
            return polite(command)
        if refusals:
            return refusals.pop(0)
        return (
            b">3\r\n$10\r\nssubscribe\r\n$4\r\nbell\r\n:1\r\n"
            b">3\r\n$8\r\nsmessage\r\n$4\r\nbell\r\n$3\r\nyes\r\n"
        )

    async with fake_redis(answer) as fake, open_wire(fake.url) as wire:
        wire.subscribe("bell", heard.append)
        await wait_until_async(lambda: heard == [b"yes"], "the ring")
        assert await wire.call("PING") == b"PONG"


async def test_more_subscriptions_than_commands_in_flight_survive_a_break(redis_url: str) -> None:
    """The bound is on commands; no reader is left deaf by it."""
    heard: list[bytes] = []
    async with open_wire(redis_url, name=NAME, max_inflight=2) as wire, open_wire(redis_url) as other:
        for number in range(20):
            wire.subscribe(f"bell:{number}", heard.append)
        with admin(redis_url) as client:
            kill_client(client)
        await wait_until_async(lambda: wire.reconnects == 1, "the wire is back")
        await wait_until_async(lambda: wire.inflight == 0, "every subscription is confirmed")
        for number in range(20):
            assert await other.call("SPUBLISH", f"bell:{number}", number) == 1
        await wait_until_async(lambda: len(heard) == 20, "every ring")


async def test_a_subscription_made_without_a_connection_is_made_with_the_next() -> None:
    """A reader that attaches during a break need not know of it."""
    subscribed: list[Command] = []

    def answer(command: Command) -> bytes | None:
        if command[0] == b"SSUBSCRIBE":
            subscribed.append(command)
            channel = command[1]
            return b">3\r\n$10\r\nssubscribe\r\n$%d\r\n%s\r\n:1\r\n" % (len(channel), channel)
        return polite(command)

    async with fake_redis(answer) as fake, open_wire(fake.url) as wire:
        fake.turns_away = True
        fake.connections[0].transport.abort()  # type: ignore[union-attr]
        await wait_until_async(lambda: not wire.is_connected, "the break")
        wire.subscribe("bell", lambda _payload: None)
        wire.subscribe("gone", lambda _payload: None)
        wire.unsubscribe("gone")
        fake.turns_away = False
        assert await wire.call("ECHO", "back") == b"back"
        assert subscribed == [[b"SSUBSCRIBE", b"bell"]]


# --- when it breaks


async def test_a_break_fails_every_command_in_flight(redis_url: str) -> None:
    """Sent and not answered: each caller hears that it may or may not have run."""
    async with open_wire(redis_url, name=NAME) as wire:
        with admin(redis_url) as client, writes_paused(client):
            replies = [wire.send("SET", "paused", number, "EX", 60) for number in range(50)]
            await asyncio.sleep(0)  # they leave
            kill_client(client)
            errors = await outcomes(replies)
        assert [type(error) for error in errors] == [ConnectionLost] * 50
        assert wire.inflight == 0
        assert await wire.call("ECHO", "back") == b"back"


async def test_a_killed_server_is_found_again_when_it_is_back() -> None:
    """Everything in flight fails, what is sent meanwhile is refused, and the wire returns by itself."""
    with EmbeddedServer() as server:
        async with open_wire(server.url, name=NAME) as wire:
            os.kill(server.pid, signal.SIGSTOP)
            replies = [wire.send("ECHO", number) for number in range(20)]
            await asyncio.sleep(0)  # they leave
            server.kill()
            assert [type(error) for error in await outcomes(replies)] == [ConnectionLost] * 20
            assert not wire.is_connected
            with pytest.raises(Unavailable, match="no connection"):
                wire.send("ECHO", "now")
            patience_s, wire._connect_timeout_s = wire._connect_timeout_s, 0.1
            with pytest.raises(Unavailable, match="no connection"):
                await wire.call("ECHO", "within the connect timeout")
            wire._connect_timeout_s = patience_s
            await asyncio.to_thread(server.restart)
            await wait_until_async(lambda: wire.is_connected, "the wire is back")
            assert await wire.call("ECHO", "back") == b"back"
            assert wire.reconnects == 1


async def test_a_call_waits_for_the_connection_to_come_back(redis_url: str) -> None:
    """A short break is a delay to `call`, not an error."""
    async with open_wire(redis_url, name=NAME) as wire:
        with admin(redis_url) as client:
            kill_client(client)
        await wait_until_async(lambda: not wire.is_connected, "the break")
        assert await wire.call("ECHO", "back") == b"back"


async def test_without_a_connection_send_raises_and_post_is_silent(redis_url: str) -> None:
    """`send` never waits; a notification that cannot leave is nobody's business."""
    wire = await Wire.connect(redis_url, name=NAME)
    await wire.close()
    wire._connect_timeout_s = 0.05  # only now: a busy machine may take longer to connect
    assert not wire.is_connected
    assert wire.inflight == 0
    with pytest.raises(Unavailable, match="no connection"):
        wire.send("PING")
    with pytest.raises(Unavailable, match="no connection"):
        await wire.call("PING")
    wire.post("PING")
    await wire.close()


async def test_closing_fails_what_is_in_flight_at_once(redis_url: str) -> None:
    """Nobody waits for a server that does not answer when the process wants to end."""
    wire = await Wire.connect(redis_url, name=NAME)
    with admin(redis_url) as client, writes_paused(client):
        replies = [wire.send("SET", "paused", number, "EX", 60) for number in range(3)]
        await asyncio.sleep(0)  # they leave
        await wire.close()
        assert all(reply.done() for reply in replies)
        assert [type(error) for error in await outcomes(replies)] == [ConnectionLost] * 3


async def test_closing_does_not_wait_for_a_server_that_hangs() -> None:
    """With megabytes still to write and a server that reads nothing, a second must do."""
    with EmbeddedServer() as server:
        wire = await Wire.connect(server.url, name=NAME)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            replies = [wire.send("ECHO", bytes(1_000_000)) for _ in range(20)]
            await asyncio.sleep(0)  # as much as the sockets hold leaves
            async with asyncio.timeout(20):
                await wire.close()
            assert [type(error) for error in await outcomes(replies)] == [ConnectionLost] * 20
        finally:
            server.kill()


async def test_what_is_posted_last_still_leaves(redis_url: str) -> None:
    """A notification sent in the turn that closes the wire is written first."""
    async with open_wire(redis_url) as other:
        async with open_wire(redis_url, name=NAME) as wire:
            wire.post("SET", "last", "words", "EX", 60)
        await wait_until_async(lambda: other.call("GET", "last"), "the last command ran")


async def test_tries_to_reconnect_back_off_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ever longer pauses, so that nobody hammers a server in trouble; never longer than the bound."""
    assert relay.wire._LAST_BACKOFF_S == 1.0
    monkeypatch.setattr(relay.wire, "_LAST_BACKOFF_S", 0.08)
    async with fake_redis() as fake, open_wire(fake.url) as wire:
        fake.turns_away = True
        fake.connections[0].transport.abort()  # type: ignore[union-attr]
        await wait_until_async(lambda: len(fake.accepted_at_s) >= 9, "eight tries")
        assert wire.reconnects == 0
        fake.turns_away = False
        assert await wire.call("ECHO", "back") == b"back"
        assert wire.reconnects == 1
        tries = fake.accepted_at_s[1:9]
        pauses = [late - early for early, late in pairwise(tries)]
        # 20 ms at first, twice as long each time, at least half of it: nothing comes sooner than that.
        assert all(
            pause >= least * 0.95
            for pause, least in zip(pauses, (0.02, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04), strict=True)
        )
        assert sorted(pauses)[3] < 1  # the machine may be busy, but not for most of them


async def test_leaving_in_the_middle_of_a_reconnect_leaves_no_connection_behind() -> None:
    """A process that ends while a server hangs in its greeting closes that socket too."""
    async with fake_redis() as fake:
        async with open_wire(fake.url):
            fake.answer = mute
            fake.connections[0].transport.abort()  # type: ignore[union-attr]
            await wait_until_async(lambda: len(fake.accepted_at_s) == 2, "the next try")
            await wait_until_async(lambda: len(fake.commands) == 2, "its greeting")
        await wait_until_async(lambda: not fake.connections, "the server sees it end")


# --- silence


async def test_a_server_that_accepts_and_never_answers_is_unavailable() -> None:
    """Connecting takes no longer than its timeout, and leaves no connection behind."""
    async with fake_redis(mute) as fake:
        with pytest.raises(Unavailable, match="timed out"):
            await Wire.connect(fake.url, connect_timeout_s=0.05)
        await wait_until_async(lambda: not fake.connections, "the server sees it end")


async def test_a_server_that_owes_a_reply_too_long_is_taken_for_dead() -> None:
    """A half-open connection is dropped after the reply timeout, and a new one made."""

    def answer(command: Command) -> bytes | None:
        return None if command == [b"ECHO", b"hang"] else polite(command)

    async with fake_redis(answer) as fake, open_wire(fake.url, reply_timeout_s=0.1) as wire:
        before_s = asyncio.get_running_loop().time()
        with pytest.raises(ConnectionLost):
            await wire.call("ECHO", "hang")
        assert asyncio.get_running_loop().time() - before_s >= 0.1
        be_patient(wire)
        assert await wire.call("ECHO", "back") == b"back"
        assert wire.reconnects == 1


async def test_an_idle_connection_is_kept() -> None:
    """Silence is only silence when something is owed."""
    async with fake_redis() as fake, open_wire(fake.url, reply_timeout_s=0.02) as wire:
        assert wire.inflight == 0  # the greeting was answered
        await asyncio.sleep(0.1)  # what must not happen within five timeouts
        be_patient(wire)
        assert await wire.call("ECHO", "a") == b"a"
        assert wire.reconnects == 0


async def test_a_server_that_talks_nonsense_is_left() -> None:
    """Out of step is as good as gone: everything in flight fails, and the next connection is a new start."""

    def answer(command: Command) -> bytes | None:
        return b"HTTP/1.1 400 Bad Request\r\n\r\n" if command == [b"ECHO", b"?"] else polite(command)

    async with fake_redis(answer) as fake, open_wire(fake.url) as wire:
        replies = [wire.send("ECHO", "?"), wire.send("ECHO", "b")]
        assert [type(error) for error in await outcomes(replies)] == [ConnectionLost] * 2
        assert await wire.call("ECHO", "c") == b"c"


async def test_a_server_that_ends_in_its_greeting_is_unavailable() -> None:
    """It says nothing of the credentials, only that it is not there."""
    async with fake_redis() as fake:
        fake.turns_away = True
        with pytest.raises(Unavailable, match="cannot reach Redis"):
            await Wire.connect(fake.url)


async def test_nobody_listening_is_unavailable() -> None:
    """The message names the address and holds no password."""
    with nobody_listens() as port, pytest.raises(Unavailable, match=f"127.0.0.1:{port}") as raised:
        await Wire.connect(f"redis://user:secret@127.0.0.1:{port}/0")
    assert "secret" not in str(raised.value)


# --- what the server refuses


@pytest.mark.parametrize(
    ("commands", "prefix"),
    [
        ([("SET", "text", "a", "EX", 60), ("XLEN", "text")], "WRONGTYPE"),
        ([("EVALSHA", "0" * 40, 0)], "NOSCRIPT"),
        ([("XREADGROUP", "GROUP", "g", "c", "STREAMS", "none", ">")], "NOGROUP"),
        ([("NO-SUCH-COMMAND",)], "ERR"),
    ],
)
async def test_a_refused_command_says_why(
    redis_url: str, commands: list[tuple[str | int, ...]], prefix: str
) -> None:
    """One command failed; the connection and the commands around it are well."""
    async with open_wire(redis_url, name=NAME) as wire:
        replies = [wire.send("ECHO", "before"), *(wire.send(*command) for command in commands)]
        replies.append(wire.send("ECHO", "after"))
        answers = await outcomes(replies)
        assert (answers[0], answers[-1]) == (b"before", b"after")
        assert type(answers[-2]) is Refused
        assert answers[-2].prefix == prefix
        assert wire.reconnects == 0


async def test_a_full_server_is_out_of_memory(redis_url: str) -> None:
    """Pressure has a type of its own, because the answer to it is to wait."""
    async with open_wire(redis_url, name=NAME) as wire:
        with admin(redis_url) as client, out_of_memory(client):
            with pytest.raises(OutOfMemory):
                await wire.call("SET", "key", "value", "EX", 60)
            assert await wire.call("GET", "key") is None
        assert await wire.call("SET", "key", "value", "EX", 60) == b"OK"


# --- the URL


@pytest.fixture
def user_url(redis_url: str) -> Iterator[str]:
    """A user who may do nothing but read what starts with `mine:`."""
    with admin(redis_url) as client:
        client.acl_setuser(
            "reader",
            enabled=True,
            passwords=["+pass/word"],
            keys=["mine:*"],
            commands=["+get", "+acl|whoami", "+hello", "+client|setname"],
        )
        try:
            yield with_user(redis_url, "reader", "pass%2Fword")
        finally:
            client.acl_deluser("reader")


async def test_username_and_password_come_from_the_url(user_url: str) -> None:
    """Percent-encoded as everywhere in a URL."""
    async with open_wire(user_url) as wire:
        assert await wire.call("ACL", "WHOAMI") == b"reader"
        assert await wire.call("GET", "mine:key") is None
        with pytest.raises(Refused, match="NOPERM"):
            await wire.call("GET", "theirs")


@pytest.mark.parametrize("user", ["reader", "nobody"])
@pytest.mark.usefixtures("user_url")
async def test_a_wrong_password_is_a_wrong_setting(redis_url: str, user: str) -> None:
    """One line that names the setting and not the password."""
    with pytest.raises(SettingsInvalid, match="RELAY_REDIS_URL: Redis refuses the credentials") as raised:
        await Wire.connect(with_user(redis_url, user, "hunter2"))
    assert "hunter2" not in str(raised.value)


async def test_a_missing_password_is_a_wrong_setting() -> None:
    """A server that requires one, and a URL without."""
    with EmbeddedServer() as server, admin(server.url) as client:
        client.config_set("requirepass", "correct")
        with pytest.raises(SettingsInvalid, match="RELAY_REDIS_URL: Redis refuses the credentials"):
            await Wire.connect(server.url)
        async with open_wire(server.url.replace("://", "://:correct@")) as wire:
            assert await wire.call("ACL", "WHOAMI") == b"default"


async def test_refused_credentials_make_no_noise(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The error is raised once, and the rest of the greeting is not reported as lost."""
    with pytest.raises(SettingsInvalid):
        await Wire.connect(with_database(with_user(redis_url, "nobody", "wrong"), 1))
    await asyncio.sleep(0)
    assert caplog.records == []


async def test_the_database_comes_from_the_url(redis_url: str) -> None:
    """A key written through it is in that database and in no other."""
    async with open_wire(with_database(redis_url, 3)) as wire, open_wire(redis_url) as zero:
        await wire.call("SET", "where", "three", "EX", 60)
        try:
            assert await zero.call("GET", "where") is None
            assert await zero.call("SELECT", "3") == b"OK"
            assert await zero.call("GET", "where") == b"three"
        finally:
            await wire.call("DEL", "where")


async def test_a_database_that_is_not_there_is_refused(redis_url: str) -> None:
    """At the start, in the server's words, and without leaving the connection open."""
    with pytest.raises(Refused, match="DB index"):
        await Wire.connect(with_database(redis_url, 99_999), name=NAME)
    with admin(redis_url) as client:
        await wait_until_async(
            lambda: NAME not in [row["name"] for row in client.client_list()], "the server sees it end"
        )


async def test_the_connection_has_a_name_and_speaks_resp3(redis_url: str) -> None:
    """An operator finds us in CLIENT LIST."""
    async with open_wire(redis_url, name=NAME) as wire:
        mine = await wire.call("CLIENT", "LIST", "ID", await wire.call("CLIENT", "ID"))
        assert f"name={NAME} ".encode() in mine
        assert b" resp=3" in mine


async def test_a_unix_socket_is_an_address_too(tmp_path: Path) -> None:
    """`unix://` for a server on the same machine."""
    path = tmp_path / "redis.sock"
    with EmbeddedServer(extra_args=["--unixsocket", str(path)]):
        async with open_wire(f"unix://{path}?db=2", name=NAME) as wire:
            mine = await wire.call("CLIENT", "LIST", "ID", await wire.call("CLIENT", "ID"))
            assert b" db=2 " in mine
            assert str(path).encode() in mine


@pytest.mark.only_on("redis7-tls")
async def test_a_certificate_that_nobody_vouches_for_is_unavailable(redis_url: str) -> None:
    """TLS is checked against the authority in the URL, or the machine's; never waved through."""
    with pytest.raises(Unavailable, match=r"(?i)certificate"):
        await Wire.connect(redis_url.partition("?")[0])


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1", "redis://127.0.0.1:port/0", "rediss://127.0.0.1/0?ssl_ca_certs=/no/such/file"],
)
async def test_a_url_that_cannot_be_is_a_wrong_setting(url: str) -> None:
    """The message names the setting."""
    with pytest.raises(SettingsInvalid, match="RELAY_REDIS_URL"):
        await Wire.connect(url)
