"""What an upstream says beside the text, in its place in chunks and in a whole completion. Pure.

`workers.sources.openai_more` writes it: what in a chunk, its choice and its
delta has no record of its own.
"""

from typing import Any, NamedTuple, Self


class More(NamedTuple):
    """One record of it; `lasting` are those fields of a chunk that hold for all that follow."""

    lasting: dict[str, Any]
    chunk: dict[str, Any]
    choice: dict[str, Any]
    delta: dict[str, Any]
    reasoning: str | None

    @classmethod
    def of(cls, data: dict[str, Any]) -> Self:
        """From a record's data. Plain values last (`system_fingerprint`), objects do not (`timings`)."""
        fields: dict[str, Any] = data.get("chunk", {})
        lasting = {name: value for name, value in fields.items() if not isinstance(value, dict | list)}
        return cls(
            lasting,
            {name: value for name, value in fields.items() if name not in lasting},
            data.get("choice", {}),
            data.get("delta", {}),
            data.get("reasoning"),
        )


def accumulate(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    """Add a delta to what came before it, as the SDKs do: text and lists grow, the rest is replaced.

    What has an `index` in a list belongs to the entry with the same one.
    """
    for name, value in piece.items():
        held = whole.get(name)
        if name in ("index", "type", "id"):
            whole[name] = value
        elif isinstance(held, str) and isinstance(value, str):
            whole[name] = held + value
        elif isinstance(held, dict) and isinstance(value, dict):
            accumulate(held, value)
        elif isinstance(held, list) and isinstance(value, list):
            _extend(held, value)
        else:
            whole[name] = value


def _extend(held: list[Any], pieces: list[Any]) -> None:
    for piece in pieces:
        index = piece.get("index") if isinstance(piece, dict) else None
        known = [one for one in held if isinstance(one, dict) and one.get("index") == index]
        if index is not None and known:
            accumulate(known[0], piece)
        else:
            held.append(piece)
