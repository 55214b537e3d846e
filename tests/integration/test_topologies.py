"""The deployments that tests start: whole when they say so, failing over when a primary is killed."""

import pytest

from tests.support.topologies import SHAPES, deployed

KEY = "relay:{rs_1}:meta"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_deployment_serves_and_comes_back(shape: str) -> None:
    """It takes a write when it is ready; a killed primary is replaced, and returns as a replica."""
    with deployed(shape, aof=shape == "single") as redis:
        primary = redis.primary_of(KEY)
        with primary.admin() as client:
            client.set(KEY, "kept", ex=60)
        if shape != "single":
            primary.wait_copied()
        primary.kill()
        if shape == "single":
            primary.restart()
        redis.wait_writable()
        assert (redis.primary_of(KEY) is primary) == (shape == "single")
        with redis.primary_of(KEY).admin() as client:
            assert client.get(KEY) == "kept"
        if shape == "cluster":  # with sentinels it takes 10 s: see the next test
            primary.restart()
            redis.wait_replicated()
            assert not primary.is_primary


def test_a_paused_server_is_replaced_too() -> None:
    """SIGSTOP is a failure like any other; continued, it finds itself a replica."""
    with deployed("sentinel") as redis:
        primary = redis.primary_of()
        replica = redis.replica_of(primary)
        primary.pause()
        redis.wait_for_primary(replica)
        primary.resume()
        redis.wait_replicated()
        assert redis.primary_of() is replica
