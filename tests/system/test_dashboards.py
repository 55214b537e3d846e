"""Every query of every dashboard, every rule: on a real Prometheus that scrapes a live relay under load."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ops.grafana.boards import BOARDS
from relay.embedded import EmbeddedServer
from tests.support.prometheus import Prometheus
from tests.support.system import Api, Reader, Worker
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(300)

QUERIES = {
    (board.name, panel.title, expression): panel
    for board in BOARDS
    for row in board.rows
    for panel in row.panels
    for expression, _ in panel.queries
}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Everything, under a load of answers that go on, answers that end, and a reader that does not read."""
    settings = {"memory_budget_bytes": 2**28, "pause_max_s": 60}
    over = threading.Event()
    with (
        EmbeddedServer() as redis,
        Api(redis.url, **settings) as api,
        Worker(redis.url, **settings) as worker,
        Prometheus(
            tmp_path_factory.mktemp("prometheus"),
            {"relay-api": [api.port], "relay-worker": [worker.metrics_port]},
        ).running() as made,
        stalled(api),
    ):
        loads = [threading.Thread(target=load, args=(api, over, seed)) for seed in range(4)]
        for thread in loads:
            thread.start()
        try:
            yield made
        finally:
            over.set()
            for thread in loads:
                thread.join(60)


@contextlib.contextmanager
def stalled(api: Api) -> Iterator[None]:
    """Readers that take nothing of an answer as fast as it can be made: the most of them, for the medians."""
    made = api.create(tokens=200_000, rate=0)
    with contextlib.ExitStack() as stack:
        for _ in range(6):
            stack.enter_context(Reader(api.port, made["events_url"], receive_buffer=8192, maxseg=1448))
        yield


def load(api: Api, over: threading.Event, seed: int) -> None:
    """Answers of two seconds, one after the other, read to the end."""
    while not over.is_set():
        made = api.create(tokens=100, rate=50, seed=seed)
        Reader(api.port, made["events_url"]).run()


def test_every_query_finds_data(prometheus: Prometheus) -> None:
    """What shows traffic is above 0; what shows faults has a value, perhaps 0."""

    lacking = dict(QUERIES)

    def all_found() -> bool:
        """Whether each has found data by now: some show what comes and goes."""
        for key, panel in list(lacking.items()):
            if (values := prometheus.values(key[2])) and (panel.fault or max(values) > 0):
                del lacking[key]
        return not lacking

    with contextlib.suppress(AssertionError):  # what is still lacking then says more
        wait_until(all_found, "every query finds data", 90)
    assert not lacking, "\n".join(map(str, lacking))


def test_every_rule_evaluates(prometheus: Prometheus) -> None:
    """Without an error and without a warning of its own, on the metrics as they are."""

    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] != "unknown" for rule in rules()), "all rules were evaluated", 60)
    assert [(rule["name"], rule.get("lastError")) for rule in rules() if rule["health"] != "ok"] == []


def test_every_recording_has_values(prometheus: Prometheus) -> None:
    """What is recorded is there to be asked for."""
    names = {
        rule["name"]
        for group in prometheus.get("rules")["groups"]
        for rule in group["rules"]
        if rule["type"] == "recording"
    }
    assert names
    wait_until(lambda: all(prometheus.values(name) for name in names), f"values of {names}", 60)
