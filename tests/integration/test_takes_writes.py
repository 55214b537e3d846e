"""The worker's question whether Redis takes writes, on every server."""

from collections.abc import AsyncIterator

import pytest

from relay.settings import Settings
from relay.topology import Topology, open_topology
from tests.support.servers import admin, out_of_memory
from workers.gate import takes_writes


@pytest.fixture
async def topology(redis_url: str) -> AsyncIterator[Topology]:
    async with open_topology(Settings(redis_url=redis_url), name="test-gate") as topology:
        yield topology


async def test_at_maxmemory_no_write_is_taken(redis_url: str, topology: Topology) -> None:
    """The answer follows the server, both ways, and leaves no key there."""
    with admin(redis_url) as client:
        assert await takes_writes(topology)
        with out_of_memory(client):
            assert not await takes_writes(topology)
        assert await takes_writes(topology)
        assert client.dbsize() == 0


async def test_with_too_few_replicas_no_write_is_taken(redis_url: str, topology: Topology) -> None:
    """A server that waits for its replicas refuses writes too."""
    with admin(redis_url) as client:
        client.config_set("min-replicas-to-write", 1)
        try:
            assert not await takes_writes(topology)
        finally:
            client.config_set("min-replicas-to-write", 0)
        assert await takes_writes(topology)
