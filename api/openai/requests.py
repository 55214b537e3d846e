"""A chat completion request as one of ours.

https://platform.openai.com/docs/api-reference/chat/create

What we know is validated as on the native endpoint, and the relay's own fields (`pace`, `window_bytes`,
`background`, `simulation` ...) may stand beside OpenAI's. What we do not know goes to the upstream as it is:
it judges it as it would if asked directly. What would come back in a form that has no record is refused,
for it would be lost on the way.
"""

from typing import Any, NamedTuple

from pydantic import ValidationError

from relay.errors import InvalidValue, Malformed
from relay.requests import StreamRequest, place

_OURS = frozenset(StreamRequest.model_fields) - {"upstream"}


class ChatRequest(NamedTuple):
    """A chat completion request, taken apart."""

    request: StreamRequest
    stream: bool
    include_usage: bool


def parse(body: dict[str, Any]) -> ChatRequest:
    """The request in a body. Raises InvalidValue, which names the field, or Malformed."""
    fields = {name: value for name, value in body.items() if value is not None}
    stream = _flag(fields, "stream")
    options = fields.pop("stream_options", {})
    if not isinstance(options, dict):
        raise InvalidValue("stream_options: must be an object", param="stream_options")
    if fields.pop("n", 1) != 1:
        raise InvalidValue("n: a relayed response has one choice", param="n")
    if fields.get("modalities", ["text"]) != ["text"]:
        raise InvalidValue("modalities: only text is relayed", param="modalities")
    if "audio" in fields:
        raise InvalidValue("audio: only text is relayed", param="audio")
    if "prompt" in fields:
        raise InvalidValue("prompt: a chat completion takes messages", param="prompt")
    more = {name: fields.pop(name) for name in list(fields) if name not in _OURS}
    native = {**fields, **({"upstream": more} if more else {})}
    try:
        request = StreamRequest.model_validate(native)
    except ValidationError as error:
        raise named(error, native) from error
    return ChatRequest(request, stream, bool(options.get("include_usage")))


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields.pop(name, False)
    if not isinstance(value, bool):
        raise InvalidValue(f"{name}: must be true or false", param=name)
    return value


def named(error: ValidationError, native: dict[str, Any]) -> InvalidValue | Malformed:
    """The first thing that is wrong, by its name in the body, which was `native` in our own words."""
    first = error.errors()[0]
    message = str(first["msg"]).removeprefix("Value error, ")
    param = place(first["loc"], first["type"], native).removeprefix("upstream.")
    if not param:
        return InvalidValue("messages: must be given", param="messages")
    return InvalidValue(f"{param}: {message}", param=param)
