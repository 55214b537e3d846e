"""Records in the form of chat completions: every channel, streamed and whole."""

import json
from typing import Any

import pytest

from api.openai.chat import ChatAnswer, ChatFrames, completion_id, finish_reason
from api.openai.more import accumulate
from relay.events import Channel, Record, content, event

ID = "rs_0123456789abcdef01234567"
CALL = {"index": 0, "id": "call_a", "name": "weather"}
ENTRY = {"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}
USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
ALL = [
    event(Channel.START, {"id": ID, "model": "m", "created_at": 1.5}),
    Record(Channel.REASONING, b"hmm"),
    content("Hi"),
    event(Channel.EXTRA, {"channel": "logprobs", "logprobs": {"content": [ENTRY]}}),
    event(Channel.NOTICE, {"kind": "pacing", "level": 2, "reason": "x"}),
    content(' "世🌊"\n'),
    event(Channel.TOOL_CALL, CALL),
    Record(Channel.TOOL_ARGUMENTS, b'\0{"city":'),
    event(Channel.TOOL_CALL, {"index": 1, "id": "call_b", "name": "time"}),
    Record(Channel.TOOL_ARGUMENTS, b"\x01{}"),
    Record(Channel.TOOL_ARGUMENTS, b'\0"Bern"}'),
    event(Channel.EXTRA, {"channel": "refusal", "text": "no"}),
    event(Channel.DONE, {"finish_reason": "tool_calls", "text_bytes": 1, "sha256": "", "usage": USAGE}),
]


def streamed(records: list[Record], *, include_usage: bool = False) -> list[Any]:
    """The data of every event of a stream; `[DONE]` as it is."""
    frames = ChatFrames(ID, "m", 1.5, include_usage=include_usage)
    stream = b"".join(frames.frame(record, 0, 1) for record in records)
    events = stream.decode().split("\n\n")
    assert events.pop() == ""
    data = [one.removeprefix("data: ") for one in events]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def gathered(records: list[Record]) -> ChatAnswer:
    """The answer made of all of them."""
    answer = ChatAnswer(ID, "m", 1.5)
    for record in records:
        assert not answer.is_over
        answer.add(record)
    assert answer.is_over
    return answer


def test_every_channel_has_its_delta() -> None:
    """In order, each in a chunk of the same head, and the last one says why it ended."""
    *chunks, done = streamed(ALL)
    assert done == "[DONE]"
    for chunk in chunks:
        assert (chunk["id"], chunk["object"]) == (completion_id(ID), "chat.completion.chunk")
        assert (chunk["created"], chunk["model"]) == (1, "m")
        assert "usage" not in chunk
        assert [choice["index"] for choice in chunk["choices"]] == [0]
    function = {"type": "function"}
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hmm"},
        {"content": "Hi"},
        {},
        {"content": ' "世🌊"\n'},
        {
            "tool_calls": [
                {"index": 0, "id": "call_a", **function, "function": {"name": "weather", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city":'}}]},
        {
            "tool_calls": [
                {"index": 1, "id": "call_b", **function, "function": {"name": "time", "arguments": ""}}
            ]
        },
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Bern"}'}}]},
        {"refusal": "no"},
        {},
    ]
    logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [found for found in logprobs if found] == [{"content": [ENTRY]}]
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert [reason for reason in reasons if reason] == reasons[-1:] == ["tool_calls"]


def test_usage_comes_when_asked_for_in_a_chunk_of_its_own() -> None:
    """The last one, without a choice; the others say that they have none."""
    *chunks, last, done = streamed(ALL, include_usage=True)
    assert done == "[DONE]"
    assert (last["choices"], last["usage"]) == ([], USAGE)
    assert all(chunk["usage"] is None for chunk in chunks)


def test_without_usage_none_is_made_up() -> None:
    """An upstream that tells none has told none."""
    done = event(Channel.DONE, {"finish_reason": "stop", "text_bytes": 0, "sha256": "", "usage": {}})
    *_, last, end = streamed([*ALL[:3], done], include_usage=True)
    assert end == "[DONE]"
    assert last["choices"][0]["finish_reason"] == "stop"
    assert gathered([*ALL[:3], done]).body()["usage"] is None


MORE = [
    event(
        Channel.EXTRA,
        {
            "channel": "more",
            "chunk": {"system_fingerprint": "fp", "timings": {"n": 1}},
            "reasoning": "reasoning",
        },
    ),
    event(
        Channel.EXTRA,
        {"channel": "more", "choice": {"stop_reason": 7}, "delta": {"function_call": {"arguments": "{"}}},
    ),
    event(
        Channel.EXTRA,
        {"channel": "more", "delta": {"function_call": {"arguments": "}"}, "annotations": [{"a": 1}]}},
    ),
    event(Channel.EXTRA, {"channel": "more", "delta": {"annotations": [{"a": 2}]}}),
]


def test_what_else_the_upstream_said_is_in_its_place() -> None:
    """In all chunks, in one, in a choice, in a delta; and put together in the whole answer."""
    records = [ALL[0], *MORE, ALL[1], ALL[-1]]
    role, timings, call, rest, last, reasoning, end, done = streamed(records)
    assert done == "[DONE]"
    assert "system_fingerprint" not in role
    assert all(chunk["system_fingerprint"] == "fp" for chunk in (timings, call, rest, last, reasoning, end))
    assert [chunk.get("timings") for chunk in (timings, call, end)] == [{"n": 1}, None, None]
    assert call["choices"][0]["stop_reason"] == 7
    assert call["choices"][0]["delta"] == {"function_call": {"arguments": "{"}}
    assert reasoning["choices"][0]["delta"] == {"reasoning": "hmm"}
    body = gathered(records).body()
    assert (body["system_fingerprint"], body["timings"]) == ("fp", {"n": 1})
    assert body["choices"][0]["stop_reason"] == 7
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning": "hmm",
        "function_call": {"arguments": "{}"},
        "annotations": [{"a": 1}, {"a": 2}],
    }


def test_deltas_add_up_as_in_the_sdks() -> None:
    """Entries of a list with the same index are one."""
    whole: dict[str, Any] = {}
    for text in ("a", "b"):
        accumulate(whole, {"details": [{"index": 0, "type": "text", "text": text}], "n": 1})
    assert whole == {"details": [{"index": 0, "type": "text", "text": "ab"}], "n": 1}


def test_a_failure_is_an_error_object_and_no_done() -> None:
    """The SDKs raise what has the key `error`."""
    failed = event(Channel.ERROR, {"code": "upstream_cut", "message": "it broke", "retryable": True})
    last = streamed([*ALL[:3], failed])[-1]
    assert last == {
        "error": {"message": "it broke", "type": "server_error", "code": "upstream_cut", "param": None}
    }


def test_the_whole_answer_holds_what_the_stream_does() -> None:
    """Text joined per channel, calls in order, log probabilities in one list."""
    body = gathered(ALL).body()
    assert (body["id"], body["object"], body["created"]) == (completion_id(ID), "chat.completion", 1)
    (choice,) = body["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["logprobs"] == {"content": [ENTRY]}
    assert choice["message"] == {
        "role": "assistant",
        "content": 'Hi "世🌊"\n',
        "reasoning_content": "hmm",
        "refusal": "no",
        "tool_calls": [
            {
                "id": "call_a",
                "type": "function",
                "function": {"name": "weather", "arguments": '{"city":"Bern"}'},
            },
            {"id": "call_b", "type": "function", "function": {"name": "time", "arguments": "{}"}},
        ],
    }
    assert body["usage"] == USAGE


def test_an_answer_without_any_text_has_an_empty_one() -> None:
    """Null is for an answer that is only tool calls."""
    done = event(Channel.DONE, {"finish_reason": "length", "text_bytes": 0, "sha256": "", "usage": {}})
    message = gathered([ALL[0], done]).body()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "", "refusal": None}
    calls = gathered([ALL[0], ALL[6], done]).body()["choices"][0]["message"]
    assert calls["content"] is None


@pytest.mark.parametrize(
    ("reason", "told"), [("stop", "stop"), ("cancelled", "stop"), ("content_filter", "content_filter")]
)
def test_reasons_are_those_of_the_sdks(reason: str, told: str) -> None:
    """A cancelled answer stopped; what an upstream says is passed on."""
    assert finish_reason({"finish_reason": reason}) == told


def test_a_failed_answer_keeps_its_error() -> None:
    """The route answers with it."""
    failed = {"code": "upstream_auth", "message": "no", "retryable": False}
    assert gathered([ALL[0], event(Channel.ERROR, failed)]).error == failed
