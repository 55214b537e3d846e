"""`relay up`: everything in one command, for development."""

import os
import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from relay.cli.supervisor import Plan
    from relay.embedded import EmbeddedServer
    from relay.settings import Settings


def up(
    host: str = typer.Option("127.0.0.1", help="address to listen on; others than loopback need keys"),
    port: int = typer.Option(8000, min=0, max=65_535, help="port to listen on; 0 takes a free one"),
    workers: int = typer.Option(1, min=1, max=64, help="worker processes"),
    concurrency: int = typer.Option(64, min=1, max=100_000, help="responses at once, per worker"),
) -> None:
    """Redis, a worker and an API node in one, for development.

    Uses the server of RELAY_REDIS_URL when that is set (in the environment or .env), else an embedded
    Valkey that keeps nothing. Prints `ready http://HOST:PORT` once it serves: in a browser, the console. What
    dies is started again. Ctrl-C drains, a second one kills.

    Examples:

      relay up

      relay up --port 9000 --workers 2

      RELAY_REDIS_URL=redis://127.0.0.1:6379/0 relay up
    """
    import asyncio  # noqa: PLC0415 - imported for this command alone

    from relay import settings  # noqa: PLC0415
    from relay.cli.processes import check_port_free  # noqa: PLC0415
    from relay.embedded import EmbeddedServer, free_port  # noqa: PLC0415

    loaded = settings.load()
    loaded.check_exposed(host)
    port = port or free_port()
    check_port_free(host, port)
    plan = _plan(loaded, host, port, workers, concurrency)
    if "redis_url" in loaded.model_fields_set:
        raise typer.Exit(asyncio.run(_serve(plan, None)))
    print(
        "relay up: embedded Valkey; responses are gone when this ends (RELAY_REDIS_URL keeps them)",
        file=sys.stderr,
    )
    with EmbeddedServer() as server:
        plan.env["RELAY_REDIS_URL"] = server.url
        if "worker_drain_s" not in loaded.model_fields_set:
            # Nobody could read what a worker still finished: the server ends with us.
            plan.env["RELAY_WORKER_DRAIN_S"] = "0"
        raise typer.Exit(asyncio.run(_serve(plan, server)))


def _plan(loaded: "Settings", host: str, port: int, workers: int, concurrency: int) -> "Plan":
    from relay.cli.supervisor import Plan  # noqa: PLC0415 - imported for this command alone

    env = dict(os.environ)
    if sys.stderr.isatty() and "log_format" not in loaded.model_fields_set:
        env["RELAY_LOG_FORMAT"] = "console"
    if "drain_delay_s" not in loaded.model_fields_set:
        env["RELAY_DRAIN_DELAY_S"] = "0"  # there is no balancer that would have to see it
    return Plan(host, port, workers, concurrency, loaded.drain_s, loaded.worker_drain_s, env)


async def _serve(plan: "Plan", server: "EmbeddedServer | None") -> int:
    """Up until a signal. The first drains, the second kills; the exit code says which signal it was."""
    import asyncio  # noqa: PLC0415 - imported for this command alone
    import signal  # noqa: PLC0415

    from relay.cli.supervisor import running  # noqa: PLC0415

    stop, hurry = asyncio.Event(), asyncio.Event()
    serving = asyncio.current_task()
    is_ready, code = False, 0

    def asked(number: signal.Signals) -> None:
        nonlocal code
        if stop.is_set():
            hurry.set()
        elif not is_ready and serving is not None:
            serving.cancel()
        code = 130 if number == signal.SIGINT else 0
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked, number)
    try:
        async with running(plan, server=server, hurry=hurry):
            is_ready = True
            print(f"ready {plan.url}", flush=True)
            if sys.stderr.isatty():
                print("open that in a browser; `relay top` in another terminal; Ctrl-C ends", file=sys.stderr)
            await stop.wait()
    except asyncio.CancelledError:  # ours: a signal came before it was ready
        pass
    return code
