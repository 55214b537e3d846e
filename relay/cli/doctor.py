"""`relay doctor`: what is wrong with this installation, and what to do about it."""

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from relay.fitness import Finding

if TYPE_CHECKING:
    from relay.address import Seeds
    from relay.settings import Settings

_TIMEOUT_S = 3.0
_CLOCK_OFFSET_MAX_S = 1.0
_DESCRIPTORS_BESIDE_READERS = 256  # Redis, the listener, logs, upstreams
_SIOCOUTQ = 0x5411


def doctor() -> None:
    """Check the settings, the server, the limits and the platform. Exit 1 when something is an error.

    Examples:

      relay doctor

      RELAY_REDIS_URL=redis://10.0.0.5:6379/0 relay doctor
    """
    found = list(examine())
    for finding in found:
        _show(finding)
    errors = sum(finding.level == "error" for finding in found)
    warnings = sum(finding.level == "warning" for finding in found)
    print(f"{errors} errors, {warnings} warnings, {len(found)} checks")
    raise typer.Exit(1 if errors else 0)


def examine() -> Iterator[Finding]:
    """Everything there is to find. Settings that are not valid end it: nothing else can be known then."""
    from relay.errors import SettingsInvalid  # noqa: PLC0415 - imported for this command alone
    from relay.settings import load, misspelt  # noqa: PLC0415

    try:
        settings = load()
    except SettingsInvalid as error:
        yield Finding("error", str(error), "set it right in the environment or in .env; see: relay settings")
        return
    yield Finding("ok", "the settings are valid")
    for name, nearest in misspelt(os.environ).items():
        yield Finding("warning", f"{name} is no setting: nothing reads it", f"take it out, or say {nearest}")
    yield from _servers(settings)
    yield from _models(settings)
    yield _descriptors(settings)
    yield from _platform()


def _servers(settings: "Settings") -> Iterator[Finding]:
    """What RELAY_REDIS_URL leads to: one server, the primary that sentinels name, or those of a cluster."""
    from relay.address import parse_seeds  # noqa: PLC0415 - imported for this command alone
    from relay.cli.settings import without_password  # noqa: PLC0415
    from relay.errors import SettingsInvalid  # noqa: PLC0415

    try:
        seeds = parse_seeds(settings.redis_url)
    except SettingsInvalid as error:
        yield Finding("error", str(error), "see the head of relay/address.py for the forms")
        return
    if seeds is None:
        yield from _server(settings.redis_url, without_password(settings.redis_url))
        return
    found: set[tuple[str, int]] = set()
    yield from (_sentinels if seeds.kind == "sentinel" else _cluster)(seeds, found)
    for host, port in sorted(found):
        yield from _server(seeds.url(host, port), f"{host}:{port}")


def _client(url: str) -> Any:
    import redis  # noqa: PLC0415 - imported for this command alone
    from redis.backoff import NoBackoff  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    return redis.Redis.from_url(
        url,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )


def _server(url: str, shown: str) -> Iterator[Finding]:
    import redis  # noqa: PLC0415 - imported for this command alone

    from relay.fitness import judge  # noqa: PLC0415

    remedy = "start it, or set RELAY_REDIS_URL; `relay up` needs none, it brings its own"
    try:
        with _client(url) as client:
            info: dict[str, Any] = client.info()
            yield Finding("ok", f"{shown} answers")
            yield from judge(info, _config(client))
            yield _clock(client)
    except (redis.RedisError, OSError, ValueError, TypeError) as error:
        yield Finding("error", f"{shown}: {' '.join(str(error).split())}", remedy)


def _sentinels(seeds: "Seeds", primaries: set[tuple[str, int]]) -> Iterator[Finding]:
    """What each sentinel says; the primary of those that know one goes into `primaries`."""
    import redis  # noqa: PLC0415 - imported for this command alone

    for url, (host, port) in zip(seeds.seed_urls, seeds.hosts, strict=True):
        try:
            with _client(url) as client:
                state: dict[str, Any] = client.sentinel_master(seeds.service)
        except (redis.RedisError, OSError) as error:
            yield Finding(
                "warning", f"sentinel {host}:{port}: {error}", "a failover needs most sentinels: start it"
            )
            continue
        primaries.add((state["ip"], int(state["port"])))
        if int(state["num-slaves"]) == 0:
            yield Finding(
                "warning",
                f"sentinel {host}:{port} knows no replica of {seeds.service}",
                "start one: without it there is nobody to fail over to",
            )
        else:
            yield Finding("ok", f"sentinel {host}:{port} knows {seeds.service} and its replicas")
    if len(primaries) != 1:
        yield Finding(
            "error",
            f"the sentinels name {len(primaries)} primaries of {seeds.service}",
            "set RELAY_REDIS_URL to sentinels that watch this service and reach each other",
        )


def _cluster(seeds: "Seeds", primaries: set[tuple[str, int]]) -> Iterator[Finding]:
    """What the first node that answers says of the cluster; its primaries go into `primaries`."""
    import redis  # noqa: PLC0415 - imported for this command alone

    for url, (host, port) in zip(seeds.seed_urls, seeds.hosts, strict=True):
        try:
            with _client(url) as client:
                state: dict[str, str] = client.execute_command("CLUSTER INFO")
                shards = client.execute_command("CLUSTER SLOTS")
        except (redis.RedisError, OSError) as error:
            yield Finding("warning", f"node {host}:{port}: {error}", "start it, or name another one")
            continue
        primaries |= {(shard[2][0] or host, int(shard[2][1])) for shard in shards}
        if state["cluster_state"] != "ok":
            yield Finding("error", "the cluster is down", "see CLUSTER NODES: a slot has no primary")
        else:
            yield Finding("ok", f"the cluster is up, with {len(primaries)} primaries")
        if any(len(shard) < 4 for shard in shards):
            yield Finding("warning", "a primary has no replica", "add one: its slots die with it")
        return
    yield Finding("error", "no node of the cluster answers", "start it, or set RELAY_REDIS_URL right")


def _config(client: Any) -> dict[str, Any]:
    import redis  # noqa: PLC0415 - imported for this command alone

    try:
        config: dict[str, Any] = client.config_get("maxmemory*", "save", "stop-writes-on-bgsave-error")
    except redis.ResponseError:  # managed services hide CONFIG
        return {}
    return config


def _clock(client: Any) -> Finding:
    import time  # noqa: PLC0415 - imported for this command alone

    before = time.time()
    seconds, micros = client.time()
    offset_s = seconds + micros / 1e6 - (before + time.time()) / 2
    if abs(offset_s) > _CLOCK_OFFSET_MAX_S:
        return Finding(
            "warning",
            f"the server's clock is {offset_s:+.1f} s from ours",
            "run NTP on both; times in logs will not fit together until then",
        )
    return Finding("ok", f"the server's clock is {offset_s * 1000:+.1f} ms from ours")


def _models(settings: "Settings") -> Iterator[Finding]:
    from relay.errors import SettingsInvalid  # noqa: PLC0415 - imported for this command alone
    from relay.models import load  # noqa: PLC0415

    try:
        registry = load(settings.models_file, upstream_base_url=settings.upstream_base_url)
    except SettingsInvalid as error:
        yield Finding("error", str(error), "set the file right; relay/models.py describes it")
        return
    yield Finding("ok", f"models: {', '.join(registry.names)}")
    for model in (registry.get(name) for name in registry.names):
        if model.api_key_env and not model.key:
            yield Finding(
                "error",
                f"model {model.name}: {model.api_key_env} is not set",
                f"set {model.api_key_env} where the workers run, or take api_key_env out of the file",
            )


def _descriptors(settings: "Settings") -> Finding:
    import resource  # noqa: PLC0415 - imported for this command alone

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.max_consumers + _DESCRIPTORS_BESIDE_READERS
    if soft != resource.RLIM_INFINITY and soft < needed:
        return Finding(
            "warning",
            f"{soft} open files are allowed; RELAY_MAX_CONSUMERS={settings.max_consumers} needs {needed}",
            f"ulimit -n {needed} (the hard limit is {hard}), or lower RELAY_MAX_CONSUMERS",
        )
    return Finding("ok", f"{soft} open files are allowed, {needed} are needed")


def _platform() -> Iterator[Finding]:
    """Try each option on a socket: a constant that exists says nothing about the kernel."""
    import fcntl  # noqa: PLC0415 - imported for this command alone
    import socket  # noqa: PLC0415

    lacking = (
        "a slow reader is noticed later: the node falls back to its own write buffer's view; run it on Linux"
    )

    def works(name: str, probe: socket.socket) -> bool:
        try:
            if name == "SIOCOUTQ":
                fcntl.ioctl(probe, _SIOCOUTQ, b"\0\0\0\0")
            else:
                probe.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), 16_384)
        except (OSError, AttributeError):
            return False
        # The number means something else on other systems.
        return name != "SIOCOUTQ" or sys.platform.startswith("linux")

    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname(), timeout=_TIMEOUT_S) as probe,
    ):
        for name in ("TCP_NOTSENT_LOWAT", "TCP_USER_TIMEOUT", "SIOCOUTQ"):
            if works(name, probe):
                yield Finding("ok", f"{name} works here")
            else:
                yield Finding("warning", f"{name} does not work here", lacking)


def _show(finding: Finding) -> None:
    colours = {"ok": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m"}
    start, end = (colours[finding.level], "\x1b[0m") if sys.stdout.isatty() else ("", "")
    print(f"{start}{finding.level:<8}{end} {finding.what}")
    if finding.remedy:
        print(f"{'':8} -> {finding.remedy}")
