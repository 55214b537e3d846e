"""A response whose job was lost, between its opening and the queue or in a failover, is still answered."""

from collections.abc import Iterator

import pytest

from relay.embedded import EmbeddedServer
from relay.keys import JOBS_INTERACTIVE, keys_of
from tests.support.servers import admin
from tests.support.system import Api, Reader, Worker

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def redis() -> Iterator[EmbeddedServer]:
    """A server of our own: its queue is emptied."""
    with EmbeddedServer() as server:
        yield server


@pytest.fixture(scope="module")
def api(redis: EmbeddedServer) -> Iterator[Api]:
    """One node; there is no worker until a test starts one."""
    with Api(redis.url) as node:
        yield node


def lose_jobs(redis: EmbeddedServer) -> None:
    """What a failover does that keeps the responses and loses the queue's last entries."""
    with admin(redis.url) as client:
        client.xtrim(JOBS_INTERACTIVE, maxlen=0)


def test_a_reader_of_a_response_without_a_job_gets_it(redis: EmbeddedServer, api: Api) -> None:
    """The node that holds the reader queues it again."""
    made = api.create(tokens=20, rate=0)
    lose_jobs(redis)
    with Worker(redis.url):
        reader = Reader(api.port, made["events_url"]).run()
    assert reader.exact() == ""


def test_a_repeated_create_queues_what_the_first_one_could_not(redis: EmbeddedServer, api: Api) -> None:
    """The same response, and not a second one."""
    made = api.create(tokens=20, rate=0, headers={"Idempotency-Key": "once"})
    lose_jobs(redis)
    again = api.create(tokens=20, rate=0, headers={"Idempotency-Key": "once"})
    assert again["id"] == made["id"]
    with admin(redis.url) as client:
        assert made["id"] in str(client.xrange(JOBS_INTERACTIVE))
    third = api.create(tokens=20, rate=0, headers={"Idempotency-Key": "once"})
    with admin(redis.url) as client:
        assert client.xlen(JOBS_INTERACTIVE) == 1
    with Worker(redis.url):
        reader = Reader(api.port, third["events_url"]).run()
    assert reader.exact() == ""


def test_an_end_that_a_failover_took_back_is_made_again(redis: EmbeddedServer, api: Api) -> None:
    """The job was done on the new primary, the end of the answer lost with the old one: nobody has it."""
    with Worker(redis.url) as worker:
        made = api.create(tokens=800, rate=100)
        reader = Reader(api.port, made["events_url"]).some(3)
        worker.kill()
        reader.close()
    with admin(redis.url) as client:
        client.delete(keys_of(made["id"]).lease)
    lose_jobs(redis)
    with Worker(redis.url):
        reader = Reader(api.port, made["events_url"]).run()
    assert reader.exact() == ""
    assert api.status(made["id"])["claims"] == 2
