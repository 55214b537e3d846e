"""The alerts: each is tested by promtool to fire, not to fire and to recover, and leads to what to do."""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.pressure import THRESHOLDS
from relay.settings import Settings
from tests.support.servers import skip_or_fail

OPS = Path(__file__).resolve().parents[2] / "ops"
RULES = sorted((OPS / "prometheus/rules").glob("*.yml"))
TESTS = sorted((OPS / "prometheus/tests").glob("*.yml"))


def rules() -> list[dict[str, Any]]:
    """Every rule of every file."""
    return [
        rule
        for file in RULES
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def promtool(*args: str | Path) -> str:
    """What promtool says; skipped where it is not, unless everything is meant to be there."""
    if shutil.which("promtool") is None:
        skip_or_fail("no promtool on PATH: apt-get install prometheus")
    done = subprocess.run(
        ["promtool", *map(str, args)], capture_output=True, text=True, check=False, timeout=50
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_and_the_configuration_are_valid() -> None:
    """By promtool; the paths inside the container are not those of this checkout."""
    promtool("check", "rules", *RULES)
    promtool("check", "config", "--syntax-only", OPS / "prometheus/prometheus.yml")


def test_every_alert_fires_and_no_other_and_recovers() -> None:
    """Run by promtool on series that tell a small story each."""
    assert "SUCCESS" in promtool("test", "rules", *TESTS)


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_has_its_story(name: str) -> None:
    """A time of quiet, one at which this alert fires, and one at which nothing does any more."""
    stories = [
        story
        for file in TESTS
        for story in yaml.safe_load(file.read_text())["tests"]
        if story["name"].startswith(f"{name}:")
    ]
    assert len(stories) == 1
    told = [
        {sample["labels"] for sample in moment["exp_samples"]} for moment in stories[0]["promql_expr_test"]
    ]
    assert told[0] == told[-1] == set()
    assert any(f'{{alertname="{name}"}}' in labels for labels in told[1:-1])


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_is_fired_by_a_real_fault(name: str) -> None:
    """One of the system's tests causes it and waits for this name."""
    assert name in set(waited_for())


def waited_for() -> Iterator[str]:
    """The names that a system test gives to `fires` or `wait_for`, as they are or by its variable."""
    faults = Path(__file__).parents[1] / "system/test_alerts.py"
    for test in ast.walk(ast.parse(faults.read_text())):
        if not isinstance(test, ast.FunctionDef):
            continue
        said = {
            node.targets[0].id: node.value
            for node in ast.walk(test)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for call in ast.walk(test):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            if call.func.attr in {"fires", "wait_for"}:
                for given in call.args:
                    plain = given.value if isinstance(given, ast.Starred) else given
                    told = said.get(plain.id, plain) if isinstance(plain, ast.Name) else plain
                    yield from (node.value for node in ast.walk(told) if isinstance(node, ast.Constant))


@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_says_who_is_told_and_what_to_do(name: str) -> None:
    """A severity, and a section of the runbook that is there."""
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in {"page", "ticket"}
    assert {"summary", "description", "runbook"} == set(alert["annotations"])
    file, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert (file, anchor) == ("ops/runbook.md", name.lower())
    assert f"\n### {name}\n" in (OPS / "runbook.md").read_text()


def test_settings_that_rules_name_are_settings() -> None:
    """A misspelt one would never match, and its alert never fire."""
    named = {name for rule in rules() for name in re.findall(r'relay_setting\{name="(\w+)"', rule["expr"])}
    assert named
    assert named <= set(Settings.model_fields)


@pytest.mark.parametrize(
    ("name", "threshold"),
    [
        ("RelayRedisMemoryHigh", THRESHOLDS["memory"][0][0]),
        ("RelayQueueWait", THRESHOLDS["queue"][1][0]),
    ],
)
def test_what_is_no_setting_is_admission_s_own_threshold(name: str, threshold: float) -> None:
    """Nobody is told before new work is treated otherwise, nor long after."""
    assert float(ALERTS[name]["expr"].rpartition("> ")[2]) == threshold


def test_the_tests_that_the_runbook_names_are_there() -> None:
    """Each failure mode has a test that causes it."""
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (OPS / "runbook.md").read_text())
    assert len(named) > 10
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not re.search(rf"def {test}\(", (OPS.parent / file).read_text())
    ]
    assert missing == []


def test_the_runbook_leads_nowhere_that_is_not_there() -> None:
    """Every link within the page has its heading."""
    text = (OPS / "runbook.md").read_text()
    headings = {
        heading.lower().replace(" ", "-") for heading in re.findall(r"^##+ (.+)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= headings


def test_each_failure_mode_has_what_to_do() -> None:
    """It leads to the entry of an alert, or has a row of its own, with what not to do."""
    modes, _, alone = (OPS / "runbook.md").read_text().partition("## Failure modes")[2].partition("\n### ")
    rows = {row[0]: row for row in _table(alone)}
    without = [name for name, *_ in _table(modes) if "](#" not in name]
    assert sorted(without) == sorted(rows)
    assert all(len(row) == 5 and all(row) for row in rows.values())


def _table(text: str) -> list[list[str]]:
    """The cells of a table's rows, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def test_the_runbook_asks_for_metrics_that_there_are() -> None:
    """Every metric it names is exported by a node or a worker, or recorded by a rule."""
    text = (OPS / "runbook.md").read_text()
    named = set(re.findall(r"\brelay_[a-z_]+\b|\brelay:[a-z0-9_:]+\b", text))
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    assert named - recorded - exported() == set()


def exported() -> set[str]:
    """Names of all samples of both kinds of process."""
    from unittest.mock import Mock

    from api.metrics import Metrics as ApiMetrics
    from relay.metrics import Counted, redis_metrics, settings_metrics
    from workers.metrics import Metrics as WorkerMetrics

    api, worker = ApiMetrics(), WorkerMetrics()
    redis_metrics(api.counted, Mock(wires=list))
    settings_metrics(Counted(worker.registry), Settings())
    api.watch(Mock(queues={}, memory_bytes=0, budget_bytes=0, evicts=False, pressure=Mock(level=0)))
    names: set[str] = set()
    for registry in (api.registry, worker.registry):
        for family in registry.collect():
            suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(
                family.type, ("",)
            )
            names |= {family.name + suffix for suffix in suffixes}
    return names


def test_rules_ask_for_metrics_that_there_are() -> None:
    """A misspelt name never fires."""
    named = {name for rule in rules() for name in re.findall(r"\brelay_[a-z_]+\b", rule["expr"])}
    assert named - exported() == set()
