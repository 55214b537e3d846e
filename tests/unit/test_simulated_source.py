"""The simulated source: an open schedule, on a clock that the test moves."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import simulation
from relay.errors import SourceFailed
from relay.events import MAX_PAYLOAD, Channel
from relay.models import Model
from relay.requests import StreamRequest
from workers.sources.base import Batch, Finish, Prefix
from workers.sources.simulated import (
    BURST_TOKENS,
    FREE_RUN_TOKENS,
    Clock,
    SimulatedGeneration,
    SimulatedSource,
)

MODEL = Model(name="simulated", source="simulated")
STARTED_AT = 1_700_000_000.0


class FakeTime:
    """Time that passes only in `sleep`."""

    def __init__(self) -> None:
        self.now = 5000.0  # monotonic
        self.offset = STARTED_AT - 5000.0
        self.sleeps: list[float] = []
        self.late = 0.0  # each sleep takes this much longer

    def clock(self) -> Clock:
        return Clock(unix=lambda: self.now + self.offset, monotonic=lambda: self.now, sleep=self.sleep)

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.now += seconds + self.late
        await asyncio.sleep(0)


def a_request(**fields: Any) -> StreamRequest:
    """A request for the simulated model; `tokens`, `tokens_per_second` and `seed` go to the simulation."""
    names = ("tokens", "tokens_per_second", "seed")
    parameters = {name: fields.pop(name) for name in names if name in fields}
    return StreamRequest.model_validate(
        {"model": "simulated", "prompt": "one two  three", **fields, "simulation": parameters or None}
    )


async def collect(
    request: StreamRequest,
    time: FakeTime | None = None,
    *,
    model: Model = MODEL,
    prefix: Prefix | None = None,
    started_at: float = STARTED_AT,
    between: Callable[[SimulatedGeneration, Batch], None] | None = None,
) -> tuple[list[Batch], Finish]:
    """Read a generation to its end."""
    batches = []
    source = SimulatedSource((time or FakeTime()).clock())
    async with source.open(request, model, started_at=started_at, prefix=prefix) as generation:
        while True:
            batch = await generation.read()
            batches.append(batch)
            if batch.finish is not None:
                return batches, batch.finish
            if between is not None:
                between(generation, batch)


def text(batches: list[Batch]) -> str:
    """All content."""
    return b"".join(record.payload for batch in batches for record in batch.records).decode()


async def test_text_usage_and_finish() -> None:
    """The text is the seed's, the prompt's words are its tokens, and the end is a stop."""
    batches, finish = await collect(a_request(tokens=30, seed=7))
    assert text(batches) == simulation.text(7, 0, 30)
    assert {record.channel for batch in batches for record in batch.records} == {Channel.CONTENT}
    assert finish == Finish("stop", {"prompt_tokens": 3, "completion_tokens": 30, "total_tokens": 33})


async def test_defaults() -> None:
    """Without parameters there are 400 tokens of seed 1 at 60 a second."""
    time = FakeTime()
    batches, _ = await collect(StreamRequest(model="simulated", prompt="x"), time)
    assert text(batches) == simulation.text(1, 0, 400)
    assert time.now == pytest.approx(5000 + 399 / 60)


async def test_on_time() -> None:
    """A reader on time gets token i at i / rate, one a read, after one sleep."""
    time = FakeTime()
    seen: list[float] = []
    batches, _ = await collect(
        a_request(tokens=50, tokens_per_second=50), time, between=lambda *_: seen.append(time.now - 5000)
    )
    assert [batch.tokens for batch in batches] == [1] * 50
    assert seen == pytest.approx([index / 50 for index in range(49)])
    assert len(time.sleeps) == 50


async def test_late_loop_catches_up() -> None:
    """A loop that wakes late finds all that fell due as one record, and the end is hardly later."""
    time = FakeTime()
    time.late = 0.1
    batches, _ = await collect(a_request(tokens=200, tokens_per_second=50), time)
    assert text(batches) == simulation.text(1, 0, 200)
    assert all(len(batch.records) == 1 for batch in batches)
    assert max(batch.tokens for batch in batches) >= 5
    assert time.now - 5000 <= 199 / 50 + 0.1 + 1e-6


async def test_started_in_the_past() -> None:
    """What fell due before the source was opened is there at once, in bounded reads that let others run."""
    time = FakeTime()
    batches, _ = await collect(
        a_request(tokens=2000, tokens_per_second=100), time, started_at=STARTED_AT - 60
    )
    assert time.now == 5000
    assert [batch.tokens for batch in batches] == [BURST_TOKENS] * 3 + [2000 - 3 * BURST_TOKENS]
    assert time.sleeps == [0.0] * 4


async def test_started_in_the_future() -> None:
    """A start that another machine's clock puts ahead of ours does not delay the first token."""
    time = FakeTime()
    batches, _ = await collect(a_request(tokens=1), time, started_at=STARTED_AT + 1000)
    assert (time.now, batches[0].tokens) == (5000, 1)


async def test_wall_clock_step() -> None:
    """A step of the wall clock during a generation does not move its schedule."""
    time = FakeTime()

    def step(*_: object) -> None:
        time.offset += 3600

    await collect(a_request(tokens=11, tokens_per_second=10), time, between=step)
    assert time.now == pytest.approx(5001)


async def test_skip_moves_the_schedule() -> None:
    """Time that was not read on purpose is not made up for."""
    time = FakeTime()
    paused = False

    def pause(generation: SimulatedGeneration, _: Batch) -> None:
        nonlocal paused
        if not paused:
            paused = True
            time.now += 30
            generation.skip(30)

    batches, _ = await collect(a_request(tokens=11, tokens_per_second=10), time, between=pause)
    assert [batch.tokens for batch in batches] == [1] * 11
    assert time.now == pytest.approx(5031)


async def test_as_fast_as_it_is_let() -> None:
    """Without a rate each read is about 2 KiB at most, at once, and lets the loop run."""
    time = FakeTime()
    batches, _ = await collect(a_request(tokens=10_000, tokens_per_second=0), time)
    assert text(batches) == simulation.text(1, 0, 10_000)
    assert max(len(batch.records[0].payload) for batch in batches) <= 2048
    assert time.now == 5000
    assert len(time.sleeps) == len(batches)


@given(st.integers(0, 2**53), st.integers(0, 10**6))
def test_a_read_fits_a_record(seed: int, start: int) -> None:
    """The largest read is within one record."""
    assert len(simulation.text(seed, start, start + BURST_TOKENS).encode()) <= MAX_PAYLOAD
    assert len(simulation.text(seed, start, start + FREE_RUN_TOKENS).encode()) <= 2048


@pytest.mark.parametrize(
    ("tokens", "asked", "limit", "made", "reason"),
    [
        (10, None, None, 10, "stop"),
        (10, 10, None, 10, "stop"),
        (10, 4, None, 4, "length"),
        (10, None, 3, 3, "length"),
        (10, 4, 3, 3, "length"),
        (10, 3, 4, 3, "length"),
        (10, 50, 60, 10, "stop"),
    ],
)
async def test_limits(tokens: int, asked: int | None, limit: int | None, made: int, reason: str) -> None:
    """The lower of the request's and the model's limit cuts, and says so."""
    model = MODEL.model_copy(update={"max_tokens": limit})
    batches, finish = await collect(a_request(tokens=tokens, max_tokens=asked), model=model)
    assert text(batches) == simulation.text(1, 0, made)
    assert finish.reason == reason
    assert finish.usage is not None
    assert finish.usage["completion_tokens"] == made


async def test_prompt_words_of_messages() -> None:
    """All text of all messages counts, parts of a content too; what is no text does not."""
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "what is this"}, {"type": "image_url"}, "x"]},
        {"role": "assistant", "content": None},
        {"role": "user"},
    ]
    _, finish = await collect(a_request(prompt=None, messages=messages, tokens=1))
    assert finish.usage is not None
    assert finish.usage["prompt_tokens"] == 5


@pytest.mark.parametrize("rate", [0, 50])
@pytest.mark.parametrize("delivered", [0, 1, 7, 23, 60, 61, 100])
async def test_continues_from_any_character(delivered: int, rate: float) -> None:
    """After a prefix that ends anywhere, even inside a token, the text goes on exactly there."""
    whole = simulation.text(3, 0, 100)
    request = a_request(tokens=100, seed=3, tokens_per_second=rate)
    batches, finish = await collect(request, prefix=Prefix(whole[:delivered]))
    assert whole[:delivered] + text(batches) == whole
    assert finish.usage is not None
    assert finish.usage["completion_tokens"] == 100


async def test_continued_schedule_starts_anew() -> None:
    """A continuation does not make up for the time without a worker: its first token is due at once."""
    time = FakeTime()
    prefix = Prefix(simulation.text(1, 0, 40))
    batches, _ = await collect(
        a_request(tokens=50, tokens_per_second=10), time, prefix=prefix, started_at=STARTED_AT - 100
    )
    assert [batch.tokens for batch in batches] == [1] * 10
    assert time.now == pytest.approx(5000 + 9 / 10)


@pytest.mark.parametrize("limit", [None, 5])
async def test_nothing_left_after_the_prefix(limit: int | None) -> None:
    """A prefix that holds everything, or more than a lowered limit allows, is finished at once."""
    prefix = Prefix(simulation.text(1, 0, 10))
    batches, finish = await collect(a_request(tokens=10, max_tokens=limit), prefix=prefix)
    assert [batch.records for batch in batches] == [[]]
    assert finish.reason == ("stop" if limit is None else "length")


@pytest.mark.parametrize(
    "prefix",
    [Prefix("Something else."), Prefix(simulation.text(2, 0, 5)), Prefix("", tool_calls=True)],
)
async def test_foreign_prefix(prefix: Prefix) -> None:
    """A prefix that is not this simulation's text is refused, not spliced."""
    with pytest.raises(SourceFailed) as caught:
        await collect(a_request(tokens=10), prefix=prefix)
    assert (caught.value.failure_code, caught.value.failure_retryable) == ("source_cannot_continue", False)


def test_can_continue() -> None:
    """Any text can be continued, tool calls cannot."""
    source = SimulatedSource()
    assert source.can_continue(Prefix("text", reasoning="hm"), MODEL)
    assert not source.can_continue(Prefix("", tool_calls=True), MODEL)


async def test_cancelled_read_loses_nothing() -> None:
    """A read cancelled while it waits has taken no token."""
    source = SimulatedSource()  # real time: the cancellation must hit a real sleep
    request = a_request(tokens=30, tokens_per_second=1000)
    got = b""
    async with source.open(request, MODEL, started_at=STARTED_AT * 2) as generation:
        while True:
            read = asyncio.ensure_future(generation.read())
            await asyncio.sleep(0)
            read.cancel()
            batch = (await asyncio.gather(read, return_exceptions=True))[0]
            if isinstance(batch, asyncio.CancelledError):
                batch = await generation.read()
            got += b"".join(record.payload for record in batch.records)
            if batch.finish:
                break
    assert got.decode() == simulation.text(1, 0, 30)
