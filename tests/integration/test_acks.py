"""An explicit ack that was answered is kept, whoever heard of it: an attach by name goes on from it."""

from collections.abc import AsyncIterator

import pytest

from relay import acks, scripts
from relay.events import content, encode
from relay.journal import Journal
from relay.position import Position
from relay.scripts import ACKED
from relay.settings import Settings
from relay.topology import Topology, open_topology
from relay.wire import open_wire
from tests.support.servers import admin
from tests.support.wait import wait_until_async

RETENTION_S = 600
TEXTS = [encode(content(text)) for text in ("one ", "two ", "three ", "four ")]
ENDS = [sum(map(len, TEXTS[: index + 1])) for index in range(len(TEXTS))]


@pytest.fixture
async def topology(embedded_url: str) -> AsyncIterator[Topology]:
    """Connected to the server."""
    async with open_topology(Settings(redis_url=embedded_url), name="acks-test") as topology:
        yield topology


@pytest.fixture
def said(topology: Topology) -> acks.Acks:
    """Of one node."""
    return acks.Acks(topology)


async def epoch_of(journal: Journal) -> int:
    """Claim it: the new epoch."""
    await journal.wire.call("DEL", journal.keys.lease)
    claimed = await scripts.claim_response(
        journal.wire, journal.keys, owner="w", lease_ms=60_000, retention_s=RETENTION_S
    )
    assert isinstance(claimed, scripts.Claimed)
    return claimed.epoch


@pytest.fixture
async def journal(topology: Topology) -> Journal:
    """A response of four entries, read to its end by the consumer `c`, which has confirmed nothing."""
    journal = topology.journal("rs_000000000000000000000001")
    await journal.open(retention_s=RETENTION_S, request="{}")
    epoch = await epoch_of(journal)
    for end, data in zip(ENDS, TEXTS, strict=True):
        await scripts.append_records(
            journal.wire,
            journal.keys,
            epoch=epoch,
            base=end - len(data),
            data=data,
            cap=256,
            retention_s=RETENTION_S,
        )
    await attached(journal, Position(0, 0))
    return journal


async def attached(journal: Journal, position: Position | None) -> int:
    """Attach the consumer `c`; where it goes on."""
    found = await journal.attach("c", "k", position, limit=1000, retention_s=RETENTION_S)
    return found.offset


async def test_an_ack_that_nobody_heard_is_where_an_attach_by_name_goes_on(
    journal: Journal, said: acks.Acks
) -> None:
    """The reader hung up right after it, and the node that served it left the group where it was."""
    assert await said.acknowledge(journal, "c", ENDS[1])
    journal.post_detach("c", "k", 0, keep=True)
    assert await attached(journal, None) == ENDS[1]


async def test_the_furthest_ack_counts(journal: Journal, said: acks.Acks) -> None:
    """A repeated one, or one that was overtaken, takes nothing back."""
    for offset in (ENDS[2], ENDS[0], ENDS[2]):
        assert await said.acknowledge(journal, "c", offset)
    assert acks.read_acked(await acks.send_acked(journal, "c")) == ENDS[2]


async def test_a_reader_that_says_where_it_is_is_believed(journal: Journal, said: acks.Acks) -> None:
    """With an id it goes back of its own will: what it had confirmed before does not confirm it again."""
    await said.acknowledge(journal, "c", ENDS[3])
    epoch = (await journal.snapshot()).epoch
    assert await attached(journal, Position(ENDS[0], epoch)) == ENDS[0]
    assert acks.read_acked(await acks.send_acked(journal, "c")) == 0
    assert await attached(journal, None) == ENDS[0]


async def test_an_ack_of_text_that_was_overruled_counts_up_to_there(
    journal: Journal, said: acks.Acks
) -> None:
    """A failover lost the last entries and another worker writes from there: that text is not confirmed."""
    await said.acknowledge(journal, "c", ENDS[3])
    await journal.wire.call("SET", journal.keys.journal, b"".join(TEXTS[:2]), "KEEPTTL")
    epoch = await epoch_of(journal)
    other = encode(content("other text, and more of it than there was "))
    await scripts.append_records(
        journal.wire,
        journal.keys,
        epoch=epoch,
        base=ENDS[1],
        data=other,
        cap=256,
        retention_s=RETENTION_S,
    )
    assert await attached(journal, None) == ENDS[1]
    await said.acknowledge(journal, "c", ENDS[0])  # under the new epoch, though less than before
    assert acks.read_acked(await acks.send_acked(journal, "c")) == ENDS[0]


async def test_acks_of_one_name_are_not_another_s(journal: Journal, said: acks.Acks) -> None:
    """Each consumer has its own."""
    await said.acknowledge(journal, "d", ENDS[3])
    assert await attached(journal, None) == 0


async def test_a_consumer_that_is_forgotten_takes_its_acks_along(journal: Journal, said: acks.Acks) -> None:
    """Nothing of a nameless reader stays in the meta."""
    await said.acknowledge(journal, "c", ENDS[1])
    journal.post_detach("c", "k", ENDS[1], keep=False)

    async def is_forgotten() -> bool:
        return ACKED + "c" not in (await journal.snapshot()).meta

    await wait_until_async(is_forgotten, "the ack is forgotten")


async def test_an_ack_of_a_response_that_is_gone_makes_no_key(journal: Journal, said: acks.Acks) -> None:
    """It would have no TTL."""
    await journal.wire.call("DEL", journal.keys.meta)
    assert not await said.acknowledge(journal, "c", ENDS[0])
    assert not await journal.wire.call("EXISTS", journal.keys.meta)


async def test_an_ack_rings_the_bell(journal: Journal, said: acks.Acks, embedded_url: str) -> None:
    """So that the node that serves the reader hears of it at once."""
    heard: list[bytes] = []
    async with open_wire(embedded_url, name="node") as node:
        node.subscribe(journal.keys.bell, heard.append)
        await node.call("PING")
        await said.acknowledge(journal, "c", ENDS[0])
        await wait_until_async(lambda: heard, "the bell")
    assert heard == [b"ack c %d" % ENDS[0]]


def fail_over(url: str, journal: Journal, *consumers: str) -> None:
    """What these have said is gone, and all connections are cut."""
    with admin(url) as redis:
        for consumer in consumers:
            assert redis.hdel(journal.keys.meta, ACKED + consumer) == 1
        redis.client_kill_filter(_type="normal", skipme=True)


def known(url: str, journal: Journal, consumer: str) -> int:
    """How far this one is known to be."""
    with admin(url) as redis:
        offset, _, _ = (redis.hget(journal.keys.meta, ACKED + consumer) or "0").partition("-")
    return int(offset)


async def test_an_ack_that_a_failover_lost_is_said_again(
    journal: Journal, said: acks.Acks, embedded_url: str
) -> None:
    """Its client has said it once, and waits for what its window has no room for."""
    await said.acknowledge(journal, "c", ENDS[1])
    fail_over(embedded_url, journal, "c")
    await wait_until_async(lambda: known(embedded_url, journal, "c") == ENDS[1], "the ack is there again")
    assert await attached(journal, None) == ENDS[1]


async def test_an_ack_is_not_said_again_of_what_another_worker_writes(
    journal: Journal, said: acks.Acks, embedded_url: str
) -> None:
    """Of its text nobody has confirmed anything."""
    await said.acknowledge(journal, "c", ENDS[3])
    await epoch_of(journal)
    await said.acknowledge(journal, "d", ENDS[1])
    fail_over(embedded_url, journal, "c", "d")
    await wait_until_async(
        lambda: known(embedded_url, journal, "d") == ENDS[1], "the newer ack is there again"
    )
    assert known(embedded_url, journal, "c") == 0


async def test_of_more_acks_than_are_kept_the_oldest_is_forgotten(
    journal: Journal, said: acks.Acks, embedded_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader has probably said more since, and memory is bounded."""
    monkeypatch.setattr(acks, "KEPT_MOST", 1)
    await said.acknowledge(journal, "c", ENDS[0])
    await said.acknowledge(journal, "d", ENDS[1])
    fail_over(embedded_url, journal, "c", "d")
    await wait_until_async(
        lambda: known(embedded_url, journal, "d") == ENDS[1], "the newer ack is there again"
    )
    assert known(embedded_url, journal, "c") == 0
