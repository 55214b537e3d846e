"""Responses of a relay as targets for readers: created, read, and cancelled at the end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from relay.bench.muster import CALLS_AT_ONCE, MakeTarget
from relay.bench.readers import Kind, Target
from relay.client import Client, Created


def is_relay(url: str) -> bool:
    """Whether a URL names a relay as a whole, and no stream of its own."""
    return urlsplit(url).path in ("", "/")


@asynccontextmanager
async def relay_targets(
    url: str, body: dict[str, Any], *, key: str | None = None, window: int = 2048, shared: bool = False
) -> AsyncIterator[MakeTarget]:
    """Responses of a relay to read: one for each reader, or one that all share; slow processors acknowledge.

    `body` is that of `POST /v1/streams`. At the end all that still run are cancelled.
    """
    made: list[Created] = []
    async with Client(url, key, max_streams=CALLS_AT_ONCE) as client:
        if shared:
            made.append(await client.create(**body))

        async def make(kind: Kind) -> Target:
            if shared:
                created = made[0]
            else:
                created = await client.create(**body)
                made.append(created)
            headers = {"Authorization": f"Bearer {key}"} if key else {}
            address = url.rstrip("/") + created.events_url
            if kind is not Kind.SLOW_PROCESSOR:
                return Target.of(address, headers=headers)

            async def ack(consumer: str, offset: int) -> None:
                await client.ack(created.id, consumer, offset)

            return Target.of(f"{address}?window={window}", headers=headers, ack=ack)

        try:
            yield make
        finally:
            await _cancel(client, [created.id for created in made])


async def _cancel(client: Client, ids: list[str]) -> None:
    """End what was created. What cannot be cancelled ends by itself, for nobody reads it any more."""
    for index in range(0, len(ids), CALLS_AT_ONCE):
        await asyncio.gather(
            *(client.cancel(ident) for ident in ids[index : index + CALLS_AT_ONCE]), return_exceptions=True
        )
