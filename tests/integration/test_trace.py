"""A worker's trace says what the worker did, and each word of it can be checked against Redis."""

import zlib
from pathlib import Path

import pytest

from relay import scripts
from relay.errors import SettingsInvalid
from relay.events import content
from relay.journal import Journal
from relay.wire import open_wire
from workers.metrics import Metrics
from workers.trace import Trace
from workers.writer import Writer

RETENTION_S = 600


async def test_claims_and_acknowledged_appends_are_noted(embedded_url: str, tmp_path: Path) -> None:
    """One line each, with the bytes' place and their checksum; who listened before is still told."""
    path = tmp_path / "trace"
    heads: list[int] = []
    async with open_wire(embedded_url, name="trace-test") as wire:
        await scripts.load(wire)
        journal = Journal(wire, "rs_000000000000000000000001")
        await journal.open(retention_s=RETENTION_S, starts="", epoch=0, request="", created_at="1")
        claimed = await scripts.claim_response(
            wire, journal.keys, owner="w", lease_ms=60_000, retention_s=RETENTION_S
        )
        assert isinstance(claimed, scripts.Claimed)
        writer = Writer(
            journal,
            epoch=claimed.epoch,
            head=claimed.head,
            cap=100,
            retention_s=RETENTION_S,
            flush_s=0.0,
            metrics=Metrics(),
            on_stop=lambda _reason: None,
        )
        writer.on_append = heads.append
        trace = Trace(path)
        trace.follow(journal.id, writer)
        for text in ("one ", "two ", "three"):
            writer.feed([content(text)])
            await writer.drain()
        stored = await journal.send_range(0, 1000)
        writer.stop()
        trace.close()

    first, *appends = [line.split() for line in path.read_text().splitlines()]
    assert first == ["claim", journal.id, str(claimed.epoch), "0"]
    assert [line[:3] for line in appends] == [["append", journal.id, str(claimed.epoch)]] * 3
    places = [(int(base), int(end)) for *_, base, end, _ in appends]
    assert [end for _, end in places] == heads
    assert [base for base, _ in places] == [0, *heads[:-1]]
    assert [int(line[-1]) for line in appends] == [zlib.crc32(stored[base:end]) for base, end in places]


def test_a_trace_that_cannot_be_written_ends_the_start_of_the_worker(tmp_path: Path) -> None:
    """With the variable's name, as every bad setting does."""
    with pytest.raises(SettingsInvalid, match="RELAY_TRACE_FILE"):
        Trace(tmp_path / "missing" / "trace")
