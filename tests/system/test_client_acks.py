"""The Python client with explicit acks, at a real node: a reader that keeps up counts as one that does."""

from relay.client import Client, Delta, Notice
from relay.embedded import EmbeddedServer
from tests.support.system import Api, Worker


async def test_a_slow_stream_is_a_live_reader() -> None:
    """At a few tokens a second and with a large window it is never slow or stalled, and hears of nothing."""
    with EmbeddedServer() as redis, Api(redis.url) as api, Worker(redis.url):
        made = api.create(tokens=48, rate=8)
        states: list[str] = []
        notices: list[str] = []
        async with (
            Client(f"http://127.0.0.1:{api.port}") as client,
            client.stream(made["id"], consumer="me", window=32_768) as stream,
        ):
            async for event in stream:
                if isinstance(event, Notice):
                    notices.append(event.kind)
                if isinstance(event, Delta):
                    told = await client.status(made["id"])
                    if told["status"] == "running":
                        states.append(told["consumers"][0]["state"])
        assert len(states) > 20
        # Without an ack in time each of them would be slow, and soon stalled; one that a busy machine made
        # late by a tenth of a second is the machine's.
        assert states.count("live") > 0.7 * len(states), states
        assert "stalled" not in states
        assert notices == []
