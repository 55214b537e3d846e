"""Every query of every dashboard, every rule: on a real Prometheus that scrapes a live relay under load."""

import contextlib
import json
import math
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ops.grafana.boards import BOARDS
from relay.embedded import EmbeddedServer, free_port
from tests.support.servers import may_skip
from tests.support.system import Api, Reader, Worker
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(180)

OPS = Path(__file__).resolve().parents[2] / "ops"
INTERVAL = "10s"  # for $__rate_interval: four scrapes, as Grafana takes it, and some
QUERIES = {
    (board.name, panel.title, expression): panel
    for board in BOARDS
    for row in board.rows
    for panel in row.panels
    for expression, _ in panel.queries
}


class Prometheus:
    """A running one that scrapes a node and a worker each second, with the rules of this repository."""

    def __init__(self, folder: Path, api: Api, worker: Worker) -> None:
        self._folder = folder
        self.port = free_port()
        configuration = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [f"{OPS}/prometheus/rules/*.yml"],
            "scrape_configs": [
                {"job_name": "relay-api", "static_configs": [{"targets": [f"127.0.0.1:{api.port}"]}]},
                {
                    "job_name": "relay-worker",
                    "static_configs": [{"targets": [f"127.0.0.1:{worker.metrics_port}"]}],
                },
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(configuration))  # JSON is YAML

    @contextlib.contextmanager
    def running(self) -> Iterator["Prometheus"]:
        """For as long as the block lasts."""
        command = [
            "prometheus",
            f"--config.file={self._folder}/prometheus.yml",
            f"--storage.tsdb.path={self._folder}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        with (self._folder / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until(self._is_ready, "Prometheus is ready", 30)
            yield self
        finally:
            process.kill()
            process.wait(10)

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer. Raises AssertionError with Prometheus's own words."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def values(self, query: str) -> list[float]:
        """The values that a query gives now, those that are no number left out."""
        result = self.get("query", query=query.replace("$__rate_interval", INTERVAL))["result"]
        return [value for value in (float(sample["value"][1]) for sample in result) if not math.isnan(value)]


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Everything, under a load of answers that go on, answers that end, and a reader that does not read."""
    if shutil.which("prometheus") is None:
        reason = "no prometheus on PATH: apt-get install prometheus"
        if may_skip():
            pytest.skip(reason)
        pytest.fail(reason, pytrace=False)
    settings = {"memory_budget_bytes": 2**28, "pause_max_s": 60}
    over = threading.Event()
    with (
        EmbeddedServer() as redis,
        Api(redis.url, **settings) as api,
        Worker(redis.url, **settings) as worker,
        Prometheus(tmp_path_factory.mktemp("prometheus"), api, worker).running() as made,
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
                thread.join(30)


@contextlib.contextmanager
def stalled(api: Api) -> Iterator[None]:
    """A reader that takes nothing of an answer as fast as it can be made."""
    made = api.create(tokens=200_000, rate=0)
    with Reader(api.port, made["events_url"], receive_buffer=8192, maxseg=1448):
        yield


def load(api: Api, over: threading.Event, seed: int) -> None:
    """Answers of two seconds, one after the other, read to the end."""
    while not over.is_set():
        made = api.create(tokens=100, rate=50, seed=seed)
        Reader(api.port, made["events_url"]).run()


def test_every_query_finds_data(prometheus: Prometheus) -> None:
    """What shows traffic is above 0; what shows faults has a value, perhaps 0."""

    def lacking() -> list[tuple[str, str, str]]:
        return [
            key
            for key, panel in QUERIES.items()
            if not (values := prometheus.values(key[2])) or not (panel.fault or max(values) > 0)
        ]

    with contextlib.suppress(AssertionError):  # what is still lacking then says more
        wait_until(lambda: not lacking(), "every query finds data", 60)
    assert lacking() == []


def test_every_rule_evaluates(prometheus: Prometheus) -> None:
    """Without an error and without a warning of its own, on the metrics as they are."""

    def rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] != "unknown" for rule in rules()), "all rules were evaluated", 30)
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
