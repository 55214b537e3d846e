"""RELAY_REDIS_URL, read by redis-py, as what a wire needs to connect and greet.

    redis://[user:password@]host:port[/db][?options]                          one server; also unix://
    redis+sentinel://[user:password@]host:port,host:port/service[/db][?...]   the primary that they name
    redis+cluster://[user:password@]host:port,host:port[?...]                 the cluster they are part of

rediss in place of redis is TLS, with redis-py's ssl_* options. User and password are those of the servers
that hold data; sentinels with credentials of their own take `sentinel_username` and `sentinel_password`.
"""

import re
import ssl
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qsl, quote, urlencode

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


class Finder(Protocol):
    """Says where to connect, anew before each connection. `must_lead`: a replica will not do."""

    shown: str
    must_lead: bool

    async def find(self) -> Address:
        """The address now. Raises Unavailable when it is not known now."""


class Fixed:
    """One address for ever."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self.shown = address.shown
        self.must_lead = False

    @classmethod
    def at(cls, url: str) -> "Fixed":
        """The address of a URL. Raises SettingsInvalid."""
        return cls(parse(url))

    async def find(self) -> Address:
        """Always the same."""
        return self._address


_MANY = re.compile(
    r"(?P<scheme>rediss?)\+(?P<kind>sentinel|cluster)://(?:(?P<auth>[^/?]*)@)?(?P<hosts>[^/?@]+)"
    r"(?:/(?P<path>[^?]*))?(?:\?(?P<query>.*))?\Z",
    re.DOTALL,
)
_SHAPES = {
    "sentinel": "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE",
    "cluster": "redis+cluster://HOST:PORT,HOST:PORT",
}


@dataclass(frozen=True, slots=True)
class Seeds:
    """A deployment of several servers: whom to ask, and how to reach who is named."""

    kind: str  # sentinel or cluster
    hosts: tuple[tuple[str, int], ...]
    service: str  # of sentinels
    scheme: str
    auth: str  # as in the URL, with its @
    seed_auth: str
    database: int
    query: str  # as in a URL, with its ?

    def url(self, host: str, port: int) -> str:
        """The URL of a server that holds data."""
        return f"{self.scheme}://{self.auth}{_bracketed(host)}:{port}/{self.database}{self.query}"

    @property
    def seed_urls(self) -> list[str]:
        """The URLs of the sentinels, or of the first nodes to ask."""
        return [
            f"{self.scheme}://{self.seed_auth}{_bracketed(host)}:{port}/0{self.query}"
            for host, port in self.hosts
        ]


def parse_seeds(url: str) -> Seeds | None:
    """Read redis+sentinel:// or redis+cluster://; None for a URL of one server. Raises SettingsInvalid."""
    if not re.match(r"rediss?\+", url):
        return None
    found = _MANY.match(url)
    if found is None:
        raise SettingsInvalid(f"RELAY_REDIS_URL: must look like {' or '.join(_SHAPES.values())}")
    kind, path = found["kind"], found["path"] or ""
    service, _, database = path.partition("/") if kind == "sentinel" else ("", "", path)
    if (kind == "sentinel" and not service) or (kind == "cluster" and database not in ("", "0")):
        raise SettingsInvalid(f"RELAY_REDIS_URL: {path!r} after the hosts: must look like {_SHAPES[kind]}")
    if not re.fullmatch(r"[0-9]*", database):
        raise SettingsInvalid(f"RELAY_REDIS_URL: {database!r} is not the number of a database")
    options = dict(parse_qsl(found["query"] or "", keep_blank_values=True))
    name, password = options.pop("sentinel_username", ""), options.pop("sentinel_password", None)
    auth = f"{found['auth']}@" if found["auth"] else ""
    own = f"{quote(name, safe='')}:{quote(password, safe='')}@" if password is not None else ""
    seeds = Seeds(
        kind=kind,
        hosts=tuple(_host_port(part, kind) for part in found["hosts"].split(",")),
        service=service,
        scheme=found["scheme"],
        auth=auth,
        seed_auth=own if kind == "sentinel" else auth,
        database=int(database or 0),
        query=f"?{urlencode(options)}" if options else "",
    )
    for seed in (*seeds.seed_urls, seeds.url(*seeds.hosts[0])):
        parse(seed)
    return seeds


def _host_port(part: str, kind: str) -> tuple[str, int]:
    host, _, port = part.strip().rpartition(":")
    if not host or not re.fullmatch(r"[0-9]{1,5}", port):
        raise SettingsInvalid(
            f"RELAY_REDIS_URL: {part!r} is not HOST:PORT; it must look like {_SHAPES[kind]}"
        )
    return host.strip("[]"), int(port)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def parse(url: str) -> Address:
    """Read redis://, rediss:// (with redis-py's ssl_* options) or unix://.

    Raises SettingsInvalid for a URL or a certificate that redis-py does not take.
    """
    database = re.fullmatch(r"rediss?://[^/?]*(?:/([^?]*))?(?:\?.*)?", url, re.DOTALL)
    if database is not None and not re.fullmatch(r"[0-9]*", database[1] or ""):
        # redis-py would take database 0, or 12 for 1/2.
        raise SettingsInvalid(f"RELAY_REDIS_URL: {database[1]!r} is not the number of a database")
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
