"""The openai source against an upstream that says, cuts, holds back and floods whatever a test wants."""

import asyncio
import ssl
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
import trustme
import uvloop

from relay.errors import SourceFailed
from relay.events import MAX_PAYLOAD, TEXT, Channel, Record
from relay.models import Model
from relay.requests import StreamRequest
from tests.support.upstream import (
    Call,
    Upstream,
    answer,
    chunk,
    flood,
    http_chunk,
    refuse,
    reset,
    silence,
    sse,
    usage,
)
from workers.sources.base import Batch, Finish, Prefix
from workers.sources.http import RECEIVE_BUFFER_BYTES
from workers.sources.openai import OpenAIGeneration, OpenAISource
from workers.sources.openai_errors import MESSAGE_MAX_CHARS

KEY = "sk-secret-0123456789"
TEXT_PARTS = ("Grüße", ", 世界", " 🌊🪨", "\n\n", "end.")


def a_model(upstream: Upstream, **settings: Any) -> Model:
    """A model on that upstream, with short timeouts that no good test reaches."""
    defaults: dict[str, Any] = {
        "connect_timeout_s": 5.0,
        "first_token_timeout_s": 10.0,
        "idle_timeout_s": 10.0,
        "base_url": upstream.base_url,
        "api_key": KEY,
    }
    return Model(name="public", source="openai", **{**defaults, **settings})


def a_request(**fields: Any) -> StreamRequest:
    """A request for one short prompt."""
    return StreamRequest.model_validate({"model": "public", "prompt": "Say something", **fields})


async def collect(
    upstream: Upstream,
    request: StreamRequest | None = None,
    *,
    source: OpenAISource | None = None,
    prefix: Prefix | None = None,
    **settings: Any,
) -> tuple[list[Batch], Finish]:
    """Read a generation to its end."""
    batches: list[Batch] = []
    async with (source or OpenAISource()).open(
        request or a_request(), a_model(upstream, **settings), started_at=0.0, prefix=prefix
    ) as generation:
        while True:
            batch = await generation.read()
            assert batch.records or batch.finish
            batches.append(batch)
            if batch.finish is not None:
                return batches, batch.finish


def records(batches: list[Batch]) -> list[Record]:
    """All records, in order."""
    return [record for batch in batches for record in batch.records]


def text(batches: list[Batch], channel: Channel = Channel.CONTENT) -> str:
    """The text of one channel."""
    return b"".join(record.payload for record in records(batches) if record.channel is channel).decode()


async def failure(upstream: Upstream, **settings: Any) -> SourceFailed:
    """What reading a generation to its end raises."""
    with pytest.raises(SourceFailed) as caught:
        await collect(upstream, **settings)
    return caught.value


async def test_text_usage_and_finish() -> None:
    """Text comes out as it went in, and the finish has the upstream's reason and usage."""
    async with Upstream(answer(*TEXT_PARTS)) as upstream:
        batches, finish = await collect(upstream)
    assert text(batches) == "".join(TEXT_PARTS)
    assert sum(batch.tokens for batch in batches) == len(TEXT_PARTS)
    assert finish == Finish("stop", {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8})


async def test_request_body_and_headers() -> None:
    """The upstream gets the messages, the sampling as the caller gave it, its own model name and the key."""
    async with Upstream() as upstream:
        await collect(
            upstream,
            a_request(temperature=0.5, stop=["END"], max_tokens=100),
            upstream_model="qwen",
            max_tokens=50,
        )
        call = await upstream.call(0)
    assert (call.method, call.path) == ("POST", "/v1/chat/completions")
    assert call.headers["authorization"] == f"Bearer {KEY}"
    assert call.headers["host"] == f"127.0.0.1:{upstream.port}"
    assert call.json == {
        "model": "qwen",
        "messages": [{"role": "user", "content": "Say something"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.5,
        "stop": ["END"],
        "max_tokens": 50,
    }


@pytest.mark.parametrize(
    ("asked", "limit", "sent"),
    [
        ({}, None, {}),
        ({}, 50, {"max_tokens": 50}),
        ({"max_tokens": 20}, None, {"max_tokens": 20}),
        ({"max_tokens": 20}, 50, {"max_tokens": 20}),
        ({"max_completion_tokens": 80}, 50, {"max_completion_tokens": 50}),
    ],
)
async def test_token_limit(asked: dict[str, int], limit: int | None, sent: dict[str, int]) -> None:
    """The lower of the request's and the model's limit is sent, under the name that the caller used."""
    async with Upstream() as upstream:
        await collect(upstream, a_request(**asked), max_tokens=limit)
        body = (await upstream.call(0)).json
    assert {name: body[name] for name in body if name.startswith("max")} == sent


@pytest.mark.parametrize("cut_every", [1, 2, 3, 5, 17])
async def test_bytes_cut_anywhere(cut_every: int) -> None:
    """Characters, lines and HTTP chunks may be torn at any byte: the text is whole."""
    async with Upstream(answer(*TEXT_PARTS, cut_every=cut_every)) as upstream:
        batches, _ = await collect(upstream)
    assert text(batches) == "".join(TEXT_PARTS)


async def test_one_read_is_one_merged_batch() -> None:
    """What one socket read brings is one batch, its text merged, split only where a record is full."""
    parts = ["é" * 50] * 400
    async with Upstream(answer(*parts, at_once=True)) as upstream:
        batches, _ = await collect(upstream)
    assert len(batches) < 20
    assert text(batches) == "".join(parts)
    assert sum(batch.tokens for batch in batches) == len(parts)
    for batch in batches:
        assert all(len(record.payload) <= MAX_PAYLOAD for record in batch.records)
        assert all(len(record.payload) > MAX_PAYLOAD - 4 for record in batch.records[:-1])


async def test_every_kind_of_delta() -> None:
    """Reasoning, content and two tool calls each come out on a channel of their own, in order."""
    calls = [
        {"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"x":'}},
        {"index": 0, "function": {"arguments": "1}"}},
        {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{}"}},
    ]
    script = answer(
        chunk(role="assistant", content=""),
        chunk(reasoning_content="hm"),
        chunk(reasoning_content="m"),
        "So",
        *(chunk(tool_calls=[call]) for call in calls),
        finish="tool_calls",
        at_once=True,
    )
    async with Upstream(script) as upstream:
        batches, finish = await collect(upstream)
    assert records(batches) == [
        Record(Channel.REASONING, b"hmm"),
        Record(Channel.CONTENT, b"So"),
        Record(Channel.TOOL_CALL, b'{"index":0,"id":"a","name":"f"}'),
        Record(Channel.TOOL_ARGUMENTS, b'\x00{"x":1}'),
        Record(Channel.TOOL_CALL, b'{"index":1,"id":"b","name":"g"}'),
        Record(Channel.TOOL_ARGUMENTS, b"\x01{}"),
    ]
    assert finish.reason == "tool_calls"


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (400, "upstream_rejected", False),
        (401, "upstream_auth", False),
        (403, "upstream_auth", False),
        (404, "upstream_model", False),
        (408, "upstream_timeout", True),
        (413, "upstream_rejected", False),
        (422, "upstream_rejected", False),
        (429, "upstream_rate_limited", True),
        (500, "upstream_error", True),
        (503, "upstream_error", True),
        (307, "upstream_rejected", False),
    ],
)
async def test_refusals(status: int, code: str, retryable: bool) -> None:
    """Each refusal has its code, says whether to try again, and never shows the key."""
    body = {"error": {"message": f"no, not with {KEY}", "type": "x"}}
    async with Upstream(refuse(status, body, {"retry-after": "7"})) as upstream:
        error = await failure(upstream)
    assert (error.failure_code, error.failure_retryable) == (code, retryable)
    assert error.retry_after_s == (7.0 if retryable else None)
    assert KEY not in error.message
    assert ("no, not with ***" in error.message) == (code == "upstream_rejected")


async def test_long_refusal_is_bounded() -> None:
    """An upstream's own words are cut at 500 characters."""
    async with Upstream(refuse(400, "x" * 200_000)) as upstream:
        error = await failure(upstream)
    assert error.message.endswith("x" * MESSAGE_MAX_CHARS)
    assert len(error.message) < MESSAGE_MAX_CHARS + 100


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ({"content-type": "application/json"}, "not an event stream"),
        ({"content-type": "text/event-stream", "content-encoding": "gzip"}, "compresses"),
    ],
)
async def test_not_an_event_stream(headers: dict[str, str], said: str) -> None:
    """A 200 that is not a plain event stream is malformed."""
    async with Upstream(refuse(200, {"choices": []}, headers)) as upstream:
        error = await failure(upstream)
    assert error.failure_code == "upstream_malformed"
    assert said in error.message


async def test_nobody_listens() -> None:
    """A refused connection is unreachable, to be tried again, and the message has no address."""
    async with Upstream() as upstream:
        pass
    error = await failure(upstream)
    assert (error.failure_code, error.failure_retryable) == ("upstream_unreachable", True)
    assert str(upstream.port) not in error.message


async def test_unknown_host() -> None:
    """A name that does not resolve is unreachable."""
    async with Upstream() as upstream:
        # A resolver that is far away or busy takes its time to say so.
        hosts = ("no-such-host.invalid", f"{'a' * 70}.invalid")
        error, long = [
            await failure(upstream, base_url=f"http://{host}/v1", connect_timeout_s=50.0) for host in hosts
        ]
    assert error.failure_code == long.failure_code == "upstream_unreachable"


async def test_hangs_up_without_an_answer() -> None:
    """A connection closed before the head is unreachable: nothing began, trying again is safe."""

    async def hang_up(_: Call) -> None:
        pass

    async with Upstream(hang_up) as upstream:
        error = await failure(upstream)
    assert (error.failure_code, error.failure_retryable) == ("upstream_unreachable", True)


async def test_not_http() -> None:
    """An answer that is not HTTP is malformed, and so is a head without end."""

    async def banner(call: Call) -> None:
        await call.send(b"220 ready\r\n")
        await call.hold()

    async def endless(call: Call) -> None:
        await call.send(b"HTTP/1.1 200 OK\r\n")
        while True:
            await call.send(b"x-more: " + b"y" * 1000 + b"\r\n")

    async with Upstream(banner, endless) as upstream:
        assert (await failure(upstream)).failure_code == "upstream_malformed"
        assert (await failure(upstream)).failure_code == "upstream_malformed"


@pytest.mark.parametrize("head", [False, True])
async def test_first_token_timeout(head: bool) -> None:
    """An upstream that sends no token in time times out, with or without a head."""
    async with Upstream(silence(head=head)) as upstream:
        error = await failure(upstream, first_token_timeout_s=0.05)
    assert (error.failure_code, error.failure_retryable) == ("upstream_timeout", True)


async def test_idle_timeout() -> None:
    """An upstream that falls silent in mid-answer times out after its text was returned."""
    async with (
        Upstream(silence("Hello")) as upstream,
        OpenAISource().open(
            a_request(), a_model(upstream, idle_timeout_s=0.05), started_at=0.0
        ) as generation,
    ):
        assert (await generation.read()).records == [Record(Channel.CONTENT, b"Hello")]
        with pytest.raises(SourceFailed) as caught:
            await generation.read()
    assert caught.value.failure_code == "upstream_timeout"


async def test_cancelled_reads_do_not_hide_silence() -> None:
    """Silence adds up over reads that are cancelled before the timeout."""

    async def read_in_small_bites(generation: OpenAIGeneration) -> None:
        for _ in range(1000):
            with suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await generation.read()

    async with (
        Upstream(silence("Hello")) as upstream,
        OpenAISource().open(a_request(), a_model(upstream, idle_timeout_s=0.1), started_at=0.0) as generation,
    ):
        await generation.read()
        with pytest.raises(SourceFailed) as caught:
            await read_in_small_bites(generation)
    assert caught.value.failure_code == "upstream_timeout"


async def test_keep_alive_comments() -> None:
    """Comments reset the idle timeout and are not tokens."""

    async def script(call: Call) -> None:
        await call.head()
        await call.event(chunk("a"))
        for _ in range(12):
            await asyncio.sleep(0.1)  # a pace, not a synchronisation: 1.2 s in all
            await call.body_part(b": keep-alive\n\n")
        await call.event(chunk("b"))
        await call.event("[DONE]")
        await call.end()

    async with Upstream(script) as upstream:
        batches, _ = await collect(upstream, idle_timeout_s=1.0)
    assert [record.payload for record in records(batches)] == [b"a", b"b"]
    assert sum(batch.tokens for batch in batches) == 2


@pytest.mark.parametrize(
    ("broken", "code", "retryable"),
    [
        ({"error": {"message": f"out of memory {KEY}", "code": 500}}, "upstream_error", True),
        ({"error": {"message": "slow down", "code": "429"}}, "upstream_rate_limited", True),
        ({"error": "broken"}, "upstream_error", True),
        ('{"choices": [{"delta": {"con', "upstream_malformed", False),
        ("[1]", "upstream_malformed", False),
        (chunk(content=5), "upstream_malformed", False),
        ({"choices": 5}, "upstream_malformed", False),
        ("x" * 1_100_000, "upstream_malformed", False),
    ],
)
async def test_failures_in_the_stream(broken: Any, code: str, retryable: bool) -> None:
    """Text that came before a failure is returned first, also when one read brought both."""

    async def script(call: Call) -> None:
        await call.head()
        await call.send(http_chunk(sse(chunk("Hello"))) + http_chunk(sse(broken)))
        await call.hold()

    async with (
        Upstream(script) as upstream,
        OpenAISource().open(a_request(), a_model(upstream), started_at=0.0) as generation,
    ):
        assert (await generation.read()).records == [Record(Channel.CONTENT, b"Hello")]
        for _ in range(2):
            with pytest.raises(SourceFailed) as caught:
                await generation.read()
            assert (caught.value.failure_code, caught.value.failure_retryable) == (code, retryable)
            assert KEY not in caught.value.message


async def test_connection_cut() -> None:
    """A reset in mid-answer is a cut, to be tried again."""
    async with (
        Upstream(reset("Hello")) as upstream,
        OpenAISource().open(a_request(), a_model(upstream), started_at=0.0) as generation,
    ):
        await generation.read()
        (await upstream.call(0)).go.set()
        with pytest.raises(SourceFailed) as caught:
            await generation.read()
    assert (caught.value.failure_code, caught.value.failure_retryable) == ("upstream_cut", True)


@pytest.mark.parametrize("terminated", [False, True])
async def test_ends_without_a_finish(terminated: bool) -> None:
    """A body that ends with neither finish reason nor [DONE] is a cut, however politely it ends."""

    async def script(call: Call) -> None:
        await call.head()
        await call.event(chunk("Hello"))
        if terminated:
            await call.end()

    async with Upstream(script) as upstream:
        assert (await failure(upstream)).failure_code == "upstream_cut"


async def test_done_without_a_finish_reason() -> None:
    """[DONE] alone is a finish: stop."""
    async with Upstream(answer("Hello", finish=None)) as upstream:
        batches, finish = await collect(upstream)
    assert (text(batches), finish) == ("Hello", Finish("stop", None))


@pytest.mark.parametrize("tail", [b"data: [DONE]", b"data: [DONE]\n", b""])
async def test_untidy_end(tail: bytes) -> None:
    """A last event without its empty line counts, and so does an end without [DONE] after a reason."""

    async def script(call: Call) -> None:
        await call.head(chunked=False)
        await call.send(sse(chunk("Hello")) + sse(chunk(finish="length")) + tail)

    async with Upstream(script) as upstream:
        batches, finish = await collect(upstream)
    assert (text(batches), finish.reason) == ("Hello", "length")


async def test_torn_last_event() -> None:
    """A body that ends inside an event is a cut, not malformed."""

    async def script(call: Call) -> None:
        await call.head()
        await call.body_part(sse(chunk("Hello")) + b'data: {"choices": [')
        await call.end()

    async with Upstream(script) as upstream:
        assert (await failure(upstream)).failure_code == "upstream_cut"


async def test_silence_after_the_finish_reason() -> None:
    """An upstream that hangs after its finish reason has still finished."""

    async def script(call: Call) -> None:
        await call.head()
        # At once, for only the silence after it is to reach the timeout.
        await call.body_part(sse(chunk("Hello")) + sse(chunk(finish="stop")) + sse(usage(1, 1)))
        await call.hold()

    async with Upstream(script) as upstream:
        _, finish = await collect(upstream, idle_timeout_s=0.05)
    assert finish.reason == "stop"
    assert finish.usage is not None


async def test_cancelled_read_loses_nothing() -> None:
    """Reads cancelled at any moment lose no text and repeat none."""
    parts = [f"<{index}>" for index in range(300)]
    got: list[bytes] = []
    async with (
        Upstream(answer(*parts)) as upstream,
        OpenAISource().open(a_request(), a_model(upstream), started_at=0.0) as generation,
    ):
        cancelled = 0
        while True:
            read = asyncio.ensure_future(generation.read())
            for _ in range(cancelled % 5):
                await asyncio.sleep(0)
            read.cancel()
            try:
                batch = await read
            except asyncio.CancelledError:
                cancelled += 1
                continue
            got += [record.payload for record in batch.records]
            if batch.finish:
                break
    assert b"".join(got).decode() == "".join(parts)
    assert cancelled > 1


async def test_leaving_hangs_up_at_once() -> None:
    """Leaving the context closes the connection: the upstream sees it while it is still writing."""
    async with Upstream(flood(1 << 30), silence("Hello")) as upstream:
        for index in range(2):
            async with OpenAISource().open(a_request(), a_model(upstream), started_at=0.0) as generation:
                await generation.read()
            call = await upstream.call(index)
            async with asyncio.timeout(30):
                await call.disconnected.wait()


async def test_cancelled_while_waiting_hangs_up() -> None:
    """A task cancelled in the middle of a read takes its connection with it."""
    async with Upstream(silence("Hello")) as upstream:
        reading = asyncio.ensure_future(collect(upstream))
        call = await upstream.call(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        async with asyncio.timeout(30):
            await call.disconnected.wait()


async def test_unread_upstream_stands_still() -> None:
    """A source that is not read holds one receive buffer, and what comes after is complete."""
    total = 4 * 1024 * 1024
    async with (
        Upstream(flood(total)) as upstream,
        OpenAISource().open(a_request(), a_model(upstream), started_at=0.0) as generation,
    ):
        got = len((await generation.read()).records[0].payload)
        call = await upstream.call(0)
        async with asyncio.timeout(30):
            await call.stalled.wait()
        # Both kernels' buffers, doubled as Linux does, and one block in the upstream's hands.
        assert call.written < 8 * RECEIVE_BUFFER_BYTES
        assert not generation._exchange._pieces
        while True:
            batch = await generation.read()
            got += sum(len(record.payload) for record in batch.records if record.channel in TEXT)
            if batch.finish:
                break
    frame = len(http_chunk(sse(chunk("flood " * 20)))) * 8
    blocks = -(-(total - len("HTTP/1.1 200 Whatever\r\n\r\n")) // frame)
    assert abs(got - blocks * 8 * 120) <= 8 * 120


async def test_tokens_are_returned_as_they_come() -> None:
    """Not gathered until the end: each one before the upstream says the next."""

    async def script(call: Call) -> None:
        await call.head()
        for _ in range(20):
            await call.event(chunk(" token"))
            await call.go.wait()
            call.go.clear()
        await call.event(chunk(finish="stop"))
        await call.end()

    async with (
        Upstream(script) as upstream,
        OpenAISource().open(a_request(), a_model(upstream), started_at=0.0) as generation,
    ):
        for _ in range(20):
            batch = await generation.read()
            assert (batch.records, batch.tokens) == ([Record(Channel.CONTENT, b" token")], 1)
            (await upstream.call(0)).go.set()
        assert (await generation.read()).finish == Finish("stop", None)


async def test_bounded_connections_and_aclose() -> None:
    """Beyond its connections a source refuses, to be tried again; closing it drops those that are open."""
    source = OpenAISource(max_connections=1)
    async with Upstream(silence("Hello")) as upstream:
        async with source.open(a_request(), a_model(upstream), started_at=0.0) as generation:
            await generation.read()
            with pytest.raises(SourceFailed) as refused:
                await collect(upstream, source=source)
            await source.aclose()
            with pytest.raises(SourceFailed) as dropped:
                await generation.read()
        await (await upstream.call(0)).disconnected.wait()
    assert (refused.value.failure_code, refused.value.failure_retryable) == ("upstream_unreachable", True)
    assert dropped.value.failure_code == "upstream_cut"


async def test_continues_a_prefix() -> None:
    """A model that continues gets the delivered text as the message to go on from."""
    prefix = Prefix("Once upon")
    async with Upstream(answer(" a time")) as upstream:
        batches, _ = await collect(upstream, prefix=prefix, continues=True)
        body = (await upstream.call(0)).json
    assert text(batches) == " a time"
    assert body["messages"][-1] == {"role": "assistant", "content": "Once upon"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_asks_for_what_is_left(name: str) -> None:
    """Of the limit, under the name that the caller used; the usage that comes back is made whole."""
    prefix = Prefix("Once upon", tokens=2)
    async with Upstream(answer(" a", " time")) as upstream:
        batches, _ = await collect(upstream, a_request(**{name: 10}), prefix=prefix, continues=True)
        body = (await upstream.call(0)).json
    assert {key: body.get(key) for key in ("max_tokens", "max_completion_tokens")} == {
        "max_tokens": None,
        "max_completion_tokens": None,
        name: 8,
    }
    # The upstream counted the two delivered tokens as prompt (3 in all), and made two.
    assert batches[-1].finish == Finish(
        "stop", {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}
    )


async def test_nothing_is_left() -> None:
    """All tokens were spent, and only the end was missing: no upstream is asked, and it is `length`."""
    async with Upstream(answer("never")) as upstream:
        batches, _ = await collect(
            upstream, a_request(max_tokens=5), prefix=Prefix("Once", tokens=5), continues=True
        )
        assert not upstream.calls
    assert [batch.finish for batch in batches] == [Finish("length")]


@pytest.mark.parametrize(
    ("prefix", "continues", "can"),
    [
        (Prefix(""), False, True),
        (Prefix("", reasoning="hm"), True, False),
        (Prefix("", extra=True), True, False),
        (Prefix("text"), False, False),
        (Prefix("text"), True, True),
        (Prefix("text", extra=True), True, True),
        (Prefix("text", reasoning="hm"), True, False),
        (Prefix("", tool_calls=True), True, False),
    ],
)
async def test_can_continue(prefix: Prefix, continues: bool, can: bool) -> None:
    """Afresh while nothing was said; after content where the model continues; never after other things."""
    async with Upstream() as upstream:
        assert OpenAISource().can_continue(prefix, a_model(upstream, continues=continues)) is can
        if can:
            await collect(upstream, prefix=prefix, continues=continues)
        else:
            with pytest.raises(SourceFailed) as caught:
                await collect(upstream, prefix=prefix, continues=continues)
            assert caught.value.failure_code == "source_cannot_continue"
            assert not upstream.calls


async def test_heads_that_are_about() -> None:
    """A 100 before the head, a body with a length, and one that ends with the connection are all fine."""
    stream = sse(chunk("Hello")) + sse(chunk(finish="stop")) + sse("[DONE]")

    async def continued(call: Call) -> None:
        await call.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        await call.head(headers={"content-length": str(len(stream))}, chunked=False)
        await call.send(stream)
        await call.hold()

    async def old(call: Call) -> None:
        await call.send(b"HTTP/1.0 200 OK\r\n\r\n" + stream)

    async with Upstream(continued, old) as upstream:
        for _ in range(2):
            batches, finish = await collect(upstream)
            assert (text(batches), finish.reason) == ("Hello", "stop")


async def test_key_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is not set, or that is no header value, is an error here and not a 401 there."""
    async with Upstream() as upstream:
        settings: dict[str, Any] = {"api_key": None, "api_key_env": "TEST_UPSTREAM_KEY"}
        missing = await failure(upstream, **settings)
        monkeypatch.setenv("TEST_UPSTREAM_KEY", "two\r\nlines: injected")
        unusable = await failure(upstream, **settings)
        monkeypatch.setenv("TEST_UPSTREAM_KEY", "good-key\n")  # as a file with a line end gives it
        await collect(upstream, **settings)
        assert (await upstream.call(0)).headers["authorization"] == "Bearer good-key"
    assert missing.failure_code == unusable.failure_code == "upstream_auth"
    assert "TEST_UPSTREAM_KEY" in missing.message
    assert "injected" not in unusable.message


@pytest.mark.parametrize(
    "behaviour",
    [
        test_idle_timeout,
        test_cancelled_read_loses_nothing,
        test_leaving_hangs_up_at_once,
        test_unread_upstream_stands_still,
        test_connection_cut,
    ],
)
def test_on_uvloop(behaviour: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """What rests on the event loop's transports holds on the one that runs in production."""
    uvloop.run(behaviour())


class TestTls:
    """The same over TLS."""

    @pytest.fixture
    def authority(self) -> trustme.CA:
        return trustme.CA()

    @pytest.fixture
    def server_side(self, authority: trustme.CA) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        return context

    async def test_trusted(self, authority: trustme.CA, server_side: ssl.SSLContext) -> None:
        """A stream over TLS is the same stream."""
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
        async with Upstream(answer(*TEXT_PARTS), tls=server_side) as upstream:
            batches, _ = await collect(upstream, source=OpenAISource(tls=trust))
        assert text(batches) == "".join(TEXT_PARTS)

    async def test_unread_upstream_stands_still(
        self, authority: trustme.CA, server_side: ssl.SSLContext
    ) -> None:
        """TLS's own buffers are bounded too."""
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
        async with (
            Upstream(flood(4 * 1024 * 1024), tls=server_side) as upstream,
            OpenAISource(tls=trust).open(a_request(), a_model(upstream), started_at=0.0) as generation,
        ):
            await generation.read()
            call = await upstream.call(0)
            async with asyncio.timeout(30):
                await call.stalled.wait()
            assert call.written < 16 * RECEIVE_BUFFER_BYTES

    async def test_untrusted(self, server_side: ssl.SSLContext) -> None:
        """An upstream with a certificate that nobody vouches for is refused, for good."""
        async with Upstream(tls=server_side) as upstream:
            error = await failure(upstream)
        assert (error.failure_code, error.failure_retryable) == ("upstream_unreachable", False)

    async def test_no_handshake(self) -> None:
        """A server that accepts and says nothing runs into the connect timeout."""
        async with Upstream(silence(head=False)) as upstream:
            error = await failure(
                upstream, base_url=f"https://127.0.0.1:{upstream.port}/v1", connect_timeout_s=0.05
            )
        assert (error.failure_code, error.failure_retryable) == ("upstream_timeout", True)
