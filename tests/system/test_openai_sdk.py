"""The official `openai` SDK, unmodified: only its base_url is ours. Behind it a scripted upstream."""

import contextlib
import json
import socket
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import openai
import pytest
from openai import OpenAI

from relay import simulation
from relay.embedded import EmbeddedServer
from tests.support.stage import served
from tests.support.system import Api, Reader, Worker
from tests.support.upstream import Call, Script, Upstream, answer, chunk, paced, refuse, silence, sse
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(180)

HANG_S = 1.0  # so long wait the model `hasty` for a first token, and `restless` for the next one
ABANDON_S = 1.5
SAY = [{"role": "user", "content": "Say it."}]
ENTRY = {"token": "Hel", "logprob": -0.25, "bytes": [72, 101, 108], "top_logprobs": []}
CALLS = [
    {"index": 0, "id": "call_a", "type": "function", "function": {"name": "weather", "arguments": ""}},
    {"index": 0, "function": {"arguments": '{"city":'}},
    {"index": 1, "id": "call_b", "type": "function", "function": {"name": "time", "arguments": '{"zone"'}},
    {"index": 0, "function": {"arguments": '"Bern"}'}},
    {"index": 1, "function": {"arguments": ':"CET"}'}},
]
USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "total_tokens": 18,
    "prompt_tokens_details": {"cached_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


class House(NamedTuple):
    """A deployment: two equal nodes, a worker, and the upstream of all its models."""

    redis: EmbeddedServer
    api: Api
    other: Api
    upstream: Upstream

    def play(self, *scripts: Script) -> None:
        """What the upstream does with the requests from here on."""
        self.upstream.calls.clear()
        self.upstream.scripts = scripts


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Models `m`, with all patience, `hasty` and `restless`, with little of a kind; and `simulated`."""
    with served(answer("never asked")) as upstream, EmbeddedServer() as redis:
        models = tmp_path_factory.mktemp("models") / "models.toml"
        address = f'source = "openai"\nbase_url = "{upstream.base_url}"\n'
        models.write_text(
            f'[models.m]\n{address}[models.simulated]\nsource = "simulated"\n'
            f"[models.hasty]\n{address}first_token_timeout_s = {HANG_S}\n"
            f"[models.restless]\n{address}idle_timeout_s = {HANG_S}\n"
        )
        settings: dict[str, Any] = {"models_file": models, "abandon_after_s": ABANDON_S}
        with (
            Api(redis.url, **settings) as api,
            Api(redis.url, **settings) as other,
            Worker(redis.url, **settings),
        ):
            yield House(redis, api, other, upstream)


@contextlib.contextmanager
def sdk(api: Api, **more: Any) -> Iterator[OpenAI]:
    """The SDK, pointed at a node."""
    given = {"api_key": "none-needed", "max_retries": 0, "timeout": 60, **more}
    with OpenAI(base_url=f"http://127.0.0.1:{api.port}/v1", **given) as client:
        yield client


@pytest.fixture
def client(house: House) -> Iterator[OpenAI]:
    """The SDK at the first node."""
    with sdk(house.api) as client:
        yield client


def rich(*, tools: bool = True) -> Script:
    """An answer with everything in it."""
    first = chunk("Hel")
    first["choices"][0]["logprobs"] = {"content": [ENTRY], "refusal": None}
    parts = [
        chunk(role="assistant", content=""),
        chunk(reasoning_content="Let me "),
        chunk(reasoning_content="think."),
        first,
        chunk("lo 世🌊"),
        *([chunk(tool_calls=[call]) for call in CALLS] if tools else ()),
        chunk(finish="tool_calls" if tools else "stop"),
        {**chunk(), "choices": [], "usage": USAGE},
    ]
    return answer(
        *({**part, "system_fingerprint": "fp_7", "service_tier": "flex"} for part in parts), finish=None
    )


def recent(api: Api) -> str:
    """The id of the response that was made last; "" before the first."""
    data = api.call("GET", "/v1/streams").json["data"]
    return str(data[0]["id"]) if data else ""


# --- chat completions


def test_a_streamed_completion_holds_everything(house: House, client: OpenAI) -> None:
    """Text, reasoning, log probabilities, tool calls in parallel, usage with its details, the fingerprint."""
    house.play(rich())
    stream = client.chat.completions.create(
        model="m", messages=SAY, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert stream.response.headers["relay-stream"] == recent(house.api)
    *parts, usage = chunks
    assert usage.choices == []
    assert usage.usage is not None
    assert usage.usage.model_dump(exclude_none=True) == USAGE
    deltas = [part.choices[0].delta for part in parts]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == "Hello 世🌊"
    assert (
        "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas) == "Let me think."
    )
    logprobs = [part.choices[0].logprobs for part in parts if part.choices[0].logprobs]
    assert [one.model_dump(exclude_none=True) for one in logprobs] == [{"content": [ENTRY]}]
    calls: dict[int, list[str]] = {}
    for delta in deltas:
        for call in delta.tool_calls or ():
            assert call.function is not None
            calls.setdefault(call.index, []).append(
                f"{call.function.name or ''}{call.function.arguments or ''}"
            )
    assert {index: "".join(pieces) for index, pieces in calls.items()} == {
        0: 'weather{"city":"Bern"}',
        1: 'time{"zone":"CET"}',
    }
    assert [part.choices[0].finish_reason for part in parts if part.choices[0].finish_reason] == [
        "tool_calls"
    ]
    assert {part.model for part in chunks} == {"m"}
    assert {(part.system_fingerprint, part.service_tier) for part in parts[1:]} == {("fp_7", "flex")}


def test_a_whole_completion_is_the_same(house: House, client: OpenAI) -> None:
    """As the SDK would have it from the upstream itself."""
    house.play(rich())
    made = client.chat.completions.create(model="m", messages=SAY)
    (choice,) = made.choices
    message = choice.message
    assert (choice.finish_reason, message.content) == ("tool_calls", "Hello 世🌊")
    assert (message.model_extra or {})["reasoning_content"] == "Let me think."
    assert choice.logprobs is not None
    assert choice.logprobs.model_dump(exclude_none=True) == {"content": [ENTRY]}
    functions = [call.to_dict() for call in message.tool_calls or ()]
    assert functions == [
        {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}},
        {"id": "call_b", "type": "function", "function": {"name": "time", "arguments": '{"zone":"CET"}'}},
    ]
    assert made.usage is not None
    assert made.usage.model_dump(exclude_none=True) == USAGE
    assert (made.system_fingerprint, made.service_tier) == ("fp_7", "flex")


def test_the_stream_helper_ends_with_the_same_completion(house: House, client: OpenAI) -> None:
    """What the SDK assembles from the chunks is what it gets whole."""
    house.play(rich(tools=False))
    with client.chat.completions.stream(model="m", messages=SAY) as events:
        assert "".join(event.delta for event in events if event.type == "content.delta") == "Hello 世🌊"
        final = events.get_final_completion()
    whole = client.chat.completions.create(model="m", messages=SAY)
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
    assert final.choices[0].logprobs == whole.choices[0].logprobs


@pytest.mark.parametrize("stream", [True, False])
def test_a_refusal_arrives(house: House, client: OpenAI, *, stream: bool) -> None:
    """In the field of its own."""
    house.play(answer(chunk(refusal="I can"), chunk(refusal="not."), finish="stop"))
    if stream:
        parts = client.chat.completions.create(model="m", messages=SAY, stream=True)
        assert "".join(part.choices[0].delta.refusal or "" for part in parts) == "I cannot."
    else:
        message = client.chat.completions.create(model="m", messages=SAY).choices[0].message
        assert (message.refusal, message.content) == ("I cannot.", None)


def test_the_old_function_call_arrives(house: House, client: OpenAI) -> None:
    """Deprecated, and still what some send."""
    pieces = [{"name": "f", "arguments": '{"a"'}, {"arguments": ":1}"}]
    house.play(answer(*(chunk(function_call=piece) for piece in pieces), finish="function_call"))
    functions: Any = [{"name": "f", "parameters": {"type": "object", "properties": {}}}]
    made = client.chat.completions.create(model="m", messages=SAY, functions=functions)
    assert made.choices[0].finish_reason == "function_call"
    called = made.choices[0].message.function_call
    assert called is not None
    assert (called.name, called.arguments) == ("f", '{"a":1}')
    assert house.upstream.calls[0].json["functions"] == functions


def test_a_request_reaches_the_upstream_as_it_was(house: House, client: OpenAI) -> None:
    """What we know and what we do not, messages with parts and tool results included."""
    house.play(answer("ok"))
    messages: Any = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}],
        },
        {"role": "assistant", "content": None, "tool_calls": [{**CALLS[0], "index": None}]},
        {"role": "tool", "tool_call_id": "call_a", "content": "5°"},
    ]
    given: dict[str, Any] = {
        "temperature": 0.5, "top_p": 1, "seed": 3, "stop": ["x"], "logprobs": True, "top_logprobs": 2,
        "max_completion_tokens": 50, "presence_penalty": 1, "logit_bias": {"5": -100}, "user": "u",
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "tool_choice": "auto",
        "parallel_tool_calls": True, "response_format": {"type": "json_object"}, "service_tier": "flex",
        "reasoning_effort": "low", "store": False, "prediction": {"type": "content", "content": "x"},
    }  # fmt: skip
    client.chat.completions.create(model="m", messages=messages, **given, extra_body={"guided_regex": "a+"})
    sent = house.upstream.calls[0].json
    assert sent.pop("messages") == messages
    assert sent.pop("stream_options") == {"include_usage": True}
    assert sent == {**given, "model": "m", "stream": True, "guided_regex": "a+"}


def test_models(client: OpenAI) -> None:
    """Listed, retrieved, and not found as the SDK has it."""
    assert [model.id for model in client.models.list()] == ["hasty", "m", "restless", "simulated"]
    assert client.models.retrieve("m").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-none")


def test_a_cut_stream_goes_on_at_the_native_endpoint(house: House, client: OpenAI) -> None:
    """`Relay-Stream` names it; the other node has the whole."""
    body = {"simulation": {"tokens": 60, "tokens_per_second": 100, "seed": 9}}
    stream = client.chat.completions.create(model="simulated", messages=SAY, stream=True, extra_body=body)
    for part in stream:
        if part.choices[0].delta.content:
            break
    stream.close()
    with Reader(house.other.port, f"/v1/streams/{stream.response.headers['relay-stream']}/events") as reader:
        reader.run()
    assert reader.exact() == ""
    assert reader.text == simulation.text(9, 0, 60)


# --- errors


def raw(*events: bytes) -> Script:
    """An event stream of these bytes."""

    async def script(call: Call) -> None:
        await call.head()
        for event in events:
            await call.body_part(event)
        await call.end()

    return script


REJECTION = {"message": "too long", "type": "invalid_request_error", "param": "messages", "code": "too_long"}
LIMITED = refuse(429, {}, {"retry-after": "7"})
FAILURES: list[Any] = [
    (refuse(400, {"error": REJECTION}), openai.BadRequestError, 400, "too_long", "upstream_rejected"),
    (refuse(422, {"detail": "no"}), openai.UnprocessableEntityError, 422, None, "upstream_rejected"),
    (refuse(401, {"error": "key"}), openai.AuthenticationError, 401, "upstream_auth", "upstream_auth"),
    (refuse(404, {"error": "?"}), openai.NotFoundError, 404, "upstream_model", "upstream_model"),
    (LIMITED, openai.RateLimitError, 429, "upstream_rate_limited", "upstream_rate_limited"),
    (refuse(500, "broken"), openai.InternalServerError, 502, "upstream_error", "upstream_error"),
    (raw(b"data: {no json\n\n"), openai.InternalServerError, 502, "upstream_malformed", "upstream_malformed"),
    (raw(b": hello\n\n"), openai.InternalServerError, 502, "upstream_cut", "upstream_cut"),
    (silence(), openai.InternalServerError, 504, "upstream_timeout", "upstream_timeout"),
    (silence(head=False), openai.InternalServerError, 504, "upstream_timeout", "upstream_timeout"),
]  # fmt: skip
NAMES = ["400", "422", "401", "404", "429", "500", "malformed", "empty", "hang", "no-head"]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize(("script", "kind", "status", "code", "native"), FAILURES, ids=NAMES)
def test_failures_before_the_first_token(
    house: House,
    client: OpenAI,
    script: Script,
    kind: type[openai.APIStatusError],
    status: int,
    code: str | None,
    native: str,
    *,
    stream: bool,
) -> None:
    """Each is the SDK's matching exception, and a typed error event for who reads natively."""
    house.play(script)
    model = "hasty" if code == "upstream_timeout" else "m"
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model=model, messages=SAY, stream=stream)
    error = caught.value
    assert type(error) is kind
    assert (error.status_code, error.code) == (status, code)
    assert "Traceback" not in error.message
    if status == 429:
        assert error.response.headers["retry-after"] == "7"
    if status == 400:
        assert (error.param, error.type) == ("messages", "invalid_request_error")
        assert error.body == REJECTION
    with Reader(house.other.port, f"/v1/streams/{error.response.headers['relay-stream']}/events") as reader:
        terminal = reader.run().terminal
    assert terminal is not None
    assert (terminal.name, terminal.data["code"]) == ("error", native)


TEXT = [sse(chunk("Hello")), sse(chunk(" there"))]
LATE: list[Any] = [
    (raw(*TEXT, b"data: {no json\n\n"), "upstream_malformed"),
    (raw(*TEXT), "upstream_cut"),
    (silence("Hello", " there"), "upstream_timeout"),
    (raw(*TEXT, sse({"error": {"message": "out of memory", "code": 500}})), "upstream_error"),
]


@pytest.mark.parametrize(("script", "code"), LATE, ids=["malformed", "no-finish", "hang", "error"])
def test_failures_after_some_text(house: House, client: OpenAI, script: Script, code: str) -> None:
    """The text comes, then the SDK raises; whole, it is the error alone. The text stays to be read."""
    house.play(script)
    said: list[str] = []
    model = "restless" if code == "upstream_timeout" else "m"
    parts = client.chat.completions.create(model=model, messages=SAY, stream=True)
    with pytest.raises(openai.APIError) as caught:
        said.extend(part.choices[0].delta.content or "" for part in parts)
    assert "".join(said) == "Hello there"
    assert caught.value.code == code
    assert house.other.call("GET", f"/v1/streams/{recent(house.api)}/text").body == b"Hello there"
    with pytest.raises(openai.InternalServerError) as caught_whole:
        client.chat.completions.create(model=model, messages=SAY)
    assert caught_whole.value.code == code


@pytest.mark.parametrize(
    ("given", "param"),
    [({"n": 2}, "n"), ({"temperature": 9}, "temperature"), ({"modalities": ["text", "audio"]}, "modalities")],
)
def test_what_is_not_possible_is_a_bad_request(
    house: House, client: OpenAI, given: dict[str, Any], param: str
) -> None:
    """Refused by name, before the upstream is asked."""
    house.play(answer("never"))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="m", messages=SAY, **given)
    assert caught.value.param == param
    assert not house.upstream.calls


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    """With the code that OpenAI has for it."""
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-none", messages=SAY)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_the_sdk_retries_what_may_be_retried(house: House) -> None:
    """A limit and a failure of the upstream, each with its wait, and then the answer."""
    limited = refuse(429, {}, {"retry-after": "1"})
    house.play(limited, refuse(500, {}), answer("at last"))
    with sdk(house.api, max_retries=2) as client:
        made = client.chat.completions.create(model="m", messages=SAY)
    assert made.choices[0].message.content == "at last"
    assert len(house.upstream.calls) == 3


def test_keys(house: House) -> None:
    """Without a right one every call raises AuthenticationError; with it they are served."""
    with Api(house.redis.url, api_keys="alice:alice-secret-1") as locked:
        with sdk(locked, api_key="wrong-secret-9") as client:
            for call in (
                client.models.list,
                lambda: client.chat.completions.create(model="simulated", messages=SAY),
                lambda: client.responses.create(model="simulated", input="hi"),
                lambda: client.responses.retrieve("resp_" + "0" * 24),
                lambda: client.responses.cancel("resp_" + "0" * 24),
            ):
                with pytest.raises(openai.AuthenticationError):
                    call()
        with sdk(locked, api_key="alice-secret-1") as client:
            assert client.models.list().data


def test_shed_is_a_rate_limit(house: House) -> None:
    """An overloaded deployment is 429 with a Retry-After, and the SDK's exception for it."""
    with EmbeddedServer() as redis, Api(redis.url, max_active=2) as full, sdk(full) as client:

        def refused() -> openai.RateLimitError | None:
            try:
                client.responses.create(model="simulated", input="hi", background=True)
            except openai.RateLimitError as error:
                return error
            return None

        error = wait_until(refused, "it is full")
        assert error is not None
        assert int(error.response.headers["retry-after"]) >= 1
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model="simulated", messages=SAY, stream=True)


# --- the Responses API


def test_a_whole_response_holds_everything(house: House, client: OpenAI) -> None:
    """Items for the reasoning, the message with its log probabilities, and each tool call."""
    house.play(rich())
    made = client.responses.create(model="m", input="Say it.", include=["message.output_text.logprobs"])
    assert (made.status, made.output_text) == ("completed", "Hello 世🌊")
    reasoning, message, first, second = (item.to_dict() for item in made.output)
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Let me think."}]
    assert message["content"][0]["logprobs"] == [ENTRY]  # type: ignore[index]
    assert (first["name"], first["arguments"]) == ("weather", '{"city":"Bern"}')
    assert (second["call_id"], second["arguments"]) == ("call_b", '{"zone":"CET"}')
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens_details.reasoning_tokens) == (11, 2)
    again = client.responses.retrieve(made.id)
    assert (again.output_text, again.status) == (made.output_text, "completed")


def test_the_response_stream_helper_follows_every_event(house: House, client: OpenAI) -> None:
    """It checks the order of items and parts by itself, and ends with the same response."""
    house.play(rich())
    with client.responses.stream(model="m", input="Say it.") as events:
        kinds = [event.type for event in events]
        final = events.get_final_response()
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert final.output_text == "Hello 世🌊"
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]


def test_a_background_response_resumes_on_another_node(house: House, client: OpenAI) -> None:
    """Cut three times, each time after some text: the rest comes from the other node, nothing twice."""
    body = {"simulation": {"tokens": 300, "tokens_per_second": 50, "seed": 5}}
    stream = client.responses.create(
        model="simulated", input="Go.", background=True, stream=True, extra_body=body
    )
    events: list[Any] = []
    cuts = 0
    with sdk(house.other) as elsewhere:
        while not events or events[-1].type != "response.completed":
            seen = len(events)
            for event in stream:
                events.append(event)
                if cuts < 3 and event.type == "response.output_text.delta" and len(events) >= seen + 3:
                    break
            stream.close()
            if events[-1].type == "response.completed":
                break
            cuts += 1
            node = (elsewhere, client)[cuts % 2]
            stream = node.responses.retrieve(
                events[0].response.id, stream=True, starting_after=events[-1].sequence_number
            )
    assert cuts == 3
    numbers = [event.sequence_number for event in events]
    assert numbers == sorted(set(numbers))
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == simulation.text(5, 0, 300) == events[-1].response.output_text


def test_after_the_last_event_there_is_nothing(house: House, client: OpenAI) -> None:
    """Who resumes at the end of a response that has ended gets an empty stream at once."""
    stream = client.responses.create(
        model="simulated",
        input="Say it.",
        background=True,
        stream=True,
        extra_body={"simulation": {"tokens": 5}},
    )
    events = list(stream)
    assert events[-1].type == "response.completed"
    with sdk(house.other, timeout=15) as elsewhere:
        last = events[-1].sequence_number
        made = events[0].response.id
        assert list(elsewhere.responses.retrieve(made, stream=True, starting_after=last)) == []


def test_who_resumes_has_its_headers_at_once(house: House) -> None:
    """Also where nothing follows yet: a client waits for them no longer than its own timeout."""
    house.play(silence("Hel"))
    with sdk(house.api, timeout=15) as client:
        stream = client.responses.create(model="m", input="Go.", background=True, stream=True)
        delta = next(event for event in stream if event.type == "response.output_text.delta")
        made = "resp_" + delta.item_id.partition("_")[2]
        client.responses.retrieve(made, stream=True, starting_after=delta.sequence_number).close()
        client.responses.cancel(made)


def test_a_background_response_is_cancelled(house: House, client: OpenAI) -> None:
    """From another node; the upstream's connection is closed."""
    house.play(paced(5000, 50))
    made = client.responses.create(model="m", input="Go.", background=True)
    assert made.status in ("queued", "in_progress")
    wait_until(lambda: client.responses.retrieve(made.id).output_text, "there is text")
    with sdk(house.other) as elsewhere:
        elsewhere.responses.cancel(made.id)
    wait_until(lambda: client.responses.retrieve(made.id).status == "cancelled", "it is cancelled")
    wait_until(house.upstream.calls[0].disconnected.is_set, "the upstream is left")


@pytest.mark.parametrize(("status", "kind"), [(400, openai.BadRequestError), (429, openai.RateLimitError)])
def test_a_response_that_cannot_begin_raises(
    house: House, client: OpenAI, status: int, kind: type[Exception]
) -> None:
    """Streamed as whole."""
    house.play(refuse(status, {"error": REJECTION}))
    for stream in (True, False):
        with pytest.raises(kind):
            client.responses.create(model="m", input="Go.", stream=stream)


@pytest.mark.parametrize(
    "given", [{"previous_response_id": "resp_1"}, {"conversation": "c"}, {"tools": [{"type": "web_search"}]}]
)
def test_what_a_relay_does_not_keep_is_refused(client: OpenAI, given: dict[str, Any]) -> None:
    """By the name of the field."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="m", input="Go.", **given)
    assert caught.value.param == next(iter(given))


# --- clients that go away


def is_cancelled(house: House, before: str) -> None:
    """The generation that began after another ends after the abandon time, its upstream's connection with it.

    A node that is late makes it when its client is gone already.
    """
    made = wait_until(lambda: (now := recent(house.api)) != before and now, "the response is made")
    wait_until(lambda: house.upstream.calls, "the upstream is asked")
    wait_until(house.upstream.calls[0].disconnected.is_set, "the upstream is left")
    told = house.other.wait_status(made, "cancelled")
    assert told["finish_reason"] == "cancelled"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_gone_before_the_first_token(house: House, *, stream: bool) -> None:
    """It gave up waiting: nobody else wants the answer."""
    house.play(silence())
    before = recent(house.api)
    with sdk(house.api, timeout=1.0) as client, pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="m", messages=SAY, stream=stream)
    is_cancelled(house, before)


def test_a_client_gone_while_it_waits_for_the_whole(house: House) -> None:
    """The text that was made meanwhile changes nothing."""
    house.play(paced(5000, 50))
    before = recent(house.api)
    with sdk(house.api, timeout=1.5) as client, pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="m", messages=SAY)
    is_cancelled(house, before)


def test_a_client_that_only_closes_its_side_is_answered(house: House) -> None:
    """An interim answer tells it from one that is gone; the final one follows."""
    house.play(paced(120, 20))  # six seconds, of which the interim answer takes one
    with socket.create_connection(("127.0.0.1", house.api.port), timeout=60) as connection:
        connection.sendall(request(stream=False))
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answer:
            interim, final = (line.split()[1] for line in answer if line.startswith(b"HTTP/1.1 "))
    assert (interim, final) == (b"100", b"200")


def request(*, stream: bool) -> bytes:
    """A chat completion request, on the wire."""
    body = json.dumps({"model": "m", "messages": SAY, "stream": stream}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def test_a_client_gone_in_mid_frame(house: House) -> None:
    """It reads half of a frame and resets the connection."""
    house.play(paced(5000, 50))
    before = recent(house.api)
    with socket.create_connection(("127.0.0.1", house.api.port), timeout=60) as connection:
        connection.sendall(request(stream=True))
        seen = b""
        while b'"content":" tok' not in seen:
            piece = connection.recv(7)
            assert piece, seen
            seen += piece
        assert not seen.endswith(b"\n\n")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    is_cancelled(house, before)
