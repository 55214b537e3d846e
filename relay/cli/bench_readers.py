"""`relay bench readers`: readers of every kind against any SSE server."""

import asyncio
import resource
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
import typer
import uvloop
from rich.console import Console

from relay.bench import report
from relay.bench.muster import COUNT_MAX, MakeTarget, Muster, faults
from relay.bench.readers import Habits, Kind, Target
from relay.bench.readers_report import readers_table
from relay.bench.relay_targets import is_relay, relay_targets
from relay.cli.bench_options import Json, Key, finish, with_options
from relay.errors import Malformed

_SECONDS_MAX = 3600.0
_ALL = ",".join(Kind)


@dataclass(frozen=True, slots=True)
class ReadersOptions:
    """What they read, and what they are like."""

    url: Annotated[str, typer.Option(help="A relay (http://HOST:PORT), or one event stream of any server.")]
    kind: Annotated[
        list[str] | None, typer.Option(help=f"{_ALL}: separated by commas, may be repeated; all by default.")
    ] = None
    count: Annotated[
        int, typer.Option("-n", "--count", min=1, max=COUNT_MAX, help="Readers of each kind.")
    ] = 1
    seconds: Annotated[
        float, typer.Option(min=0.1, max=_SECONDS_MAX, help="How long they read, at most.")
    ] = 10.0
    method: Annotated[str, typer.Option(help="Of the request, where --url is an event stream.")] = "GET"
    header: Annotated[
        list[str] | None, typer.Option("-H", "--header", help="'Name: value'; may be repeated.")
    ] = None
    body: Annotated[
        str | None, typer.Option(help="JSON: of the request; for a relay, more of POST /v1/streams.")
    ] = None
    tokens: Annotated[int, typer.Option(min=1, max=1_000_000, help="Of a simulated response.")] = 2000
    rate: Annotated[float, typer.Option(min=0, max=10_000, help="Tokens per second; 0: no limit.")] = 50.0
    seed: Annotated[int, typer.Option(min=0, help="Of the simulated text.")] = 1
    shared: Annotated[bool, typer.Option("--shared", help="All read one response of the relay.")] = False
    window: Annotated[int, typer.Option(min=256, max=1_048_576, help="Of a slow processor, in bytes.")] = 2048
    absent: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds until stalled, vanished, rst return; never by default."),
    ] = None
    drip: Annotated[float, typer.Option(min=1, help="Bytes per second of a dripping reader.")] = 1024.0
    process: Annotated[float, typer.Option(min=1, help="Bytes per second of a slow processor.")] = 100.0
    receive_buffer: Annotated[
        int, typer.Option(min=1024, max=16_777_216, help="SO_RCVBUF of all but the fast.")
    ] = 4096
    key: Key = None

    @property
    def habits(self) -> Habits:
        """What they are like."""
        return Habits(
            receive_buffer=self.receive_buffer,
            absent_s=self.absent,
            drip_bytes_per_s=self.drip,
            process_bytes_per_s=self.process,
            window=self.window,
        )

    @asynccontextmanager
    async def targets(self) -> AsyncIterator[MakeTarget]:
        """What they read."""
        if is_relay(self.url):
            simulation = {"tokens": self.tokens, "tokens_per_second": self.rate, "seed": self.seed}
            body = {"model": "simulated", "prompt": "Say it."} | _object(self.body)
            if body["model"] == "simulated":
                body.setdefault("simulation", simulation)
            async with relay_targets(
                self.url, body, key=self.key, window=self.window, shared=self.shared
            ) as make:
                yield make
            return
        target = Target.of(
            self.url, method=self.method, headers=_headers(self.header), body=(self.body or "").encode()
        )

        async def always(_: Kind) -> Target:
            return target

        yield always


@with_options
def readers(*, options: ReadersOptions, json: Json = None) -> None:
    """Slow and broken readers, for any SSE server.

    On raw sockets, each kind told apart. Against a relay (a URL without a path) it creates the responses
    itself.

    Examples:

      relay bench readers --url http://127.0.0.1:8000 --count 5 --seconds 20

      relay bench readers --url http://127.0.0.1:8000 --kind fast,stalled --shared --absent 5

      relay bench readers --url http://127.0.0.1:9000/v1/chat/completions --method POST
      -H 'Authorization: Bearer k' --body '{"model":"m","stream":true,"messages":[...]}'
    """
    muster = Muster(
        _kinds(options.kind or [_ALL]), count=options.count, seconds=options.seconds, habits=options.habits
    )
    console = Console(stderr=True)

    async def run() -> None:
        title = f"{options.count} of {len(muster.groups)} kinds"
        with report.progress(console, title, int(options.seconds)) as update:
            async with options.targets() as make:
                await muster.run(make, update)

    _allow_open_files()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
    except KeyboardInterrupt:
        console.print(readers_table(muster.result()))  # what came until then
        raise
    result = muster.result()
    console.print(readers_table(result))
    finish(console, {"benchmark": "readers", "url": options.url, "result": result}, faults(result), json)


def _kinds(given: list[str]) -> tuple[Kind, ...]:
    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    try:
        return tuple(Kind(name) for name in names)
    except ValueError as error:
        raise typer.BadParameter(f"{error}; there are {_ALL}", param_hint="--kind") from error


def _headers(given: list[str] | None) -> dict[str, str]:
    headers = {}
    for line in given or ():
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise typer.BadParameter(f"{line!r} is not 'Name: value'", param_hint="--header")
        headers[name.strip()] = value.strip()
    return headers


def _object(body: str | None) -> dict[str, Any]:
    """A body as an object. Raises Malformed when it is not JSON, or something else."""
    if body is None:
        return {}
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"--body is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise Malformed("--body must be a JSON object")
    return found


def _allow_open_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
