"""From the bytes of a chat completion stream to records. Pure: no I/O, no clock.

| chunk                                   | record                                                  |
|-----------------------------------------|---------------------------------------------------------|
| `delta.content`                         | CONTENT                                                 |
| `delta.reasoning_content`, `.reasoning` | REASONING                                               |
| `delta.tool_calls[]`, the first of a call | TOOL_CALL `{"index","id","name"}`                     |
| `delta.tool_calls[].function.arguments` | TOOL_ARGUMENTS, the index byte first                    |
| `delta.refusal`                         | EXTRA `{"channel":"refusal","text"}`                    |
| `logprobs`                              | EXTRA `{"channel":"logprobs","logprobs"}`               |
| every other field                       | EXTRA `{"channel":"more", ...}`: see `openai_more`      |
| `finish_reason`, `usage`, `[DONE]`      | kept here until the stream is over                      |

Text of one channel is merged while nothing comes between. Only choice 0 is looked at: one is asked for.
Format: https://platform.openai.com/docs/api-reference/chat/streaming
"""

import json
from typing import Any

import orjson

from relay import sse
from relay.events import MAX_PAYLOAD, Channel, Record, event, fit
from workers.sources.http import malformed
from workers.sources.openai_errors import in_stream
from workers.sources.openai_more import More

MAX_TOOL_CALLS = 256  # the index of one is a byte in the journal
# Both go into the one record that ends a response.
_FINISH_REASON_MAX_CHARS = 100
_USAGE_MAX_BYTES = 4096
_REFUSAL_PIECE_CHARS = 1000  # at most 6 bytes each in JSON: below MAX_PAYLOAD


class Chunks:
    """The state of one stream: what is parsed but not taken, and how it ended."""

    def __init__(self, *, secret: str | None = None) -> None:
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.done = False  # [DONE] came
        self._secret = secret
        self._parser = sse.Parser()
        self._records: list[Record] = []
        self._tokens = 0
        self._run: list[str] = []  # text of one channel that is still open
        self._run_channel = Channel.CONTENT
        self._run_mark = b""
        self._calls: dict[int, tuple[int, str]] = {}  # upstream's index: ours, and the call's id
        self._opened = 0
        self._halves: dict[tuple[Channel, bytes], str] = {}  # of surrogate pairs
        self._more = More()
        self._spoke = False  # records were taken
        self._ended = False

    def feed(self, body: bytes) -> None:
        """Parse a piece of the body, cut anywhere.

        Raises SourceFailed: upstream_malformed, or what an error object in the stream says. What came
        before it is there to be taken.
        """
        try:
            events = self._parser.feed(body)
        except sse.SseTooLarge as error:
            raise malformed(f"the upstream's stream: {error.message}") from error
        for name, data, _ in events:
            if self.done:
                return
            if data == "[DONE]":
                self.done = True
            elif not data:
                continue  # a keep-alive of sorts
            elif name == "error":
                raise in_stream(_lenient(data), secret=self._secret)
            else:
                self._chunk(_loads(data))

    def take(self) -> tuple[list[Record], int]:
        """The records since the last call, merged and within MAX_PAYLOAD; and how many chunks they were."""
        self._flush()
        records, tokens = self._records, self._tokens
        self._records, self._tokens = [], 0
        if (records or self._ended) and (more := self._more.take()):
            # Before the first text, for it is of all chunks; later where it came.
            records.insert(len(records) if self._spoke else 0, more)
        self._spoke = self._spoke or bool(records)
        return records, tokens

    def end(self) -> None:
        """No more will come: the first half of a character whose second never came becomes U+FFFD."""
        for channel, mark in list(self._halves):
            self._text(channel, "", mark)
            self._flush(last=True)
        self._ended = True

    def _chunk(self, chunk: object) -> None:
        if not isinstance(chunk, dict):
            raise malformed("a chunk of the upstream is not an object")
        if chunk.get("error"):
            raise in_stream(chunk["error"], secret=self._secret)
        if usage := chunk.get("usage"):
            self.usage = _small_object(usage)
        self._more.chunk(chunk)
        for choice in _objects(chunk.get("choices"), "choices"):
            if choice.get("index", 0) == 0:
                self._choice(choice)

    def _choice(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta") or {}
        if not isinstance(delta, dict):
            raise malformed("a delta of the upstream is not an object")
        told = False
        if text := delta.get("reasoning_content"):
            self._text(Channel.REASONING, _string(text, "reasoning"))
            told = True
        elif text := delta.get("reasoning"):
            self._text(Channel.REASONING, _string(text, "reasoning"))
            self._more.reasoning("reasoning")
            told = True
        if text := delta.get("content"):
            self._text(Channel.CONTENT, _string(text, "content"))
            told = True
        if calls := delta.get("tool_calls"):
            for call in _objects(calls, "tool_calls"):
                self._tool_call(call)
            told = True
        if text := delta.get("refusal"):
            self._refusal(_string(text, "refusal"))
            told = True
        if more := self._more.delta(delta):
            self._flush()
            self._records.append(more)
            told = True
        if logprobs := choice.get("logprobs"):
            self._logprobs(logprobs)
        self._more.choice(choice)
        if reason := choice.get("finish_reason"):
            self.finish_reason = _string(reason, "finish_reason")[:_FINISH_REASON_MAX_CHARS]
        self._tokens += told

    def _text(self, channel: Channel, text: str, mark: bytes = b"") -> None:
        if channel is not self._run_channel or mark != self._run_mark:
            self._flush()
            self._run_channel, self._run_mark = channel, mark
        self._run.append(text)

    def _flush(self, *, last: bool = False) -> None:
        """Close the open run of text."""
        if not self._run:
            return
        text, self._run = "".join(self._run), []
        try:
            payload = self._mended(text, last=last) if self._halves else text.encode()
        except UnicodeEncodeError:
            payload = self._mended(text, last=last)
        if not payload:
            return
        record = Record(self._run_channel, self._run_mark + payload)
        if len(record.payload) <= MAX_PAYLOAD:
            self._records.append(record)
        else:
            self._records.extend(fit(record))

    def _mended(self, text: str, *, last: bool) -> bytes:
        """UTF-8 of text that holds halves of surrogate pairs.

        Upstreams that count in UTF-16 cut an emoji in two and escape each half in a chunk of its own.
        """
        key = (self._run_channel, self._run_mark)
        text = self._halves.pop(key, "") + text
        if text and not last and "\ud800" <= text[-1] <= "\udbff":
            self._halves[key] = text[-1]
            text = text[:-1]
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()

    def _tool_call(self, call: dict[str, Any]) -> None:
        function = call.get("function") or {}
        if not isinstance(function, dict):
            raise malformed("a tool call of the upstream has no function object")
        upstream_index = call.get("index", max(self._calls, default=0))
        if type(upstream_index) is not int or not 0 <= upstream_index < MAX_TOOL_CALLS:
            raise malformed(f"a tool call's index is not a number from 0 to {MAX_TOOL_CALLS - 1}")
        call_id = _string(call.get("id") or "", "tool call id")
        known = self._calls.get(upstream_index)
        # A new id under an old index is a new call: some upstreams number every call 0.
        if known is None or (call_id and call_id != known[1]):
            known = self._open(upstream_index, call_id, _string(function.get("name") or "", "tool name"))
        if arguments := function.get("arguments"):
            self._text(Channel.TOOL_ARGUMENTS, _string(arguments, "arguments"), bytes((known[0],)))

    def _open(self, upstream_index: int, call_id: str, name: str) -> tuple[int, str]:
        index = max(upstream_index, self._opened)
        if index >= MAX_TOOL_CALLS:
            raise malformed(f"the upstream makes more than {MAX_TOOL_CALLS} tool calls")
        self._opened = index + 1
        self._calls[upstream_index] = (index, call_id)
        self._atomic(Channel.TOOL_CALL, {"index": index, "id": call_id or f"call_{index}", "name": name})
        return index, call_id

    def _refusal(self, text: str) -> None:
        for at in range(0, len(text), _REFUSAL_PIECE_CHARS):
            piece = text[at : at + _REFUSAL_PIECE_CHARS]
            self._atomic(Channel.EXTRA, {"channel": "refusal", "text": piece})

    def _logprobs(self, logprobs: object) -> None:
        """One record; where that is too large, its entries are spread over several."""
        data = {"channel": "logprobs", "logprobs": logprobs}
        try:
            record = event(Channel.EXTRA, data)
        except (ValueError, TypeError):
            fields = logprobs if isinstance(logprobs, dict) else {}
            lists = {name: entries for name, entries in fields.items() if isinstance(entries, list)}
            longest = max(lists, key=lambda name: len(lists[name]), default="")
            if len(entries := lists.get(longest, [])) < 2:
                raise malformed("the upstream's logprobs do not fit a record") from None
            half = len(entries) // 2
            self._logprobs({**fields, longest: entries[:half]})
            self._logprobs({longest: entries[half:]})
        else:
            self._flush()
            self._records.append(record)

    def _atomic(self, channel: Channel, data: dict[str, Any]) -> None:
        self._flush()
        try:
            self._records.append(event(channel, data))
        except (ValueError, TypeError) as error:  # too long, or a lone surrogate
            raise malformed("a tool call or refusal of the upstream does not fit a record") from error


def _loads(data: str) -> object:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as strict:
        # The standard library reads halves of surrogate pairs, which upstreams do send; see _mended.
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            raise malformed("a chunk of the upstream is not JSON") from strict


def _lenient(data: str) -> object:
    """An error event's data: an object, the error in an object, or plain text."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return data
    return value["error"] if isinstance(value, dict) and value.get("error") else value


def _objects(value: object, name: str) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise malformed(f"the upstream's {name} are not a list of objects")
    return value


def _small_object(value: object) -> dict[str, Any]:
    try:
        if isinstance(value, dict) and len(orjson.dumps(value)) <= _USAGE_MAX_BYTES:
            return value
    except TypeError:  # nested too deep, or a lone surrogate
        pass
    raise malformed(f"the upstream's usage is not an object of at most {_USAGE_MAX_BYTES} bytes")


def _string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise malformed(f"the upstream's {name} is not text")
    return value
