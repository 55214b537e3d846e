"""What is concluded from measured runs, and where the figures come from. The runs themselves are made up."""

import os
import time
from typing import Any

import pytest

from relay.bench import machine, report, run, wire
from relay.errors import ServerUnfit


def result(p99: float = 50.0, **changes: Any) -> dict[str, Any]:
    """A run as the load client and the CPU samples tell it, faultless unless changed."""
    times = {"p50": 1.0, "p90": 5.0, "p99": p99, "p999": p99 + 5, "min": 0.1, "max": p99 + 9}
    return {
        "responses": 10,
        "plan": {"viewers": 1, "tokens": 50, "rate": 50.0},
        "outcomes": {"stop": 10},
        "tokens": 500,
        "delivered": 1.0,
        "frames": 400,
        "tokens_per_frame": 1.25,
        "latency_ms": times,
        "created_ms": times,
        "queued_ms": times,
        "first_token_ms": times,
        "peak_streaming": 10,
        "digests": {"checked": 10, "ok": 10, "bad": 0},
        "notices": {},
        "problems": [],
        "wall_s": 10.0,
        "cpu": {
            "us_per_token": {"api": 20.0, "load": 9.0, "total": 29.0},
            "seconds": {"api": 1.0, "load": 0.5},
            "cores_busy": 0.6,
            "others_s": 0.1,
        },
    } | changes


def test_a_faultless_run_has_no_faults():
    """A response that was shortened at a limit has still been delivered."""
    assert run.faults(result()) == []
    assert run.faults(result(outcomes={"stop": 9, "length": 1})) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"digests": {"checked": 10, "ok": 9, "bad": 1}}, "1 wrong digests"),
        ({"outcomes": {"stop": 8, "cut": 2}}, "2 responses ended with cut"),
        ({"delivered": 0.97}, "only 97.0% of the tokens were delivered"),
    ],
)
def test_wrong_or_missing_text_is_a_fault(changes: dict[str, Any], said: str):
    """However quick it was."""
    assert run.faults(result(**changes)) == [said]


def test_a_busy_machine_is_told():
    """Figures from a machine that did something else meanwhile are not thrown away, but not sold either."""
    assert run.disturbance(result()) is None
    busy = result(wall_s=1.0)
    busy["cpu"]["others_s"] = 0.9
    assert "0.9 cores" in str(run.disturbance(busy))


def test_capacity_is_the_highest_step_before_the_first_that_fails():
    """Steps after a failed one are not tried, and the failed one says why."""
    shown: list[int] = []
    p99 = {100: 20.0, 200: 40.0, 500: 300.0, 1000: 10.0}
    found = run.capacity(
        p99,
        200.0,
        lambda n: result(p99[n], responses=n, peak_streaming=n),
        lambda row: shown.append(row["responses"]),
    )
    assert found["highest"] == 200
    assert shown == [100, 200, 500]
    assert found["steps"][-1]["why"] == ["p99 300 ms is over 200 ms"]


def test_a_system_that_dies_has_not_held_the_step():
    """The steps before still count."""

    def step(responses: int) -> dict[str, Any]:
        if responses > 100:
            raise ServerUnfit("process 7 ended while it was measured")
        return result(peak_streaming=responses)

    found = run.capacity([100, 200, 300], 200.0, step, lambda _: None)
    assert found["highest"] == 100
    assert found["steps"][-1]["why"] == ["process 7 ended while it was measured"]


def test_responses_that_never_ran_at_once_are_not_capacity():
    """A system that starts a thousand responses one after the other carries a few at a time."""
    found = run.capacity([1000], 200.0, lambda _: result(peak_streaming=400), lambda _: None)
    assert found["highest"] == 0
    assert found["steps"][0]["why"] == ["only 400 ran at once"]


def test_nothing_holds():
    """Then the highest is zero."""
    assert run.capacity([100], 1.0, lambda _: result(), lambda _: None)["highest"] == 0


@pytest.mark.parametrize(("p99s", "median"), [([7.0], 7.0), ([9.0, 1.0, 5.0], 5.0), ([4.0, 8.0], 8.0)])
def test_of_several_runs_the_median_is_reported(p99s: list[float], median: float):
    """By p99; of two middle ones the worse. The p99 of every run is kept, in the order of the runs."""
    runs = iter(p99s)
    found = run.repeat(len(p99s), lambda: result(next(runs)))
    assert found["latency_ms"]["p99"] == median
    assert found["p99_ms_of_runs"] == p99s


def test_the_wire_is_judged_by_cost_and_by_ratio():
    """The ratio is the median over rounds, so that one slow second does not decide."""
    times = {"wire": [5.0, 6.0, 30.0], "redis_py_pipeline": [35.0, 36.0, 180.0]}
    found = wire.summary(times, 1000)
    assert found["cpu_us_per_pair"]["wire"] == {"median": 6.0, "min": 5.0, "max": 30.0}
    assert found["ratio"] == 6.0
    assert found["holds"]
    assert not wire.summary(times | {"wire": [16.0, 16.0, 16.0]}, 1000)["holds"]
    assert not wire.summary(times | {"redis_py_pipeline": [20.0, 20.0, 20.0]}, 1000)["holds"]


def test_cpu_time_of_a_process_is_read_from_proc():
    """Our own, against what the interpreter says; a tick of the kernel's clock is 10 ms."""
    spin_until = time.process_time() + 0.05
    while time.process_time() < spin_until:
        pass
    usage = machine.usage(os.getpid())
    assert usage.cpu_s == pytest.approx(sum(os.times()[:2]), abs=0.05)
    assert usage.rss_mib > 5


def test_a_process_that_is_gone_is_an_error():
    """A benchmark must not go on without one of its processes."""
    with pytest.raises(ServerUnfit, match="ended"):
        machine.usage(2**22 + 1)


def test_every_table_can_be_drawn():
    """Complete runs, and a step that has no figures."""
    failed = {"responses": 20, "holds": False, "why": ["died"]}
    steps = [result() | {"holds": True, "why": []}, failed]
    assert (
        report.latency(result(notices={"pacing": 3}, problems=["x"], p99_ms_of_runs=[1, 2])).row_count == 13
    )
    assert report.capacity_table({"limit_ms": 200.0, "highest": 10, "steps": steps}).row_count == 2
    assert report.step_line(failed) == "20 responses: does not hold: died"
    assert report.step_line(steps[0]) == "10 responses: p99 50.0 ms, 29.0 us per token, holds"
