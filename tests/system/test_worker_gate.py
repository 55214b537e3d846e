"""A worker that cannot carry more leaves jobs to others, says so, and takes them again when it can."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from relay.embedded import EmbeddedServer
from tests.support.servers import admin, out_of_memory
from tests.support.system import Api, Reader, Worker, call, metric
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(180)


def held(worker: Worker, reason: str) -> bool:
    """Whether the worker's metrics say that it claims nothing for this reason."""
    text = call(worker.metrics_port, "GET", "/metrics").body.decode()
    found = re.search(rf'relay_worker_held{{reason="{reason}"}} ([0-9.]+)', text)
    assert found, text
    return float(found[1]) == 1


def logged(worker: Worker) -> list[dict[str, Any]]:
    """What the worker logged, as far as it has written whole lines."""
    lines = worker.stderr.splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def told(worker: Worker) -> list[tuple[str, str]]:
    """What it logged of what holds its claiming; but a loop that is late, for that is a busy machine's."""
    held = [line for line in logged(worker) if line.get("reason", "loop") != "loop"]
    return [(line["event"], line["reason"]) for line in held if line["event"].startswith("claiming_")]


def freed_at(worker: Worker) -> float:
    """When it found that Redis takes writes again, in seconds since the epoch."""
    (line,) = (
        line for line in logged(worker) if (line["event"], line.get("reason")) == ("claiming_free", "redis")
    )
    return datetime.fromisoformat(line["timestamp"]).timestamp()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the kernel does not tell memory")
def test_a_worker_at_its_memory_budget() -> None:
    """It takes nothing: the job waits until a worker comes that can carry it."""
    with (
        EmbeddedServer() as redis,
        Api(redis.url) as api,
        Worker(redis.url, worker_memory_bytes=32 * 1024 * 1024) as full,
    ):
        wait_until(lambda: held(full, "memory"), "it is held")
        made = api.create(tokens=20)
        wait_until(lambda: metric(api.port, "relay_jobs_oldest_seconds") > 1, "nobody takes the job")
        assert api.status(made["id"])["status"] == "queued"
        assert told(full) == [("claiming_held", "memory")]
        with Worker(redis.url):
            assert Reader(api.port, made["events_url"]).run().exact() == ""
        assert metric(full.metrics_port, "relay_tokens_total") == 0


def test_a_worker_whose_redis_refuses_writes() -> None:
    """It claims nothing until writes are taken; what ran is held meanwhile, and both end exact."""
    with EmbeddedServer() as redis, Api(redis.url) as api, Worker(redis.url) as worker:
        running = api.create(tokens=400, rate=40)
        with Reader(api.port, running["events_url"]) as reader, admin(redis.url) as client:
            reader.until(lambda reader: reader.text, "some text")
            with out_of_memory(client):
                wait_until(lambda: held(worker, "redis"), "it is held")
                assert metric(worker.metrics_port, "relay_append_failures_total") >= 1
            made = api.create(tokens=20)
            waiting = Reader(api.port, made["events_url"]).run()
            assert waiting.exact() == ""
            # By Redis's clock, as the worker estimates it; writes are taken for a second or two by then.
            assert waiting.named("start")[0].data["started_at"] > freed_at(worker) - 0.25
            assert not held(worker, "redis")
            assert reader.run().exact() == ""
        assert told(worker) == [("claiming_held", "redis"), ("claiming_free", "redis")]
