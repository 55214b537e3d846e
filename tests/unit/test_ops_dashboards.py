"""The dashboards: what is committed is what the code makes, complete, and what Grafana's own types allow."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ops.grafana import exported
from ops.grafana.boards import BOARDS
from tests.support.servers import skip_or_fail

GRAFANA = Path(__file__).resolve().parents[2] / "ops/grafana"
SCHEMA = GRAFANA / "schema/node_modules/@grafana/schema/dist/types"
PANELS = [(board.name, panel) for board in BOARDS for row in board.rows for panel in row.panels]


def test_what_is_committed_is_what_the_code_makes() -> None:
    """`make dashboards` would change nothing."""
    committed = {file.name: file.read_text() for file in (GRAFANA / "dashboards").glob("*.json")}
    assert committed == exported()


def test_no_two_dashboards_and_no_two_panels_of_one_are_called_the_same() -> None:
    """A title is how people speak of a panel."""
    assert len({board.name for board in BOARDS}) == len(BOARDS) == 5
    for board in BOARDS:
        titles = [panel.title for row in board.rows for panel in row.panels]
        assert len(titles) == len(set(titles)), board.name


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=[f"{name}: {panel.title}" for name, panel in PANELS])
def test_each_panel_says_what_is_normal_in_a_unit(name: str, panel: Any) -> None:
    """A unit, a sentence that says what to expect, and a query for each line."""
    board = json.loads((GRAFANA / f"dashboards/{name}.json").read_text())
    shown = next(made for made in board["panels"] if made["title"] == panel.title)
    assert shown["fieldConfig"]["defaults"]["unit"] == panel.unit != ""
    assert re.search(r"Normal: |Must be 0", shown["description"])
    assert [target["expr"] for target in shown["targets"]] == [expression for expression, _ in panel.queries]


def test_the_dashboards_are_what_grafana_s_own_types_allow(tmp_path: Path) -> None:
    """Checked by tsc against @grafana/schema: fields that it does not know are errors."""
    if not SCHEMA.is_dir() or shutil.which("node") is None:
        reason = "no Grafana schema: npm ci --ignore-scripts --prefix ops/grafana/schema"
        skip_or_fail(reason)
    _types(tmp_path)
    (tmp_path / "good.ts").write_text(_program({name: json.loads(text) for name, text in exported().items()}))
    assert _tsc(tmp_path / "good.ts") == ""


@pytest.mark.parametrize("fault", ["tooltip", "drawStyle", "field"])
def test_the_check_against_the_types_finds_faults(tmp_path: Path, fault: str) -> None:
    """The test above can fail: a wrong value, a wrong option, a field that nobody knows."""
    if not SCHEMA.is_dir() or shutil.which("node") is None:
        pytest.skip("no Grafana schema: see the test above")
    _types(tmp_path)
    board = json.loads(exported()["redis.json"])
    panel = next(panel for panel in board["panels"] if panel["type"] == "timeseries")
    if fault == "tooltip":
        panel["options"]["tooltip"]["mode"] = "sometimes"
    elif fault == "drawStyle":
        panel["fieldConfig"]["defaults"]["custom"]["lineInterpolation"] = "wavy"
    else:
        board["colour"] = "blue"
    (tmp_path / "bad.ts").write_text(_program({"redis.json": board}))
    assert "bad.ts(" in _tsc(tmp_path / "bad.ts")


def _types(folder: Path) -> None:
    """Grafana's types, enums made unions of their values: JSON has values, not names."""
    for name, source in (
        ("common", SCHEMA / "common/common.gen.d.ts"),
        ("dashboard", SCHEMA / "raw/dashboard/x/dashboard_types.gen.d.ts"),
        ("timeseries", SCHEMA / "raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen.d.ts"),
    ):
        text = source.read_text().replace("'@grafana/schema'", "'./common'")
        text = re.sub(r"export declare enum (\w+) \{(.*?)\n\}", _union, text, flags=re.DOTALL)
        (folder / f"{name}.d.ts").write_text(text)


def _union(enum: re.Match[str]) -> str:
    values = re.findall(r"= (\"[^\"]*\"|-?\d+)", enum[2])
    return f"export type {enum[1]} = {' | '.join(values)};"


def _program(boards: dict[str, Any]) -> str:
    """A program that has these dashboards as values of Grafana's types."""
    lines = [
        "import type { Dashboard } from './dashboard';",
        "import type { Options, FieldConfig } from './timeseries';",
    ]
    for index, board in enumerate(boards.values()):
        lines.append(f"export const d{index}: Dashboard = {json.dumps(board)};")
        for panel in board["panels"]:
            if panel["type"] == "row":
                continue
            name = f"{index}_{len(lines)}"
            lines.append(f"export const o{name}: Options = {json.dumps(panel['options'])};")
            custom = panel["fieldConfig"]["defaults"]["custom"]
            lines.append(f"export const c{name}: FieldConfig = {json.dumps(custom)};")
    return "\n".join(lines)


def _tsc(program: Path) -> str:
    """What tsc has to say against it; empty when nothing."""
    tsc = GRAFANA / "schema/node_modules/typescript/bin/tsc"
    options = {"noEmit": True, "strict": True, "skipLibCheck": True, "types": []}
    config = program.with_name("tsconfig.json")
    config.write_text(json.dumps({"compilerOptions": options, "files": [program.name]}))
    command = ["node", str(tsc), "--pretty", "false", "--project", str(config)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=50, cwd=program.parent
    )
    return done.stdout[:4000] + done.stderr[:1000]
