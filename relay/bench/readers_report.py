"""The table of `relay bench readers`."""

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

_COLUMNS = ("kind", "connected", "ended", "exact", "events", "KiB", "+ unread", "first", "gaps, ms")
_GAPS = ("p50", "p99", "max")


def readers_table(result: dict[str, Any]) -> Table:
    """One line a kind; below it what each was told, and what went wrong."""
    table = Table(
        title=f"readers of every kind, {result['seconds']:g} s",
        box=box.SIMPLE,
        padding=0,
        caption_justify="left",
    )
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column in ("kind", "ended") else "right", no_wrap=True)
    below = ["times in ms: to the first byte, and between two events (" + "/".join(_GAPS) + ")"]
    for row in result["kinds"]:
        table.add_row(*_cells(row))
        if row["notices"]:
            below.append(f"{row['kind']} was told: {_counts(row['notices'])}")
        below += [f"{row['kind']}: {problem}" for problem in row["problems"]]
    table.caption = Text("\n".join(below))
    return table


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    exact, gaps = row["exact"], row["gaps_ms"]
    told = exact["right"] + exact["wrong"]
    again = row["connections"] - row["connected"]
    return (
        row["kind"],
        f"{row['connected']}/{row['readers']}" + (f" +{again}" if again else ""),
        _counts(row["ended"]),
        f"{exact['right']}/{told}" if told else "-",
        f"{row['events']:,}",
        f"{row['received_bytes'] / 1024:,.1f}",
        f"{row['unread_bytes'] / 1024:,.1f}",
        f"{row['first_byte_ms']['p50']:.1f}",
        "/".join(f"{gaps[name]:.0f}" for name in _GAPS),
    )


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in found.items())
