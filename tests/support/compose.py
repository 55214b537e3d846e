"""The deployment of docker-compose.yml, brought up for real: `with deployed() as stack`.

What this machine lacks is a Missing with what to do. The images must be here already: a pull belongs in no
test's time. Grafana is left out: its dashboards are tested on their own.
"""

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.servers import Missing

ROOT = Path(__file__).resolve().parents[2]
IMAGES = (
    "redis:8",
    "python:3.13-slim",
    "nginx:1.28",
    "haproxy:3.0",
    "prom/prometheus:v3.5.0",
    "prom/alertmanager:v0.28.1",
)
SERVICES = ("redis", "api", "worker", "proxy", "prometheus", "alertmanager")
KEY = {"Authorization": "Bearer only-for-this-machine"}
UP_WITHIN_S = 600  # with the building of the image, on a machine that has other things to do
# No RELAY_* of whoever runs the tests, and ports that the kernel chooses.
_ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("RELAY_", "COMPOSE_"))},
    "RELAY_IMAGE": "relay:test",
    "RELAY_PORT": "0",
    "PROMETHEUS_PORT": "0",
    "ALERTMANAGER_PORT": "0",
}


def run(*command: str, within_s: float = 120) -> str:
    """The output of a docker command. Raises AssertionError with what it said when it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=within_s, cwd=ROOT, env=_ENVIRONMENT
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


class Stack:
    """A running deployment under a project name of its own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def compose(self, *args: str, within_s: float = 180) -> str:
        """`docker compose` on this project; no `.env` of the checkout takes part."""
        base = ("docker", "compose", "-p", self.name, "--env-file", os.devnull, "--profile", "observability")
        return run(*base, *args, within_s=within_s)

    def up(self, *args: str) -> None:
        """Start what is missing and wait until all of it is healthy."""
        self.compose("up", "-d", "--wait", "--no-recreate", *args, *SERVICES, within_s=UP_WITHIN_S)

    def containers(self, service: str) -> list[str]:
        """The ids of a service's running containers."""
        return self.compose("ps", "-q", service).split()

    def inspect(self, container: str) -> Any:
        """What the daemon says of it."""
        return json.loads(run("docker", "inspect", container))[0]

    def address(self, container: str) -> str:
        """Its address on the outer network: Docker's own proxy, before published ports, buffers."""
        networks = self.inspect(container)["NetworkSettings"]["Networks"]
        return str(networks[f"{self.name}_outer"]["IPAddress"])

    def port(self, service: str, inside: int) -> int:
        """Where a port of a service is published on 127.0.0.1."""
        return int(self.compose("port", service, str(inside)).rpartition(":")[2])

    def prometheus(self, path: str) -> Any:
        """The data of an answer of Prometheus's API."""
        url = f"http://127.0.0.1:{self.port('prometheus', 9090)}/api/v1/{path}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def scraped(self, job: str) -> set[str]:
        """The instances of a job whose last scrape went well."""
        return {
            target["labels"]["instance"]
            for target in self.prometheus("targets?state=active")["activeTargets"]
            if target["labels"]["job"] == job and target["health"] == "up"
        }


@contextmanager
def deployed() -> Iterator[Stack]:
    """Build, bring up, and take away again with everything that was made. Raises Missing."""
    require()
    stack = Stack(f"relay-test-{os.getpid()}")
    try:
        stack.up("--build")
        yield stack
    except BaseException as error:
        error.add_note(stack.compose("ps", "-a"))
        error.add_note(stack.compose("logs", "--tail", "15", "--no-color")[-8000:])
        raise
    finally:
        stack.compose("down", "-v", "-t", "1", "--remove-orphans")


def require() -> None:
    """Raises Missing: no daemon, no compose, or an image that is not here."""
    if shutil.which("docker") is None:
        raise Missing("no docker on PATH")
    for command, remedy in (
        (("docker", "info"), "start the daemon"),
        (("docker", "compose", "version"), "install the compose plugin, version 2"),
        *((("docker", "image", "inspect", image), f"docker pull {image}") for image in IMAGES),
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise Missing(f"{' '.join(command)}: {done.stderr.strip()[-200:]} ({remedy})")
