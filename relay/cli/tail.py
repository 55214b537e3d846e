"""`relay tail`: follow one response in the terminal."""

import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from relay.client import Client


def tail(
    response_id: str = typer.Argument(..., metavar="ID", help="the response, as POST /v1/streams named it"),
    after: str | None = typer.Option(None, metavar="POSITION", help="go on after this event id, as in 143-1"),
    url: str = typer.Option("http://127.0.0.1:8000", envvar="RELAY_URL", help="where the relay is"),
    api_key: str | None = typer.Option(
        None, envvar="RELAY_API_KEY", help="a key, where one is needed", show_default=False
    ),
) -> None:
    """Print a response as it arrives, resuming by itself.

    The text goes to stdout, notices to stderr. Exit 0 when it was completed, 1 when it was not.

    Examples:

      relay tail rs_0123

      relay tail rs_0123 --after 143-1 > rest.txt
    """
    import asyncio  # noqa: PLC0415 - imported for this command alone

    raise typer.Exit(asyncio.run(_follow(url, api_key, response_id, after)))


async def _follow(url: str, api_key: str | None, response_id: str, after: str | None) -> int:
    from relay.client import Client, Delta, Done, Failed, Notice, Reconnect, Rewind  # noqa: PLC0415

    async with Client(url, api_key) as client, client.stream(response_id, after) as events:
        await _find(client, response_id)
        async for event in events:
            match event:
                case Delta(channel="content"):
                    sys.stdout.write(event.text)
                    sys.stdout.flush()
                case Notice():
                    _aside(f"{event.kind}: {event.reason}" if event.reason else event.kind)
                case Reconnect():
                    _aside("the node goes away, reconnecting")
                case Rewind():
                    # What was printed cannot be taken back; say which part of it counts.
                    _aside(
                        f"text was lost in a failover: all after {event.position} is void, other text follows"
                    )
                case Failed():
                    _aside(f"failed: {event.code}: {event.message}")
                    return 1
                case Done():
                    _aside(_ending(event.finish_reason, event.text_bytes, event.verified))
                    return 1 if event.finish_reason == "cancelled" else 0
                case _:
                    pass
    return 0


async def _find(client: "Client", response_id: str) -> None:
    """Raises at once when nobody is there or the response is not: the stream itself tries for two minutes."""
    from relay.cli.away import must_answer  # noqa: PLC0415 - imported for this command alone
    from relay.errors import RelayError  # noqa: PLC0415

    try:
        with must_answer():
            await client.status(response_id)
    except RelayError as error:
        if not error.retryable:
            raise


def _ending(finish_reason: str, text_bytes: int, verified: bool) -> str:
    digest = "digest verified" if verified else "read from the middle, digest not compared"
    return f"done: {finish_reason}, {text_bytes} bytes, {digest}"


def _aside(line: str) -> None:
    start, end = ("\n\x1b[2m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    print(f"{start}[{line}]{end}", file=sys.stderr)
