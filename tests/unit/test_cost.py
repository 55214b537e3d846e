"""The cost model: its arithmetic by hand, its limits, its constants, and the page that it prints."""

import math
from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from relay.cli.main import app
from relay.cost import (
    DAY_S,
    Constants,
    Load,
    Prices,
    Sizing,
    estimate,
    kept_of,
    machines_of,
    peak_of,
    tokens_of,
)
from relay.cost_bench import with_bench
from relay.errors import InvalidValue

PAGE = Path(__file__).parents[2] / "ops" / "cost-analysis.md"
CONSTANTS, SIZING = Constants(), Sizing()
BIG = Load(10_000_000)


def test_the_peak_is_littles_law() -> None:
    """86,400 a day is one a second: three at the peak, each for 8 s."""
    peak = peak_of(Load(DAY_S, tokens=400, tokens_per_s=50, peak=3))
    assert (peak.requests_per_s, peak.answers_at_once, peak.tokens_per_s) == (3, 24, 1200)


def test_redis_holds_what_runs_and_what_is_retained() -> None:
    """One a second for 8 s and an hour after."""
    load = Load(DAY_S, peak=1, retention_s=3600)
    assert kept_of(load, peak_of(load)) == 3608


def test_the_least_deployment_survives_the_loss_of_a_process() -> None:
    """However little is asked."""
    load = Load(1)
    machines = machines_of(load, peak_of(load), CONSTANTS, SIZING)
    assert (machines.nodes, machines.workers, machines.redis) == (2, 2, 1)


def test_no_process_is_asked_for_more_than_its_share_of_a_core_even_with_one_lost() -> None:
    """That is what the one more is for."""
    machines = machines_of(BIG, peak_of(BIG), CONSTANTS, SIZING)
    assert machines.api_cores / (machines.nodes - 1) <= SIZING.utilisation
    assert machines.worker_cores / (machines.workers - 1) <= SIZING.utilisation
    assert machines.redis_cores / machines.redis <= SIZING.utilisation
    assert peak_of(BIG).answers_at_once <= machines.workers * SIZING.slots


@pytest.mark.parametrize("factor", [2, 10])
def test_what_is_used_grows_with_the_load(factor: int) -> None:
    """Twice the requests, twice the memory, network and tokens."""
    more = replace(BIG, requests_per_day=BIG.requests_per_day * factor)
    one, many = (machines_of(load, peak_of(load), CONSTANTS, SIZING) for load in (BIG, more))
    for name in ("redis_gib", "egress_gib_month", "api_cores", "redis_mbit"):
        assert getattr(many, name) == pytest.approx(factor * getattr(one, name))
    assert tokens_of(more, CONSTANTS).saved == pytest.approx(factor * tokens_of(BIG, CONSTANTS).saved)


def test_a_delete_saves_all_that_is_left_and_absence_what_outlasts_the_notice() -> None:
    """By hand, for a thousand requests a day, a tenth of them abandoned, answers of 2,000 tokens."""
    load = Load(1000, tokens=2000, tokens_per_s=50, abandoned=0.1, stalled=0, cut=0, abandon_after_s=30)
    left = 1000 * 30 * 0.1 * 2000
    assert tokens_of(replace(load, told=1), CONSTANTS).saved == left
    by_absence = tokens_of(replace(load, told=0), CONSTANTS).saved
    assert by_absence == pytest.approx(left * math.exp(-30 * 50 / 2000))


def test_shortening_saves_what_the_window_does_not_hold() -> None:
    """Nothing of a short answer, nearly all of one that is much longer than the window."""
    base = Load(1000, abandoned=0, cut=0, stalled=0.1)
    short, long = (replace(base, tokens=tokens) for tokens in (100.0, 100_000.0))
    assert tokens_of(short, CONSTANTS).saved == pytest.approx(0, abs=1e-6)
    whole = 1000 * 30 * 0.1 * 100_000
    assert 0.9 * whole < tokens_of(long, CONSTANTS).saved < whole


def test_resuming_saves_the_second_answer_and_its_prompt() -> None:
    """A connection that is cut is neither generated nor read again."""
    tokens = tokens_of(Load(1000, abandoned=0, stalled=0, cut=0.1), CONSTANTS)
    assert tokens.saved == tokens.again_out == 1000 * 30 * 0.1 * 400
    assert tokens.again_in == 1000 * 30 * 0.1 * 1000


def test_well_behaved_readers_save_nothing() -> None:
    """Then the pattern costs what its machines cost, and the page says so by the same sum."""
    load = Load(100_000, abandoned=0, cut=0, stalled=0)
    found = estimate(load, CONSTANTS, Prices(), SIZING)
    assert found.tokens.saved == 0
    assert found.money.tokens_for_nobody == found.money.without_tokens == 0
    assert found.money.relay > 0


@pytest.mark.parametrize("benchmark", ["latency", "capacity", "backpressure"])
def test_constants_come_from_a_benchmark(benchmark: str, tmp_path: Path) -> None:
    """Of a search for the capacity, from the step at about 70 % of what held; the file is named first."""
    run = {
        "responses": 100,
        "tokens": 1000,
        "text_bytes": 5000,
        "received_bytes": 80_000,
        "tokens_per_frame": 2.0,
        "cpu": {"us_per_token": {"api": 1.0, "worker": 2.0, "redis": 3.0, "load": 9.0, "total": 15.0}},
    }
    steps = [
        run | {"holds": True, "responses": 50, "tokens_per_frame": 1.0},
        run | {"holds": True},
        run | {"holds": True, "responses": 150, "tokens_per_frame": 3.0},
        {"responses": 300, "holds": False, "why": ["died"]},
    ]
    result = {
        "latency": run,
        "capacity": {"steps": steps},
        "backpressure": {"relay": {"fast": {"capacity": {"steps": steps}}}},
    }[benchmark]
    machine = {"processor": "P", "cores": 2, "kernel": "6"}
    path = tmp_path / "mine.json"
    path.write_bytes(orjson.dumps({"benchmark": benchmark, "machine": machine, "result": result}))
    found = with_bench(CONSTANTS, path)
    assert (found.api_us, found.worker_us, found.redis_us, found.tokens_per_frame) == (1, 2, 3, 2)
    assert (found.text_bytes, found.egress_bytes) == (5, 80)
    assert found.redis_kib == CONSTANTS.redis_kib
    assert found.sources[0].endswith("on P, 2 cores, Linux 6")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"benchmark":"latency","result":{"tokens":0}}'])
def test_a_file_that_tells_nothing_is_refused(content: str, tmp_path: Path) -> None:
    """With what would be taken."""
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(InvalidValue, match="relay bench latency"):
        with_bench(CONSTANTS, path)
    with pytest.raises(InvalidValue, match="No such file"):
        with_bench(CONSTANTS, tmp_path / "missing")


def test_the_command_prints_every_constant_with_the_result() -> None:
    """And where they are from."""
    printed = CliRunner().invoke(app, ["cost", "--requests-per-day", "1000"])
    assert printed.exit_code == 0
    for name in ("redis_us=", "core_hour=", "abandoned=", "utilisation=", "measured by: on: "):
        assert name in printed.output
    assert "requests_per_day" not in printed.output


def test_the_page_is_what_the_command_prints() -> None:
    """Else: relay cost --page > ops/cost-analysis.md"""
    assert CliRunner().invoke(app, ["cost", "--page"]).output == PAGE.read_text()
