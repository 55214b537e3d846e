"""The servers that tests run on, and the one grammar that chooses them.

`RELAY_TEST_SERVERS` is a comma-separated list of the names in `VARIANTS`; by default all of them:

    RELAY_TEST_SERVERS=embedded,redis7 make test

A variant this machine lacks is skipped with its reason; with `CI=true` or `RELAY_TEST_NO_SKIP=1`, it fails.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from relay.embedded import EmbeddedServer, free_port
from tests.support.wait import wait_until

_SOCKET_TIMEOUT_S = 15.0
_DOCKER_TIMEOUT_S = 60
_TRUE = ("1", "true", "yes")
_TLS_USER, _TLS_PASSWORD = "relay", "correct-horse"
_CONTAINER_OPTIONS = ["--save", "", "--maxmemory-policy", "noeviction", "--protected-mode", "no"]


class Missing(Exception):
    """This machine has not got what a variant needs; the message says what."""


@dataclass(frozen=True)
class Server:
    """A running server: `name` is its variant, `url` connects to its database 0 with all rights."""

    name: str
    url: str


@contextmanager
def admin(url: str) -> Iterator[Redis]:
    """A plain client for what a test does beside the code under test: never retries, closed at the end."""
    client = Redis.from_url(
        url,
        socket_timeout=_SOCKET_TIMEOUT_S,
        socket_connect_timeout=_SOCKET_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )
    with closing(client):
        yield client


@contextmanager
def out_of_memory(client: Redis) -> Iterator[None]:
    """The server refuses whatever needs memory inside the block."""
    client.config_set("maxmemory", 1)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


@contextmanager
def writes_paused(client: Redis) -> Iterator[None]:
    """Nothing that writes is answered inside the block."""
    client.client_pause(60_000, all=False)
    try:
        yield
    finally:
        client.client_unpause()


@contextmanager
def _embedded() -> Iterator[str]:
    with EmbeddedServer() as server:
        yield server.url


@contextmanager
def _redis7() -> Iterator[str]:
    with EmbeddedServer(executable=_redis7_executable()) as server:
        yield server.url


@contextmanager
def _redis7_tls() -> Iterator[str]:
    """TLS and an ACL user; the plain port stays open for the readiness check, good for nothing else."""
    executable = _redis7_executable()
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="relay-tls-") as folder:
        options = [*_tls_options(Path(folder), port), *_acl_options()]
        with EmbeddedServer(executable=executable, extra_args=options):
            yield (f"rediss://{_TLS_USER}:{_TLS_PASSWORD}@127.0.0.1:{port}/0?ssl_ca_certs={folder}/ca.pem")


def _tls_options(folder: Path, port: int) -> list[str]:
    import trustme

    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    options = {
        "tls-port": str(port),
        "tls-cert-file": f"{folder}/cert.pem",
        "tls-key-file": f"{folder}/key.pem",
        "tls-ca-cert-file": f"{folder}/ca.pem",
        "tls-auth-clients": "no",
    }
    return [part for name, value in options.items() for part in (f"--{name}", value)]


def _acl_options() -> list[str]:
    everything = ["on", f">{_TLS_PASSWORD}", "~*", "&*", "+@all"]
    readiness = ["on", "nopass", "-@all", "+ping", "+info"]
    return ["--user", _TLS_USER, *everything, "--user", "default", *readiness]


def _redis7_executable() -> str:
    executable = shutil.which("redis-server")
    if executable is None:
        raise Missing("no redis-server on PATH: apt-get install redis-server")
    version = subprocess.run(
        [executable, "--version"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    if not re.match(r"Redis server v=7\.", version):
        raise Missing(f"{executable} is not Redis 7: {version.strip()}")
    return executable


@contextmanager
def _container(image: str, program: str) -> Iterator[str]:
    """A server in a container of `image`, which must be here already: a pull belongs in no test's time."""
    # No image beside the one under test: the fixture itself removes the container.
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")
    from testcontainers.core.container import DockerContainer

    _require_image(image)
    command = [program, *_CONTAINER_OPTIONS]
    with DockerContainer(image, ports=[6379]).with_command(command) as container:
        host = container.get_container_host_ip().replace("localhost", "127.0.0.1")
        url = f"redis://{host}:{container.get_exposed_port(6379)}/0"
        wait_until(lambda: _pings(url), f"{image} answers PING at {url}", timeout_s=60)
        yield url


def _require_image(image: str) -> None:
    if (docker := shutil.which("docker")) is None:
        raise Missing(f"no docker on PATH to run {image}")
    found = subprocess.run(
        [docker, "image", "inspect", "--format", "{{.Id}}", image],
        capture_output=True,
        text=True,
        check=False,
        timeout=_DOCKER_TIMEOUT_S,
    )
    if found.returncode:
        raise Missing(f"{found.stderr.strip()} (docker pull {image})")


def _pings(url: str) -> bool:
    try:
        with admin(url) as client:
            return bool(client.ping())
    except RedisError:
        return False


VARIANTS: dict[str, Callable[[], AbstractContextManager[str]]] = {
    "embedded": _embedded,
    "redis7": _redis7,
    "redis7-tls": _redis7_tls,
    "redis8": partial(_container, "redis:8", "redis-server"),
    "valkey8": partial(_container, "valkey/valkey:8.1", "valkey-server"),
}
IN_DOCKER = frozenset({"redis8", "valkey8"})


def requested() -> list[str]:
    """The variants that `RELAY_TEST_SERVERS` names, in its order.

    Raises:
        ValueError: it names none, or one that is not there.
    """
    names = [
        name.strip()
        for name in os.environ.get("RELAY_TEST_SERVERS", ",".join(VARIANTS)).split(",")
        if name.strip()
    ]
    unknown = [name for name in names if name not in VARIANTS]
    if unknown or not names:
        raise ValueError(
            f"RELAY_TEST_SERVERS is a comma-separated list of {', '.join(VARIANTS)};"
            f" it names {', '.join(unknown) or 'none'}"
        )
    return names


def may_skip() -> bool:
    """Whether a missing variant is skipped: not where everything is meant to be there."""
    return not any(os.environ.get(name, "").lower() in _TRUE for name in ("CI", "RELAY_TEST_NO_SKIP"))


def skip_or_fail(reason: str) -> NoReturn:
    """End a test for which this machine lacks something: failed where everything is meant to be there."""
    if may_skip():
        pytest.skip(reason)
    pytest.fail(reason, pytrace=False)


@contextmanager
def running(name: str) -> Iterator[Server]:
    """The server of variant `name`, for as long as the block lasts.

    Raises:
        Missing: this machine has not got what it needs.
    """
    with VARIANTS[name]() as url:
        yield Server(name, url)
