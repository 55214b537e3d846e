"""What a server says of itself, and what is made of it."""

import pytest

from relay.errors import ServerUnfit
from relay.fitness import Finding, judge, parse_info, require

GOOD_INFO = {
    "redis_version": "7.4.1",
    "role": "master",
    "aof_enabled": "1",
    "aof_last_write_status": "ok",
    "rdb_last_bgsave_status": "ok",
}
GOOD_CONFIG = {"maxmemory": "268435456", "maxmemory-policy": "noeviction", "save": ""}


def findings(level: str, info: dict[str, object] | None = None, **config: object) -> list[Finding]:
    """The findings of `level` for a good server with some differences."""
    renamed = {name.replace("_", "-"): value for name, value in config.items()}
    return [
        finding
        for finding in judge({**GOOD_INFO, **(info or {})}, {**GOOD_CONFIG, **renamed})
        if finding.level == level
    ]


def test_good_server() -> None:
    """A server with nothing wrong has only findings without a remedy, and is let through."""
    said = judge(GOOD_INFO, GOOD_CONFIG)
    assert {finding.level for finding in said} == {"ok"}
    assert not any(finding.remedy for finding in said)
    require(said)


@pytest.mark.parametrize("version", ["6.2.14", "5.0.7", "2.8.0"])
def test_old_redis(version: str) -> None:
    """Redis before 7.0 is an error that names its version."""
    (error,) = findings("error", {"redis_version": version})
    assert version in error.what
    assert "7.0" in error.remedy


@pytest.mark.parametrize("version", ["7.0.0", "7.0.15", "8.2.3", "10.0.1"])
def test_new_redis(version: str) -> None:
    """Redis 7.0 and everything later is good, two-digit majors included."""
    assert not findings("error", {"redis_version": version})


def test_valkey_is_known_by_its_own_version() -> None:
    """Valkey passes by its own field, whatever it says for the sake of old clients."""
    said = judge({**GOOD_INFO, "redis_version": "6.0.0", "valkey_version": "9.1.2"}, GOOD_CONFIG)
    assert Finding("ok", "Valkey 9.1.2") in said


@pytest.mark.parametrize("version", ["", "unknown", "7", "7.x"])
def test_unreadable_version(version: str) -> None:
    """A version that cannot be read is a warning, not a refusal."""
    assert not findings("error", {"redis_version": version})
    assert len(findings("warning", {"redis_version": version})) == 1


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-lru", "volatile-ttl", "allkeys-random"])
def test_evicting_server(policy: str) -> None:
    """Every policy that evicts is an error, those that spare keys without a TTL included."""
    (error,) = findings("error", maxmemory_policy=policy)
    assert policy in error.what


def test_policy_from_info() -> None:
    """Where CONFIG is hidden, the policy that INFO repeats is judged."""
    said = judge({**GOOD_INFO, "maxmemory_policy": "allkeys-lru"}, {})
    assert [finding.level for finding in said].count("error") == 1


def test_no_config_at_all() -> None:
    """Where nothing tells the policy or the memory limit, both are warnings."""
    said = judge(GOOD_INFO, {})
    assert [finding.level for finding in said].count("warning") == 2


def test_replica() -> None:
    """A replica is an error: it takes no writes."""
    (error,) = findings("error", {"role": "slave"})
    assert "RELAY_REDIS_URL" in error.remedy


@pytest.mark.parametrize(
    ("info", "config", "errors"),
    [
        ({"aof_last_write_status": "err"}, {}, 1),
        ({"rdb_last_bgsave_status": "err"}, {}, 1),
        ({"rdb_last_bgsave_status": "err"}, {"stop_writes_on_bgsave_error": "no"}, 0),
    ],
)
def test_failing_disk(info: dict[str, object], config: dict[str, object], errors: int) -> None:
    """A disk fault that makes the server refuse writes is an error; one that does not, is none."""
    assert len(findings("error", info, **config)) == errors


def test_no_memory_limit() -> None:
    """No maxmemory is a warning that names both ways out."""
    (warning,) = findings("warning", maxmemory="0")
    assert "RELAY_MEMORY_BUDGET_BYTES" in warning.remedy


@pytest.mark.parametrize(("save", "word"), [("", "every response"), ("3600 1 300 100", "snapshots only")])
def test_persistence(save: str, word: str) -> None:
    """Without an append-only file there is one warning, which says what would be lost."""
    (warning,) = findings("warning", {"aof_enabled": "0"}, save=save)
    assert word in warning.what


def test_require_stops_at_an_error() -> None:
    """The refusal is one line with the remedy in it; warnings alone refuse nothing."""
    with pytest.raises(ServerUnfit, match="too old: use Redis") as refused:
        require(judge({**GOOD_INFO, "redis_version": "6.2.0"}, GOOD_CONFIG))
    assert "\n" not in str(refused.value)
    require([Finding("warning", "something", "do something")])


def test_bytes_and_numbers() -> None:
    """Values are taken as the client library of the day gives them."""
    said = judge(
        {"redis_version": b"7.2.0", "role": b"master", "aof_enabled": 1, "maxmemory": 0},
        {"maxmemory": 1048576, "maxmemory-policy": b"noeviction"},
    )
    assert not any(finding.level == "error" for finding in said)


@pytest.mark.parametrize("as_bytes", [False, True])
def test_parse_info(as_bytes: bool) -> None:
    """An INFO reply becomes its fields; headings and blank lines are dropped, colons in values stay."""
    text = "# Server\r\nredis_version:7.0.15\r\n\r\n# Keyspace\r\ndb0:keys=1,expires=0\r\nnoise\r\na:b:c\r\n"
    fields = parse_info(text.encode() if as_bytes else text)
    assert fields == {"redis_version": "7.0.15", "db0": "keys=1,expires=0", "a": "b:c"}
