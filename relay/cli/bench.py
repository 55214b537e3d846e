"""`relay bench`: what this system costs and how late it is, measured on the machine at hand.

The scenarios start the system themselves, as separate processes, and stop it. The table goes to stderr,
the JSON result to stdout or to a file. The exit status is 1 when a result is not to be relied on: text
that was wrong or did not come, or a target that was missed.
"""

import asyncio
import signal
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import orjson
import typer
import uvloop
from rich.console import Console

from relay.bench import machine, report, run
from relay.bench.load import Plan
from relay.bench.system import Shape
from relay.bench.wire import compare
from relay.embedded import EmbeddedServer

app = typer.Typer(
    help="Measure this system on this machine.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_STEPS = "100,200,300,500,700,1000,1500,2000,3000,5000"
_RESPONSES_MAX = 20_000  # two sockets each on one machine: ephemeral ports end at about 28,000

Tokens = Annotated[int, typer.Option(min=1, max=100_000, help="Tokens of each response.")]
Rate = Annotated[float, typer.Option(min=0.1, max=10_000, help="Tokens per second of each response.")]
Ramp = Annotated[float, typer.Option(min=0.0, max=600, help="Seconds over which the responses start.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the simulated text.")]
Nodes = Annotated[int, typer.Option(min=1, max=64, help="API nodes to start.")]
Workers = Annotated[int, typer.Option(min=1, max=64, help="Worker processes to start.")]
Repeat = Annotated[int, typer.Option(min=1, max=25, help="Runs; the one with the median p99 is reported.")]
Urls = Annotated[
    list[str] | None,
    typer.Option("--url", help="An API node that runs already, on this machine; may be repeated."),
]
Key = Annotated[str | None, typer.Option(envvar="RELAY_BENCH_KEY", help="API key for --url.")]
Logs = Annotated[
    Path | None,
    typer.Option(exists=True, file_okay=False, help="A directory for what the processes say."),
]
Json = Annotated[Path | None, typer.Option("--json", help="Write the result here instead of to stdout.")]


@app.callback()
def _prepare() -> None:
    """Measure this system on this machine."""
    signal.signal(signal.SIGTERM, _leave)


def _leave(_number: int, _frame: FrameType | None) -> None:
    # As Ctrl-C: through the blocks that stop what was started.
    raise KeyboardInterrupt


@app.command()
def latency(
    *,
    responses: Annotated[int, typer.Option("-n", "--responses", min=1, max=_RESPONSES_MAX)] = 100,
    tokens: Tokens = 500,
    rate: Rate = 50.0,
    ramp: Ramp = 1.0,
    seed: Seed = 1,
    nodes: Nodes = 1,
    workers: Workers = 1,
    repeat: Repeat = 1,
    url: Urls = None,
    key: Key = None,
    logs: Logs = None,
    json: Json = None,
) -> None:
    """From the source's clock to the client's read: latency, and the CPU that each token costs."""
    shape = Shape(nodes=nodes, workers=workers, urls=tuple(url or ()), key=key, logs=logs)
    plan = Plan([], responses, tokens, rate, seed, ramp)
    console, here = Console(stderr=True), machine.describe()

    def once() -> dict[str, Any]:
        return _measure(console, shape, plan)

    result = run.repeat(repeat, once)
    console.print(report.latency(result))
    _finish(console, {"benchmark": "latency", "machine": here, "result": result}, run.faults(result), json)


@app.command()
def capacity(
    *,
    steps: Annotated[str, typer.Option(help="Numbers of responses to try, in rising order.")] = _STEPS,
    limit_ms: Annotated[float, typer.Option(min=1, help="The p99 latency that may not be passed.")] = 200.0,
    tokens: Tokens = 500,
    rate: Rate = 50.0,
    ramp: Ramp = 1.0,
    seed: Seed = 1,
    nodes: Nodes = 1,
    workers: Workers = 1,
    repeat: Repeat = 1,
    url: Urls = None,
    key: Key = None,
    logs: Logs = None,
    json: Json = None,
) -> None:
    """How many responses at once, before p99 passes --limit-ms or less than 98 % is delivered."""
    shape = Shape(nodes=nodes, workers=workers, urls=tuple(url or ()), key=key, logs=logs)
    plan = Plan([], 1, tokens, rate, seed, ramp)
    console, here = Console(stderr=True), machine.describe()

    def step(responses: int) -> dict[str, Any]:
        sized = replace(plan, responses=responses)
        return run.repeat(repeat, lambda: _measure(console, shape, sized))

    found = run.capacity(_steps(steps), limit_ms, step, lambda row: console.print(report.step_line(row)))
    console.print(report.capacity_table(found))
    wrong = [] if found["highest"] else ["not even the first step held"]
    _finish(console, {"benchmark": "capacity", "machine": here, "result": found}, wrong, json)


@app.command()
def wire(
    *,
    consumers: Annotated[int, typer.Option(min=1, max=10_000, help="Streams, each with one group.")] = 1000,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Rounds of each client.")] = 40,
    json: Json = None,
) -> None:
    """CPU of one XREADGROUP and XACK: our connection beside redis-py's pipeline, in turn."""
    console, here = Console(stderr=True), machine.describe()
    with EmbeddedServer() as server, report.progress(console, "rounds", rounds) as update:
        comparison = compare(server.url, consumers=consumers, rounds=rounds, progress=update)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(comparison)
    console.print(report.wire(result))
    console.print(report.wire_verdict(result))
    _finish(
        console,
        {"benchmark": "wire", "machine": here, "result": result},
        [] if result["holds"] else ["the target was missed"],
        json,
    )


def _measure(console: Console, shape: Shape, plan: Plan) -> dict[str, Any]:
    with report.progress(console, f"{plan.responses} responses", plan.responses * plan.tokens) as update:
        result = run.measure(shape, plan, update)
    warning = run.disturbance(result)
    if warning is not None:
        console.print(warning, style="yellow", markup=False)
    return result | {"warning": warning}


def _steps(text: str) -> list[int]:
    try:
        steps = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter("numbers, separated by commas", param_hint="--steps") from error
    if steps != sorted(set(steps)) or not 1 <= steps[0] <= steps[-1] <= _RESPONSES_MAX:
        raise typer.BadParameter(f"rising numbers from 1 to {_RESPONSES_MAX}", param_hint="--steps")
    return steps


def _finish(console: Console, document: dict[str, Any], wrong: list[str], json: Path | None) -> None:
    """Write the result; end with status 1 when something is wrong with it."""
    text = orjson.dumps(document | {"wrong": wrong}, option=orjson.OPT_INDENT_2) + b"\n"
    if json is None:
        typer.echo(text, nl=False)
    else:
        json.write_bytes(text)
        console.print(f"result in {json}")
    for reason in wrong:
        console.print(reason, style="red", markup=False)
    if wrong:
        raise typer.Exit(1)
