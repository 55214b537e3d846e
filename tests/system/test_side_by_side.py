"""The same request to a real llama.cpp server and through relay: the same chunks, text, ends and errors."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from relay.embedded import EmbeddedServer
from tests.support.system import Answer, Api, Worker, call

pytestmark = [pytest.mark.llm, pytest.mark.timeout(120)]

ASK = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "Write a haiku about water, with an emoji."}],
    "temperature": 0,
    "seed": 1,
    "max_tokens": 24,
    "cache_prompt": False,  # so that the second time is as the first
}
SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Bern", "Köln"]}}, "required": ["city"]}
JSON = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one-token": {"max_tokens": 1},
    "stop": {"stop": ["a"]},
    "logprobs": {"logprobs": True, "top_logprobs": 2, "max_tokens": 8},
    "schema": {"response_format": JSON, "max_tokens": 40},
    "grammar": {"grammar": 'root ::= "yes 🌊" | "no"'},
    "sampled": {"temperature": 1.2, "top_k": 30, "min_p": 0.05, "repeat_penalty": 1.2, "seed": 7},
    "bias": {"logit_bias": {"28": -100}, "presence_penalty": 0.5},
}
# Its own words for the model are the path of a file; times and ids differ by nature.
VARIES = {"id", "created", "model", "timings", "obfuscation"}


@pytest.fixture(scope="module")
def ports(model: str) -> Iterator[tuple[int, int]]:
    """Where the model is, and a relay before it."""
    with (
        EmbeddedServer() as redis,
        Api(redis.url, upstream_base_url=model) as api,
        Worker(redis.url, upstream_base_url=model),
    ):
        yield int(model.removesuffix("/v1").rpartition(":")[2]), api.port


def both(ports: tuple[int, int], **more: Any) -> tuple[Answer, Answer]:
    """The answers, directly and through relay."""
    direct, relayed = (
        call(port, "POST", "/v1/chat/completions", {**ASK, **more}, within_s=60) for port in ports
    )
    return direct, relayed


def chunks_of(answer: Answer) -> list[dict[str, Any]]:
    """The chunks of a stream that ended as it should."""
    assert answer.status == 200, answer
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in answer.body.decode().split("\n") if line.startswith("data: ")]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def merged(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client that puts them together has: each kind of delta in one, and what else was told."""
    found: dict[str, Any] = {"deltas": {}, "logprobs": [], "finish": [], "told": {}, "roles": set()}
    for chunk in chunks:
        told = {name: value for name, value in chunk.items() if name not in VARIES and value is not None}
        for choice in told.pop("choices"):
            delta = choice["delta"]
            found["roles"].add(delta.pop("role", "assistant"))
            for name, text in delta.items():
                found["deltas"][name] = found["deltas"].get(name, "") + (text or "")
            found["logprobs"] += (choice.get("logprobs") or {}).get("content", [])
            found["finish"] += [choice["finish_reason"]] if choice["finish_reason"] else []
        found["told"] |= told
    return found


@pytest.mark.parametrize("more", REQUESTS.values(), ids=REQUESTS)
def test_a_stream_is_the_same(ports: tuple[int, int], more: dict[str, Any]) -> None:
    """Chunk by chunk once neighbours are merged; with the usage, the fingerprint and the probabilities."""
    direct, relayed = both(ports, stream=True, stream_options={"include_usage": True}, **more)
    left, right = chunks_of(direct), chunks_of(relayed)
    assert merged(right) == merged(left)
    assert {"timings"} <= {name for chunk in right for name in chunk}
    assert [chunk["usage"] for chunk in right if chunk.get("usage")] == [
        chunk["usage"] for chunk in left if chunk.get("usage")
    ]


@pytest.mark.parametrize("more", REQUESTS.values(), ids=REQUESTS)
def test_a_whole_answer_is_the_same(ports: tuple[int, int], more: dict[str, Any]) -> None:
    """Every field that the model's server gives, with its value; ours adds only nulls."""
    direct, relayed = both(ports, **more)
    assert direct.status == relayed.status == 200
    left, right = ({k: v for k, v in one.json.items() if k not in VARIES} for one in (direct, relayed))
    (ours,), (theirs,) = right.pop("choices"), left.pop("choices")
    assert right == left
    message = {name: value for name, value in ours.pop("message").items() if value is not None}
    assert message == theirs.pop("message")
    assert {name: value for name, value in ours.items() if value is not None} == theirs
    assert relayed.json["timings"].keys() == direct.json["timings"].keys()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(
    "more",
    [
        {"grammar": "root ::= ("},
        {"messages": [{"role": "user", "content": "hi " * 9000}]},
        {"messages": [{"role": "user", "content": 5}]},
        {"response_format": {"type": "nope"}},
    ],
    ids=["grammar", "too-long", "content", "format"],
)
def test_a_rejection_is_the_same(ports: tuple[int, int], more: dict[str, Any], *, stream: bool) -> None:
    """Status, message, type, code, and the numbers that say why."""
    direct, relayed = both(ports, stream=stream, **more)
    assert direct.status == relayed.status == 400
    assert relayed.json == {"error": {"param": None, **direct.json["error"]}}
