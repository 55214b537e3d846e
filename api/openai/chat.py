"""Records as chat completion chunks, and as one chat completion. Pure, and written for speed.

https://platform.openai.com/docs/api-reference/chat/streaming

| record          | chunk                                                      |
|-----------------|------------------------------------------------------------|
| START           | `delta.role`                                               |
| CONTENT         | `delta.content`                                            |
| REASONING       | `delta.reasoning_content`, the name that upstreams use     |
| TOOL_CALL       | `delta.tool_calls[]` with id and name                      |
| TOOL_ARGUMENTS  | `delta.tool_calls[].function.arguments`                    |
| EXTRA           | `delta.refusal`, the choice's `logprobs`, or what else     |
|                 | the upstream put into a chunk: see `api.openai.more`       |
| NOTICE          | nothing: it is told on the native stream                   |
| DONE            | `finish_reason`, the usage if asked for and told, `[DONE]` |
| ERROR           | an error object, which the SDKs raise                      |
"""

from typing import Any

import orjson

from api.openai import errors
from api.openai.more import More, accumulate
from relay.events import Channel, Record
from relay.lifecycle import FinishReason

DONE = b"data: [DONE]\n\n"
# What is told of a response that was ended before its source was: the SDKs know no other reason.
_CUT = {FinishReason.CANCELLED: "stop"}
# What is passed through, by its channel: the name that it has in a delta, and its key in the record.
_EXTRA = {"refusal": (("refusal", "text"),), "logprobs": (("logprobs", "logprobs"),)}


def completion_id(response_id: str) -> str:
    """The id in the OpenAI form; what follows the prefix is ours."""
    return f"chatcmpl-{response_id.removeprefix('rs_')}"


class ChatFrames:
    """The frames of one stream of chunks; `frame` has the shape of the native one."""

    def __init__(self, response_id: str, model: str, created_at: float, *, include_usage: bool) -> None:
        self._response_id = response_id
        head: dict[str, Any] = {
            "id": completion_id(response_id),
            "object": "chat.completion.chunk",
            "created": int(created_at),
            "model": model,
        }
        self._head = head
        self._reasoning = "reasoning_content"
        usage = b',"usage":null' if include_usage else b""
        self._close = b',"logprobs":null,"finish_reason":null}]' + usage + b"}\n\n"
        self._usage = usage
        self._include_usage = include_usage
        self._opened()

    def _opened(self) -> None:
        """All but the choice is the same in every chunk."""
        head = b"data: " + orjson.dumps(self._head)[:-1]
        self._open = head + b',"choices":[{"index":0,"delta":'
        self._bare = head + b',"choices":[],"usage":'

    def frame(self, record: Record, end: int, epoch: int) -> bytes:  # noqa: ARG002 there are no ids
        """What a record is in this form; empty for what has no place in it."""
        channel, payload = record
        if channel is Channel.CONTENT:
            return b'%b{"content":%b}%b' % (self._open, orjson.dumps(payload.decode()), self._close)
        if channel is Channel.DONE:
            return self._done(orjson.loads(payload))
        if channel is Channel.ERROR:
            return b"data: %b\n\n" % orjson.dumps(errors.body_of(orjson.loads(payload)))
        if channel is Channel.REASONING:
            delta: dict[str, Any] | None = {self._reasoning: payload.decode()}
        else:
            delta = _delta(channel, payload)
        if not delta:
            return b""
        if "more" in delta:
            return self._more(delta["more"])
        close = self._close
        if "logprobs" in delta:
            close = close.replace(b"null", orjson.dumps(delta.pop("logprobs")), 1)
        return b"%b%b%b" % (self._open, orjson.dumps(delta), close)

    def _more(self, more: More) -> bytes:
        """What is of all chunks goes into the head, the rest into a chunk of its own."""
        self._reasoning = more.reasoning or self._reasoning
        if more.lasting:
            self._head |= more.lasting
            self._opened()
        if not (more.chunk or more.choice or more.delta):
            return b""
        choice = {"index": 0, "delta": more.delta, "logprobs": None, "finish_reason": None, **more.choice}
        body = {**self._head, **more.chunk, "choices": [choice]}
        return b"data: %b%b}\n\n" % (orjson.dumps(body)[:-1], self._usage)

    def private(self, name: str, data: dict[str, Any]) -> bytes:
        """What is said to one reader: the SDKs cannot resume, so that each of these is an end."""
        where = f"go on at /v1/streams/{self._response_id}/events"
        told = {
            "reconnect": {"code": "draining", "message": f"this node goes away; {where}"},
            "rewind": {"code": "rewound", "message": f"text was lost in a failover; {where}"},
        }.get(name, data)
        return b"data: %b\n\n" % orjson.dumps(errors.body_of(told))

    def _done(self, data: dict[str, Any]) -> bytes:
        reason = orjson.dumps(finish_reason(data))
        last = b'%b{},"logprobs":null,"finish_reason":%b}]%b}\n\n' % (self._open, reason, self._usage)
        if self._include_usage and (usage := data.get("usage")):
            last += b"%b%b}\n\n" % (self._bare, orjson.dumps(usage))
        return last + DONE


class ChatAnswer:
    """Records gathered into one `chat.completion`. Bounded by the largest response."""

    def __init__(self, response_id: str, model: str, created_at: float) -> None:
        self._head: dict[str, Any] = {
            "id": completion_id(response_id),
            "object": "chat.completion",
            "created": int(created_at),
            "model": model,
        }
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._arguments: dict[int, list[str]] = {}
        self._logprobs: dict[str, list[Any]] = {}
        self._reasoning = "reasoning_content"
        self._message: dict[str, Any] = {}  # what else there is
        self._choice: dict[str, Any] = {}
        self._done: dict[str, Any] | None = None
        self.error: dict[str, Any] | None = None

    @property
    def is_over(self) -> bool:
        """Whether the record that ends a response came."""
        return self._done is not None or self.error is not None

    def add(self, record: Record) -> None:
        """One more record, in order."""
        channel, payload = record
        if channel is Channel.CONTENT:
            self._text("content", payload.decode())
        elif channel is Channel.REASONING:
            self._text(self._reasoning, payload.decode())
        elif channel is Channel.TOOL_CALL:
            call = orjson.loads(payload)
            self._calls[call["index"]] = _call(call)
        elif channel is Channel.TOOL_ARGUMENTS:
            self._arguments.setdefault(payload[0], []).append(payload[1:].decode())
        elif channel is Channel.EXTRA:
            self._extra(orjson.loads(payload))
        elif channel is Channel.DONE:
            self._done = orjson.loads(payload)
        elif channel is Channel.ERROR:
            self.error = orjson.loads(payload)

    def body(self) -> dict[str, Any]:
        """The completion, once it is over."""
        done = self._done or {}
        texts = {name: "".join(parts) for name, parts in self._texts.items()}
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None, **texts}
        if self._calls:
            for index, parts in self._arguments.items():
                if index in self._calls:
                    self._calls[index]["function"]["arguments"] = "".join(parts)
            message["tool_calls"] = [call for _, call in sorted(self._calls.items())]
        elif not texts and not self._message:
            message["content"] = ""
        choice = {
            "index": 0,
            **self._choice,
            "message": {**self._message, **message},
            "logprobs": self._logprobs or None,
            "finish_reason": finish_reason(done),
        }
        return {**self._head, "choices": [choice], "usage": done.get("usage") or None}

    def _text(self, name: str, text: str) -> None:
        self._texts.setdefault(name, []).append(text)

    def _extra(self, data: dict[str, Any]) -> None:
        if data.get("channel") == "refusal":
            self._text("refusal", data["text"])
        elif data.get("channel") == "more":
            more = More.of(data)
            self._reasoning = more.reasoning or self._reasoning
            self._head |= {**more.lasting, **more.chunk}
            accumulate(self._choice, more.choice)
            accumulate(self._message, more.delta)
        elif isinstance(logprobs := data.get("logprobs"), dict):
            for name, entries in logprobs.items():
                if isinstance(entries, list):
                    self._logprobs.setdefault(name, []).extend(entries)


def finish_reason(done: dict[str, Any]) -> str:
    """The reason in the words of the SDKs."""
    reason = str(done.get("finish_reason") or "stop")
    return _CUT.get(FinishReason(reason), reason) if reason in tuple(FinishReason) else reason


def _delta(channel: Channel, payload: bytes) -> dict[str, Any] | None:
    """The delta of a record that is rare; `logprobs` belongs beside it. None where there is no such thing."""
    if channel is Channel.START:
        return {"role": "assistant", "content": ""}
    if channel is Channel.TOOL_ARGUMENTS:
        return {"tool_calls": [{"index": payload[0], "function": {"arguments": payload[1:].decode()}}]}
    if channel is Channel.TOOL_CALL:
        call = orjson.loads(payload)
        return {"tool_calls": [{"index": call["index"], **_call(call)}]}
    if channel is Channel.EXTRA:
        data = orjson.loads(payload)
        if data.get("channel") == "more":
            return {"more": More.of(data)}
        return {name: data[key] for name, key in _EXTRA.get(data.get("channel"), ())}
    return None


def _call(call: dict[str, Any]) -> dict[str, Any]:
    return {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": ""}}
