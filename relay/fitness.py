"""Whether a Redis or Valkey server can carry us, judged from what it says of itself.

Pure: INFO and CONFIG GET go in as plain dictionaries, findings come out. `relay doctor` prints them all;
API nodes and workers stop at the first error, because a server that evicts keys or lacks commands does
not fail at once: it loses text later.
"""

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from relay.errors import ServerUnfit

# XAUTOCLAIM's list of deleted entries, sharded pub/sub and the lag of a group came with Redis 7.0
# (https://redis.io/docs/latest/commands/xautoclaim/). Every Valkey has them.
OLDEST_REDIS = (7, 0)

Level = Literal["error", "warning", "ok"]


class Finding(NamedTuple):
    """One thing that was looked at. `remedy` is what to do about it, empty when all is well."""

    level: Level
    what: str
    remedy: str = ""


def parse_info(reply: str | bytes) -> dict[str, str]:
    """The fields of an INFO reply (https://redis.io/docs/latest/commands/info/), sections dropped."""
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else reply
    pairs = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: value for name, colon, value in pairs if colon}


def judge(info: Mapping[str, object], config: Mapping[str, object]) -> list[Finding]:
    """Everything that can be said of a server, in a fixed order.

    `info` is INFO, `config` is CONFIG GET; values may be text, bytes or numbers. A managed service that
    hides CONFIG gives an empty `config`: what INFO repeats is taken from there.
    """
    said = {**_plain(config), **_plain(info)}
    return [
        _version(said),
        _role(said),
        _eviction(said),
        _writable(said),
        _memory(said),
        _persistence(said),
    ]


def require(findings: Iterable[Finding]) -> None:
    """Raises ServerUnfit, in one line with its remedy, for the first finding that is an error."""
    for finding in findings:
        if finding.level == "error":
            raise ServerUnfit(f"{finding.what}: {finding.remedy}")


def _plain(values: Mapping[str, object]) -> dict[str, str]:
    return {name: v.decode() if isinstance(v, bytes) else str(v) for name, v in values.items()}


def _version(said: dict[str, str]) -> Finding:
    # Valkey says redis_version 7.2.4 for ever, for the sake of old clients: its own field comes first.
    if valkey := said.get("valkey_version"):
        return Finding("ok", f"Valkey {valkey}")
    version = said.get("redis_version", "")
    parts = version.split(".")
    if len(parts) < 2 or not all(part.isdigit() for part in parts[:2]):
        return Finding("warning", f"the server's version is {version or 'not told'}", "make sure it is 7.0+")
    if (int(parts[0]), int(parts[1])) < OLDEST_REDIS:
        return Finding("error", f"Redis {version} is too old", "use Redis 7.0 or newer, or any Valkey")
    return Finding("ok", f"Redis {version}")


def _role(said: dict[str, str]) -> Finding:
    if said.get("role") in {"slave", "replica"}:
        return Finding(
            "error", "the server is a replica and takes no writes", "set RELAY_REDIS_URL to the primary"
        )
    return Finding("ok", "the server takes writes")


def _eviction(said: dict[str, str]) -> Finding:
    policy = said.get("maxmemory-policy") or said.get("maxmemory_policy")
    if policy is None:
        return Finding("warning", "the server does not tell its maxmemory-policy", "it must be noeviction")
    if policy != "noeviction":
        # volatile-* is no better: every key of ours has a TTL, so every key may go.
        return Finding(
            "error",
            f"maxmemory-policy is {policy}: the server would delete running responses",
            "CONFIG SET maxmemory-policy noeviction, and put it into the server's configuration file",
        )
    return Finding("ok", "maxmemory-policy is noeviction")


def _writable(said: dict[str, str]) -> Finding:
    if said.get("aof_last_write_status") == "err":
        return Finding(
            "error", "the append-only file cannot be written", "look at the server's disk and its log"
        )
    if said.get("rdb_last_bgsave_status") == "err" and said.get("stop-writes-on-bgsave-error") != "no":
        return Finding(
            "error",
            "the last snapshot failed, and the server refuses writes until one succeeds",
            "look at the server's disk and its log, then BGSAVE",
        )
    return Finding("ok", "the server's disk takes what it writes")


def _memory(said: dict[str, str]) -> Finding:
    limit = said.get("maxmemory", "0")
    if not limit.isdigit() or int(limit) == 0:
        return Finding(
            "warning",
            "maxmemory is not set: nobody knows when the server is full",
            "set maxmemory on the server, or RELAY_MEMORY_BUDGET_BYTES here",
        )
    return Finding("ok", f"maxmemory is {int(limit) / 2**20:.0f} MiB")


def _persistence(said: dict[str, str]) -> Finding:
    if said.get("aof_enabled") == "1":
        return Finding("ok", "the append-only file is on")
    if said.get("save") == "":
        return Finding(
            "warning",
            "no persistence: a restart of the server loses every response",
            "CONFIG SET appendonly yes, if that matters here",
        )
    return Finding(
        "warning",
        "snapshots only: a crash of the server loses what came after the last one",
        "CONFIG SET appendonly yes, if that matters here",
    )
