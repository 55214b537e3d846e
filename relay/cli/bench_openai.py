"""`relay bench openai`: chat completions through relay beside the same directly from their upstream."""

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from relay.bench import machine, report
from relay.bench.stand_in import standing_in
from relay.bench.system import Shape, running
from relay.bench.through import WAYS, Load, compare
from relay.cli.bench_options import Json, finish, with_options

_TIMES = {
    "first_token_ms": "first token, ms",
    "token_late_ms": "token late by, ms",
    "whole_ms": "whole, ms",
}


@dataclass(frozen=True, slots=True)
class Through:
    """The options."""

    responses: Annotated[int, typer.Option("-n", "--responses", min=1, max=2000, help="At once.")] = 50
    tokens: Annotated[int, typer.Option(min=1, max=100_000, help="Of each.")] = 200
    rate: Annotated[float, typer.Option(min=0.1, max=10_000, help="Tokens per second of the stand-in.")] = (
        50.0
    )
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Of each way, in turn.")] = 3
    upstream: Annotated[
        str | None, typer.Option(help="A real upstream, up to its /v1, instead of the stand-in.")
    ] = None
    model: Annotated[str, typer.Option(help="The name to ask for.")] = "stand-in"
    upstream_key: Annotated[str | None, typer.Option(envvar="RELAY_BENCH_UPSTREAM_KEY", help="Its key.")] = (
        None
    )
    logs: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="A directory for what the processes say."),
    ] = None

    @property
    def load(self) -> Load:
        """What is asked."""
        return Load(self.responses, self.tokens, self.model, self.upstream_key, stamped=self.upstream is None)


@with_options
def openai(*, options: Through, json: Json = None) -> None:
    """Chat completions through relay, beside going direct.

    Time to first token, lateness and CPU per token.
    """
    console, here = Console(stderr=True), machine.describe()
    with ExitStack() as stack:
        url = options.upstream or stack.enter_context(standing_in(options.rate))
        settings = [("RELAY_UPSTREAM_BASE_URL", url)]
        if options.upstream_key:
            settings.append(("RELAY_UPSTREAM_API_KEY", options.upstream_key))
        shape = Shape(logs=options.logs, settings=tuple(settings))
        system = stack.enter_context(running(shape, responses=options.responses))
        update = stack.enter_context(report.progress(console, "rounds", 2 * options.rounds))
        comparison = compare(system, url, options.load, options.rounds, lambda done: update({"done": done}))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(comparison)
    console.print(table(result))
    document = {"benchmark": "openai", "machine": here, "result": result}
    finish(console, document, result["problems"], json)


def table(result: dict[str, Any]) -> Table:
    """A column for each way."""
    load = result["load"]
    made = Table(title=f"{load['responses']} completions of {load['tokens']} tokens, {load['rounds']} times")
    for heading in ("", *WAYS):
        made.add_column(heading)
    for name in ("completions", "tokens", "chunks"):
        made.add_row(name, *(f"{result[way][name]:,}" for way in WAYS))
    for name, title in _TIMES.items():
        if name in result["relay"]:
            made.add_row(title, *(_figures(result[way][name]) for way in WAYS))
    spent = result["relay"]["cpu_us_per_token"]
    made.add_row("relay's CPU per token, us", "", f"{_figures(spent)}  total {sum(spent.values()):.1f}")
    return made


def _figures(values: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())
