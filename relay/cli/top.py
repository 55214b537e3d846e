"""`relay top`: a live table of the caller's responses and who reads them."""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from relay.cli.top_view import HEADING, SORTS, History, Row, Screen, ordered, rows

if TYPE_CHECKING:
    from relay.client import Client

_REFRESH_S = 1.0
_KEYS = {"n": "newest", "l": "lag", "v": "level", "p": "position", "s": "state"}


def top(
    url: str = typer.Option("http://127.0.0.1:8000", envvar="RELAY_URL", help="where the relay is"),
    api_key: str | None = typer.Option(
        None, envvar="RELAY_API_KEY", help="a key, where one is needed", show_default=False
    ),
    sort: str = typer.Option("newest", help=f"what is first: {', '.join(SORTS)}"),
    reverse: bool = typer.Option(default=False, help="the other way round"),
) -> None:
    """A live table of responses, their readers, lag and level.

    The bars show the last minute of each reader's lag, of the workers and of the queue. A key sorts: n, l,
    v, p or s; r reverses, q ends. When piped, prints one table with tabs and ends.

    Examples:

      relay top --sort lag

      relay top --url http://relay.internal:8000 | cut -f 1,8
    """
    if sort not in SORTS:
        raise typer.BadParameter(f"{sort!r}; one of {', '.join(SORTS)}", param_hint="--sort")
    raise typer.Exit(asyncio.run(_watch(url, api_key, sort, reverse=reverse)))


def lines(found: list[Row]) -> list[str]:
    """The table as tab-separated lines, one for each consumer, or for a response without any."""
    return ["\t".join(HEADING), *("\t".join(row.cells) for row in found)]


async def _watch(url: str, api_key: str | None, sort: str, *, reverse: bool) -> int:
    from relay.cli.away import must_answer  # noqa: PLC0415 - imported for this command alone
    from relay.client import Client  # noqa: PLC0415

    async with Client(url, api_key) as client:
        with must_answer():
            found, pressure = await _look(client)
        if not sys.stdout.isatty():
            for line in lines(ordered(found, sort, reverse=reverse)):
                print(line)
            return 0
        await _show(client, Screen(url, found, pressure, History(), sort, reverse, _clock()))
    return 0


async def _look(client: "Client") -> tuple[list[Row], dict[str, Any]]:
    recent, pressure = await asyncio.gather(client.recent(), client.pressure())
    return rows(recent), pressure


async def _show(client: "Client", screen: Screen) -> None:
    """Until q or Ctrl-C. A relay that is away for a while is waited for, and said to be."""
    from rich.live import Live  # noqa: PLC0415 - imported for this command alone

    from relay.errors import RelayError  # noqa: PLC0415

    screen.history.take(screen.found, screen.pressure)
    with _keys() as keys, Live(_picture(screen), screen=True, auto_refresh=False) as live:
        pressed = asyncio.ensure_future(keys.get())
        due = time.monotonic() + _REFRESH_S
        while True:
            # No timeout around the key: one that is over at once can take a Ctrl-C for its own end.
            await asyncio.wait({pressed}, timeout=max(0.0, due - time.monotonic()))
            if pressed.done():
                key, pressed = pressed.result(), asyncio.ensure_future(keys.get())
                if key == "q":
                    return
                if key == "r":
                    screen = screen._replace(reverse=not screen.reverse)
                screen = screen._replace(sort=_KEYS.get(key, screen.sort))
            else:
                due = time.monotonic() + _REFRESH_S
                try:
                    found, pressure = await _look(client)
                    screen = screen._replace(found=found, pressure=pressure, clock=_clock(), trouble="")
                    screen.history.take(found, pressure)
                except RelayError as error:
                    screen = screen._replace(trouble=f"{error.message}; this is how it was")
            live.update(_picture(screen), refresh=True)


def _picture(screen: Screen) -> Any:
    size = shutil.get_terminal_size()
    return screen.render(size.columns, size.lines)


def _clock() -> str:
    return time.strftime("%H:%M:%S")


@contextmanager
def _keys() -> Iterator[asyncio.Queue[str]]:
    """Keys as they are pressed, without Enter; none where there is no keyboard. The terminal is put back."""
    keys: asyncio.Queue[str] = asyncio.Queue(maxsize=16)  # what is pressed faster than that is dropped
    if not sys.stdin.isatty():
        yield keys
        return
    import termios  # noqa: PLC0415 - there is none on Windows
    import tty  # noqa: PLC0415

    fd, loop = sys.stdin.fileno(), asyncio.get_running_loop()
    before = termios.tcgetattr(fd)

    def pressed() -> None:
        data = os.read(fd, 64)
        if not data:  # the terminal is gone
            loop.remove_reader(fd)
            data = b"q"
        for key in data.decode(errors="ignore"):
            if not keys.full():
                keys.put_nowait(key)

    tty.setcbreak(fd)
    loop.add_reader(fd, pressed)
    try:
        yield keys
    finally:
        loop.remove_reader(fd)
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
