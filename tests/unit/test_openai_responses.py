"""The Responses API: requests as ours, and records as events that resume from any sequence number."""

import copy
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.openai.response_events import STEP, ResponseEvents, ResponseFrames
from api.openai.response_object import about, native_id, parse, response_id
from relay.errors import InvalidValue
from relay.events import Channel, Placed, Record, content, encode, event, merge
from relay.requests import StreamRequest
from tests.unit.test_openai_chat import ALL, ENTRY, ID

REQUEST = StreamRequest(model="m", prompt="hi")


def placed(records: list[Record]) -> list[Placed]:
    """Records where they lie in a journal."""
    found, end = [], 0
    for record in records:
        end += len(encode(record))
        found.append(Placed(end, record))
    return found


def fresh() -> ResponseEvents:
    """A response of which nothing is known."""
    return ResponseEvents(about(ID, "m", 1.5, REQUEST))


def events_of(items: list[Placed], state: ResponseEvents | None = None) -> list[dict[str, Any]]:
    """All events, as they were when they were sent."""
    state = state or fresh()
    return [copy.deepcopy(found) for end, record in items for found in state.take(record, end)]


def test_every_channel_has_its_items_and_they_are_closed_at_the_end() -> None:
    """The final object holds what the deltas said."""
    events = events_of(placed(ALL))
    kinds = [found["type"] for found in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    added = [found["item"]["type"] for found in events if found["type"] == "response.output_item.added"]
    assert added == ["reasoning", "message", "function_call", "function_call"]
    assert kinds.count("response.output_item.done") == 4
    reasoning, message, first, second = events[-1]["response"]["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "hmm"}]
    assert [part.get("text", part.get("refusal")) for part in message["content"]] == ['Hi "世🌊"\n', "no"]
    assert message["content"][0]["logprobs"] == [ENTRY]
    assert (first["call_id"], first["name"], first["arguments"]) == ("call_a", "weather", '{"city":"Bern"}')
    assert second["arguments"] == "{}"
    assert events[-1]["response"]["usage"]["total_tokens"] == 8
    for index, text in ((0, "hmm"), (1, 'Hi "世🌊"\nno')):
        deltas = [found["delta"] for found in events if "delta" in found and found["output_index"] == index]
        assert "".join(deltas) == text


def test_annotations_and_the_tier_have_their_place() -> None:
    """As events when they come, and in the object; nested ones become flat, as this API has them."""
    cite = {"type": "url_citation", "url_citation": {"url": "https://example.org", "start_index": 0}}
    more = {"channel": "more", "chunk": {"service_tier": "flex"}, "delta": {"annotations": [cite, 5]}}
    events = events_of(placed([*ALL[:3], event(Channel.EXTRA, more), ALL[-1]]))
    flat = {"type": "url_citation", "url": "https://example.org", "start_index": 0}
    (added,) = (found for found in events if found["type"] == "response.output_text.annotation.added")
    assert (added["annotation"], added["annotation_index"]) == (flat, 0)
    response = events[-1]["response"]
    assert response["service_tier"] == "flex"
    assert response["output"][1]["content"][0]["annotations"] == [flat]


def test_sequence_numbers_ascend() -> None:
    """Each is larger than the one before; a delta's is where its record ends."""
    items = placed(ALL)
    numbers = [found["sequence_number"] for found in events_of(items)]
    assert numbers == sorted(set(numbers))
    assert {number // STEP for number in numbers if number % STEP == 0} <= {0, *(end for end, _ in items)}


@given(st.data())
def test_it_resumes_after_any_event_however_records_were_merged(data: st.DataObject) -> None:
    """What a reader has and what it gets on return are the whole, without a gap or a repetition."""
    records = [
        ALL[0],
        *data.draw(st.lists(st.sampled_from([*ALL[1:-1], content("é"), content("x")]))),
        ALL[-1],
    ]
    items = placed(records)
    cut = data.draw(st.integers(0, len(items)))
    seen = events_of(merge(items[:cut]) + merge(items[cut:]))
    kept = seen[: data.draw(st.integers(1, len(seen)))]
    after = kept[-1]["sequence_number"]
    offset = after // STEP
    assert offset in {0, *(end for end, _ in items)}
    state = fresh()
    events_of([item for item in items if item.end <= offset], state)
    frames = ResponseFrames(state, after)
    rest = merge([item for item in items if item.end > offset])
    sent = b"".join(frames.frame(record, end, 1) for end, record in rest).decode().split("\n\n")[:-1]
    later = [orjson.loads(one.partition("data: ")[2]) for one in sent]
    both = kept + later

    def said(found: list[dict[str, Any]]) -> dict[tuple[int, str], str]:
        texts: dict[tuple[int, str], str] = {}
        for one in found:
            if "delta" in one:
                key = (one["output_index"], one["type"])
                texts[key] = texts.get(key, "") + one["delta"]
        return texts

    assert said(both) == said(seen)
    opened = [one for one in both if one["type"].endswith(".added")]
    assert opened == [one for one in seen if one["type"].endswith(".added")]
    assert both[-1] == seen[-1]
    numbers = [one["sequence_number"] for one in both]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize(
    ("reason", "status", "last"),
    [
        ("stop", "completed", "response.completed"),
        ("length", "incomplete", "response.incomplete"),
        ("content_filter", "incomplete", "response.incomplete"),
        ("cancelled", "cancelled", "response.incomplete"),
    ],
)
def test_how_it_ended(reason: str, status: str, last: str) -> None:
    """Told by the last event and by the object."""
    done = event(Channel.DONE, {"finish_reason": reason, "usage": {}})
    events = events_of(placed([ALL[0], content("x"), done]))
    assert (events[-1]["type"], events[-1]["response"]["status"]) == (last, status)


def test_a_failure_is_told_in_the_object() -> None:
    """What was said before it stays."""
    failed = event(Channel.ERROR, {"code": "upstream_cut", "message": "it broke", "retryable": True})
    last = events_of(placed([ALL[0], content("x"), failed]))[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["message"] == "it broke"
    assert last["response"]["output"][0]["content"][0]["text"] == "x"


def test_ids_are_ours_in_another_form() -> None:
    """So that a response can be read by either API."""
    assert response_id(ID) == "resp_0123456789abcdef01234567"
    assert native_id(response_id(ID)) == ID


def test_an_input_becomes_messages() -> None:
    """Text, parts, calls and their outputs; reasoning is not taken back."""
    asked = parse(
        {
            "model": "m",
            "instructions": "be brief",
            "input": [
                {"role": "developer", "content": "d"},
                {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"role": "user", "content": [{"type": "input_image", "image_url": "u", "detail": "low"}]},
                {"type": "reasoning", "summary": []},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": "42"},
            ],
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}],
            "tool_choice": {"type": "function", "name": "f"},
            "reasoning": {"effort": "low"},
            "text": {"format": {"type": "json_schema", "name": "s", "schema": {}}},
            "max_output_tokens": 7,
            "stream": True,
        }
    )
    request = asked.request
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert request.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "system", "content": "d"},
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u", "detail": "low"}}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ]
    assert (asked.stream, request.token_limit) == (True, 7)
    assert request.sampling() == {
        "tools": [
            {
                "type": "function",
                "function": {"name": "f", "parameters": {"type": "object"}, "strict": True},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "reasoning_effort": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}},
    }


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "messages"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"temperature": 9}, "temperature"),
        ({"stream": 1}, "stream"),
        ({"text": "x"}, "text"),
    ],
)
def test_what_a_relay_cannot_do_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    """Not ignored: an answer without what was asked for would be a wrong one."""
    with pytest.raises(InvalidValue) as caught:
        parse({"model": "m", "input": "hi", **fields})
    assert caught.value.param == param
