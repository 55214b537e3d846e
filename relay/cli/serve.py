"""`relay api` and `relay worker`: one process each, for a deployment. They drain on SIGTERM."""

import typer


def api(
    host: str = typer.Option("127.0.0.1", help="address to listen on; others than loopback need keys"),
    port: int = typer.Option(8000, min=0, max=65_535, help="port to listen on; 0 takes a free one"),
) -> None:
    """One API node. Prints `ready http://HOST:PORT` once it serves; SIGTERM drains it.

    Examples:

      relay api --port 8000

      RELAY_API_KEYS=me:a-long-secret relay api --host 0.0.0.0
    """
    from relay import settings  # noqa: PLC0415 - imported for this command alone
    from relay.cli import processes  # noqa: PLC0415

    loaded = settings.load()
    loaded.check_exposed(host)
    processes.check_port_free(host, port)
    from api import main  # noqa: PLC0415

    raise typer.Exit(main.run(loaded, host=host, port=port))


def worker(
    concurrency: int = typer.Option(64, min=1, max=100_000, help="responses at once"),
    metrics_port: int = typer.Option(0, min=0, max=65_535, help="serve /metrics here; 0 takes a free one"),
) -> None:
    """One worker process. Prints `ready worker ID metrics URL` once it takes jobs; SIGTERM drains it.

    Examples:

      relay worker --concurrency 256 --metrics-port 9100
    """
    from relay import settings  # noqa: PLC0415 - imported for this command alone

    loaded = settings.load()
    from workers import main  # noqa: PLC0415

    raise typer.Exit(main.run(loaded, concurrency=concurrency, metrics_port=metrics_port))
