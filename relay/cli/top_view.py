"""What `relay top` shows: rows, their order, and sparklines. Pure, but for the making of rich's objects."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.console import RenderableType

BARS = "▁▂▃▄▅▆▇█"
HISTORY = 60  # samples: at one a second, a minute
HEADING = ("id", "model", "status", "level", "position", "consumer", "state", "lag_bytes", "lag_entries")
SORTS = ("newest", "lag", "level", "position", "state")
LEVELS = ("calm", "limits lowered", "background shed", "new work refused")
_STATES = ("stalled", "slow", "live", "detached")  # the worst first
_COLOURS = {"live": "green", "slow": "yellow", "stalled": "red"}
_WIDE = 118  # columns from which the id is whole and everything has its column
_NARROW = 78  # below it only what tells who lags is shown
_SPARK, _SPARK_WIDE = 10, 20


class Row(NamedTuple):
    """One consumer of a response, or a response without any (`consumer` is "-")."""

    id: str
    model: str
    status: str
    level: int
    position: int
    consumer: str = "-"
    state: str = "-"
    lag_bytes: int | None = None
    lag_entries: int | None = None

    @property
    def cells(self) -> list[str]:
        """As text, in the order of HEADING."""
        return ["-" if cell is None else str(cell) for cell in self]


def rows(responses: Iterable[dict[str, Any]]) -> list[Row]:
    """The newest first, as the relay lists them."""
    found = []
    for one in responses:
        head = (one["id"], one["model"], one["status"], one["level"], one["position"])
        found += [
            Row(*head, reader["id"], reader["state"], reader["lag_bytes"], reader["lag_entries"])
            for reader in one.get("consumers") or ()
        ] or [Row(*head)]
    return found


def ordered(found: list[Row], sort: str, *, reverse: bool = False) -> list[Row]:
    """By a name of SORTS: what needs attention first, and the newest first among equals."""
    keys = {
        "lag": lambda row: -(row.lag_bytes if row.lag_bytes is not None else -1),
        "level": lambda row: -row.level,
        "position": lambda row: -row.position,
        "state": lambda row: _STATES.index(row.state) if row.state in _STATES else len(_STATES),
    }
    known = sorted(found, key=keys[sort]) if sort in keys else list(found)
    return known[::-1] if reverse else known


def spark(values: Iterable[float], width: int) -> str:
    """The last of them as bars, from 0 to the largest; what is above 0 never looks like 0."""
    last = list(values)[-width:]
    most = max(last, default=0)
    if most <= 0:
        return BARS[0] * len(last)
    steps = [0 if value <= 0 else max(1, round(value / most * (len(BARS) - 1))) for value in last]
    return "".join(BARS[step] for step in steps)


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


class History:
    """The last minute: of each reader's lag, of the largest, of the workers and of the queue."""

    def __init__(self) -> None:
        self.lags: dict[tuple[str, str], deque[float]] = {}
        self.most, self.workers, self.waiting = (deque[float](maxlen=HISTORY) for _ in range(3))

    def take(self, found: list[Row], pressure: dict[str, Any]) -> None:
        """One more sample; a reader that is not listed any more is forgotten."""
        seen = {(row.id, row.consumer): row for row in found if row.lag_bytes is not None}
        self.lags = {key: self.lags.get(key) or deque(maxlen=HISTORY) for key in seen}
        for key, row in seen.items():
            self.lags[key].append(row.lag_bytes or 0)
        self.most.append(max((row.lag_bytes or 0 for row in seen.values()), default=0))
        self.workers.append(pressure["workers"])
        self.waiting.append(pressure["waiting"])


class Screen(NamedTuple):
    """Everything that one picture is made of."""

    url: str
    found: list[Row]
    pressure: dict[str, Any]
    history: History
    sort: str
    reverse: bool
    clock: str
    trouble: str = ""  # why this is an old picture

    def render(self, width: int, height: int) -> "RenderableType":
        """A picture that fits: what does not is counted."""
        from rich.console import Group  # noqa: PLC0415 - imported for this command alone
        from rich.text import Text  # noqa: PLC0415

        head = [Text(line, no_wrap=True, overflow="ellipsis") for line in self.summary(width)]
        head[0].stylize("bold")
        if self.trouble:
            head.append(Text(self.trouble, style="bold red", no_wrap=True, overflow="ellipsis"))
        room = max(1, height - len(head) - 4)
        shown = ordered(self.found, self.sort, reverse=self.reverse)[:room]
        left = len(self.found) - len(shown)
        foot = f"sort: {self.sort}{' reversed' if self.reverse else ''}"
        keys = "n newest  l lag  v level  p position  s state  r reverse  q quit"
        last = Text(f"{f'{left} more   ' if left else ''}{foot}   {keys}", style="dim", no_wrap=True)
        return Group(*head, Text(""), self._table(shown, width), last)

    def summary(self, width: int) -> list[str]:
        """The lines above the table."""
        told, bars = self.pressure, _SPARK_WIDE if width >= _WIDE else _SPARK
        running = len({row.id for row in self.found if row.status in {"queued", "running", "paused"}})
        level = f"pressure {told['level']} {LEVELS[told['level']]}"
        why = f" ({told['reason']})" if told["level"] else ""
        history = self.history
        lag = f"lag {spark(history.most, bars)} {size(history.most[-1] if history.most else 0)}"
        workers = f"workers {spark(history.workers, bars)} {told['workers']}"
        queue = f"queue {spark(history.waiting, bars)} {told['waiting']}"
        oldest = f", oldest {told['oldest_seconds']:.1f} s" if told["waiting"] else ""
        return [
            f"relay top   {self.url}   {running} active shown   {level}{why}   {self.clock}",
            f"{lag}   {workers}   {queue}{oldest}   Redis {size(told['memory_bytes'])}",
        ]

    def _table(self, shown: list[Row], width: int) -> "RenderableType":
        from rich.table import Table  # noqa: PLC0415 - imported for this command alone

        bars = _SPARK_WIDE if width >= _WIDE else _SPARK
        columns: dict[str, Callable[[Row], str]] = {
            "id": lambda row: row.id if width >= _WIDE else f"…{row.id[-8:]}",
            "model": lambda row: row.model,
            "status": lambda row: row.status,
            "level": lambda row: str(row.level),
            "position": lambda row: size(row.position),
            "reader": lambda row: row.consumer,
            "state": lambda row: row.state,
            "lag": lambda row: "-" if row.lag_bytes is None else size(row.lag_bytes),
            "last minute": lambda row: spark(self.history.lags.get((row.id, row.consumer), ()), bars),
        }
        shed = ("model",) * (width < _WIDE) + ("reader", "position") * (width < _NARROW)
        names = [name for name in columns if name not in shed]
        table = Table(box=None, expand=True, header_style="bold", padding=(0, 1), pad_edge=False)
        for name in names:
            right = name in {"level", "position", "lag"}
            table.add_column(name, no_wrap=True, overflow="ellipsis", justify="right" if right else "left")
        for row in shown:
            table.add_row(*(columns[name](row) for name in names), style=_COLOURS.get(row.state, "dim"))
        return table
