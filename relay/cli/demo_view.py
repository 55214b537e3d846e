"""How the demo looks: two panels of text, bars to one scale, a caption; plain lines when piped."""

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from relay.cli.demo_reader import Track
from relay.cli.demo_scene import LEVELS, Scene

_TEXT_LINES = (5, 14)  # of a panel: at least, at most
_OTHER_LINES = 15  # of everything around the panels
_BESIDE_BARS = 40  # columns
_HEIGHTS = " ▁▂▃▄▅▆▇█"
_COLOURS = {"fast": "green", "slow": "yellow"}


def draw(scene: Scene, console: Console) -> RenderableType:
    """The whole scene for a terminal."""
    lines = max(_TEXT_LINES[0], min(_TEXT_LINES[1], console.height - _OTHER_LINES))
    width = console.width // 2 - 4
    panels = Table.grid(expand=True)
    panels.add_column(ratio=1)
    panels.add_column(ratio=1)
    panels.add_row(*(_panel(track, console, width, lines) for track in scene.tracks))
    caption = Text(scene.caption(), style="italic", justify="left")
    return Group(
        _header(scene),
        panels,
        Panel(
            _bars(scene, console.width), title="where everyone is, in bytes", title_align="left", style="dim"
        ),
        Panel(caption, height=4, border_style="blue"),
    )


def _header(scene: Scene) -> Text:
    level = f"level {scene.level} {LEVELS[scene.level]}" if scene.level < len(LEVELS) else str(scene.level)
    mark = {"running": "▶", "paused": "⏸", "completed": "■", "queued": "…"}.get(scene.status, "■")
    return Text.assemble(
        (" relay demo ", "bold reverse"),
        f"  {scene.source}   ",
        (f"{mark} {scene.status}", "bold green" if scene.status == "running" else "bold"),
        f"   {level}   {scene.elapsed_s:5.1f} s",
    )


def _panel(track: Track, console: Console, width: int, lines: int) -> Panel:
    # The tail alone is wrapped: wrapping everything ten times a second would be what is measured.
    text = Text(track.content[-width * lines :], style="default")
    wrapped = text.wrap(console, width)
    body = Text("\n").join(wrapped[-lines:])
    if not track.is_over:
        body.append("▌", style="blink")
    frame_bytes = track.position / track.frames if track.frames else 0
    colour = _COLOURS[track.name]
    return Panel(
        body,
        title=f"[bold]{track.name}[/]: {track.habit}",
        title_align="left",
        subtitle=f"{track.frames} frames of {frame_bytes:.0f} bytes",
        subtitle_align="right",
        border_style=colour,
        height=lines + 2,
    )


def _bars(scene: Scene, columns: int) -> RenderableType:
    scale = max(scene.made, scene.expected_bytes, 1)
    width = max(10, columns - _BESIDE_BARS)
    table = Table.grid(padding=(0, 1))
    for least in (4, width, 5, 18):
        table.add_column(min_width=least, no_wrap=True, justify="right" if least == 5 else "left")
    table.add_row("made", _bar(width, scale, ("█", scene.made, "cyan")), f"{scene.made:,}", "by the source")
    for track in scene.tracks:
        read = ("█", track.position, _COLOURS[track.name])
        parts = (read, ("▓", track.confirmed, "blue"), ("░", scene.made, "red"))
        colour = "red" if track.lag > scene.made // 4 else "default"
        state = "done" if track.is_over else track.state
        lag = f"[{colour}]lag {track.lag:,}[/]  [dim]{state}[/]"
        table.add_row(track.name, _bar(width, scale, *parts), f"{track.position:,}", lag)
    history = _sparkline(scene.slow.lags, width)
    table.add_row("lag", Text(history, style="red"), f"{scene.slow.lag_max:,}", "of slow, largest")
    legend = "     [green]█[/] read   [blue]▓[/] in its kernel, unread   [red]░[/] still with the relay"
    return Group(table, legend)


def _sparkline(values: list[int], width: int) -> str:
    """The values as bars of eight heights, squeezed to `width`."""
    if len(values) > width:
        values = [values[index * len(values) // width] for index in range(width)]
    top = max([1, *values])
    return "".join(_HEIGHTS[value * (len(_HEIGHTS) - 1) // top] for value in values)


def _bar(width: int, scale: int, *parts: tuple[str, int, str]) -> Text:
    """Segments that end at rising positions, each with a mark and a colour of its own."""
    bar, at = Text(), 0
    for mark, position, colour in parts:
        end = max(at, min(width, round(position / scale * width)))
        bar.append(mark * (end - at), style=colour)
        at = end
    bar.append("·" * (width - at), style="dim")
    return bar


def progress(scene: Scene) -> str:
    """One line for a pipe."""
    readers = "   ".join(f"{t.name} {t.position:5d} (lag {t.lag:4d})" for t in scene.tracks)
    return (
        f"{scene.elapsed_s:5.1f} s  {scene.status:<9} level {scene.level}   made {scene.made:5d}   {readers}"
    )


def summary(scene: Scene) -> list[str]:
    """The table at the end, the same for a terminal and a pipe."""
    heading = f"{'reader':<8}{'frames':>8}{'bytes read':>12}{'largest lag':>13}{'time':>9}   digest"
    rows = [
        f"{t.name:<8}{t.frames:>8}{t.wire_bytes:>12,}{t.lag_max:>13,}{t.took_s:>7.1f} s   {_verdict(t)}"
        for t in scene.tracks
    ]
    made = f" in {scene.made_s:.1f} s" if scene.made_s is not None else ""
    done = scene.fast.done or scene.slow.done or {}
    headline = (
        f"{scene.source}: {done.get('text_bytes', '?')} bytes of text made{made} "
        f"({done.get('finish_reason', '?')})"
    )
    return [
        headline,
        "",
        heading,
        *rows,
        "",
        "Both readers have exactly the text that was made."
        if scene.is_exact
        else "A reader does not have the text that was made.",
    ]


def _verdict(track: Track) -> str:
    if track.failed:
        return f"failed: {track.failed}"
    if track.done is None:
        return "no end seen"
    return f"{track.digest[:8]} {'equals done' if track.is_exact else 'DIFFERS from done'}"
