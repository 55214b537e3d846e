"""`relay settings`: every setting with its value, its default, what is allowed and what it means."""

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from relay.settings import Settings

_UNITS = {
    "bytes": "bytes", "entries": "entries", "s": "s", "ms": "ms", "maxseg": "bytes",
    "inflight": "commands", "active": "responses", "consumers": "readers",
}  # fmt: skip

_UNSET = "-"
_NAME_COLUMN = 40  # half of a narrow terminal; what is longer is folded


class Row(NamedTuple):
    """One setting as it is shown."""

    name: str
    value: str
    default: str
    allowed: str
    meaning: str


def settings() -> None:
    """All settings: RELAY_* variables of the environment and of .env.

    A value that is not the default is marked with *. Secrets are hidden. When piped: tab-separated, one
    setting a line, with a heading.

    Examples:

      relay settings

      RELAY_FLUSH_MS=40 relay settings | grep FLUSH
    """
    from relay.settings import load  # noqa: PLC0415 - imported for this command alone

    found = rows(load())
    if sys.stdout.isatty():
        _draw(found)
        return
    for row in (Row("name", "value", "default", "allowed", "meaning"), *found):
        print("\t".join(row))


def rows(loaded: "Settings") -> list[Row]:
    """The table."""
    return [_row(loaded, name, info) for name, info in type(loaded).model_fields.items()]


def _row(loaded: "Settings", name: str, info: Any) -> Row:
    value = getattr(loaded, name)
    mark = " *" if value != info.default else ""
    unit = _UNITS.get(name.rpartition("_")[2], "")
    allowed = _allowed(info)
    return Row(
        f"RELAY_{name.upper()}",
        _shown(name, value) + mark,
        _shown(name, info.default),
        f"{allowed} {unit}".strip() if allowed else unit,
        info.description or "",
    )


def _shown(name: str, value: Any) -> str:
    if value is None or value == ():
        return _UNSET
    if isinstance(value, bool):
        return str(value).lower()
    if name == "redis_url":
        return without_password(value)
    if "key" in name:
        return "(hidden)" if not isinstance(value, tuple) else f"({len(value)} hidden)"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _allowed(info: Any) -> str:
    from typing import get_args  # noqa: PLC0415 - imported for this command alone

    bounds = {k: getattr(m, k) for m in info.metadata for k in ("ge", "le", "gt", "lt") if hasattr(m, k)}
    if bounds:
        low, high = bounds.get("ge", bounds.get("gt", "")), bounds.get("le", bounds.get("lt", ""))
        return f"{_exact(low)} to {_exact(high)}" if high != "" else f"from {_exact(low)}"
    choices = [option for option in get_args(info.annotation) if isinstance(option, str)]
    return " | ".join(choices) or ("true | false" if info.annotation is bool else "")


def _exact(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def without_password(url: str) -> str:
    """The URL as it may be shown: neither the password before the host, nor one among the options."""
    import re  # noqa: PLC0415 - imported for this command alone

    url = re.sub(r"(?<=://)([^/@:]*):[^/]*@", r"\1:(hidden)@", url)
    return re.sub(r"(?i)([?&][^=&]*password=)[^&]*", r"\1(hidden)", url)


def _draw(found: list[Row]) -> None:
    from rich.console import Console  # noqa: PLC0415 - imported for this command alone
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold", max_width=_NAME_COLUMN)
    table.add_column(overflow="fold")
    for row in found:
        is_changed = row.value.endswith(" *")
        default = f"default {row.default}" if is_changed and row.default != _UNSET else ""
        more = "; ".join(part for part in (row.allowed, default) if part)
        value = "" if row.value == _UNSET else row.value  # an empty variable is an absent one
        table.add_row(
            Text(f"{row.name}={value}", style="bold yellow" if is_changed else ""),
            Text.assemble(row.meaning, (f" ({more})" if more else "", "dim")),
        )
    Console().print(table)
