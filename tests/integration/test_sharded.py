"""A topology of several servers, in one process: keys find their wires, and go on finding them."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from relay import scripts
from relay.cluster import Affects
from relay.errors import Redirected, SettingsInvalid, Unavailable
from relay.jobs import Jobs
from relay.keys import JOBS_INTERACTIVE
from relay.link import pack
from relay.settings import Settings
from relay.topology import Topology, open_topology
from relay.wire import Options
from tests.support.ports import nobody_listens
from tests.support.resharding import Move
from tests.support.topologies import Deployment, ManagedServer, deployed
from tests.support.wait import wait_until_async

KEYS = [f"relay:{{rs_{number}}}:meta" for number in range(30)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Deployment]:
    """One cluster for the tests that leave it whole."""
    with deployed("cluster") as redis:
        yield redis


@pytest.fixture
async def topology(cluster: Deployment) -> AsyncIterator[Topology]:
    """Connected to an empty cluster."""
    cluster.flush()
    async with open_topology(Settings(redis_url=cluster.url), name="sharded-test") as opened:
        yield opened


async def test_every_key_is_served_by_its_node(topology: Topology, cluster: Deployment) -> None:
    """However many nodes, `send`, `call` and `post` reach the one that has the key."""
    assert len(topology.wires()) == 3
    replies = [topology.wire(key).send("SET", key, key, "EX", 60) for key in KEYS]
    assert await asyncio.gather(*replies) == [b"OK"] * len(KEYS)
    assert [await topology.wire(key).call("GET", key) for key in KEYS] == [key.encode() for key in KEYS]
    served: set[ManagedServer] = {cluster.primary_of(key) for key in KEYS}
    assert len(served) == 3
    assert topology.is_connected
    assert topology.reconnects == 0
    assert await topology.wire(KEYS[0]).call("EVALSHA", scripts.COUNT.sha, 1, KEYS[0] + "x", 0) == 0


async def test_a_slot_that_moves_is_followed(topology: Topology, cluster: Deployment) -> None:
    """ASK for a key that has gone over, MOVED at the end; only what is sent packed may hear of it, once."""
    key, told = KEYS[0], []
    line = topology.wire(key)
    topology.on_change(lambda affects: told.append(affects(key)))
    await line.call("SET", key, "1", "EX", 60)
    move = Move(cluster, key).begin()
    assert await line.call("INCR", key) == 2
    move.keys()
    with pytest.raises(Redirected):
        await line.send_packed(pack("INCR", key))
    assert await line.send_packed(pack("INCR", key)) == 3
    assert await line.call("INCR", key) == 4
    move.end()
    assert await line.call("INCR", key) == 5
    assert await line.send("INCR", key) == 6
    assert told
    assert any(told)
    with move.target.admin() as client:
        assert client.get(key) == "6"


async def test_subscriptions_go_with_their_slot(topology: Topology, cluster: Deployment) -> None:
    """Rung at the new owner, heard by the same listener; the one that was unsubscribed hears nothing."""
    key = KEYS[1]
    bell, heard = key.replace("meta", "bell"), list[bytes]()
    topology.wire(key).subscribe(bell, heard.append)
    topology.wire(key).subscribe(bell + "2", heard.append)
    topology.wire(key).unsubscribe(bell + "2")
    await topology.wire(key).call("PING")
    assert await topology.wire(bell).call("SPUBLISH", bell, "before") == 1
    move = Move(cluster, key).begin()
    move.keys()
    move.end()

    async def rung() -> bool:
        return bool(await topology.wire(bell).call("SPUBLISH", bell, "after") == 1)

    await wait_until_async(rung, "the subscription is at the new owner")
    assert await topology.wire(bell).call("SPUBLISH", bell + "2", "no") == 0
    await wait_until_async(lambda: heard == [b"before", b"after"], "the rings")


async def test_an_append_goes_on_while_its_slot_moves(topology: Topology, cluster: Deployment) -> None:
    """The channels are no keys: with all three keys on one side, no script is told to try again."""
    journal = topology.journal("rs_moving")
    await journal.open(retention_s=60, request="{}")
    claimed = await scripts.claim_response(
        journal.wire, journal.keys, owner="w", lease_ms=60_000, retention_s=60
    )
    assert isinstance(claimed, scripts.Claimed)

    async def append(base: int) -> int:
        appended = await scripts.append_records(
            journal.wire, journal.keys, epoch=claimed.epoch, base=base, data=b"abc", cap=100, retention_s=60
        )
        return appended.head

    assert await append(0) == 3
    move = Move(cluster, journal.keys.log).begin()
    assert await append(3) == 6
    move.keys()
    assert await append(6) == 9
    attached = await journal.attach("c", "1", None, limit=100, retention_s=60)
    assert attached.data == b"abcabcabc"
    move.end()
    assert await append(9) == 12


async def test_a_blocked_claim_hears_of_a_job(topology: Topology) -> None:
    """The interactive queue wakes the worker that waits; the background one is looked at in between."""
    jobs = Jobs(topology)
    await jobs.prepare()
    async with topology.open_blocking(JOBS_INTERACTIVE, Options(name="claims")) as blocking:
        claim = asyncio.ensure_future(jobs.claim(blocking, "w", 10, 5000))
        await jobs.submit("interactive", "rs_1")
        (job,) = await asyncio.wait_for(claim, 4)
        assert job.response_id == "rs_1"
        await jobs.submit("background", "rs_2")
        (other,) = await jobs.claim(blocking, "w", 10, 100)
        assert other.response_id == "rs_2"
        await asyncio.gather(jobs.finish(job), jobs.finish(other))
        assert await jobs.depth() == 0


async def test_a_failover_changes_the_wire() -> None:
    """A call during it waits for the replica's promotion; whoever listens is told."""
    with deployed("cluster") as redis:
        async with open_topology(Settings(redis_url=redis.url), name="sharded-test") as topology:
            told: list[Affects] = []
            topology.on_change(told.append)
            key = KEYS[0]
            await topology.wire(key).call("SET", key, "kept", "EX", 60)
            primary = redis.primary_of(key)
            primary.wait_copied()
            primary.kill()
            await wait_until_async(lambda: not topology.is_connected, "the loss is seen")
            await wait_until_async(lambda: topology.is_connected, "the replica has taken over")
            assert await topology.wire(key).call("GET", key) == b"kept"
            assert any(affects(key) for affects in told)
            assert len(topology.wires()) == 3


@pytest.mark.parametrize("shape", ["sentinel", "cluster"])
async def test_nobody_there_is_unavailable(shape: str) -> None:
    """One line that names whom was asked."""
    with nobody_listens() as port:
        url = f"redis+{shape}://127.0.0.1:{port}" + ("/main" if shape == "sentinel" else "")
        with pytest.raises(Unavailable, match=f"127.0.0.1:{port}"):
            async with open_topology(Settings(redis_url=url), name="nobody"):
                pass


async def test_a_bad_url_is_a_wrong_setting() -> None:
    """Before anything is connected to."""
    with pytest.raises(SettingsInvalid, match="SERVICE"):
        async with open_topology(Settings(redis_url="redis+sentinel://127.0.0.1:1"), name="nobody"):
            pass
