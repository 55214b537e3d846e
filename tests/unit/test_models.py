"""The models file: what it may say, and the one line that tells what is wrong with it."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from relay.errors import NotFound, SettingsInvalid
from relay.models import Model, load

GOOD = """
[models.fast]
source = "openai"
base_url = "http://vllm:8000/v1"
api_key_env = "TEST_VLLM_KEY"
upstream_model = "qwen3-8b"
max_tokens = 4096
fallback = "small"
continues = true
idle_timeout_s = 30

[models.small]
source = "simulated"
"""


def write(folder: Path, text: str) -> Path:
    """A models file with this text."""
    path = folder / "models.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(folder: Path, text: str) -> str:
    """The one line that loading this text ends with."""
    path = write(folder, text)
    with pytest.raises(SettingsInvalid) as caught:
        load(path)
    message = caught.value.message
    assert message.startswith(f"RELAY_MODELS_FILE={path}: ")
    assert "\n" not in message
    return message.removeprefix(f"RELAY_MODELS_FILE={path}: ")


def test_a_good_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting of the example is read, and the key comes from the environment when it is used."""
    registry = load(write(tmp_path, GOOD))
    fast = registry.get("fast")
    assert registry.names == ["fast", "small"]
    assert (fast.upstream_model, fast.max_tokens, fast.fallback) == ("qwen3-8b", 4096, "small")
    assert (fast.continues, fast.idle_timeout_s, fast.key) == (True, 30.0, None)
    monkeypatch.setenv("TEST_VLLM_KEY", "sk-1")
    assert fast.key == "sk-1"


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ('source = "magic"', "models.m.source='magic'"),
        ("source = 5", "models.m.source=5"),
        ("max_tokens = 0", "models.m.max_tokens=0"),
        ('max_tokens = "5"', "models.m.max_tokens='5'"),
        ("max_tokens = 1.5", "models.m.max_tokens=1.5"),
        ("max_tokens = true", "models.m.max_tokens=True"),
        ('continues = "yes"', "models.m.continues='yes'"),
        ("continues = 1", "models.m.continues=1"),
        ("idle_timeout_s = 0", "models.m.idle_timeout_s=0"),
        ("idle_timeout_s = nan", "models.m.idle_timeout_s=nan"),
        ("idle_timeout_s = inf", "models.m.idle_timeout_s=inf"),
        ("idle_timeout_s = true", "models.m.idle_timeout_s=True"),
        ('idle_timeout_s = "5"', "models.m.idle_timeout_s='5'"),
        ("connect_timeout_s = 301", "models.m.connect_timeout_s=301"),
        ("first_token_timeout_s = -1", "models.m.first_token_timeout_s=-1"),
        ("upstream_model = 5", "models.m.upstream_model=5"),
        ("fallback = []", "models.m.fallback=[]"),
        ("idle_timeout = 5", "models.m.idle_timeout=5"),  # misspelt: no unit
        ("base_url = 5", "models.m.base_url"),
        ('name = "x"', "models.m.name"),
        ('api_key = "sk-1"', "models.m.api_key"),
    ],
)
def test_bad_setting(tmp_path: Path, line: str, where: str) -> None:
    """A bad setting of a model is one line that names the file, the model, the setting and the value."""
    source = "" if line.startswith("source") else 'source = "simulated"\n'
    message = refused(tmp_path, f"[models.m]\n{source}{line}\n")
    assert message.startswith(f"{where}:")
    assert "sk-1" not in message


@pytest.mark.parametrize(
    "url",
    ["", "vllm:8000", "ftp://vllm/v1", "http://", "http:///v1", "http://vllm:x/v1", "http://vllm:0/v1",
     "http://vllm/v1?key=abc", "http://vllm/v1#x", "http://user:hunter2@vllm/v1", "http://vllm/v 1",
     "http://vllm/v1\\r\\nX: y", "http://vüllm/v1"],
)  # fmt: skip
def test_bad_address(tmp_path: Path, url: str) -> None:
    """An address must be a plain http(s) URL; one that holds a password is refused without showing it."""
    message = refused(tmp_path, f'[models.m]\nsource = "openai"\nbase_url = "{url}"\n')
    assert message.startswith("models.m.base_url: must")
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "at least one"),
        ("[models]", "at least one"),
        ("models = 5", "at least one"),
        ("[models]\nm = 5", "models.m is not a table"),
        ("[model.m]\nsource = 'simulated'", "model: only"),
        ("[models.m]\nsource = 'simulated'\n[limits]\nx = 1", "limits: only"),
        ("[models.m]\nsource = 'openai'", "models.m: an openai source needs base_url"),
        ("[models.m]", "models.m.source: Field required"),
        ("[models.m]\nsource = 'simulated'\nfallback = 'm'", "models.m.fallback='m': must name another"),
        ("[models.m]\nsource = 'simulated'\nfallback = 'x'", "models.m.fallback='x': must name another"),
        ("[models.m", "Expected"),
    ],
)
def test_bad_file(tmp_path: Path, text: str, said: str) -> None:
    """A file that makes no sense as a whole says so."""
    assert said in refused(tmp_path, text)


def test_unreadable_file(tmp_path: Path) -> None:
    """A file that is not there, or is not text, is one line too."""
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "absent.toml", tmp_path / "bytes.toml", tmp_path):
        with pytest.raises(SettingsInvalid, match=r"RELAY_MODELS_FILE=.*"):
            load(path)


def test_without_a_file() -> None:
    """Without a file there is the simulated model, and no other."""
    registry = load(None)
    assert registry.names == ["simulated"]
    assert registry.get("simulated").source == "simulated"
    with pytest.raises(NotFound, match="this deployment offers simulated") as caught:
        registry.get("x" * 1000)
    assert caught.value.param == "model"
    assert len(caught.value.message) < 200


def test_other_names_go_to_the_upstream(tmp_path: Path) -> None:
    """With an upstream configured every other name goes there under that name, with its key."""
    for path in (None, write(tmp_path, GOOD)):
        model = load(path, upstream_base_url="http://up/v1", upstream_api_key="sk-2").get("other")
        assert (model.source, model.name, model.base_url, model.key) == (
            "openai", "other", "http://up/v1", "sk-2",
        )  # fmt: skip
        assert "sk-2" not in repr(model)
        assert "sk-2" not in model.model_dump_json()


def test_bad_upstream_is_found_at_start() -> None:
    """A bad upstream address ends the start, not the first request, and shows no key."""
    with pytest.raises(SettingsInvalid, match="RELAY_UPSTREAM_BASE_URL") as caught:
        load(None, upstream_base_url="vllm:8000", upstream_api_key="sk-2")
    assert "sk-2" not in caught.value.message


@pytest.mark.parametrize("field", [{"name": 5}, {"name": None}, {"surprise": 1}])
def test_model_is_strict(field: dict[str, Any]) -> None:
    """A model takes no setting that it does not know, and no value of another type."""
    with pytest.raises(ValidationError):
        Model.model_validate({"name": "m", "source": "simulated", **field})
