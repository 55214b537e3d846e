"""`relay bench tune`: the measured curves of the levers that `ops/tuning.md` speaks of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from relay.bench import machine
from relay.bench.tune import LEVERS, curve
from relay.cli.bench_options import Json, finish, with_options

_ALL = ", ".join(LEVERS)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The options."""

    lever: Annotated[list[str] | None, typer.Option(help=f"Only these of {_ALL}; may be repeated.")] = None
    seconds: Annotated[float, typer.Option(min=1, max=60, help="Of each reader watched.")] = 4.0
    logs: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="A directory for what the processes say."),
    ] = None


@with_options
def tune(*, options: Wanted, json: Json = None) -> None:
    """Window, credit, flush interval and cap, each alone.

    One setting moved at a time, about a minute each.
    """
    unknown = set(options.lever or ()) - set(LEVERS)
    if unknown:
        names = ", ".join(sorted(unknown))
        raise typer.BadParameter(f"no {names}; there are {_ALL}", param_hint="--lever")
    console, here = Console(stderr=True), machine.describe()
    curves: dict[str, Any] = {}
    for name, lever in LEVERS.items():
        if options.lever and name not in options.lever:
            continue
        curves[name] = curve(
            name,
            options.seconds,
            options.logs,
            lambda value, lever=lever: console.print(f"{lever.setting}={value:g}", style="dim"),  # type: ignore[misc]
        )
        console.print(table(curves[name]))
    finish(console, {"benchmark": "tune", "machine": here, "result": curves}, [], json)


def table(rows: list[dict[str, float]]) -> Table:
    """One line a point."""
    made = Table()
    for column in rows[0]:
        made.add_column(column, justify="right")
    for row in rows:
        made.add_row(*(f"{value:,g}" for value in row.values()))
    return made
