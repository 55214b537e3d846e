"""The three shapes of a Redis deployment, from embedded servers on loopback, each process in the test's hand.

    with deployed("cluster") as redis, Api(redis.url) as api:
        redis.primary_of("relay:{id}:log").kill()       # as a crash would: SIGKILL
        redis.wait_writable()                           # its replica was promoted
        redis.servers["data-0"].restart()               # it comes back, as a replica

`single` is one server, `sentinel` a primary with one replica and three sentinels, `cluster` three primaries
with a replica each. Everything is configured before the first process starts, so that nobody has to meet
anybody: ready within about 2 s, a failover takes 1.5 to 3 s. `pause` and `resume` are SIGSTOP and SIGCONT.
"""

import contextlib
import os
import secrets
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from redis import Redis
from redis.cluster import key_slot
from redis.exceptions import RedisError

from relay.embedded import EmbeddedServer, free_port
from relay.errors import ServerUnfit
from tests.support.servers import admin
from tests.support.wait import wait_until

HOST = "127.0.0.1"
SERVICE = "relay"
SHAPES = ("single", "sentinel", "cluster")
DOWN_AFTER_MS = 1000  # until the others take a silent server for dead
READY_WITHIN_S = 45.0  # it takes 2 or 3 s, on a machine that does nothing else
START_ATTEMPTS = 3  # somebody else may take a port between the choice and the start
_SLOTS = ("0-5460", "5461-10922", "10923-16383")
_REPLICATION = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", "--repl-timeout", "10"]


class ManagedServer(EmbeddedServer):
    """An embedded server that a test can also stop in mid-step and continue. `kill`, `restart` as there."""

    def pause(self) -> None:
        """SIGSTOP: it keeps its port and its connections, and says nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    @property
    def is_running(self) -> bool:
        """Whether there is a process, paused or not."""
        return self._process is not None and self._process.poll() is None

    @contextmanager
    def admin(self) -> Iterator[Redis]:
        """A plain client of this one server."""
        with admin(self.url) as client:
            yield client

    def wait_copied(self, within_s: float = READY_WITHIN_S) -> None:
        """Wait until a replica has said that it has everything that this primary has; a second at least.

        WAIT would not do: it counts the writes of its own connection alone.
        """
        with self.admin() as client:
            written = client.info("replication")["master_repl_offset"]
            wait_until(
                lambda: any(
                    name.startswith("slave") and isinstance(said, dict) and said["offset"] >= written
                    for name, said in client.info("replication").items()
                ),
                f"a replica has what the server on port {self.port} has",
                within_s,
            )

    @property
    def is_primary(self) -> bool:
        """Whether it answers, and as a primary. Not for one that is paused: that takes the timeout."""
        if not self.is_running:
            return False
        try:
            with self.admin() as client:
                return bool(client.info("replication")["role"] == "master")
        except RedisError:
            return False


class Sentinel(ManagedServer):
    """A sentinel: it keeps its state in the file that it was started with."""

    def _command(self, port: int) -> list[str]:
        return [
            str(self._executable),
            f"{self._kept_directory}/sentinel.conf",
            "--sentinel",
            "--port",
            str(port),
        ]


class Deployment:
    """A running deployment. `url` goes into RELAY_REDIS_URL, `servers` are all its processes by name.

    `data` are those that hold data: `data-0` ... ; the primaries first, as they were at the start.
    """

    def __init__(self, shape: str, url: str, data: list[ManagedServer], sentinels: list[Sentinel]) -> None:
        self.shape = shape
        self.url = url
        self.data = data
        self.sentinels = sentinels
        self.servers: dict[str, ManagedServer] = {
            **{f"data-{index}": server for index, server in enumerate(data)},
            **{f"sentinel-{index}": server for index, server in enumerate(sentinels)},
        }

    def primaries(self) -> list[ManagedServer]:
        """Those that answer as primaries now; in a partition there may be two of one shard."""
        return [server for server in self.data if server.is_primary]

    def primary_of(self, key: str = "") -> ManagedServer:
        """The server that takes writes to `key` now. Raises AssertionError when there is none."""
        for server in self.primaries():
            if self._leads(server, key):
                return server
        raise AssertionError(f"no primary serves {key!r}")

    def replica_of(self, primary: ManagedServer) -> ManagedServer:
        """Its replica that is running now. Raises AssertionError when it has none."""
        for server in self.data:
            if server is not primary and server.is_running and _primary_port(server) == primary.port:
                return server
        raise AssertionError(f"the server on port {primary.port} has no replica")

    def is_writable(self) -> bool:
        """Whether every shard has a primary that takes writes, with those that run."""
        primaries = self.primaries()
        if self.shape == "single":
            return bool(primaries)
        if self.shape == "sentinel":
            known = self._known_primaries()
            return len(known) == 1 and any(server.port in known for server in primaries)
        return len(primaries) >= len(_SLOTS) and all(_cluster_ok(server) for server in primaries)

    def wait_writable(self, within_s: float = READY_WITHIN_S) -> None:
        """Wait for the end of a failover or a restart. Raises AssertionError when it does not come."""
        wait_until(self.is_writable, f"the {self.shape} deployment takes writes", within_s)

    def wait_replicated(self, within_s: float = READY_WITHIN_S) -> None:
        """Wait until it is writable and every other data server that runs is a replica in sync."""
        wait_until(self._is_replicated, f"the {self.shape} deployment is whole", within_s)

    def wait_for_primary(self, server: ManagedServer, within_s: float = READY_WITHIN_S) -> None:
        """Wait until `server` is a primary: the one to use while another is paused and would not answer."""
        wait_until(lambda: server.is_primary, f"the server on port {server.port} is promoted", within_s)

    def flush(self) -> None:
        """FLUSHALL on every primary."""
        for server in self.primaries():
            with server.admin() as client:
                client.flushall()

    def _is_replicated(self) -> bool:
        shards = len(_SLOTS) if self.shape == "cluster" else 1
        return (
            self.is_writable()
            and len(self.primaries()) == shards
            and all(_in_sync(server) for server in self.data)
        )

    def _leads(self, server: ManagedServer, key: str) -> bool:
        if self.shape == "sentinel":  # one that was away may not know yet that it was replaced
            return server.port in self._known_primaries()
        return self.shape == "single" or _serves(server, key)

    def _known_primaries(self) -> set[int]:
        return {_sentinel_says(sentinel) for sentinel in self.sentinels if sentinel.is_running}


@contextmanager
def deployed(shape: str, *, aof: bool = False) -> Iterator[Deployment]:
    """A deployment for as long as the block lasts; its processes are ended by their own pid.

    `aof` makes every data server keep what it has acknowledged over `kill` and `restart`; without, a
    restarted one is empty. Raises ServerUnfit when a server does not start.
    """
    for attempt in range(1, START_ATTEMPTS + 1):
        with ExitStack() as stack:
            try:
                deployment = _start(shape, aof, stack)
            except ServerUnfit:
                if attempt == START_ATTEMPTS:
                    raise
                continue
            yield deployment
            return


def _start(shape: str, aof: bool, stack: ExitStack) -> Deployment:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-topology-")))
    make = {"single": _single, "sentinel": _sentinel, "cluster": _cluster}[shape]
    deployment = make(folder, aof, stack)
    deployment.wait_replicated()
    return deployment


def _run(server: ManagedServer, stack: ExitStack) -> None:
    server.start()
    stack.callback(_stop, server)


def _stop(server: ManagedServer) -> None:
    if server.is_running:
        with contextlib.suppress(ProcessLookupError):
            server.resume()  # a paused one would not hear SIGTERM
        server.kill()
    server.stop()


def _single(folder: Path, aof: bool, stack: ExitStack) -> Deployment:
    server = ManagedServer(directory=folder / "data-0", aof=aof)
    _run(server, stack)
    return Deployment("single", server.url, [server], [])


def _sentinel(folder: Path, aof: bool, stack: ExitStack) -> Deployment:
    primary, replica, *sentinel_ports = _free_ports(5)
    data = [
        ManagedServer(port=primary, directory=folder / "data-0", aof=aof, extra_args=_REPLICATION),
        ManagedServer(
            port=replica,
            directory=folder / "data-1",
            aof=aof,
            extra_args=[*_REPLICATION, "--replicaof", f"{HOST} {primary}"],
        ),
    ]
    for server in data:
        _run(server, stack)
    ids = [secrets.token_hex(20) for _ in sentinel_ports]
    sentinels = []
    for index, port in enumerate(sentinel_ports):
        directory = folder / f"sentinel-{index}"
        directory.mkdir()
        others = [pair for pair in zip(sentinel_ports, ids, strict=True) if pair[0] != port]
        (directory / "sentinel.conf").write_text(
            _sentinel_conf(directory, ids[index], primary, replica, others)
        )
        sentinels.append(Sentinel(port=port, directory=directory))
        _run(sentinels[-1], stack)
    hosts = ",".join(f"{HOST}:{port}" for port in sentinel_ports)
    return Deployment("sentinel", f"redis+sentinel://{hosts}/{SERVICE}", data, sentinels)


def _sentinel_conf(
    directory: Path, own_id: str, primary: int, replica: int, others: list[tuple[int, str]]
) -> str:
    lines = [
        f"bind {HOST}",
        f'dir "{directory}"',
        f"sentinel myid {own_id}",
        f"sentinel monitor {SERVICE} {HOST} {primary} 2",
        f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}",
        f"sentinel failover-timeout {SERVICE} 4000",
        f"sentinel known-replica {SERVICE} {HOST} {replica}",
        *(f"sentinel known-sentinel {SERVICE} {HOST} {port} {other}" for port, other in others),
    ]
    return "\n".join(lines) + "\n"


def _cluster(folder: Path, aof: bool, stack: ExitStack) -> Deployment:
    ports = _free_ports(12)
    ports, buses = ports[:6], ports[6:]
    ids = [secrets.token_hex(20) for _ in ports]
    data = []
    for index, port in enumerate(ports):
        directory = folder / f"data-{index}"
        directory.mkdir()
        (directory / "nodes.conf").write_text(_nodes_conf(index, ports, buses, ids))
        options = ["--cluster-enabled", "yes", "--cluster-node-timeout", str(DOWN_AFTER_MS)]
        data.append(
            ManagedServer(
                port=port,
                directory=directory,
                aof=aof,
                extra_args=[*_REPLICATION, *options, "--cluster-port", str(buses[index])],
            )
        )
        _run(data[-1], stack)
    hosts = ",".join(f"{HOST}:{port}" for port in ports)
    return Deployment("cluster", f"redis+cluster://{hosts}", data, [])


def _nodes_conf(own: int, ports: list[int], buses: list[int], ids: list[str]) -> str:
    """What a node of a cluster that has met already keeps: https://redis.io/docs/latest/commands/cluster-nodes/."""
    lines = []
    for index, (port, bus, node) in enumerate(zip(ports, buses, ids, strict=True)):
        shard = index % len(_SLOTS)
        myself = "myself," if index == own else ""
        if index < len(_SLOTS):
            role, tail = f"{myself}master -", f" {_SLOTS[shard]}"
        else:
            role, tail = f"{myself}slave {ids[shard]}", ""
        lines.append(f"{node} {HOST}:{port}@{bus} {role} 0 0 {shard + 1} connected{tail}")
    return "\n".join([*lines, f"vars currentEpoch {len(_SLOTS)} lastVoteEpoch 0"]) + "\n"


def _free_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def _serves(server: ManagedServer, key: str) -> bool:
    slot = key_slot(key.encode())
    with server.admin() as client:
        for nodes in client.execute_command("CLUSTER NODES").values():
            if "myself" in nodes["flags"]:
                return any(int(ends[0]) <= slot <= int(ends[-1]) for ends in nodes["slots"])
    return False


def _primary_port(server: ManagedServer) -> int:
    """The port of the primary that it copies; 0 for a primary, or one that does not answer."""
    try:
        with server.admin() as client:
            return int(client.info("replication").get("master_port", 0))
    except RedisError:
        return 0


def _in_sync(server: ManagedServer) -> bool:
    if not server.is_running:
        return True
    try:
        with server.admin() as client:
            said = client.info("replication")
    except RedisError:
        return False
    return bool(said["role"] == "master" or said["master_link_status"] == "up")


def _sentinel_says(sentinel: Sentinel) -> int:
    """The port of the primary by this sentinel; 0 while it takes it for down, or has not met the others."""
    try:
        with sentinel.admin() as client:
            state = client.sentinel_master(SERVICE)
    except RedisError:
        return 0
    if state["num-other-sentinels"] < 2 or not {"s_down", "o_down"}.isdisjoint(state["flags"].split(",")):
        return 0
    return int(state["port"])


def _cluster_ok(server: ManagedServer) -> bool:
    try:
        with server.admin() as client:
            told = client.execute_command("CLUSTER INFO")
    except RedisError:
        return False
    return bool(told["cluster_state"] == "ok")
