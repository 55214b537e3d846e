"""What a chunk holds beside text: passed on as it is, and told once where every chunk repeats it. Pure.

One EXTRA record, with the places where the fields were:

    {"channel": "more", "chunk": {"system_fingerprint": "fp_1"}, "choice": {...}, "delta": {...},
     "reasoning": "reasoning", "too_large": ["citations"]}

`reasoning` is the name by which the upstream calls its reasoning, where that is not `reasoning_content`.
`too_large` names fields of a chunk or choice that no record holds; a delta that does not fit is an error, for
it is part of the answer.
"""

from typing import Any

import orjson

from relay.events import Channel, Record, event
from workers.sources.http import malformed

# What has a record, or a meaning, of its own. `obfuscation` is noise that hides the length of what is sent.
_CHUNK = frozenset(("id", "object", "created", "model", "choices", "usage", "error", "obfuscation"))
_CHOICE = frozenset(("index", "delta", "logprobs", "finish_reason"))
_DELTA = frozenset(("role", "content", "reasoning_content", "reasoning", "tool_calls", "refusal"))
_NOTHING: tuple[object, ...] = (None, "", [], {})
_FIELD_MAX_BYTES = 2048
_RECORD_MAX_BYTES = 6144  # of the fields together: within MAX_PAYLOAD with their names
_TOO_LARGE_MAX = 16  # names in one record
_NAME_MAX_CHARS = 64


class More:
    """Gathers until there is a record for it to go with: alone, it would pass for a first token."""

    def __init__(self) -> None:
        self._told: dict[tuple[str, str], Any] = {}
        self._fields: dict[str, dict[str, Any]] = {}
        self._too_large: set[str] = set()
        self._reasoning: str | None = None
        self._size = 0

    def chunk(self, chunk: dict[str, Any]) -> None:
        """A chunk's own fields; what it repeats is told once."""
        if not _CHUNK.issuperset(chunk):
            self._take("chunk", chunk, _CHUNK, repeats=(str, int, float, bool, dict, list))

    def choice(self, choice: dict[str, Any]) -> None:
        """A choice's; lists are pieces, and equal pieces may follow each other."""
        if not _CHOICE.issuperset(choice):
            self._take("choice", choice, _CHOICE, repeats=(str, int, float, bool, dict))

    @staticmethod
    def delta(delta: dict[str, Any]) -> Record | None:
        """The record of what else is in a delta, for its place in the order. Raises SourceFailed."""
        if _DELTA.issuperset(delta):
            return None
        found = {name: value for name, value in delta.items() if name not in _DELTA and value not in _NOTHING}
        if not found:
            return None
        try:
            return event(Channel.EXTRA, {"channel": "more", "delta": found})
        except (ValueError, TypeError):  # too long, or a lone surrogate
            raise malformed(f"{', '.join(sorted(found))[:200]} of the upstream do not fit a record") from None

    def reasoning(self, name: str) -> None:
        """The name of the reasoning, once it is known to be another than the usual."""
        if ("", "reasoning") not in self._told:
            self._told["", "reasoning"] = self._reasoning = name

    def take(self) -> Record | None:
        """The record of what has gathered, if anything has."""
        if not (self._fields or self._too_large or self._reasoning):
            return None
        data: dict[str, Any] = {"channel": "more", **self._fields}
        if self._reasoning:
            data["reasoning"] = self._reasoning
        if self._too_large:
            data["too_large"] = sorted(self._too_large)[:_TOO_LARGE_MAX]
        self._fields, self._too_large, self._reasoning, self._size = {}, set(), None, 0
        return event(Channel.EXTRA, data)

    def _take(
        self, place: str, given: dict[str, Any], known: frozenset[str], *, repeats: tuple[type, ...]
    ) -> None:
        for name, value in given.items():
            if name in known or value in _NOTHING:
                continue
            if isinstance(value, repeats) and self._told.get((place, name)) == value:
                continue
            if len(self._told) < _TOO_LARGE_MAX * 4:  # beyond that they are told as often as they come
                self._told[place, name] = value
            size = _size(value) + len(name) * 6
            fields = self._fields.setdefault(place, {})
            if size > _FIELD_MAX_BYTES or self._size + size > _RECORD_MAX_BYTES:
                self._too_large.add(name[:_NAME_MAX_CHARS])
                continue
            self._size += size
            held = fields.get(name)
            fields[name] = held + value if isinstance(held, list) and isinstance(value, list) else value


def _size(value: Any) -> int:
    try:
        return len(orjson.dumps(value))
    except TypeError:  # nested too deep, or a lone surrogate
        return _RECORD_MAX_BYTES + 1
