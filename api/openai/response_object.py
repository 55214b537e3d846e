"""A Responses API request as one of ours, and the object that answers it. Pure.

https://platform.openai.com/docs/api-reference/responses/create

What a relay cannot keep is refused by name: earlier responses and conversations are not stored, and tools
that run on OpenAI's servers do not run here.
"""

from typing import Any, NamedTuple

from pydantic import ValidationError

from api.openai.requests import named
from relay.errors import InvalidValue
from relay.requests import StreamRequest

# Fields that mean the same here, and those of the relay that may stand beside them.
_SAME = (
    "model", "temperature", "top_p", "parallel_tool_calls", "top_logprobs", "metadata", "user", "background",
    "priority", "pace", "window_bytes", "degrade", "simulation",
)  # fmt: skip
_READ = frozenset((*_SAME, "input", "instructions", "stream", "max_output_tokens", "tools", "tool_choice"))
# What may be given and makes no difference here.
_IDLE = frozenset(("store", "truncation", "include", "stream_options", "service_tier", "safety_identifier",
                   "prompt_cache_key", "prompt_cache_retention", "reasoning", "text"))  # fmt: skip
_ROLES = {"developer": "system"}


class ResponseRequest(NamedTuple):
    """A Responses API request, taken apart."""

    request: StreamRequest
    stream: bool


def parse(body: dict[str, Any]) -> ResponseRequest:
    """The request in a body. Raises InvalidValue, which names the field."""
    fields = {name: value for name, value in body.items() if value is not None}
    unknown = sorted(fields.keys() - _READ - _IDLE)
    if unknown:
        raise InvalidValue(f"{unknown[0]}: not supported by a relay", param=unknown[0])
    stream = fields.get("stream", False)
    if not isinstance(stream, bool):
        raise InvalidValue("stream: must be true or false", param="stream")
    made = {name: fields[name] for name in _SAME if name in fields}
    made["messages"] = _messages(fields)
    if "max_output_tokens" in fields:
        made["max_tokens"] = fields["max_output_tokens"]
    if tools := fields.get("tools"):
        made["tools"] = [_tool(tool) for tool in _objects(tools, "tools")]
    if choice := fields.get("tool_choice"):
        made["tool_choice"] = _choice(choice)
    if effort := _object(fields, "reasoning").get("effort"):
        made["reasoning_effort"] = effort
    if kind := _object(_object(fields, "text"), "format"):
        made["response_format"] = _format(kind)
    if "message.output_text.logprobs" in fields.get("include", ()):
        made["logprobs"] = True
    try:
        return ResponseRequest(StreamRequest.model_validate(made), stream)
    except ValidationError as error:
        raise named(error, made) from error


def response_id(native: str) -> str:
    """The id in the form of this API."""
    return f"resp_{native.removeprefix('rs_')}"


def native_id(response: str) -> str:
    """Our own."""
    return f"rs_{response.removeprefix('resp_')}"


def about(native: str, model: str, created_at: float, request: StreamRequest) -> dict[str, Any]:
    """The response object, without what is generated."""
    tools = [{"type": "function", "strict": None, **tool["function"]} for tool in request.tools or ()]
    return {
        "id": response_id(native),
        "object": "response",
        "created_at": int(created_at),
        "status": "in_progress",
        "background": request.background,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": request.token_limit,
        "metadata": request.metadata,
        "model": model,
        "output": [],
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": request.reasoning_effort, "summary": None},
        "store": True,
        "temperature": request.temperature,
        "text": {"format": {"type": "text"}},
        "tool_choice": request.tool_choice or "auto",
        "tools": tools,
        "top_p": request.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": request.user,
    }


def _messages(fields: dict[str, Any]) -> list[dict[str, Any]]:
    given = fields.get("input")
    if isinstance(given, str):
        messages = [{"role": "user", "content": given}]
    else:
        messages = [message for item in _objects(given, "input") if (message := _message(item))]
    if instructions := fields.get("instructions"):
        if not isinstance(instructions, str):
            raise InvalidValue("instructions: must be text", param="instructions")
        messages.insert(0, {"role": "system", "content": instructions})
    return messages


def _message(item: dict[str, Any]) -> dict[str, Any] | None:
    """An input item as a chat message; None for reasoning, which chat completions do not take back."""
    kind = item.get("type", "message")
    if kind == "message" and isinstance(role := item.get("role"), str):
        return {"role": _ROLES.get(role, role), "content": _content(item.get("content"))}
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": _content(item.get("output"))}
    if kind == "reasoning":
        return None
    raise InvalidValue(
        f"input: an item of type {str(kind)[:40]!r} is not supported by a relay", param="input"
    )


def _content(content: Any) -> Any:
    if isinstance(content, str) or content is None:
        return content
    parts = []
    for part in _objects(content, "input"):
        kind = part.get("type")
        if kind in ("input_text", "output_text", "text"):
            parts.append({"type": "text", "text": part.get("text")})
        elif kind == "refusal":
            parts.append({"type": "text", "text": part.get("refusal")})
        elif kind == "input_image" and part.get("image_url"):
            image = {"url": part["image_url"], **({"detail": part["detail"]} if part.get("detail") else {})}
            parts.append({"type": "image_url", "image_url": image})
        else:
            raise InvalidValue(f"input: content of type {str(kind)[:40]!r} is not supported", param="input")
    # Many upstreams know text only as text.
    if all(part["type"] == "text" for part in parts):
        return "".join(str(part["text"]) for part in parts)
    return parts


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise InvalidValue("tools: only functions; others run on OpenAI's servers", param="tools")
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {n: tool[n] for n in names if tool.get(n) is not None}}


def _choice(choice: Any) -> Any:
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


def _format(kind: dict[str, Any]) -> dict[str, Any]:
    if kind.get("type") != "json_schema":
        return kind
    names = ("name", "description", "schema", "strict")
    return {"type": "json_schema", "json_schema": {n: kind[n] for n in names if kind.get(n) is not None}}


def _object(fields: dict[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name) or {}
    if not isinstance(value, dict):
        raise InvalidValue(f"{name}: must be an object", param=name)
    return value


def _objects(value: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidValue(f"{name}: must be text or a list of objects", param=name)
    return value
