"""The settings: `RELAY_*` variables and `.env`, validated at start, relations included.

`relay settings` prints this table; the descriptions are its last column.
"""

import difflib
import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from relay.errors import SettingsInvalid
from relay.models import check_base_url

KIB, MIB = 1024, 1024 * 1024
SECRET = frozenset(("api_keys", "upstream_api_key"))  # never shown, not even in an error
_CREDENTIALS = re.compile(r"(?:(?<=://)|^(?!\w+://)).*@|(?<=password=)[^&]*")


class Settings(BaseSettings):
    """All of them, for every kind of process. Sizes in bytes, times in the unit of the name's end."""

    # An empty variable is an absent one: that is what `X=${X:-}` in a compose file means.
    model_config = SettingsConfigDict(
        env_prefix="RELAY_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    redis_url: str = Field(
        "redis://127.0.0.1:6379/0",
        description="Redis or Valkey: redis://, rediss://, unix://, redis+sentinel://, redis+cluster://",
    )
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="static keys, separated by commas, each optionally NAME:KEY"
    )
    require_keys: bool = Field(False, description="every call but health needs a key")
    models_file: Path | None = Field(None, description="TOML: public model names and their sources")
    upstream_base_url: str | None = Field(None, description="OpenAI-compatible upstream for other names")
    upstream_api_key: SecretStr | None = Field(None, description="its key")

    log_entries: int = Field(256, ge=16, le=65_536, description="cap of a response's log, in entries")
    window_bytes: int = Field(32 * KIB, ge=KIB, le=16 * MIB, description="lead at which a source is paused")
    credit_bytes: int = Field(16 * KIB, ge=KIB, le=MIB, description="unconfirmed bytes per consumer")
    credit_entries: int = Field(64, ge=1, le=4096, description="unconfirmed entries per consumer")
    max_response_bytes: int = Field(MIB, ge=4 * KIB, le=256 * MIB, description="bound of one journal")
    flush_ms: float = Field(15.0, ge=0, le=500, description="least interval between two appends")
    pause_max_s: float = Field(20.0, ge=0.1, le=3600, description="longest pause of a source")
    abandon_after_s: float = Field(30.0, ge=0.1, le=86_400, description="no consumer for this long: cancel")
    lease_s: float = Field(10.0, ge=0.5, le=300, description="a worker's lease on a response")
    lease_renew_s: float = Field(3.0, ge=0.1, le=100, description="renewed this often")
    retention_s: int = Field(3600, ge=10, le=30 * 86_400, description="kept after the last change")
    memory_budget_bytes: int | None = Field(None, ge=MIB, description="Redis memory; default its maxmemory")

    max_body_bytes: int = Field(MIB, ge=KIB, le=64 * MIB, description="of a request")
    limited_tokens: int = Field(1024, ge=1, le=1_000_000, description="max_tokens of new work under pressure")
    max_active: int = Field(4096, ge=1, le=1_000_000, description="responses queued or running at once")
    max_consumers: int = Field(10_000, ge=1, le=100_000, description="SSE readers of one node")
    keepalive_s: float = Field(15.0, ge=1, le=300, description="between two SSE comments on a quiet stream")
    drain_s: float = Field(8.0, ge=0.1, le=600, description="from SIGTERM to the end, for API nodes")
    drain_delay_s: float = Field(
        1.0,
        ge=0,
        le=300,
        description="of it, /readyz is 503 and readers stay; more than a balancer's interval",
    )
    worker_drain_s: float = Field(20.0, ge=0, le=3600, description="the same for workers, then hand over")
    worker_memory_bytes: int | None = Field(
        None, ge=32 * MIB, description="resident memory at which a worker claims nothing; default: no bound"
    )
    user_timeout_s: float = Field(60.0, ge=1, le=3600, description="TCP_USER_TIMEOUT of client sockets")
    notsent_lowat_bytes: int = Field(16 * KIB, ge=KIB, le=MIB, description="TCP_NOTSENT_LOWAT")
    tcp_maxseg: int | None = Field(None, ge=88, le=65_495, description="TCP_MAXSEG, to test on loopback")
    wire_inflight: int = Field(16_384, ge=16, le=1_000_000, description="commands in flight per connection")
    metrics_host: str = Field("127.0.0.1", description="where a worker serves /metrics")
    trace_file: Path | None = Field(None, description="a worker notes each claim and append here: for tests")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level logged")
    log_text: bool = Field(False, description="log lines may hold prompts and what upstreams say of them")
    otlp_endpoint: str | None = Field(
        None, description="OpenTelemetry collector, OTLP over HTTP: http://HOST:4318; unset: no tracing"
    )
    log_format: Literal["json", "console"] = Field("json", description="how log lines look")

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @field_validator("api_keys")
    @classmethod
    def _long_enough(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if any(len(key.get_secret_value().rpartition(":")[2]) < 8 for key in value):
            raise ValueError("each key needs at least 8 characters")
        return value

    @field_validator("redis_url")
    @classmethod
    def _scheme(cls, value: str) -> str:
        if not re.match(r"(rediss?(\+sentinel|\+cluster)?|unix)://", value):
            raise ValueError(
                "must start with redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://"
            )
        return value

    @field_validator("upstream_base_url", "otlp_endpoint")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return None if value is None else check_base_url(value)

    @model_validator(mode="after")
    def _relations(self) -> Self:
        self._need(self.lease_renew_s * 2 <= self.lease_s, "lease_renew_s", "at most half of", "lease_s")
        self._need(
            self.window_bytes <= self.max_response_bytes, "window_bytes", "at most", "max_response_bytes"
        )
        self._need(self.lease_s < self.retention_s, "lease_s", "less than", "retention_s")
        self._need(self.pause_max_s < self.retention_s, "pause_max_s", "less than", "retention_s")
        return self

    def _need(self, holds: bool, name: str, allowed: str, other: str) -> None:
        if not holds:
            raise ValueError(
                f"RELAY_{name.upper()}={getattr(self, name)}: must be {allowed} "
                f"RELAY_{other.upper()} ({getattr(self, other)})"
            )

    def check_exposed(self, host: str) -> None:
        """Raises SettingsInvalid when `host` would serve others than this machine without a key."""
        if self.api_keys or self.require_keys or _is_loopback(host):
            return
        raise SettingsInvalid(
            f"--host {host}: without RELAY_API_KEYS only a loopback address is served; "
            "set RELAY_API_KEYS or RELAY_REQUIRE_KEYS=true, or use --host 127.0.0.1"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def load(**given: Any) -> Settings:
    """Read and check them. Raises SettingsInvalid with one line: the variable, the value, what is allowed."""
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise SettingsInvalid(message) from error
        name = str(first["loc"][0])
        raise SettingsInvalid(f"RELAY_{name.upper()}={_shown(name, first['input'])}: {message}") from error


# RELAY_* variables that are no settings: of the command line, of ops, of tests; and what Kubernetes sets
# for a service of that name.
_OTHERS = re.compile(
    r"RELAY_((URL|API_KEY|TRACE_FILE|METRICS_KEY|BIND|HOST|PORT|CONCURRENCY|(LLM_)?IMAGE)|(TEST|BENCH|CI)_.*"
    r"|.*SERVICE_(HOST|PORT.*)|.*PORT(_\d+_(TCP|UDP).*)?)"
)


def misspelt(names: Iterable[str]) -> dict[str, str]:
    """The RELAY_* variables that no setting has, each with the nearest that one has: they are ignored."""
    known = [f"RELAY_{name.upper()}" for name in Settings.model_fields]
    return {
        name: next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.0)), "")
        for name in sorted({name.upper() for name in names})
        if name.startswith("RELAY_") and name not in known and not _OTHERS.fullmatch(name)
    }


def _shown(name: str, value: object) -> str:
    """A value as an error may show it: bounded, and without what opens a door."""
    if name in SECRET:
        return "(hidden)"
    return repr(_CREDENTIALS.sub("***@", value) if isinstance(value, str) else value)[:80]
