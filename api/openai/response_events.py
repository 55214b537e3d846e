"""Records as the events and the object of the Responses API. Pure.

https://platform.openai.com/docs/api-reference/responses-streaming

One output item for each kind of thing: a reasoning item, a message with a text and a refusal part, and a
function call for each tool call. An item is opened with its first record and closed with the response, so
that what is interleaved upstream needs no order here.

A sequence number is a position in the journal, times STEP: the delta of a record that ends at byte N is
N * STEP, and what has to be opened before it is numbered on from where the record begins. So it means the
same on every node however records were merged on the way, and `starting_after` resumes from it.
"""

from typing import Any

import orjson

from api.openai.more import More
from relay.events import TERMINAL, Channel, Record
from relay.lifecycle import FinishReason

STEP = 1024
Event = dict[str, Any]
_INCOMPLETE: dict[str, str] = {FinishReason.LENGTH: "max_output_tokens", "content_filter": "content_filter"}


class ResponseFrames:
    """The events as they are sent, from a sequence number on; `frame` has the shape of the native one."""

    def __init__(self, events: "ResponseEvents", after: int = -1) -> None:
        self._events = events
        self._after = after

    def frame(self, record: Record, end: int, epoch: int) -> bytes:  # noqa: ARG002 there are no ids
        """All events of a record; empty where it has none."""
        return b"".join(
            b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event))
            for event in self._events.take(record, end)
            if event["sequence_number"] > self._after
        )

    def private(self, name: str, data: dict[str, Any]) -> bytes:
        """An end that `starting_after` resumes from; but after a rewind only a new start is right."""
        told = {
            "reconnect": ("draining", "this node goes away: resume with starting_after"),
            "rewind": ("rewound", "text was lost in a failover: read again from the start"),
        }.get(name, (data.get("code"), data.get("message")))
        error = {"type": "error", "code": told[0], "message": told[1], "param": None, "sequence_number": 0}
        return b"event: error\ndata: %b\n\n" % orjson.dumps(error)


class ResponseEvents:
    """The state of one response: its output so far. Bounded by the largest response.

    `about` is the response object without its output: see `api.openai.response_object`.
    """

    def __init__(self, about: dict[str, Any]) -> None:
        self._about = about
        self._suffix = str(about["id"]).removeprefix("resp_")
        self._at = 0  # the end of the last record
        self._output: list[dict[str, Any]] = []
        self._texts: dict[int, list[str]] = {}  # what is not joined yet, by the id() of a part
        self._calls: dict[int, int] = {}  # a tool call's index: that of its item
        self._status = "in_progress"
        self._end: dict[str, Any] = {}

    @property
    def is_over(self) -> bool:
        """Whether the record that ends a response came."""
        return self._status != "in_progress"

    def take(self, record: Record, end: int) -> list[Event]:
        """The events of the next record, each with its sequence number."""
        start, self._at = self._at, end
        events = self._events(record)
        first = start * STEP + (start > 0)
        for index, event in enumerate(events):
            event["sequence_number"] = first + index
        if events:
            events[-1]["sequence_number"] = end * STEP
        return events

    def object(self) -> dict[str, Any]:
        """The response as it is."""
        for item in self._output:
            for part in (item, *item.get("content", ())):
                self._join(part)
        return {**self._about, "status": self._status, "output": self._output, **self._end}

    # --- records

    def _events(self, record: Record) -> list[Event]:
        channel, payload = record
        if channel is Channel.CONTENT:
            return self._text("message", "output_text", payload.decode())
        if channel is Channel.REASONING:
            return self._text("reasoning", "reasoning_text", payload.decode())
        if channel is Channel.TOOL_ARGUMENTS:
            return self._arguments(payload[0], payload[1:].decode())
        return self._rare(channel, orjson.loads(payload))

    def _rare(self, channel: Channel, data: dict[str, Any]) -> list[Event]:
        if channel is Channel.START:
            names = ("created", "in_progress")
            return [{"type": f"response.{name}", "response": self.object()} for name in names]
        if channel is Channel.TOOL_CALL:
            return self._call(data)
        if channel is Channel.EXTRA:
            return self._extra(data)
        return self._close(channel, data) if channel in TERMINAL else []

    def _text(self, item: str, part: str, text: str, **more: Any) -> list[Event]:
        events, index, place = self._part(item, part)
        self._texts.setdefault(id(self._output[index]["content"][place]), []).append(text)
        kind = "refusal" if part == "refusal" else part
        delta = {"type": f"response.{kind}.delta", **self._where(index, place), "delta": text}
        if part == "output_text":
            delta["logprobs"] = more.get("logprobs", [])
            self._output[index]["content"][place]["logprobs"].extend(delta["logprobs"])
        return [*events, delta]

    def _part(self, kind: str, part: str) -> tuple[list[Event], int, int]:
        """The item of a kind and its part, opened if need be: the events of that, and where they are."""
        events: list[Event] = []
        found = [index for index, item in enumerate(self._output) if item["type"] == kind]
        if found:
            index = found[0]
        else:
            index = len(self._output)
            head: dict[str, Any] = {"id": f"{kind[:3]}_{self._suffix}", "type": kind, "status": "in_progress"}
            more: dict[str, Any] = {"role": "assistant"} if kind == "message" else {"summary": []}
            item = {**head, **more}
            self._output.append({**item, "content": []})
            events.append(self._added(index, {**item, "content": []}))
        parts = self._output[index]["content"]
        for place, known in enumerate(parts):
            if known["type"] == part:
                return events, index, place
        parts.append(_empty(part))
        place = len(parts) - 1
        opened = {"type": "response.content_part.added", **self._where(index, place), "part": _empty(part)}
        return [*events, opened], index, place

    def _call(self, call: dict[str, Any]) -> list[Event]:
        index = self._calls[call["index"]] = len(self._output)
        item = {
            "id": f"fc_{self._suffix}_{call['index']}",
            "type": "function_call",
            "status": "in_progress",
            "call_id": call["id"],
            "name": call["name"],
            "arguments": "",
        }
        self._output.append(item)
        return [self._added(index, dict(item))]

    def _arguments(self, call: int, text: str) -> list[Event]:
        index = self._calls.get(call)
        if index is None:
            return []
        self._texts.setdefault(id(self._output[index]), []).append(text)
        return [
            {
                "type": "response.function_call_arguments.delta",
                "item_id": self._output[index]["id"],
                "output_index": index,
                "delta": text,
            }
        ]

    def _extra(self, data: dict[str, Any]) -> list[Event]:
        if data.get("channel") == "refusal":
            return self._text("message", "refusal", data["text"])
        if data.get("channel") == "more":
            return self._more(More.of(data))
        entries = (data.get("logprobs") or {}).get("content")
        return self._text("message", "output_text", "", logprobs=entries) if entries else []

    def _more(self, more: More) -> list[Event]:
        """What has a place in this API: the tier, and annotations of the text."""
        if "service_tier" in more.lasting:
            self._about["service_tier"] = more.lasting["service_tier"]
        given = more.delta.get("annotations")
        annotations = [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []
        if not annotations:
            return []
        events, index, place = self._part("message", "output_text")
        held = self._output[index]["content"][place]["annotations"]
        for one in annotations:
            kind = one.get("type")  # a chat completion nests what this API has flat
            nested = one.get(kind) if isinstance(kind, str) else None
            annotation = {"type": kind, **nested} if isinstance(nested, dict) else one
            where = {**self._where(index, place), "annotation_index": len(held)}
            events.append(
                {"type": "response.output_text.annotation.added", **where, "annotation": annotation}
            )
            held.append(annotation)
        return events

    # --- the end

    def _close(self, channel: Channel, data: dict[str, Any]) -> list[Event]:
        events: list[Event] = []
        reason = str(data.get("finish_reason"))
        is_whole = channel is Channel.DONE and reason not in _INCOMPLETE and reason != FinishReason.CANCELLED
        for index, item in enumerate(self._output):
            item["status"] = "completed" if is_whole else "incomplete"
            events += self._closed(index, item)
        if channel is Channel.ERROR:
            self._status = "failed"
            self._end = {"error": {"code": "server_error", "message": data.get("message")}}
        else:
            self._end = {"usage": _usage(data.get("usage") or {})}
            if reason == FinishReason.CANCELLED:
                self._status = "cancelled"
            elif is_whole:
                self._status = "completed"
            else:
                self._status = "incomplete"
                self._end["incomplete_details"] = {"reason": _INCOMPLETE[reason]}
        # There is no event for cancelled: the SDKs end with the object that says so.
        name = {"cancelled": "incomplete"}.get(self._status, self._status)
        return [*events, {"type": f"response.{name}", "response": self.object()}]

    def _closed(self, index: int, item: dict[str, Any]) -> list[Event]:
        events: list[Event] = []
        self._join(item)
        if item["type"] == "function_call":
            events.append(
                {
                    "type": "response.function_call_arguments.done",
                    "item_id": item["id"],
                    "output_index": index,
                    "name": item["name"],
                    "arguments": item["arguments"],
                }
            )
        for place, part in enumerate(item.get("content", ())):
            self._join(part)
            where, key = self._where(index, place), _text_key(part)
            done = {"type": f"response.{part['type']}.done", **where, key: part[key]}
            events.append(done | ({"logprobs": part["logprobs"]} if part["type"] == "output_text" else {}))
            events.append({"type": "response.content_part.done", **where, "part": part})
        return [*events, {"type": "response.output_item.done", "output_index": index, "item": item}]

    # --- pieces

    def _added(self, index: int, item: dict[str, Any]) -> Event:
        return {"type": "response.output_item.added", "output_index": index, "item": item}

    def _where(self, index: int, place: int) -> dict[str, Any]:
        return {"item_id": self._output[index]["id"], "output_index": index, "content_index": place}

    def _join(self, part: dict[str, Any]) -> None:
        pieces = self._texts.pop(id(part), None)
        if pieces:
            key = _text_key(part)
            part[key] = "".join([part[key], *pieces])


def _text_key(part: dict[str, Any]) -> str:
    return {"function_call": "arguments", "refusal": "refusal"}.get(part["type"], "text")


def _empty(part: str) -> dict[str, Any]:
    if part == "output_text":
        return {"type": part, "text": "", "annotations": [], "logprobs": []}
    return {"type": part, "refusal" if part == "refusal" else "text": ""}


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    """The usage of a chat completion, by the names of this API."""
    prompt, completion = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    reasoning = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": usage.get("total_tokens") or prompt + completion,
    }
