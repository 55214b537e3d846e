"""The figures of `relay bench openai`, from the stamps that its upstream sends."""

import asyncio
import time

import httpx
import pytest

from relay.bench.stand_in import STAMP_BYTES, standing_in
from relay.bench.system import System
from relay.bench.through import Load, _late, compare, percentiles_ms
from relay.cli.bench_openai import table


def test_lateness_is_read_from_merged_stamps() -> None:
    """However many are in a piece."""
    text = "".join(f"{at:17.6f} " for at in (1_700_000_000.25, 1_700_000_000.5))
    assert len(text) == 2 * STAMP_BYTES
    assert _late(text, 1_700_000_001.0) == [0.75, 0.5]


def test_percentiles() -> None:
    """By nearest rank, in milliseconds; of nothing there are none."""
    assert percentiles_ms([]) == {}
    assert percentiles_ms([0.001 * n for n in range(101)]) == {"p50": 50, "p90": 90, "p99": 99, "max": 100}


def test_the_stand_in_keeps_its_schedule() -> None:
    """Tokens of their time, at the rate that was asked for, and a proper end."""
    with standing_in(200.0) as url:
        began = time.monotonic()
        answer = httpx.post(f"{url}/chat/completions", json={"max_tokens": 40}, timeout=20)
        took_s = time.monotonic() - began
    assert took_s >= 39 / 200
    assert answer.text.count('"content"') == 40
    assert answer.text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("way", ["direct", "relay"])
def test_both_ways_are_read_and_what_is_wrong_is_told(way: str) -> None:
    """The stand-in on both sides; an address where nothing is, on one."""
    with standing_in(500.0) as url:
        nothing = "http://127.0.0.1:9"
        upstream = f"{nothing}/v1" if way == "direct" else url
        system = System([nothing if way == "relay" else url.removesuffix("/v1")])
        load = Load(responses=3, tokens=10, ramp_s=0.0)
        rounds: list[int] = []
        result = asyncio.run(compare(system, upstream, load, 1, rounds.append))
    assert rounds == [1, 2]
    other = {"direct": "relay", "relay": "direct"}[way]
    assert (result[other]["completions"], result[other]["tokens"]) == (3, 30)
    assert result[other]["token_late_ms"]["p50"] < 1000
    assert len(result["problems"]) == 3
    assert all(problem.startswith(way) for problem in result["problems"])
    assert table(result).row_count >= 5
