"""What a caller may ask for, validated once at the door and stored beside the response.

Unknown top-level fields that are OpenAI sampling parameters are passed through to the upstream;
everything else unknown is refused, because a misspelt limit that is ignored is a limit that is not there.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MAX_MESSAGES = 1024
MAX_PROMPT_BYTES = 262_144  # all text of a prompt together; the body's own bound is a setting
MAX_TOKENS = 16_000_000
MAX_METADATA = 16
MAX_DEPTH = 64  # of nested JSON; orjson and pydantic both give up at about 250
INT64 = 2**63
PASSED_THROUGH = (
    "frequency_penalty", "logit_bias", "logprobs", "min_p", "parallel_tool_calls", "presence_penalty",
    "reasoning_effort", "repetition_penalty", "response_format", "seed", "stop", "temperature",
    "tool_choice", "tools", "top_k", "top_logprobs", "top_p", "user",
)  # fmt: skip


# Of a request to an upstream: what the stream is made of.
FIXED = frozenset(("stream", "stream_options", "n", "continue_final_message", "add_generation_prompt"))


class Simulation(BaseModel):
    """The simulated source's parameters; zero tokens per second means as fast as it is let."""

    model_config = ConfigDict(extra="forbid", strict=True)

    tokens: int = Field(400, ge=1, le=MAX_TOKENS, description="how many tokens to make")
    tokens_per_second: float = Field(60.0, ge=0, le=100_000, description="0: as fast as it is let")
    seed: int = Field(1, ge=0, le=2**53, description="the text is a pure function of it")

    @field_validator("tokens_per_second", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        """Whole numbers are numbers; booleans, text, NaN and infinities are not."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError("must be a finite number")
        try:
            number = float(value)
        except OverflowError:  # a whole number beyond any float
            number = math.inf
        if not math.isfinite(number):
            raise ValueError("must be a finite number")
        return number


class StreamRequest(BaseModel):
    """The body of `POST /v1/streams`, and what a worker reads from the job."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=200, description="a public model name")
    messages: list[dict[str, Any]] | None = Field(None, max_length=MAX_MESSAGES)
    prompt: str | None = Field(None, description="short for one user message")
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = None
    background: bool = Field(False, description="go on without readers")
    priority: Literal["interactive", "background"] | None = None
    pace: Literal["fastest", "slowest"] = "fastest"
    window_bytes: Annotated[int, Field(ge=1024, le=16 * 1024 * 1024)] | None = None
    degrade: bool = Field(True, description="false: refuse this request rather than degrade it")
    metadata: dict[str, str] = Field(default_factory=dict, max_length=MAX_METADATA)
    simulation: Simulation | None = None

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0, le=1000)] | None = None
    seed: Annotated[int, Field(ge=-INT64, lt=INT64)] | None = None  # what JSON writers agree on
    stop: str | list[str] | None = None
    user: str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    tools: list[dict[str, Any]] | None = Field(None, max_length=256)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None

    upstream: dict[str, Any] | None = Field(
        None, max_length=64, description="more fields for the upstream, as they are; those above come first"
    )

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give exactly one of prompt and messages")
        return self

    # Bounds on one field are checked on that field, so that the error names it.
    @field_validator("prompt")
    @classmethod
    def _prompt_in_bounds(cls, value: str | None) -> str | None:
        if value is not None:
            if not value.strip():
                raise ValueError("prompt is empty")
            _within(text_bytes(value))
        return value

    @field_validator("messages")
    @classmethod
    def _messages_in_bounds(cls, value: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        if value is not None:
            if not value:
                raise ValueError("messages is empty")
            for message in value:
                if not isinstance(message.get("role"), str):
                    raise ValueError("each message needs a role")
            _within(text_bytes(value))
        return value

    @field_validator("upstream")
    @classmethod
    def _not_ours(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and (ours := sorted(value.keys() & cls.model_fields.keys())):
            raise ValueError(f"{ours[0]} is a field of its own")
        if value is not None and (fixed := sorted(value.keys() & FIXED)):
            raise ValueError(f"{fixed[0]} is not the caller's to set")
        return value

    @field_validator("tools", "tool_choice", "response_format", "upstream")
    @classmethod
    def _not_too_deep(cls, value: Any) -> Any:
        text_bytes(value)
        return value

    @field_validator("metadata")
    @classmethod
    def _small(cls, value: dict[str, str]) -> dict[str, str]:
        if any(len(key) > 64 or len(text) > 512 for key, text in value.items()):
            raise ValueError("metadata keys are at most 64 characters, values at most 512")
        return value

    @property
    def chat_messages(self) -> list[dict[str, Any]]:
        """The messages as an OpenAI-compatible upstream takes them."""
        if self.messages is not None:
            return self.messages
        return [{"role": "user", "content": self.prompt}]

    @property
    def token_limit(self) -> int | None:
        """`max_completion_tokens` or its older name."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def queue(self) -> Literal["interactive", "background"]:
        """The job stream it waits in."""
        return self.priority or ("background" if self.background else "interactive")

    def sampling(self) -> dict[str, Any]:
        """The OpenAI parameters that the caller gave, to pass through."""
        given = {
            name: value
            for name in PASSED_THROUGH
            if name in self.model_fields_set and (value := getattr(self, name)) is not None
        }
        return {**(self.upstream or {}), **given}


def place(loc: Sequence[int | str], kind: str, body: Any) -> str:
    """The field of a body that an error of pydantic's is about, as in `simulation.tokens` or `messages.0`.

    Pydantic's own `loc` also tells which branches of a union it tried, as in `stop.str`: those are no fields.
    """
    names: list[str] = []
    for part in loc:
        is_there = (
            part in body if isinstance(body, dict) else isinstance(body, list) and isinstance(part, int)
        )
        if not is_there and kind != "missing":
            break
        names.append(str(part))
        body = body[part] if is_there else None
    return ".".join(names)


def text_bytes(value: object) -> int:
    """The UTF-8 size of all text in a JSON value, keys aside.

    Raises ValueError when it is nested deeper than MAX_DEPTH or holds text that is not Unicode (a lone
    surrogate): neither can be written to the job or sent to an upstream.
    """
    size = 0
    left: list[tuple[object, int]] = [(value, 0)]  # a list and not recursion: the depth is the caller's
    while left:
        item, depth = left.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"is nested deeper than {MAX_DEPTH} levels")
        if isinstance(item, str):
            size += len(_encoded(item))
        elif isinstance(item, dict):
            for key, inner in item.items():
                _encoded(key)
                left.append((inner, depth + 1))
        elif isinstance(item, list):
            left.extend((inner, depth + 1) for inner in item)
    return size


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds text that is not valid Unicode") from None


def _within(size: int) -> None:
    if size > MAX_PROMPT_BYTES:
        raise ValueError(f"the prompt has {size} bytes of text; at most {MAX_PROMPT_BYTES}")
