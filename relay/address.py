"""A Redis URL, read by redis-py, as what a wire needs to connect and greet."""

import ssl
from dataclasses import dataclass
from typing import Any

from redis.asyncio import connection as redis_connection
from redis.exceptions import RedisError

from relay.errors import SettingsInvalid


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens, and how to introduce ourselves. `path` is a unix socket, else host and port."""

    host: str
    port: int
    path: str | None
    tls: ssl.SSLContext | None
    username: str | None
    password: str | None
    database: int

    @property
    def shown(self) -> str:
        """For messages: never with the password."""
        return self.path or f"{self.host}:{self.port}"

    def greeting(self, name: str) -> list[tuple[str, ...]]:
        """The commands that open a connection: RESP3, credentials, a name, the database."""
        hello = ["HELLO", "3"]
        if self.password is not None:
            hello += ["AUTH", self.username or "default", self.password]
        commands = [(*hello, "SETNAME", name)]
        return [*commands, ("SELECT", str(self.database))] if self.database else commands


def parse(url: str) -> Address:
    """Read redis://, rediss:// (with redis-py's ssl_* options) or unix://.

    Raises SettingsInvalid for a URL or a certificate that redis-py does not take.
    """
    try:
        kwargs: dict[str, Any] = dict(redis_connection.parse_url(url))
        kind = kwargs.pop("connection_class", redis_connection.Connection)
        made = kind(**kwargs)
        tls = made.ssl_context.get() if kind is redis_connection.SSLConnection else None
    except (ValueError, TypeError, OSError, RedisError) as error:
        raise SettingsInvalid(f"RELAY_REDIS_URL: {error}") from error
    return Address(
        host=getattr(made, "host", "localhost"),
        port=int(getattr(made, "port", 6379)),
        path=getattr(made, "path", None),
        tls=tls,
        username=made.username,
        password=made.password,
        database=int(made.db or 0),
    )
