"""What `relay top` shows: rows in an order, bars that do not lie, a picture that fits."""

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from relay.cli.top_view import BARS, HISTORY, SORTS, History, Row, Screen, ordered, rows, size, spark

CALM = {
    "level": 0,
    "reason": "none",
    "waiting": 3,
    "workers": 2,
    "oldest_seconds": 0.4,
    "memory_bytes": 2**21,
}


def response(number: int, **more: Any) -> dict[str, Any]:
    """One as the relay lists it."""
    ident = f"rs_{number:024x}"
    return {"id": ident, "model": "simulated", "status": "running", "level": 0, "position": number, **more}


def reader(name: str, lag: int, state: str = "live") -> dict[str, Any]:
    return {"id": name, "state": state, "lag_bytes": lag, "lag_entries": lag // 10}


def picture(found: list[Row], width: int, height: int, **more: Any) -> list[str]:
    """What a terminal of this size shows."""
    history = History()
    for _ in range(3):
        history.take(found, CALM)
    given_ = {"sort": "lag", "reverse": False, "clock": "12:00:00", **more}
    screen = Screen("http://127.0.0.1:8000", found, CALM, history, **given_)
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, color_system=None)
    console.print(screen.render(width, height))
    return out.getvalue().splitlines()


@given(st.lists(st.floats(0, 1e9), max_size=80), st.integers(1, 30))
def test_bars_do_not_lie(values: list[float], width: int) -> None:
    """One bar a sample, the largest is full, and what is not nothing does not look like it."""
    bars = spark(values, width)
    last = values[-width:]
    assert len(bars) == len(last)
    for value, bar in zip(last, bars, strict=True):
        assert (bar == BARS[0]) == (value == 0)
    if max(last, default=0) > 0:
        assert BARS[-1] in bars


def test_every_reader_is_a_row_and_a_response_without_any_too() -> None:
    """A response read by two is two rows; one that nobody reads is one, without a lag."""
    found = rows([response(1, consumers=[reader("a", 5), reader("b", 70)]), response(2, consumers=[])])
    assert [(row.consumer, row.lag_bytes) for row in found] == [("a", 5), ("b", 70), ("-", None)]
    assert found[2].cells[5:] == ["-", "-", "-", "-"]


@pytest.mark.parametrize(
    ("sort", "first"), [("newest", "a"), ("lag", "b"), ("level", "c"), ("position", "c"), ("state", "b")]
)
def test_what_needs_attention_is_first(sort: str, first: str) -> None:
    """Each order by its name; reversed it is the other way round."""
    found = rows(
        [
            response(1, consumers=[reader("a", 5, "slow")]),
            response(2, consumers=[reader("b", 70, "stalled")]),
            response(3, level=2, consumers=[reader("c", 0)]),
        ]
    )
    assert sort in SORTS
    assert ordered(found, sort)[0].consumer == first
    assert ordered(found, sort, reverse=True)[-1].consumer == first


@pytest.mark.parametrize("width", [40, 80, 100, 118, 200])
@pytest.mark.parametrize("height", [8, 24, 60])
def test_a_picture_fits_its_terminal(width: int, height: int) -> None:
    """No line is wider, there are no more lines than fit, and what is left out is counted."""
    many = rows([response(number, consumers=[reader(f"c-{number}", number)]) for number in range(40)])
    lines = picture(many, width, height)
    assert len(lines) <= height
    assert max(len(line) for line in lines) <= width
    assert ("more" in lines[-1]) == (height < 48)


def test_a_picture_says_what_is_so() -> None:
    """The largest lag, the workers, the queue; and where the relay does not answer, that this is old."""
    found = rows([response(7, consumers=[reader("c-1", 2048, "slow")])])
    text = "\n".join(picture(found, 120, 24, trouble="no answer from there; this is how it was"))
    for part in ("2.0 KiB", "workers ███ 2", "queue ███ 3", "pressure 0 calm", "slow", "this is how it was"):
        assert part in text
    assert f"rs_{7:024x}" in text


def test_a_history_is_bounded_and_forgets_who_has_gone() -> None:
    """A minute of samples, and only of those that are listed."""
    history, found = History(), rows([response(1, consumers=[reader("a", 5)])])
    for _ in range(3 * HISTORY):
        history.take(found, CALM)
    assert len(history.most) == len(history.lags[(found[0].id, "a")]) == HISTORY
    history.take([], CALM)
    assert history.lags == {}
    assert history.most[-1] == 0


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**30, "1.0 GiB")]
)
def test_sizes(count: int, said: str) -> None:
    """As people read them."""
    assert size(count) == said
