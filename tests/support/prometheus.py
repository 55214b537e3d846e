"""A real Prometheus of this machine on this repository's rules: `with Prometheus(...).running() as it`."""

import contextlib
import json
import math
import re
import shutil
import signal
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from relay.embedded import free_port
from tests.support.servers import skip_or_fail
from tests.support.wait import wait_until

RULES = Path(__file__).resolve().parents[2] / "ops/prometheus/rules"
INTERVAL = "10s"  # for $__rate_interval


class Prometheus:
    """One that scrapes each second. `targets` are ports of this machine by job.

    Args:
        faster: every duration in the rules is divided by it, so that a test need not wait for minutes.
    """

    def __init__(self, folder: Path, targets: Mapping[str, Sequence[int]], faster: int = 1) -> None:
        self._folder = folder
        self.port = free_port()
        for file in RULES.glob("*.yml"):
            (folder / f"rules-{file.name}").write_text(_faster(file.read_text(), faster))
        self._targets = dict(targets)
        self._process: subprocess.Popen[bytes] | None = None
        self._write()

    def _write(self) -> None:
        configuration = {
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [f"{self._folder}/rules-*.yml"],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
                for job, ports in self._targets.items()
            ],
        }
        (self._folder / "prometheus.yml").write_text(json.dumps(configuration))  # JSON is YAML

    def scrape(self, job: str, ports: Sequence[int]) -> None:
        """Look at these ports from now on."""
        assert self._process is not None
        self._targets[job] = ports
        self._write()
        self._process.send_signal(signal.SIGHUP)

    @contextlib.contextmanager
    def running(self) -> Iterator["Prometheus"]:
        """For as long as the block lasts. Skips where there is none, unless all is meant to be there."""
        if shutil.which("prometheus") is None:
            reason = "no prometheus on PATH: apt-get install prometheus"
            skip_or_fail(reason)
        command = [
            "prometheus",
            f"--config.file={self._folder}/prometheus.yml",
            f"--storage.tsdb.path={self._folder}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]
        with (self._folder / "log").open("wb") as log:
            self._process = process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until(self._is_ready, "Prometheus is ready", 60)
            yield self
        finally:
            process.kill()
            process.wait(10)

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError):  # also while it answers 503
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=10).close()
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

    @property
    def firing(self) -> set[str]:
        """The names of the alerts that fire now."""
        return {a["labels"]["alertname"] for a in self.get("alerts")["alerts"] if a["state"] == "firing"}


def _faster(rules: str, factor: int) -> str:
    """The rules with their durations divided; a window keeps the five seconds that a rate needs."""

    def shortened(match: re.Match[str], least_s: int) -> str:
        seconds = int(match[2]) * {"s": 1, "m": 60, "h": 3600}[match[3]]
        return f"{match[1]}{max(least_s, seconds // factor)}s"

    if factor == 1:
        return rules
    rules = re.sub(r"(\[)(\d+)([smh])(?=\])", lambda match: shortened(match, 5), rules)
    return re.sub(r"(for: )(\d+)([smh])", lambda match: shortened(match, 1), rules)
