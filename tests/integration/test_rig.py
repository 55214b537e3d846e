"""The rig the other tests stand on: every server variant answers, and the leak check bites."""

import re

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError

from tests.support.keys import assert_no_leaks, leaked_keys
from tests.support.servers import Server, admin

EXPECTED_VERSION = {
    "embedded": r"valkey 9\.",
    "redis7": r"redis 7\.",
    "redis7-tls": r"redis 7\.",
    "redis8": r"redis 8\.",
    "valkey8": r"valkey 8\.",
}


def test_a_server_answers_and_is_the_version_its_name_says(server: Server) -> None:
    """Each variant is what the test report claims it is."""
    with admin(server.url) as client:
        assert client.ping()
        info = client.info("server")
    version = (
        f"valkey {info['valkey_version']}" if "valkey_version" in info else f"redis {info['redis_version']}"
    )
    assert re.match(EXPECTED_VERSION[server.name], version), version


def test_a_server_neither_evicts_nor_saves(redis_url: str) -> None:
    """The settings that the relay depends on are the same on every variant."""
    with admin(redis_url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert client.config_get("save") == {"save": ""}


def test_a_key_with_a_ttl_is_no_leak(redis_url: str) -> None:
    """What expires by itself may outlive its test."""
    with admin(redis_url) as client:
        client.set("relay:{rig}:meta", "here", ex=60)
        assert client.get("relay:{rig}:meta") == "here"
        assert leaked_keys(client) == []


@pytest.mark.parametrize("turn", [1, 2])
def test_the_database_is_empty_before_each_test(redis_url: str, turn: int) -> None:
    """What one test left is not there in the next."""
    with admin(redis_url) as client:
        assert client.dbsize() == 0
        client.set(f"relay:left-over:{turn}", "here", ex=60)


def test_a_key_without_a_ttl_fails_its_test_by_name(redis_url: str) -> None:
    """The leak check names each key that would stay for ever, and no other."""
    with admin(redis_url) as client:
        client.set("relay:{leak}:meta", "for ever")
        client.set("relay:{fine}:meta", "a minute", ex=60)
        client.xadd("relay:jobs:interactive", {"id": "a permanent key"})
        with pytest.raises(AssertionError, match=re.escape("relay:{leak}:meta")) as failure:
            assert_no_leaks(client)
        assert "fine" not in str(failure.value)
        assert "jobs" not in str(failure.value)
        client.delete("relay:{leak}:meta")


@pytest.mark.only_on("redis7-tls")
def test_the_tls_server_serves_its_user_alone(server: Server) -> None:
    """Without the certificate authority there is no connection, and without the user no command."""
    with admin(server.url.split("?")[0]) as stranger, pytest.raises(RedisConnectionError):
        stranger.ping()
    with admin(server.url.replace("relay:correct-horse@", "")) as anyone, pytest.raises(NoPermissionError):
        anyone.set("relay:{rig}:meta", "mine")
