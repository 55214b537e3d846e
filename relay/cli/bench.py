"""`relay bench`: what this system costs and how late it is, measured on the machine at hand.

The scenarios start the system themselves, as separate processes, and stop it. The table goes to stderr,
the JSON result to a file, or to stdout when that is no terminal. The exit status is 1 when a result is not
to be relied on: text that was wrong or did not come, or a target that was missed.
"""

import asyncio
import signal
from dataclasses import replace
from types import FrameType
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console

from relay.bench import machine, report, run
from relay.bench.load import Plan
from relay.bench.system import Shape
from relay.bench.wire import compare
from relay.cli.bench_backpressure import backpressure
from relay.cli.bench_openai import openai
from relay.cli.bench_options import Json, Options, finish, with_options
from relay.cli.bench_readers import readers
from relay.cli.bench_tune import tune
from relay.embedded import EmbeddedServer
from relay.journal import MAX_GROUPS

app = typer.Typer(
    help="Measure this system on this machine.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_STEPS = "100,200,300,500,700,1000,1500,2000,3000,5000"
_RESPONSES_MAX = 20_000  # two sockets each on one machine: ephemeral ports end at about 28,000


@app.callback()
def _prepare() -> None:
    """Measure this system on this machine."""
    signal.signal(signal.SIGTERM, _leave)


def _leave(_number: int, _frame: FrameType | None) -> None:
    # As Ctrl-C: through the blocks that stop what was started.
    raise KeyboardInterrupt


@app.command()
@with_options
def latency(
    *,
    responses: Annotated[int, typer.Option("-n", "--responses", min=1, max=_RESPONSES_MAX)] = 100,
    viewers: Annotated[
        int, typer.Option(min=1, max=MAX_GROUPS, help="Readers of each response; a token counts for each.")
    ] = 1,
    options: Options,
    json: Json = None,
) -> None:
    """Latency from source to client, and CPU per token."""
    console, here = Console(stderr=True), machine.describe()

    def once() -> dict[str, Any]:
        return _measure(console, options.shape, replace(options.plan(responses), viewers=viewers))

    result = run.repeat(options.repeat, once)
    console.print(report.latency(result))
    finish(console, {"benchmark": "latency", "machine": here, "result": result}, run.faults(result), json)


@app.command()
@with_options
def capacity(
    *,
    steps: Annotated[str, typer.Option(help="Numbers of responses to try, in rising order.")] = _STEPS,
    limit_ms: Annotated[float, typer.Option(min=1, help="The p99 latency that may not be passed.")] = 200.0,
    options: Options,
    json: Json = None,
) -> None:
    """How many responses at once this machine carries.

    The most before p99 passes --limit-ms or less than 98 % is delivered.
    """
    console, here = Console(stderr=True), machine.describe()

    def step(responses: int) -> dict[str, Any]:
        plan = options.plan(responses)
        return run.repeat(options.repeat, lambda: _measure(console, options.shape, plan))

    found = run.capacity(_steps(steps), limit_ms, step, lambda row: console.print(report.step_line(row)))
    console.print(report.capacity_table(found))
    wrong = [] if found["highest"] else ["not even the first step held"]
    finish(console, {"benchmark": "capacity", "machine": here, "result": found}, wrong, json)


app.command()(readers)
app.command()(backpressure)
app.command()(tune)
app.command()(openai)


@app.command()
def wire(
    *,
    consumers: Annotated[int, typer.Option(min=1, max=10_000, help="Streams, each with one group.")] = 1000,
    rounds: Annotated[int, typer.Option(min=1, max=1000, help="Rounds of each client.")] = 40,
    json: Json = None,
) -> None:
    """CPU of one read from Redis, beside redis-py's.

    XREADGROUP and XACK, our connection and redis-py's pipeline in turn.
    """
    console, here = Console(stderr=True), machine.describe()
    with EmbeddedServer() as server, report.progress(console, "rounds", rounds) as update:
        comparison = compare(server.url, consumers=consumers, rounds=rounds, progress=update)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(comparison)
    console.print(report.wire(result))
    console.print(report.wire_verdict(result))
    finish(
        console,
        {"benchmark": "wire", "machine": here, "result": result},
        [] if result["holds"] else ["the target was missed"],
        json,
    )


def _measure(console: Console, shape: Shape, plan: Plan) -> dict[str, Any]:
    total = plan.responses * plan.viewers * plan.tokens
    with report.progress(console, f"{plan.responses} responses", total) as update:
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
