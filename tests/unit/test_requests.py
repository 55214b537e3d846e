"""What a caller may ask for, and every way of asking for something else."""

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from relay.requests import (
    INT64,
    MAX_DEPTH,
    MAX_MESSAGES,
    MAX_PROMPT_BYTES,
    MAX_TOKENS,
    PASSED_THROUGH,
    Simulation,
    StreamRequest,
    text_bytes,
)

HUGE = 10**400


def a_request(**fields: Any) -> StreamRequest:
    """A valid request, with some fields changed."""
    return StreamRequest.model_validate({"model": "m", "prompt": "hello", **fields})


def refused(fields: dict[str, Any]) -> dict[str, Any]:
    """The first error of a request with these fields. Fails when it is accepted."""
    with pytest.raises(ValidationError) as caught:
        a_request(**fields)
    return dict(caught.value.errors()[0])


def nested(depth: int) -> dict[str, Any]:
    """A JSON object of this depth."""
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def short(value: object) -> str:
    """The name of a case."""
    try:
        return repr(value)[:30]
    except RecursionError:
        return "too deep to show"


NOT_TEXT = (None, 5, 1.5, True, ["m"], {"m": 1})
NOT_A_COUNT = (0, -1, MAX_TOKENS + 1, HUGE, -HUGE, 1.0, 1.5, math.nan, math.inf, True, False, "5", [5], {})
NOT_A_BOOLEAN = (0, 1, "true", "yes", None, [], 1.0)
NOT_A_NUMBER = (math.nan, math.inf, -math.inf, True, False, "1", [1], {})

BAD: list[tuple[str, Any]] = [
    *(("model", value) for value in (*NOT_TEXT, "", "x" * 201)),
    *(("prompt", value) for value in (5, True, ["hello"], {}, "", "   \n", "x" * (MAX_PROMPT_BYTES + 1))),
    *(("max_tokens", value) for value in NOT_A_COUNT),
    *(("max_completion_tokens", value) for value in NOT_A_COUNT),
    *(("background", value) for value in NOT_A_BOOLEAN),
    *(("degrade", value) for value in NOT_A_BOOLEAN),
    *(("priority", value) for value in ("urgent", "", 1, True)),
    *(("pace", value) for value in ("slow", "", None, 1, True)),
    *(("window_bytes", value) for value in (0, -1, 1023, 2**24 + 1, HUGE, 2048.0, math.nan, True, "2048")),
    *(
        ("metadata", value)
        for value in (None, [], "x", {"a": 1}, {"a": None}, {"a": {"b": "c"}}, {"a": True})
    ),
    *(("metadata", value) for value in ({"k" * 65: "v"}, {"k": "v" * 513})),
    ("metadata", {str(index): "v" for index in range(17)}),
    *(("temperature", value) for value in (*NOT_A_NUMBER, -0.1, 2.1, HUGE)),
    *(("top_p", value) for value in (*NOT_A_NUMBER, -0.1, 1.1)),
    *(("min_p", value) for value in (*NOT_A_NUMBER, -0.1, 1.1)),
    *(("top_k", value) for value in (-2, 2**31, HUGE, 1.5, True, "1")),
    *(("frequency_penalty", value) for value in (*NOT_A_NUMBER, -2.1, 2.1)),
    *(("presence_penalty", value) for value in (*NOT_A_NUMBER, -2.1, 2.1)),
    *(("repetition_penalty", value) for value in (*NOT_A_NUMBER, -0.1, 1e9)),
    *(("seed", value) for value in (INT64, -INT64 - 1, HUGE, 1.5, True, "1")),
    *(("stop", value) for value in (5, True, {}, [5], [None])),
    *(("user", value) for value in (5, True, [])),
    *(("logprobs", value) for value in (1, "true")),
    *(("top_logprobs", value) for value in (-1, 21, True, 1.5)),
    *(("logit_bias", value) for value in ([], {"1": "x"}, {"1": True}, {"1": math.nan}, {"1": math.inf})),
    *(("response_format", value) for value in ("json", [], nested(MAX_DEPTH + 1))),
    *(("reasoning_effort", value) for value in (1, True)),
    *(("tools", value) for value in ({}, "x", [1], [{}] * 257, [nested(MAX_DEPTH + 1)])),
    *(("tool_choice", value) for value in (1, True, [], nested(MAX_DEPTH + 1))),
    *(("parallel_tool_calls", value) for value in (1, "true")),
    *(("simulation", value) for value in (5, True, [], "fast")),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=short)
def test_bad_value(name: str, value: Any) -> None:
    """A field with a value that it may not have is refused, and the error names the field."""
    assert refused({name: value})["loc"][0] == name


@pytest.mark.parametrize(
    "messages",
    [
        [],
        "hello",
        ["hello"],
        [{}],
        [{"content": "no role"}],
        [{"role": 5, "content": "x"}],
        [{"role": None}],
        [{"role": "user", "content": "x" * (MAX_PROMPT_BYTES + 1)}],
        [{"role": "user", "content": "é" * 1024}] * 129,
        [{"role": "user", "content": [{"type": "text", "text": "x" * (MAX_PROMPT_BYTES + 1)}]}],
        [{"role": "user", "content": nested(MAX_DEPTH + 1)}],
        [{"role": "user", "content": nested(1000)}],  # as deep as orjson reads
        [{"role": "user", "content": "\ud800"}],
        [{"role": "user", "content": "x"}] * (MAX_MESSAGES + 1),
    ],
    ids=short,
)
def test_bad_messages(messages: Any) -> None:
    """Messages that are empty, without a role, too many, too long or too deep are refused by name."""
    assert refused({"prompt": None, "messages": messages})["loc"][0] == "messages"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("tokens", value) for value in (*NOT_A_COUNT, None)),
        *(("tokens_per_second", value) for value in (*NOT_A_NUMBER, -1, -0.1, 100_001, HUGE, -HUGE, None)),
        *(("seed", value) for value in (-1, 2**53 + 1, HUGE, 1.5, math.nan, True, "1", None)),
        ("speed", 5),
    ],
    ids=short,
)
def test_bad_simulation(name: str, value: Any) -> None:
    """A simulation's numbers are bounded, of the right kind, and a misspelt one is not ignored."""
    assert refused({"simulation": {name: value}})["loc"] == ("simulation", name)


@pytest.mark.parametrize("name", ["max_token", "n", "stream", "modell", "api_key", "", "__class__"])
def test_unknown_field(name: str) -> None:
    """A field that nobody knows is refused: a misspelt limit must not be ignored."""
    error = refused({name: 1})
    assert (error["loc"], error["type"]) == ((name,), "extra_forbidden")


@pytest.mark.parametrize(
    "fields", [{"prompt": None}, {"messages": [{"role": "user", "content": "x"}]}], ids=["neither", "both"]
)
def test_one_prompt(fields: dict[str, Any]) -> None:
    """A request has a prompt or messages, and not both."""
    assert "exactly one" in refused(fields)["msg"]


@pytest.mark.parametrize("body", [None, [], "x", 5, True])
def test_not_an_object(body: Any) -> None:
    """A body that is no object is refused."""
    with pytest.raises(ValidationError):
        StreamRequest.model_validate(body)


def test_bounds_are_inclusive() -> None:
    """What is just within the bounds is accepted."""
    a_request(prompt="x" * MAX_PROMPT_BYTES, max_tokens=MAX_TOKENS, seed=INT64 - 1, window_bytes=1024)
    a_request(
        metadata={str(index): "v" * 512 for index in range(16)}, tools=[nested(MAX_DEPTH - 1)], top_k=-1
    )
    a_request(simulation={"tokens": MAX_TOKENS, "tokens_per_second": 0, "seed": 2**53})


def test_whole_numbers_are_numbers() -> None:
    """A whole number is good where a fraction is expected."""
    request = a_request(temperature=1, simulation={"tokens_per_second": 60})
    assert request.temperature == 1.0
    assert request.simulation == Simulation(tokens_per_second=60.0)


def test_what_is_accepted_can_be_stored() -> None:
    """The deepest request that is accepted survives the way to the worker and back."""
    request = a_request(tools=[nested(MAX_DEPTH - 1)], simulation={"tokens": 5})
    stored = orjson.dumps(request.model_dump(exclude_unset=True))
    assert StreamRequest.model_validate(orjson.loads(stored)) == request
    assert StreamRequest.model_validate_json(stored) == request


def test_sampling_passes_what_was_given() -> None:
    """Sampling fields are passed on as given; absent and null ones, and our own, are not."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    request = a_request(temperature=0, stop=["a"], tools=tools, top_p=None, max_tokens=5, background=True)
    assert request.sampling() == {"temperature": 0.0, "stop": ["a"], "tools": tools}


def test_sampling_names_are_fields() -> None:
    """Everything that is passed through is a field of the request."""
    assert set(PASSED_THROUGH) <= set(StreamRequest.model_fields)


def test_messages_and_limit_and_queue() -> None:
    """A prompt is one user message; the newer limit wins; background work waits in its own queue."""
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]
    assert a_request().chat_messages == [{"role": "user", "content": "hello"}]
    assert a_request(prompt=None, messages=messages).chat_messages == messages
    assert a_request().token_limit is None
    assert a_request(max_tokens=5).token_limit == 5
    assert a_request(max_tokens=5, max_completion_tokens=7).token_limit == 7
    assert a_request().queue == "interactive"
    assert a_request(background=True).queue == "background"
    assert a_request(background=True, priority="interactive").queue == "interactive"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=20,
    )
)
def test_text_bytes(value: Any) -> None:
    """The size of a JSON value's text is the sum over all its strings, keys aside."""

    def total(item: Any) -> int:
        if isinstance(item, str):
            return len(item.encode())
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        return sum(map(total, inner))

    assert text_bytes(value) == total(value)
