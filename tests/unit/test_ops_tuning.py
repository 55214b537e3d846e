"""The pages for operators name settings, metrics and files that there are, and defaults as they are."""

import re
from pathlib import Path

import pytest

from api.metrics import Metrics as ApiMetrics
from relay.bench.tune import LEVERS
from relay.settings import Settings, misspelt
from workers.metrics import Metrics as WorkerMetrics

ROOT = Path(__file__).parents[2]
TUNING = ROOT / "ops" / "tuning.md"
PAGES = [ROOT / "README.md", TUNING, ROOT / "ops" / "cost-analysis.md"]
UNITS = {"B": 1, "ms": 1, "s": 1, "MiB": 2**20, "": 1}


def metric_names() -> set[str]:
    """Every series of every process, and every recorded one."""
    found = set(
        re.findall(
            r"record: (\S+)", "".join(p.read_text() for p in (ROOT / "ops/prometheus/rules").glob("*.yml"))
        )
    )
    for package in ("relay", "workers", "api"):  # also of what is registered only in a running process
        found |= set(re.findall(r'"(relay_\w+)"', (ROOT / package / "metrics.py").read_text()))
    for registry in (ApiMetrics().registry, WorkerMetrics().registry):
        for family in registry.collect():
            found |= {family.name, f"{family.name}_total", *(sample.name for sample in family.samples)}
    return found | {f"{name}_total" for name in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_names_settings_that_there_are(page: Path) -> None:
    """A misspelt one would be ignored by whoever copies it."""
    assert misspelt(re.findall(r"RELAY_[A-Z_]+[A-Z]", page.read_text())) == {}


def test_every_query_names_metrics_that_there_are() -> None:
    """In tuning.md, each word in a code span that begins as our metrics do."""
    spans = re.findall(r"`([^`]+)`", TUNING.read_text())
    named = {word for span in spans for word in re.findall(r"\brelay[_:]\w+(?::\w+)*", span)}
    assert len(named) > 20
    assert named - metric_names() == set()


def test_a_lever_s_default_is_the_setting_s() -> None:
    """In each row of the tables that is of one setting."""
    checked = 0
    for row in TUNING.read_text().splitlines():
        cells = [cell.strip() for cell in row.split("|")]
        names = re.findall(r"`RELAY_([A-Z_]+)`", cells[1]) if len(cells) > 4 else []
        given = re.fullmatch(r"([\d,.]+) ?(\w*)", cells[2]) if len(names) == 1 else None
        if given:
            default = Settings.model_fields[names[0].lower()].default
            assert float(given[1].replace(",", "")) * UNITS[given[2]] == default, row
            checked += 1
    assert checked >= 14


@pytest.mark.parametrize("name", LEVERS)
def test_the_measured_curves_have_a_line_for_each_point(name: str) -> None:
    """As `relay bench tune` measures them."""
    lever = LEVERS[name]
    table = re.search(rf"\| {lever.setting} \|.*?\n\n", TUNING.read_text(), re.DOTALL)
    assert table, lever.setting
    first = [row.split("|")[1].strip().replace(",", "") for row in table[0].strip().splitlines()[2:]]
    assert first == [f"{value:g}" for value in lever.values]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Files beside the page, and headings in them."""
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, heading = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}
            assert heading in slugs, target
