"""The tables of `relay bench backpressure`: figures beside bounds, and ours beside the obvious stack's."""

from collections.abc import Callable
from typing import Any

from rich.table import Table

from relay.bench.backpressure import OBVIOUS, RELAY, Check
from relay.settings import KIB

_ROWS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("memory growth", lambda watched: _kib(sum(watched["grown_kib"].values()))),
    ("text read ahead of the reader, most", lambda watched: _kib(watched["in_flight_bytes"] / KIB)),
    (
        "upstream's bytes in the stack's socket, most",
        lambda watched: _kib(watched["worker_socket_bytes"] / KIB),
    ),
    ("tokens that no reader had at the end", lambda watched: f"{watched['tokens_for_nobody']:,}"),
    ("text read by the client", lambda watched: _kib(watched["text_bytes"] / KIB)),
    ("text exact", lambda watched: "yes" if watched["is_exact"] else "NO"),
)
_ISOLATION = (
    ("p99 of the fast ones, together, ms", "together_ms"),
    ("p99 of the fast ones, alone, ms", "alone_ms"),
    ("ratio", "ratio"),
    ("share of the tokens delivered", "delivered"),
)
_FAILED = "failed"
_TITLES = {
    "stalled": "a reader that stalls",
    "dripping": "a reader of 1 KB/s",
    "fast": "a flood and a fast reader",
    "gone": "a reader that hangs up",
}


def checks(found: list[Check]) -> Table:
    """Every figure of ours and its bound."""
    table = Table(title="Bounds")
    for column in ("scenario", "figure", "measured", "at most", "holds"):
        table.add_column(column, justify="right" if column in ("measured", "at most") else "left")
    for check in found:
        verdict = "yes" if check.holds else "[red]NO[/red]"
        table.add_row(check.scenario, check.name, *map(_amount, (check, check), (True, False)), verdict)
    return table


def side_by_side(results: dict[str, dict[str, Any]], seconds: float) -> Table:
    """The same faults, in the same run, on both stacks."""
    table = Table(
        title=f"Each fault after {seconds:g} s, here and on the obvious stack "
        "(FastAPI, sse-starlette, redis-py, unbounded XADD)"
    )
    for column in ("fault", "figure", RELAY, OBVIOUS):
        table.add_column(column, justify="right" if column in (RELAY, OBVIOUS) else "left")
    ours, theirs = results[RELAY], results[OBVIOUS]
    for kind, title in _TITLES.items():
        for index, (name, show) in enumerate(_ROWS):
            watched = (stack["bound"].get(kind) for stack in (ours, theirs))
            figures = (show(each) if each else _FAILED for each in watched)
            table.add_row("" if index else title, name, *figures)
        table.add_section()
    title = "100 fast beside 100 stalled, 100 dripping"
    for index, (name, key) in enumerate(_ISOLATION):
        found = (stack["isolation"].get(key) for stack in (ours, theirs))
        figures = (_FAILED if each is None else f"{each:g}" for each in found)
        table.add_row("" if index else title, name, *figures)
    return table


def _amount(check: Check, is_value: bool) -> str:
    amount, unit = (check.value if is_value else check.bound), check.unit
    return _kib(amount / KIB) if unit == "B" else f"{amount:g} {unit}".rstrip()


def _kib(amount: float) -> str:
    return f"{amount:,.0f} KiB"
