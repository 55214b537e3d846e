"""Chat completion requests as ours: what is known, what is passed on, and what is refused by name."""

from typing import Any

import pytest

from api.openai.requests import parse
from relay.errors import InvalidValue

MESSAGES = [{"role": "user", "content": "hi"}]


def body(**fields: Any) -> dict[str, Any]:
    """A request with these fields."""
    return {"model": "m", "messages": MESSAGES, **fields}


def test_what_the_sdk_sends() -> None:
    """Known fields are ours, unknown ones the upstream's, null is what is not given."""
    given = parse(
        body(
            stream=True,
            stream_options={"include_usage": True},
            n=1,
            temperature=0,
            max_completion_tokens=5,
            tools=[{"type": "function", "function": {"name": "f"}}],
            stop=None,
            store=True,
            chat_template_kwargs={"enable_thinking": False},
            pace="slowest",
        )
    )
    assert (given.stream, given.include_usage) == (True, True)
    request = given.request
    assert (request.token_limit, request.pace) == (5, "slowest")
    assert request.sampling() == {
        "temperature": 0,
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "store": True,
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_it_survives_the_job() -> None:
    """What a worker reads of the job is what was asked for."""
    request = parse(body(store=True, seed=7)).request
    again = type(request).model_validate_json(request.model_dump_json(exclude_unset=True))
    assert again.sampling() == {"store": True, "seed": 7}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": True}, "stream_options"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"model": None}, "model"),
        ({"prompt": "hi"}, "prompt"),
        ({"add_generation_prompt": False}, "upstream"),
    ],
)
def test_what_is_refused_is_named(fields: dict[str, Any], param: str) -> None:
    """The SDKs show `param`."""
    with pytest.raises(InvalidValue) as caught:
        parse(body(**fields))
    assert caught.value.param == param
