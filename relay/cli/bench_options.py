"""What the benchmarks' commands have in common: options of the same name, and how a result is told."""

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import orjson
import typer
from rich.console import Console

from relay.bench.load import Plan
from relay.bench.system import Shape

Key = Annotated[str | None, typer.Option(envvar="RELAY_BENCH_KEY", help="API key for --url.")]
Json = Annotated[
    Path | None, typer.Option("--json", help="Write the result here; without, to stdout when piped.")
]


@dataclass(frozen=True, slots=True)
class Options:
    """The options of every benchmark that loads a system: its shape, and what each response is."""

    tokens: Annotated[int, typer.Option(min=1, max=100_000, help="Tokens of each response.")] = 500
    rate: Annotated[float, typer.Option(min=0.1, max=10_000, help="Tokens per second of each response.")] = (
        50.0
    )
    ramp: Annotated[float, typer.Option(min=0.0, max=600, help="Seconds over which the responses start.")] = (
        1.0
    )
    seed: Annotated[int, typer.Option(min=0, help="Of the simulated text.")] = 1
    nodes: Annotated[int, typer.Option(min=1, max=64, help="API nodes to start.")] = 1
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes to start.")] = 1
    repeat: Annotated[
        int, typer.Option(min=1, max=25, help="Runs; the one with the median p99 is reported.")
    ] = 1
    url: Annotated[
        list[str] | None,
        typer.Option("--url", help="An API node that runs already, on this machine; may be repeated."),
    ] = None
    key: Key = None
    logs: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="A directory for what the processes say."),
    ] = None

    @property
    def shape(self) -> Shape:
        """The system to load."""
        urls = tuple(self.url or ())
        return Shape(nodes=self.nodes, workers=self.workers, urls=urls, key=self.key, logs=self.logs)

    def plan(self, responses: int) -> Plan:
        """The load."""
        return Plan([], responses, self.tokens, self.rate, self.seed, self.ramp)


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `options`, a dataclass, becomes one command line option for each field.

    A field is annotated and has its default as a parameter of a typer command would.
    """
    signature, hints = inspect.signature(command), get_type_hints(command, include_extras=True)
    kind = hints.pop("options")
    hints |= get_type_hints(kind, include_extras=True)
    shared = [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if each.default is MISSING else each.default,
            annotation=hints[each.name],
        )
        for each in fields(kind)
    ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(options=kind(**{each.name: given.pop(each.name) for each in shared}), **given)

    own = [each for each in signature.parameters.values() if each.name != "options"]
    parameters = [*own[:-1], *shared, *own[-1:]]  # what a command has of its own first, --json last
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: hints[each.name] for each in parameters}
    return run


def finish(console: Console, document: dict[str, Any], wrong: list[str], json: Path | None) -> None:
    """Write the result; end with status 1 when something is wrong with it.

    Where both end at one terminal the table is what is read: hundreds of lines after it would push it away.
    """
    text = orjson.dumps(document | {"wrong": wrong}, option=orjson.OPT_INDENT_2) + b"\n"
    if json is not None:
        json.write_bytes(text)
        console.print(f"result in {json}")
    elif console.is_terminal and sys.stdout.isatty():
        console.print("all figures as JSON: --json FILE, or a pipe", style="dim")
    else:
        typer.echo(text, nl=False)
    for reason in wrong:
        console.print(reason, style="red", markup=False)
    if wrong:
        raise typer.Exit(1)
