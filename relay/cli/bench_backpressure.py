"""`relay bench backpressure`: what slow readers may cost, measured and held against its bounds."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from relay.bench import machine, report, verdict
from relay.bench.backpressure import SCENARIOS, SETTINGS, Plan, Run
from relay.bench.run import Progress
from relay.cli.bench_options import Json, finish, with_options

_ALL = ", ".join(SCENARIOS)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options."""

    only: Annotated[
        list[str] | None, typer.Option(help=f"Only these of {_ALL}; with commas or repeated.")
    ] = None
    seconds: Annotated[
        float, typer.Option(min=2, max=120, help="Of each reader watched, and of each load of fast ones.")
    ] = 10.0
    capacity: Annotated[
        int | None,
        typer.Option(
            min=1, max=20_000, help="Responses of 50 tokens/s that the machine carries; else tried."
        ),
    ] = None
    slow_rate: Annotated[
        float,
        typer.Option(min=0, max=10_000, help="Tokens/s behind the slow of isolation; 0: all they are let."),
    ] = 0.0
    logs: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="A directory for what the processes say."),
    ] = None

    @property
    def plan(self) -> Plan:
        """What to measure. Raises BadParameter for a scenario that there is not."""
        return Plan(_scenarios(self.only), self.seconds, self.capacity, self.slow_rate, self.logs)


@with_options
def backpressure(*, options: Wanted, json: Json = None) -> None:
    """What slow readers cost, beside the obvious stack.

    What is in flight, how much memory they take, how soon they are noticed, and what the fast ones notice
    of them. It takes about six minutes. Each figure is held against its bound: exit 1 when one is broken.
    """
    console, here = Console(stderr=True), machine.describe()

    @contextmanager
    def show(title: str, total: float) -> Iterator[Progress]:
        if not console.is_terminal:  # a bar that nobody sees would leave empty lines
            console.print(title, style="dim", markup=False)
            yield lambda _: None
            return
        with report.progress(console, title, int(total)) as update:
            yield update

    def say(text: str) -> None:
        console.print(f"  {text}", style="dim", markup=False)

    run = Run(options.plan, show, say)
    settings = "  ".join(f"{name}={value}" for name, value in SETTINGS)
    console.print("So that flow control, and not the cap of a response, is what is measured:")
    console.print(settings, soft_wrap=True)
    run.carry_out()
    console.print(verdict.checks(run.checks))
    if "obvious" in run.plan.scenarios:
        console.print(verdict.side_by_side(run.results, options.seconds))
    finish(console, _document(here, run), run.wrong, json)


def _document(here: dict[str, Any], run: Run) -> dict[str, Any]:
    plan = asdict(run.plan) | {"logs": str(run.plan.logs) if run.plan.logs else None}
    return {
        "benchmark": "backpressure",
        "machine": here,
        "plan": plan,
        "settings": dict(SETTINGS),
        "checks": [check._asdict() | {"holds": check.holds} for check in run.checks],
        "result": run.results,
    }


def _scenarios(only: list[str] | None) -> tuple[str, ...]:
    names = {name.strip() for text in only or () for name in text.split(",") if name.strip()}
    unknown = names - set(SCENARIOS)
    if unknown:
        raise typer.BadParameter(f"no {', '.join(sorted(unknown))}; there are {_ALL}", param_hint="--only")
    return tuple(name for name in SCENARIOS if not names or name in names)
