"""Results for people: progress while a benchmark runs, a table when it has ended. All on stderr."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from relay.bench.run import Progress as Report

ROLES = ("api", "worker", "redis", "load", "total")
_PERCENTILES = ("p50", "p90", "p99", "p999", "max")


@contextmanager
def progress(console: Console, title: str, total: int) -> Iterator[Report]:
    """A bar that is drawn only when told: one that draws itself would use the cores we measure."""
    columns = (TextColumn(title), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[state]}"))
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as bar:
        task = bar.add_task(title, total=total, state="starting")

        def update(now: dict[str, Any]) -> None:
            state = f"{now['open']} open, {now['tokens']:,} tokens" if "open" in now else ""
            bar.update(task, completed=now.get("tokens", now.get("done", 0)), state=state, refresh=True)

        bar.refresh()
        yield update


def latency(result: dict[str, Any]) -> Table:
    """The figures of one run."""
    plan, digests, cpu = result["plan"], result["digests"], result["cpu"]
    table = Table(
        title=f"{result['responses']} responses of {plan['tokens']} tokens at {plan['rate']:g}/s"
        + (f", {plan['viewers']} viewers each" if plan["viewers"] > 1 else ""),
        show_header=False,
    )
    table.add_row("delivered", f"{result['delivered']:.2%}  {result['tokens']:,} tokens")
    table.add_row("frames", f"{result['frames']:,}  {result['tokens_per_frame']:g} tokens per frame")
    table.add_row(
        "digests", f"{digests['ok']} of {result['responses'] * plan['viewers']} right, {digests['bad']} wrong"
    )
    table.add_row("latency, ms", _times(result["latency_ms"]))
    table.add_row("created in, ms", _times(result["created_ms"]))
    table.add_row("queued for, ms", _times(result["queued_ms"]))
    table.add_row("first token, ms", _times(result["first_token_ms"]))
    table.add_row("most at once", str(result["peak_streaming"]))
    table.add_row("CPU per token, us", _roles(cpu["us_per_token"]))
    table.add_row(
        "CPU, s", f"{_roles(cpu['seconds'])}  ({cpu['cores_busy']} cores; others {cpu['others_s']})"
    )
    if result["notices"]:
        table.add_row("notices", str(result["notices"]))
    if len(result.get("p99_ms_of_runs", ())) > 1:
        table.add_row("p99 of each run, ms", str(result["p99_ms_of_runs"]))
    for problem in result["problems"]:
        table.add_row("problem", problem[:200])
    return table


def capacity_table(result: dict[str, Any]) -> Table:
    """One line a step."""
    table = Table(
        title=f"{result['highest']} responses at once, p99 within {result['limit_ms']:g} ms; latency in ms",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for column in ("at once", "delivered", "p50", "p99", "max", "us/token", "tok/frame", "cores", "holds"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in result["steps"]:
        table.add_row(str(row["responses"]), *_step(row), "yes" if row["holds"] else "no")
    return table


def step_line(row: dict[str, Any]) -> str:
    """One step of a capacity run, as it ends."""
    verdict = "holds" if row["holds"] else "does not hold: " + "; ".join(row["why"])
    if "latency_ms" not in row:
        return f"{row['responses']} responses: {verdict}"
    p99, cost = row["latency_ms"]["p99"], row["cpu"]["us_per_token"]["total"]
    return f"{row['responses']} responses: p99 {p99:.1f} ms, {cost:.1f} us per token, {verdict}"


def wire(result: dict[str, Any]) -> Table:
    """Our wire beside redis-py."""
    table = Table(title=f"XREADGROUP and XACK, {result['consumers']} consumers, {result['server']}")
    for column in ("client", "median, us of CPU", "min", "max"):
        table.add_column(column, justify="left" if column == "client" else "right")
    for name, times in result["cpu_us_per_pair"].items():
        table.add_row(name, f"{times['median']:.1f}", f"{times['min']:.1f}", f"{times['max']:.1f}")
    return table


def wire_verdict(result: dict[str, Any]) -> str:
    """The ratio, and whether both targets hold."""
    target, verdict = result["target"], "holds" if result["holds"] else "missed"
    return (
        f"{result['ratio']:.1f} times cheaper than redis-py's pipeline; "
        f"target {target['us']:g} us and {target['ratio']:g} times: {verdict}"
    )


def _step(row: dict[str, Any]) -> tuple[str, ...]:
    if "latency_ms" not in row:
        return ("",) * 7
    times, cpu = row["latency_ms"], row["cpu"]
    return (
        f"{row['delivered']:.1%}",
        *(f"{times[name]:.1f}" for name in ("p50", "p99", "max")),
        f"{cpu['us_per_token']['total']:.1f}",
        f"{row['tokens_per_frame']:g}",
        f"{cpu['cores_busy']:g}",
    )


def _times(times: dict[str, float]) -> str:
    return "  ".join(f"{name.replace('p999', 'p99.9')} {times[name]:.1f}" for name in _PERCENTILES)


def _roles(values: dict[str, float]) -> str:
    return "  ".join(f"{role} {values[role]:.1f}" for role in ROLES if role in values)
