"""The settings: good ones, and the one line that a bad one ends the process with."""

import math
import os
from pathlib import Path
from typing import Any

import pytest

from relay.errors import SettingsInvalid
from relay.settings import Settings, load


@pytest.fixture(autouse=True)
def _no_settings_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # away from any .env
    for name in list(os.environ):
        if name.startswith("RELAY_"):
            monkeypatch.delenv(name)


def refused(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    """The one line with these variables set."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsInvalid) as caught:
        load()
    assert "\n" not in caught.value.message
    return caught.value.message


def test_defaults() -> None:
    """Nothing set is a good configuration, the one of the contract."""
    settings = load()
    assert (settings.log_entries, settings.window_bytes, settings.credit_bytes) == (256, 32_768, 16_384)
    assert (settings.max_response_bytes, settings.flush_ms, settings.pause_max_s) == (1_048_576, 15, 20)
    assert (settings.abandon_after_s, settings.lease_s, settings.retention_s) == (30, 10, 3600)
    assert settings.api_keys == ()


def test_every_setting_is_described() -> None:
    """Each setting tells its meaning: `relay settings` prints it."""
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("RELAY_LOG_ENTRIES", "15", "greater than or equal to 16"),
        ("RELAY_LOG_ENTRIES", "many", "valid integer"),
        ("RELAY_LOG_ENTRIES", "1.5", "valid integer"),
        ("RELAY_LOG_ENTRIES", "1" + "0" * 30, "less than or equal to 65536"),
        ("RELAY_FLUSH_MS", "nan", "less than or equal to 500"),
        ("RELAY_FLUSH_MS", "inf", "less than or equal to 500"),
        ("RELAY_FLUSH_MS", "-1", "greater than or equal to 0"),
        ("RELAY_PAUSE_MAX_S", "-inf", "greater than or equal to 0.1"),
        ("RELAY_LEASE_S", "0", "greater than or equal to 0.5"),
        ("RELAY_MEMORY_BUDGET_BYTES", "512MB", "valid integer"),
        ("RELAY_REQUIRE_KEYS", "maybe", "valid boolean"),
        ("RELAY_LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("RELAY_REDIS_URL", "localhost:6379", "redis+sentinel:// or redis+cluster://"),
        ("RELAY_UPSTREAM_BASE_URL", "vllm:8000", "http:// or https://"),
    ],
)
def test_bad_value(monkeypatch: pytest.MonkeyPatch, name: str, value: str, allowed: str) -> None:
    """A bad value is one line: the variable, the value, and what is allowed."""
    message = refused(monkeypatch, **{name: value})
    assert message.startswith(f"{name}={value!r}: ")
    assert allowed in message


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        (
            {"RELAY_LEASE_RENEW_S": "6"},
            "RELAY_LEASE_RENEW_S=6.0: must be at most half of RELAY_LEASE_S (10.0)",
        ),
        (
            {"RELAY_WINDOW_BYTES": "8192", "RELAY_MAX_RESPONSE_BYTES": "4096"},
            "RELAY_WINDOW_BYTES=8192: must be at most RELAY_MAX_RESPONSE_BYTES (4096)",
        ),
        (
            {"RELAY_LEASE_S": "20", "RELAY_RETENTION_S": "15"},
            "RELAY_LEASE_S=20.0: must be less than RELAY_RETENTION_S (15)",
        ),
        ({"RELAY_RETENTION_S": "15"}, "RELAY_PAUSE_MAX_S=20.0: must be less than RELAY_RETENTION_S (15)"),
    ],
)
def test_bad_relation(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], line: str) -> None:
    """Two settings that contradict each other are one line with both names and both values."""
    assert refused(monkeypatch, **variables) == line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RELAY_API_KEYS", "hunter2"),
        ("RELAY_API_KEYS", "good-enough-key,team:hunter2"),
        ("RELAY_REDIS_URL", "http://user:hunter2@redis:6379"),
        ("RELAY_REDIS_URL", "user:hunter2@redis:6379"),
        ("RELAY_REDIS_URL", "tcp://:with@hunter2@redis:6379"),
        ("RELAY_REDIS_URL", "tcp://redis?password=hunter2&db=1"),
        ("RELAY_UPSTREAM_BASE_URL", "https://user:hunter2@api/v1"),
    ],
)
def test_no_secret_in_an_error(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A bad setting that holds a secret is named without showing it."""
    message = refused(monkeypatch, **{name: value})
    assert message.startswith(f"{name}=")
    assert "hunter2" not in message


def test_long_value_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line stays a line, however long and odd the value."""
    assert len(refused(monkeypatch, RELAY_LOG_LEVEL="x\n" * 5000)) < 200


@pytest.mark.parametrize("value", [math.nan, True, "x", -1])
def test_values_given_by_the_command_line(value: Any) -> None:
    """Values from elsewhere than the environment are checked alike."""
    with pytest.raises(SettingsInvalid, match=r"^RELAY_CREDIT_BYTES="):
        load(credit_bytes=value)


def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are separated by commas, spaces around them do not count, and they do not show."""
    monkeypatch.setenv("RELAY_API_KEYS", " first-key-1 ,team:second-key-2,, ")
    settings = load()
    assert [key.get_secret_value() for key in settings.api_keys] == ["first-key-1", "team:second-key-2"]
    assert "first-key-1" not in repr(settings)


@pytest.mark.parametrize(
    "name", ["RELAY_API_KEYS", "RELAY_MODELS_FILE", "RELAY_UPSTREAM_BASE_URL", "RELAY_LEASE_S"]
)
def test_empty_is_absent(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """An empty variable means the default, as compose files set it."""
    monkeypatch.setenv(name, "")
    assert load() == Settings()


def test_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`.env` is read, and the environment wins over it."""
    (tmp_path / ".env").write_text("RELAY_LOG_ENTRIES=100\nRELAY_LEASE_S=20\nOTHER=1\n")
    monkeypatch.setenv("RELAY_LEASE_S", "30")
    settings = load()
    assert (settings.log_entries, settings.lease_s) == (100, 30.0)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    """Without keys this machine may be served."""
    load().check_exposed(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "10.0.0.1", "example.org", "127.1", "localhost.example.org"]
)
def test_exposed_needs_a_key(host: str) -> None:
    """Without keys no other address is served; with a key, or with keys required, it is."""
    with pytest.raises(SettingsInvalid, match="RELAY_API_KEYS"):
        load().check_exposed(host)
    load(api_keys=("0123456789",)).check_exposed(host)
    load(require_keys=True).check_exposed(host)
