"""A reader whose consumer Redis has lost: attached again, and told that it is gone only when it is."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from api import response, sse
from api.ending import Ending
from api.node import Node
from api.stream import Consumer
from relay.errors import ConnectionLost, RelayError, StreamLost, Unavailable
from relay.scripts import Attached

ATTACHED = Attached(0, 0, "running", 1, b"", rewound=False)


class FakeConsumer:
    """As much of a consumer as `follow` sees; it ends with `ending` as soon as it has begun."""

    def __init__(self, ending: Ending) -> None:
        self._ending = ending
        self.begun = False
        self.last_word = b""
        self.ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self.journal = SimpleNamespace(id="rs_1")
        self.said: list[Any] = []
        self.hang_up = lambda: None
        socket = SimpleNamespace(write=self.said.append, on_lost=self._on_lost)
        form = SimpleNamespace(private=lambda name, data: (name, data))
        self.outlet = SimpleNamespace(socket=socket, form=form)

    def _on_lost(self, callback: Any) -> None:
        self.hang_up = callback

    def begin(self, _attached: Attached) -> None:
        """Begin, and end."""
        self.begun = True
        self.ended.set_result(self._ending)

    def say(self, data: Any) -> None:
        """Keep what is said."""
        self.said.append(data)


class FakeNode:
    """A node whose attaches go as they are told to."""

    def __init__(self, *outcomes: RelayError | FakeConsumer) -> None:
        self.outcomes = list(outcomes)
        self.draining = False
        self.asked = asyncio.Event()

    async def reattach(self, _lost: FakeConsumer) -> tuple[FakeConsumer, Attached]:
        """The next outcome; the last one for ever."""
        self.asked.set()
        outcome = self.outcomes.pop(0) if len(self.outcomes) > 1 else self.outcomes[0]
        if isinstance(outcome, RelayError):
            raise outcome
        return outcome, ATTACHED

    def detach(self, _consumer: FakeConsumer) -> None:
        """Nothing is held here."""


async def follow(node: FakeNode, consumer: FakeConsumer) -> Ending:
    """`response.follow` with fakes."""
    return await response.follow(cast("Node", node), cast("Consumer", consumer), ATTACHED)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response, "AGAIN_S", 0.001)


async def test_while_redis_is_away_the_reader_waits() -> None:
    """Kept open by comments, however often it takes; then it goes on as if nothing had been."""
    lost, again = FakeConsumer(Ending.LOST), FakeConsumer(Ending.TERMINAL)
    node = FakeNode(Unavailable("no connection"), ConnectionLost("lost"), Unavailable("LOADING"), again)
    assert await follow(node, lost) is Ending.TERMINAL
    assert lost.said == [sse.KEEPALIVE] * 3
    assert again.said == []


async def test_what_is_gone_is_told() -> None:
    """Once, as the last event."""
    lost = FakeConsumer(Ending.LOST)
    assert await follow(FakeNode(Unavailable("away"), StreamLost("gone")), lost) is Ending.LOST
    assert lost.said[0] == sse.KEEPALIVE
    name, data = lost.said[1]
    assert (name, data["code"], len(lost.said)) == ("error", "stream_lost", 2)


async def test_a_client_that_hangs_up_is_not_waited_for() -> None:
    """Redis may stay away for ever; its reader need not."""
    lost, node = FakeConsumer(Ending.LOST), FakeNode(Unavailable("away"))
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follow(node, lost))
        await node.asked.wait()
        while not following.done():
            lost.hang_up()
            await asyncio.sleep(0)
    assert following.result() is Ending.DISCONNECTED


async def test_a_draining_node_does_not_wait() -> None:
    """Its readers are to go elsewhere."""
    lost, node = FakeConsumer(Ending.LOST), FakeNode(Unavailable("away"))
    node.draining = True
    async with asyncio.timeout(30):
        assert await follow(node, lost) is Ending.DRAINED
