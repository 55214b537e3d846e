"""Which public model name is which source: `RELAY_MODELS_FILE`, a TOML file.

    [models.fast]
    source = "openai"
    base_url = "http://vllm:8000/v1"
    api_key_env = "VLLM_API_KEY"     # the variable that holds the key; never the key itself
    upstream_model = "qwen3-8b"      # default: the public name
    max_tokens = 4096                # a lower or absent max_tokens of a request becomes this
    fallback = "small"               # under pressure; must be another model of this file
    continues = true                 # the upstream continues a prefix (vLLM's continue_final_message)

Without a file there is `simulated`, and every other name goes to `RELAY_UPSTREAM_BASE_URL` if that is set.
"""

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from relay.errors import NotFound, SettingsInvalid

SIMULATED = "simulated"


def check_base_url(value: str) -> str:
    """The address of an OpenAI-compatible API, up to and with its `/v1`.

    Raises ValueError unless it is a plain http(s) URL; credentials in it would end up in logs.
    """
    allowed = "must be http:// or https://, a host, and a path that ends before /chat/completions"
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError(allowed)
    parts = urlsplit(value)
    try:
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        usable = False
    if not usable or parts.query or parts.fragment:
        raise ValueError(allowed)
    if parts.username is not None or parts.password is not None:
        raise ValueError("must not hold credentials: the key has a setting of its own")
    return value


class Model(BaseModel):
    """One entry: where the text of a public model name comes from, and its limits."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    name: str
    source: Literal["openai", "simulated"]
    base_url: str | None = None
    api_key_env: str | None = None
    upstream_model: str | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    fallback: str | None = None
    continues: bool = False
    connect_timeout_s: float = Field(10.0, gt=0, le=300)
    first_token_timeout_s: float = Field(120.0, gt=0, le=3600)
    idle_timeout_s: float = Field(120.0, gt=0, le=3600)
    # Set by Registry.get for names that have no entry of their own.
    api_key: str | None = Field(None, exclude=True, repr=False)

    @model_validator(mode="after")
    def _has_address(self) -> Self:
        if self.source == "openai" and self.base_url is None:
            raise ValueError("an openai source needs base_url, http:// or https://")
        return self

    @field_validator("base_url")
    @classmethod
    def _usable_address(cls, value: str | None) -> str | None:
        return None if value is None else check_base_url(value)

    @property
    def key(self) -> str | None:
        """The upstream's key, from the environment at the time of use."""
        return self.api_key or (os.environ.get(self.api_key_env) if self.api_key_env else None)


class Registry:
    """The models that this deployment offers."""

    def __init__(
        self,
        models: dict[str, Model],
        *,
        catch_all_url: str | None = None,
        catch_all_key: str | None = None,
    ) -> None:
        self._models = models
        self._catch_all_url = catch_all_url
        self._catch_all_key = catch_all_key

    @property
    def names(self) -> list[str]:
        """The names that have an entry."""
        return sorted(self._models)

    def get(self, name: str) -> Model:
        """The entry for a public name. Raises NotFound (param `model`) when there is none."""
        model = self._models.get(name)
        if model is not None:
            return model
        if self._catch_all_url:
            return Model(
                name=name,
                source="openai",
                base_url=self._catch_all_url,
                api_key=self._catch_all_key,
            )
        raise NotFound(
            f"no model {name[:100]!r}; this deployment offers {', '.join(self.names)}",
            param="model",
        )


def load(
    path: Path | None, *, upstream_base_url: str | None = None, upstream_api_key: str | None = None
) -> Registry:
    """Read the models file, or make the registry that holds without one.

    Raises SettingsInvalid with one line that names the file, the model and what is wrong.
    """
    if upstream_base_url is not None:
        # Now, and not with the first request: then it would be that caller's error.
        try:
            check_base_url(upstream_base_url)
        except ValueError as error:
            raise SettingsInvalid(f"RELAY_UPSTREAM_BASE_URL: {error}") from error
    if path is None:
        models = {SIMULATED: Model(name=SIMULATED, source="simulated")}
        return Registry(models, catch_all_url=upstream_base_url, catch_all_key=upstream_api_key)
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsInvalid(f"RELAY_MODELS_FILE={path}: {error}") from error
    entries = tables.pop("models", None)
    if tables:
        raise SettingsInvalid(
            f"RELAY_MODELS_FILE={path}: {', '.join(sorted(tables))}: only [models.NAME] tables are allowed"
        )
    if not isinstance(entries, dict) or not entries:
        raise SettingsInvalid(f"RELAY_MODELS_FILE={path}: needs at least one [models.NAME] table")
    models = {name: _entry(path, name, entry) for name, entry in entries.items()}
    for model in models.values():
        if model.fallback is not None and (model.fallback == model.name or model.fallback not in models):
            raise SettingsInvalid(
                f"RELAY_MODELS_FILE={path}: models.{model.name}.fallback={model.fallback!r}: "
                "must name another model of the file"
            )
    return Registry(models, catch_all_url=upstream_base_url, catch_all_key=upstream_api_key)


def _entry(path: Path, name: str, entry: object) -> Model:
    if not isinstance(entry, dict):
        raise SettingsInvalid(f"RELAY_MODELS_FILE={path}: models.{name} is not a table of its settings")
    if "api_key" in entry:
        raise SettingsInvalid(
            f"RELAY_MODELS_FILE={path}: models.{name}.api_key: keys do not belong in the file; "
            "api_key_env names the variable that holds it"
        )
    if "name" in entry:
        raise SettingsInvalid(f"RELAY_MODELS_FILE={path}: models.{name}.name: the table's name is the name")
    try:
        return Model.model_validate({**entry, "name": name})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("models", name, *first["loc"]))
        # base_url may hold a password by mistake; a missing field and a relation have no value to show
        valueless = first["type"] == "missing" or first["loc"] in {(), ("base_url",)}
        shown = "" if valueless else f"={first['input']!r}"[:80]
        message = first["msg"].removeprefix("Value error, ")
        raise SettingsInvalid(f"RELAY_MODELS_FILE={path}: {where}{shown}: {message}") from error
