"""`relay top`: a live table of the caller's responses and who reads them."""

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from relay.client import Client

_REFRESH_S = 1.0
_SHOWN_MAX = 20  # of the newest responses: each costs a request a second
_AT_ONCE = 8


def top(
    url: str = typer.Option("http://127.0.0.1:8000", envvar="RELAY_URL", help="where the relay is"),
    api_key: str | None = typer.Option(
        None, envvar="RELAY_API_KEY", help="a key, where one is needed", show_default=False
    ),
) -> None:
    """The newest responses with their consumers, lag and level, refreshed every second.

    When piped, prints one table and ends.

    Examples:

      relay top

      relay top --url http://relay.internal:8000 | head -20
    """
    raise typer.Exit(asyncio.run(_watch(url, api_key)))


async def _watch(url: str, api_key: str | None) -> int:
    from rich.console import Console  # noqa: PLC0415 - imported for this command alone
    from rich.live import Live  # noqa: PLC0415

    from relay.client import Client  # noqa: PLC0415

    async with Client(url, api_key) as client:
        responses = await fetch(client)
        if not sys.stdout.isatty():
            for line in lines(responses):
                print(line)
            return 0
        console = Console()
        with Live(_table(responses, url), console=console, screen=True, auto_refresh=False) as live:
            while True:
                await asyncio.sleep(_REFRESH_S)
                live.update(_table(await fetch(client), url), refresh=True)


async def fetch(client: "Client") -> list[dict[str, Any]]:
    """The newest responses, each with its consumers; one that has expired meanwhile is left out."""
    from relay.errors import Expired, NotFound  # noqa: PLC0415 - imported for this command alone

    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(response_id: str) -> dict[str, Any] | None:
        async with gate:
            try:
                return await client.status(response_id)
            except (NotFound, Expired):
                return None

    newest = (await client.recent())[:_SHOWN_MAX]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(str(response["id"]))) for response in newest]
    return [found for task in tasks if (found := task.result()) is not None]


def lines(responses: list[dict[str, Any]]) -> list[str]:
    """The table as tab-separated lines, one for each consumer, or for a response without any."""
    heading = "id\tmodel\tstatus\tlevel\tposition\tconsumer\tstate\tlag_bytes\tlag_entries"
    return [heading, *("\t".join(str(cell) for cell in row) for row in _rows(responses))]


def _rows(responses: list[dict[str, Any]]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for one in responses:
        head = [one.get(name, "-") for name in ("id", "model", "status", "level", "position")]
        rows.extend(
            [*head, *(consumer.get(name, "-") for name in ("id", "state", "lag_bytes", "lag_entries"))]
            for consumer in one.get("consumers") or [{}]
        )
    return rows


def _table(responses: list[dict[str, Any]], url: str) -> "Table":
    from rich.table import Table  # noqa: PLC0415 - imported for this command alone

    running = sum(one.get("status") in {"queued", "running", "paused"} for one in responses)
    title = (
        f"{url}   {running} active of the {len(responses)} newest   {time.strftime('%H:%M:%S')}   Ctrl-C ends"
    )
    table = Table(
        title=title, title_justify="left", title_style="dim", box=None, expand=True, header_style="bold"
    )
    for heading in lines([])[0].split("\t"):
        table.add_column(heading.replace("_", " "), no_wrap=True, overflow="ellipsis")
    colours = {"live": "green", "slow": "yellow", "stalled": "red", "detached": "dim"}
    for row in _rows(responses):
        style = colours.get(str(row[6]), "dim")
        table.add_row(*(str(cell) for cell in row), style=style)
    return table
