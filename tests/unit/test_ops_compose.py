"""docker-compose.yml, its image and its locks: true to the settings, and to what the tests run with."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.settings import Settings, misspelt

ROOT = Path(__file__).parents[2]
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
DRAIN = {"RELAY_DRAIN_S", "RELAY_DRAIN_DELAY_S", "RELAY_WORKER_DRAIN_S"}
FILES = {"RELAY_MODELS_FILE", "RELAY_TRACE_FILE"}
OF_THE_DEPLOYMENT = {"RELAY_METRICS_HOST", "RELAY_REQUIRE_KEYS", "RELAY_TCP_MAXSEG"}


def environment(service: str) -> dict[str, str | None]:
    """What its processes are given; None is what the shell or `.env` has, or nothing."""
    found: dict[str, str | None] = SERVICES[service]["environment"]
    return found


def pins(lock: str) -> dict[str, str]:
    """The version of each package in a lock, with its marker."""
    return dict(re.findall(r"^(\S+?)==(.*?) *\\$", (ROOT / lock).read_text(), re.MULTILINE))


@pytest.mark.parametrize("service", ["api", "worker"])
def test_every_setting_comes_through(service: str) -> None:
    """Whoever sets a lever in `.env` moves it; none is misspelt; what an empty one does is its default."""
    known = {f"RELAY_{field.upper()}" for field in Settings.model_fields}
    given = environment(service)
    assert misspelt(given) == {}
    assert known - given.keys() == (DRAIN | FILES | OF_THE_DEPLOYMENT) - given.keys()
    assert not DRAIN & given.keys()


def test_an_empty_variable_is_none_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """`${X:-}` is not a value: neither tracing nor text in logs is turned on by it."""
    for name, value in environment("api").items():
        if value is not None and value.endswith(":-}"):
            monkeypatch.setenv(name, "")
    assert Settings(_env_file=None) == Settings.model_construct()


@pytest.mark.parametrize(
    ("service", "drain", "lease"), [("api", "drain_s", 0), ("worker", "worker_drain_s", 1)]
)
def test_there_is_time_to_drain(service: str, drain: str, lease: int) -> None:
    """SIGKILL comes after the drain that the settings allow."""
    settings: Any = Settings.model_construct()
    grace_s = float(SERVICES[service]["stop_grace_period"].removesuffix("s"))
    assert grace_s > getattr(settings, drain) + lease * settings.lease_s


def test_a_worker_stops_claiming_before_it_is_killed_for_memory() -> None:
    """Its own bound is under the container's, here and on Kubernetes."""
    worker = SERVICES["worker"]
    given = worker["environment"]["RELAY_WORKER_MEMORY_BYTES"]
    assert worker["deploy"]["resources"]["limits"]["memory"] == "512M"
    assert int(given.rpartition(":-")[2].rstrip("}")) * 1.2 < 512 * 2**20
    settings = yaml.safe_load((ROOT / "ops/kubernetes/settings.yaml").read_text())["data"]
    (deployment, _) = yaml.safe_load_all((ROOT / "ops/kubernetes/worker.yaml").read_text())
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["memory"] == "512Mi"
    assert int(settings["RELAY_WORKER_MEMORY_BYTES"]) * 1.2 < 512 * 2**20


def test_the_image_has_the_packages_that_the_tests_run_with() -> None:
    """The lock of the extra adds to the first lock, contradicts it nowhere, and is what the dev lock has."""
    tracing, base, dev = (pins(f"requirements{kind}.lock") for kind in ("-tracing", "", "-dev"))
    assert "opentelemetry-exporter-otlp-proto-http" in tracing
    assert tracing.keys() - base.keys()
    assert {name: base[name] for name in tracing.keys() & base.keys()}.items() <= tracing.items()
    assert tracing.items() <= dev.items()
    assert "requirements-tracing.lock" in (ROOT / "ops/Dockerfile").read_text()
    assert "!requirements-tracing.lock" in (ROOT / ".dockerignore").read_text().split()
