"""RELAY_REDIS_URL: the forms for several servers, and what is refused with one line."""

import pytest

from relay.address import parse, parse_seeds
from relay.errors import SettingsInvalid


@pytest.mark.parametrize("url", ["redis://h:1/0", "rediss://h:1", "unix:///run/redis.sock"])
def test_one_server_has_no_seeds(url: str) -> None:
    """The forms of one server are read as before."""
    assert parse_seeds(url) is None


@pytest.mark.parametrize("path", ["main", "0x1", "-1", "1/2", " 1", "1.0"])
@pytest.mark.parametrize("query", ["", "?socket_timeout=2"])
def test_a_database_is_a_number(path: str, query: str) -> None:
    """redis-py reads others as 0: the data would lie in a database that nobody named."""
    with pytest.raises(SettingsInvalid, match=r"RELAY_REDIS_URL: .* is not the number of a database"):
        parse(f"redis://me:s3c%2Fret@h:1/{path}{query}")


@pytest.mark.parametrize("path", ["", "/", "/0", "/15"])
def test_the_databases_of_one_server(path: str) -> None:
    """None is the first."""
    assert parse(f"redis://:pw@h:1{path}?socket_timeout=2").database == int(path.strip("/") or 0)


def test_sentinels_and_what_they_name() -> None:
    """User, password, database and options are the primary's; sentinels have credentials of their own."""
    seeds = parse_seeds(
        "redis+sentinel://me:p%40ss@a:26379,[::1]:26380/main/3?sentinel_password=s3c%2Fret&socket_timeout=2"
    )
    assert seeds is not None
    assert (seeds.kind, seeds.service, seeds.hosts) == ("sentinel", "main", (("a", 26379), ("::1", 26380)))
    primary = parse(seeds.url("10.0.0.1", 6379))
    assert (primary.host, primary.port, primary.database) == ("10.0.0.1", 6379, 3)
    assert (primary.username, primary.password, primary.tls) == ("me", "p@ss", None)
    first, second = (parse(url) for url in seeds.seed_urls)
    assert (first.host, first.port, first.username or "", first.password) == ("a", 26379, "", "s3c/ret")
    assert (second.host, second.port, second.database) == ("::1", 26380, 0)


def test_sentinels_without_credentials_are_not_given_the_primarys() -> None:
    """They would refuse a password that they have not got."""
    seeds = parse_seeds("redis+sentinel://me:secret@a:1/main")
    assert seeds is not None
    assert parse(seeds.seed_urls[0]).password is None


def test_a_cluster_over_tls() -> None:
    """The nodes share credentials and options; a node that is named later is reached like the first ones."""
    seeds = parse_seeds("rediss+cluster://:secret@a:7000,b:7001?ssl_cert_reqs=none")
    assert seeds is not None
    assert (seeds.kind, seeds.hosts) == ("cluster", (("a", 7000), ("b", 7001)))
    for url in (*seeds.seed_urls, seeds.url("c", 7002)):
        node = parse(url)
        assert node.tls is not None
        assert node.password == "secret"


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://a:1",
        "redis+sentinel://a:1/",
        "redis+sentinel://a/main",
        "redis+sentinel://a:1,b/main",
        "redis+sentinel://a:1/main/x",
        "redis+sentinel:///main",
        "redis+cluster://a:1/2",
        "redis+cluster://a:x",
        "redis+cluster://a:1,,b:2",
        "redis+cluster://",
        "redis+other://a:1",
        "rediss+cluster://a:1?ssl_ca_certs=/does/not/exist",
        "redis+cluster://a:99999999",
    ],
)
def test_what_is_refused(url: str) -> None:
    """One line that names the variable, without the secret."""
    with pytest.raises(SettingsInvalid, match="RELAY_REDIS_URL") as caught:
        parse_seeds(url.replace("://", "://me:very-secret@"))
    assert "very-secret" not in caught.value.message
    assert "\n" not in caught.value.message
