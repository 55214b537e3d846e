"""From chunks to records, byte by byte and shape by shape."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import SourceFailed
from relay.events import MAX_PAYLOAD, TEXT, Channel, Record
from workers.sources.openai_chunks import MAX_TOOL_CALLS, Chunks


def sse(data: Any, *, ascii_only: bool = False) -> bytes:
    """One event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=ascii_only)
    return f"data: {text}\n\n".encode()


def delta(finish: str | None = None, logprobs: Any = None, **fields: Any) -> dict[str, Any]:
    """A chunk with one choice."""
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish, "logprobs": logprobs}]}


def call(index: int | None, arguments: str | None = None, **fields: Any) -> dict[str, Any]:
    """A chunk with a piece of one tool call."""
    name = fields.pop("name", None)
    function = {"name": name, "arguments": arguments}
    given = {} if index is None else {"index": index}
    return delta(tool_calls=[{**given, **fields, "function": function}])


def records(*data: Any) -> list[Record]:
    """What these events make, fed at once."""
    chunks = Chunks()
    chunks.feed(b"".join(map(sse, data)))
    chunks.end()
    return chunks.take()[0]


def failure(*data: Any) -> SourceFailed:
    """What these events fail with."""
    with pytest.raises(SourceFailed) as caught:
        records(*data)
    return caught.value


def text_of(found: list[Record]) -> dict[tuple[Channel, bytes], str]:
    """All text by channel and tool call."""
    whole: dict[tuple[Channel, bytes], bytes] = {}
    for channel, payload in found:
        if channel in TEXT:
            mark = payload[:1] if channel is Channel.TOOL_ARGUMENTS else b""
            whole[channel, mark] = whole.get((channel, mark), b"") + payload[len(mark) :]
    return {key: text.decode() for key, text in whole.items()}


unicode_text = st.text(max_size=12)
deltas = st.one_of(
    unicode_text.map(lambda text: delta(content=text)),
    unicode_text.map(lambda text: delta(reasoning_content=text)),
    st.tuples(st.integers(0, 2), unicode_text).map(lambda pair: call(pair[0], pair[1])),
    st.just(delta(refusal="no")),
)


@given(st.lists(deltas, max_size=20), st.data())
def test_any_cut(chunks: list[dict[str, Any]], data: st.DataObject) -> None:
    """However the stream is cut, and whenever it is taken, every channel's text is the same."""
    stream = b"".join(map(sse, chunks))
    expected = records(*chunks)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    state, found = Chunks(), []
    for start, stop in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        state.feed(stream[start:stop])
        found += state.take()[0]
    assert text_of(found) == text_of(expected)
    assert [r for r in found if r.channel not in TEXT] == [r for r in expected if r.channel not in TEXT]


@given(st.text(max_size=30), st.data())
def test_halves_of_a_character(text: str, data: st.DataObject) -> None:
    """Characters that an upstream cuts in the middle of their UTF-16 come out whole."""
    units = text.encode("utf-16-le")
    pairs = [units[at : at + 2].decode("utf-16-le", "surrogatepass") for at in range(0, len(units), 2)]
    state, found = Chunks(), []
    for pair in pairs:
        state.feed(sse(delta(content=pair), ascii_only=True))
        if data.draw(st.booleans()):
            found += state.take()[0]
    state.end()
    found += state.take()[0]
    assert b"".join(record.payload for record in found).decode() == text


def test_half_that_never_comes() -> None:
    """Half a character at the end is shown as one that was lost, on its own channel."""
    chunks = Chunks()
    chunks.feed(
        sse(delta(content="a\ud83c"), ascii_only=True)
        + sse(delta(reasoning_content="b\udf0a"), ascii_only=True)
    )
    assert chunks.take()[0] == [Record(Channel.CONTENT, b"a"), Record(Channel.REASONING, "b\ufffd".encode())]
    chunks.end()
    assert chunks.take()[0] == [Record(Channel.CONTENT, "\ufffd".encode())]


def test_long_text_is_split() -> None:
    """Text over a record's size becomes several, without tearing a character."""
    found = records(delta(content="é" * 10_000), call(7, "世" * 5000))
    assert all(len(record.payload) <= MAX_PAYLOAD for record in found)
    assert text_of(found) == {
        (Channel.CONTENT, b""): "é" * 10_000,
        (Channel.TOOL_ARGUMENTS, b"\x07"): "世" * 5000,
    }


def test_tokens_are_chunks_with_text() -> None:
    """Chunks that bring no text are not counted as tokens."""
    chunks = Chunks()
    for data in (
        delta(role="assistant", content=""),
        delta(content="a"),
        delta(content="b"),
        delta("stop"),
        "",
    ):
        chunks.feed(sse(data))
    chunks.feed(b": comment\n\ndata: [DONE]\n\n")
    assert chunks.take() == ([Record(Channel.CONTENT, b"ab")], 2)
    assert chunks.take() == ([], 0)
    assert (chunks.done, chunks.finish_reason) == (True, "stop")


def test_nothing_after_done() -> None:
    """What follows [DONE] is not looked at."""
    assert records(delta(content="a"), "[DONE]", "not json") == [Record(Channel.CONTENT, b"a")]


def test_other_choices_are_ignored() -> None:
    """One choice is asked for: another's text is not mixed in."""
    other = {"choices": [{"index": 1, "delta": {"content": "x"}}, {"index": 0, "delta": {"content": "a"}}]}
    assert records(other, {"choices": []}, {"choices": None}, {}) == [Record(Channel.CONTENT, b"a")]


def test_usage() -> None:
    """The last usage told is kept."""
    chunks = Chunks()
    chunks.feed(sse({**delta(content="a"), "usage": {"completion_tokens": 1}}))
    chunks.feed(sse({"choices": [], "usage": {"completion_tokens": 2}}) + sse({"choices": [], "usage": None}))
    assert chunks.usage == {"completion_tokens": 2}


def test_tool_calls() -> None:
    """A call is opened once, with its id and name; arguments of interleaved calls stay apart."""
    found = records(
        call(0, "", id="a", name="f"),
        call(0, '{"x"'),
        call(1, "[", id="b", name="g"),
        call(0, ":1}", id="a"),
        call(1, "]"),
    )
    assert found == [
        Record(Channel.TOOL_CALL, b'{"index":0,"id":"a","name":"f"}'),
        Record(Channel.TOOL_ARGUMENTS, b'\x00{"x"'),
        Record(Channel.TOOL_CALL, b'{"index":1,"id":"b","name":"g"}'),
        Record(Channel.TOOL_ARGUMENTS, b"\x01["),
        Record(Channel.TOOL_ARGUMENTS, b"\x00:1}"),
        Record(Channel.TOOL_ARGUMENTS, b"\x01]"),
    ]


def test_careless_tool_calls() -> None:
    """A new id under an old index is a new call, and a call without id or index gets them."""
    found = records(call(0, "{}", id="a", name="f"), call(0, "[]", id="b", name="g"), call(None, "!"))
    assert [record.payload for record in found] == [
        b'{"index":0,"id":"a","name":"f"}', b"\x00{}", b'{"index":1,"id":"b","name":"g"}', b"\x01[]!",
    ]  # fmt: skip
    assert records(call(None, "{}", name="f"))[0].payload == b'{"index":0,"id":"call_0","name":"f"}'


@pytest.mark.parametrize("index", [-1, MAX_TOOL_CALLS, True, 1.0, "0", None])
def test_tool_index_is_a_byte(index: Any) -> None:
    """An index that does not fit the journal's byte is malformed."""
    data = delta(tool_calls=[{"index": index, "id": "a", "function": {"name": "f"}}])
    assert failure(data).failure_code == "upstream_malformed"


def test_too_many_tool_calls() -> None:
    """More calls than the journal's byte can tell apart are malformed."""
    calls = [call(0, "{}", id=f"id-{number}", name="f") for number in range(MAX_TOOL_CALLS + 1)]
    assert len(records(*calls[:-1])) == 2 * MAX_TOOL_CALLS
    assert failure(*calls).failure_code == "upstream_malformed"


def test_refusal_and_logprobs() -> None:
    """Refusals and logprobs pass as extra records, split where they are too large for one."""
    entries = [{"token": "x" * 100, "logprob": -0.5, "bytes": [1] * 100}] * 100
    found = records(
        delta(refusal="No " * 2000), delta(content="a", logprobs={"content": entries, "refusal": None})
    )
    extra = [json.loads(record.payload) for record in found if record.channel is Channel.EXTRA]
    assert all(len(record.payload) <= MAX_PAYLOAD for record in found)
    assert "".join(item["text"] for item in extra if item["channel"] == "refusal") == "No " * 2000
    logprobs = [item["logprobs"] for item in extra if item["channel"] == "logprobs"]
    assert [entry for item in logprobs for entry in item["content"]] == entries
    assert all(item.get("refusal") is None for item in logprobs)


@pytest.mark.parametrize(
    "data",
    [
        "{",
        "null",
        "[]",
        "5",
        '"text"',
        "NaN",
        "[" * 100_000,
        {"choices": 5},
        {"choices": [5]},
        {"choices": {"0": {}}},
        {"choices": [{"index": 0, "delta": "x"}]},
        delta(content=["x"]),
        delta(content={"text": "x"}),
        delta(reasoning=5),
        delta(refusal=5),
        delta(finish=5),  # type: ignore[arg-type]
        delta(tool_calls=5),
        delta(tool_calls=[5]),
        delta(tool_calls=[{"index": 0, "function": "f"}]),
        delta(tool_calls=[{"index": 0, "id": 5, "function": {"name": "f"}}]),
        delta(tool_calls=[{"index": 0, "id": "a", "function": {"name": 5}}]),
        delta(tool_calls=[{"index": 0, "id": "a", "function": {"name": "f", "arguments": {"x": 1}}}]),
        call(0, id="a", name="f" * MAX_PAYLOAD),
        delta(logprobs="x" * MAX_PAYLOAD),
        delta(logprobs={"content": ["x" * MAX_PAYLOAD]}),
        {"choices": [], "usage": 5},
        {"choices": [], "usage": {"x": "y" * 5000}},
    ],
    ids=lambda value: str(value)[:40],
)
def test_malformed(data: Any) -> None:
    """Anything but the shapes of the API is malformed, after the text that came before."""
    chunks = Chunks()
    with pytest.raises(SourceFailed) as caught:
        chunks.feed(sse(delta(content="before")) + sse(data))
    assert caught.value.failure_code == "upstream_malformed"
    assert chunks.take()[0][0] == Record(Channel.CONTENT, b"before")


def test_error_event() -> None:
    """An event of type error is an error, whatever its data looks like."""
    for data in (b'{"message": "boom"}', b'{"error": {"message": "boom"}}', b"boom"):
        with pytest.raises(SourceFailed, match="boom") as caught:
            Chunks().feed(b"event: error\ndata: " + data + b"\n\n")
        assert caught.value.failure_code == "upstream_error"


def more_of(found: list[Record]) -> list[dict[str, Any]]:
    """What passed beside the text."""
    data = [json.loads(payload) for channel, payload in found if channel is Channel.EXTRA]
    return [item for item in data if item["channel"] == "more"]


def test_what_every_chunk_repeats_is_told_once_and_first() -> None:
    """The fingerprint, the tier and the name of the reasoning lead; noise and what is known is left out."""
    about = {"system_fingerprint": "fp_1", "service_tier": "default", "obfuscation": "x", "provider": None}
    found = records(
        {**delta(role="assistant", content=""), **about},
        {**delta(reasoning="hm"), **about},
        {**delta(content="a"), **about},
        {**delta(content="b", finish="stop"), **about, "system_fingerprint": "fp_2"},
    )
    first, *_ = found
    assert more_of([first]) == [
        {
            "channel": "more",
            "chunk": {"system_fingerprint": "fp_2", "service_tier": "default"},
            "reasoning": "reasoning",
        }
    ]
    assert len(more_of(found)) == 1
    assert text_of(found) == {(Channel.REASONING, b""): "hm", (Channel.CONTENT, b""): "ab"}


def test_nothing_but_text_makes_a_first_record() -> None:
    """What a chunk says beside text waits for text, or for the end."""
    chunks = Chunks()
    chunks.feed(sse({**delta(role="assistant"), "system_fingerprint": "fp_1"}))
    assert chunks.take()[0] == []
    chunks.feed(sse(delta(content="a")))
    assert [channel for channel, _ in chunks.take()[0]] == [Channel.EXTRA, Channel.CONTENT]
    chunks.feed(sse({**delta(finish="stop"), "timings": {"predicted_n": 5}}))
    assert chunks.take()[0] == []
    chunks.end()
    assert more_of(chunks.take()[0]) == [{"channel": "more", "chunk": {"timings": {"predicted_n": 5}}}]


def test_unknown_fields_of_choices_and_deltas_pass_in_order() -> None:
    """Annotations and the old function call stand where they came; token ids of a choice are pieces."""
    one, two = delta(content="a"), delta(content="b")
    one["choices"][0] |= {"token_ids": [5], "stop_reason": None}
    two["choices"][0] |= {"token_ids": [5], "stop_reason": 7}
    found = records(one, delta(function_call={"name": "f", "arguments": "{}"}, annotations=[]), two)
    assert more_of(found) == [
        {"channel": "more", "choice": {"token_ids": [5, 5], "stop_reason": 7}},
        {"channel": "more", "delta": {"function_call": {"name": "f", "arguments": "{}"}}},
    ]
    assert [channel for channel, _ in found][1:] == [Channel.CONTENT, Channel.EXTRA, Channel.CONTENT]


@pytest.mark.parametrize("value", ["x" * MAX_PAYLOAD, [{"a": "y"}] * 5000, "\ud800"], ids=lambda _: "")
def test_what_no_record_holds_is_named(value: Any) -> None:
    """A field beside the answer is named as left out; one in the answer is an error."""
    chunks = Chunks()
    chunks.feed(sse({**delta(content="a"), "citations": value, "tier": 1}, ascii_only=True))
    chunks.end()
    told = {"channel": "more", "chunk": {"tier": 1}, "too_large": ["citations"]}
    assert more_of(chunks.take()[0]) == [told]
    with pytest.raises(SourceFailed) as caught:
        Chunks().feed(sse(delta(function_call={"arguments": value}), ascii_only=True))
    assert caught.value.failure_code == "upstream_malformed"


def test_both_lists_of_logprobs_are_split() -> None:
    """Neither is doubled."""
    lists = {
        name: [{"token": f"{name}{n}", "logprob": -1.0} for n in range(500)]
        for name in ("content", "refusal")
    }
    found = [json.loads(payload)["logprobs"] for _, payload in records(delta(logprobs=lists))]
    for name, entries in lists.items():
        assert [entry for item in found for entry in item.get(name, ())] == entries
