"""Which server is the primary, by the sentinels: asked anew before each connection, and watched.

Every sentinel is asked at once, and the answer with the newest configuration epoch counts: a sentinel on
the wrong side of a partition still names the old primary, and one answer seen is never gone back from.
https://redis.io/docs/latest/develop/reference/sentinel-clients/
"""

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Any, NamedTuple

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from relay.address import Address, Seeds, parse
from relay.errors import Unavailable
from relay.wire import Wire

log = structlog.get_logger("relay.sentinel")

ASK_WITHIN_S = 1.0  # of one sentinel; a wire that reconnects asks again
LOOK_EVERY_S = 1.0  # at the latest: a message that was missed is found then
_SWITCHED = "+switch-master"


class Named(NamedTuple):
    """What sentinels say: the newest configuration epoch, and the primary of it."""

    config_epoch: int
    host: str
    port: int


class Sentinels:
    """The finder of one service. `aclose` when nobody asks any more."""

    must_lead = True

    def __init__(self, seeds: Seeds) -> None:
        self._seeds = seeds
        self._clients = [
            Redis.from_url(
                url,
                socket_timeout=ASK_WITHIN_S,
                socket_connect_timeout=ASK_WITHIN_S,
                retry=Retry(NoBackoff(), 0),
                decode_responses=True,
            )
            for url in seeds.seed_urls
        ]
        self._newest = Named(-1, "", 0)
        self.wires: set[Wire] = set()  # those that `watch` keeps at the primary
        self.shown = f"the primary of {seeds.service!r}"

    async def find(self) -> Address:
        """The primary's address. Raises Unavailable when no sentinel knows one that is up."""
        said = await asyncio.gather(*(self._ask(client) for client in self._clients))
        answers = [answer for answer in said if answer is not None]
        if not answers:
            hosts = ", ".join(f"{host}:{port}" for host, port in self._seeds.hosts)
            raise Unavailable(f"no sentinel of {hosts} knows a primary of {self._seeds.service!r} that is up")
        self._newest = max(self._newest, *answers)
        return parse(self._seeds.url(self._newest.host, self._newest.port))

    async def watch(self) -> None:
        """Have the wires connect anew when the primary is another one. Until cancelled."""
        turn = 0
        while True:
            try:
                await self._follow(self._clients[turn % len(self._clients)])
            except (RedisError, OSError, TimeoutError, Unavailable) as error:
                log.debug("sentinel_lost", error=str(error))
            except Exception:
                log.exception("sentinel_watch_failed")  # a defect of ours; wires still ask when they break
            turn += 1  # that sentinel is gone: the next one
            await asyncio.sleep(LOOK_EVERY_S)

    async def aclose(self) -> None:
        """Close the connections to the sentinels."""
        for client in self._clients:
            with suppress(RedisError, OSError):
                await client.aclose()

    async def _ask(self, client: "Redis") -> Named | None:
        try:
            async with asyncio.timeout(ASK_WITHIN_S):
                state: Any = await client.sentinel_master(self._seeds.service)
        except (RedisError, OSError, TimeoutError):
            return None
        # One that is down is named until another is promoted: there is nothing to connect to yet.
        if state["is_sdown"] or state["is_odown"] or not state["is_master"]:
            return None
        return Named(int(state["config-epoch"]), state["ip"], int(state["port"]))

    async def _follow(self, client: "Redis") -> None:
        async with AsyncExitStack() as stack:
            pubsub = client.pubsub(ignore_subscribe_messages=True)
            stack.push_async_callback(pubsub.aclose)
            await pubsub.subscribe(_SWITCHED)
            while True:
                await pubsub.get_message(timeout=LOOK_EVERY_S)
                primary = await self.find()
                for wire in tuple(self.wires):
                    at = wire.address
                    if wire.is_connected and at and (at.host, at.port) != (primary.host, primary.port):
                        log.info("primary_changed", before=at.shown, now=primary.shown)
                        wire.renew()
