"""docker-compose.yml for real: used through its proxies, scaled, a node lost, watched by Prometheus."""

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Semaphore

import pytest

from tests.support import compose, system
from tests.support.compose import KEY, ROOT, UP_WITHIN_S, Stack, deployed, run
from tests.support.servers import Missing, skip_or_fail
from tests.support.system import Reader, call
from tests.support.wait import wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(900)]

PROXIES = ("nginx", "haproxy")
# As docker-compose.yml has them for nginx.
KERNEL_BUFFERS = (
    "--sysctl=net.ipv4.tcp_notsent_lowat=16384",
    "--sysctl=net.ipv4.tcp_rmem=4096 16384 65536",
    "--sysctl=net.ipv4.tcp_wmem=4096 16384 65536",
)
RECEIVE_BUFFER = 8192
# What may be on its way to a reader that takes nothing: buffers of two kernels and one proxy, and the window.
# Without backpressure it would be the bound of a response, 1 MiB.
ON_THE_WAY = 500_000
STILL = ("paused", "completed", "failed", "cancelled")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """The whole deployment, two nodes and two workers."""
    try:
        with deployed() as made:
            yield made
            return
    except Missing as missing:
        reason = f"no deployment: {missing}"
    skip_or_fail(reason)


@pytest.fixture(scope="module")
def haproxy(stack: Stack) -> Iterator[str]:
    """HAProxy on its configuration of this repository, beside the nginx that compose brings."""
    name = f"{stack.name}-haproxy"
    config = f"{ROOT}/ops/haproxy/haproxy.cfg:/usr/local/etc/haproxy/haproxy.cfg:ro"
    hardened = ("--user", "10001:10001", "--read-only", "--cap-drop", "ALL")
    network = ("--network", f"{stack.name}_outer", *KERNEL_BUFFERS)
    run("docker", "run", "-d", "--name", name, *hardened, *network, "-v", config, "haproxy:3.0")
    try:
        wait_until(
            lambda: call_at(stack.address(name), "GET", "/readyz").status == 200, "haproxy has a node", 60
        )
        yield name
    finally:
        run("docker", "rm", "-f", name)


@pytest.fixture(params=PROXIES)
def host(request: pytest.FixtureRequest, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of each proxy in turn; calls and readers go there."""
    container = (
        stack.containers("proxy")[0] if request.param == "nginx" else request.getfixturevalue("haproxy")
    )
    address = stack.address(container)
    monkeypatch.setattr(system, "_HOST", address)
    return address


def call_at(address: str, method: str, path: str) -> system.Answer:
    """One call to another address than loopback."""
    before, system._HOST = system._HOST, address
    try:
        return call(8080, method, path, headers=KEY)
    except OSError:
        return system.Answer(0, {}, b"")
    finally:
        system._HOST = before


def create(tokens: int, rate: float) -> dict[str, str]:
    """A simulated response, made through the proxy."""
    simulation = {"tokens": tokens, "tokens_per_second": rate, "seed": 7}
    body = {"model": "simulated", "prompt": "Say it.", "simulation": simulation}
    answer = call(8080, "POST", "/v1/streams", body, KEY)
    assert answer.status == 201, answer
    made: dict[str, str] = answer.json
    return made


def stop(made: dict[str, str]) -> None:
    """End a response, through the proxy."""
    assert call(8080, "DELETE", f"/v1/streams/{made['id']}", headers=KEY).status == 202


def status(made: dict[str, str]) -> dict[str, object]:
    """A response's status JSON, through the proxy."""
    told: dict[str, object] = call(8080, "GET", f"/v1/streams/{made['id']}", headers=KEY).json
    return told


def test_text_comes_through_each_proxy_as_it_is_made_and_whole(host: str) -> None:
    """The first token is there while the source still writes, and the digest at the end is right."""
    made = create(tokens=100_000, rate=40)
    with Reader(8080, made["events_url"], headers=KEY) as reader:
        reader.until(lambda r: r.text, "the first token")
        for _ in range(5):
            told = status(made)
            assert told["status"] == "running"
            there = told["position"]
            assert isinstance(there, int)
            reader.until(lambda r: r.position >= there, "what is there")  # noqa: B023
            reader.past(reader.position)
        stop(made)
        reader.run()
    assert reader.exact() == ""


def test_a_reader_that_takes_nothing_pauses_the_source_through_each_proxy(host: str) -> None:
    """The proxies hold so little that backpressure passes them."""
    made = create(tokens=300_000, rate=0)
    with Reader(8080, made["events_url"], headers=KEY, receive_buffer=RECEIVE_BUFFER) as reader:
        reader.started()

        def still() -> dict[str, object]:
            told = status(made)
            return told if told["status"] in STILL else {}

        told = wait_until(still, "the source stands still", 60)
        assert told["status"] == "paused"
        position = told["position"]
        assert isinstance(position, int)
        assert position < ON_THE_WAY
    stop(made)


def test_every_container_is_locked_down(stack: Stack) -> None:
    """Ours run as nobody in particular, on a root file system that takes no writes, within a memory limit."""
    for service in ("api", "worker", "proxy"):
        for container in stack.containers(service):
            said = stack.inspect(container)
            assert said["HostConfig"]["ReadonlyRootfs"], service
            assert said["HostConfig"]["Memory"] > 0, service
            assert said["HostConfig"]["CapDrop"] == ["ALL"], service
            assert run("docker", "exec", container, "id", "-u").strip() == "10001"
            written = subprocess.run(
                ["docker", "exec", container, "touch", "/usr/x"], capture_output=True, check=False, timeout=20
            )
            assert written.returncode != 0, service


def test_the_image_can_trace(stack: Stack) -> None:
    """A collector that is named is all it takes: the packages are there."""
    program = (
        "from relay import settings, tracing\n"
        "tracing.configure(settings.load(), 'relay-api')\n"
        "assert tracing.is_on()"
    )
    named = ("-e", "RELAY_OTLP_ENDPOINT=http://127.0.0.1:4318")
    run("docker", "exec", *named, stack.containers("api")[0], "python3", "-c", program)


def test_prometheus_runs_the_rules_and_nothing_is_wrong(stack: Stack) -> None:
    """Every rule evaluates without an error on a live deployment, and no alert fires on a healthy one."""

    def evaluated() -> list[dict[str, str]]:
        rules = [rule for group in stack.prometheus("rules")["groups"] for rule in group["rules"]]
        return [] if any(rule["health"] == "unknown" for rule in rules) else rules

    rules = wait_until(evaluated, "the rules are evaluated", 90)
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
    assert [alert for alert in stack.prometheus("alerts")["alerts"] if alert["state"] == "firing"] == []
    wait_until(lambda: stack.prometheus("alertmanagers")["activeAlertmanagers"], "it has an Alertmanager", 90)


def test_prometheus_finds_every_replica_and_those_that_come_later(stack: Stack) -> None:
    """Two of each at first, four of each after `--scale api=4 --scale worker=4`, all scraped."""
    wait_until(lambda: len(stack.scraped("relay-api")) == 2, "both nodes are scraped", 90)
    stack.up("--scale", "api=4", "--scale", "worker=4")
    nodes = {f"{stack.address(container)}:8000" for container in stack.containers("api")}
    workers = {f"{stack.address(container)}:9100" for container in stack.containers("worker")}
    assert len(nodes) == len(workers) == 4
    wait_until(lambda: stack.scraped("relay-api") == nodes, "all four nodes are scraped", 90)
    wait_until(lambda: stack.scraped("relay-worker") == workers, "all four workers are scraped", 90)


def test_a_reader_goes_on_at_another_node_when_its_own_is_killed(stack: Stack, host: str) -> None:
    """One of two nodes is killed: its readers come back through the proxy, and nothing is lost."""
    stack.up("--scale", "api=2")
    doomed, *_ = stack.containers("api")
    made = create(tokens=100_000, rate=40)
    readers = [Reader(8080, made["events_url"], headers=KEY).some(3) for _ in range(8)]
    run("docker", "kill", doomed)

    def told() -> int:
        answer = call(8080, "GET", f"/v1/streams/{made['id']}", headers=KEY)
        return answer.json["position"] if answer.status == 200 else 0

    there = wait_until(told, "the proxy finds the other node")
    for reader in readers:  # who still has a node has what was made since
        reader.until(lambda r: r.closed or r.ended or r.position >= there, "an end, or what is there")
    cut = [reader for reader in readers if reader.closed or reader.ended]
    assert cut, "the readers were spread over both nodes"
    back = []
    for reader in cut:

        def resumed(reader: Reader = reader) -> Reader | None:
            again = Reader(8080, made["events_url"], after=reader.last_id, headers=KEY).started()
            return again if again.status == 200 else None

        back.append(wait_until(resumed, "the proxy finds the other node"))
    stop(made)
    for reader, again in zip(cut, back, strict=True):
        assert again.run().exact(before=reader.text) == ""
    for reader in readers:
        if reader not in cut:
            assert reader.run().exact() == ""
    stack.up()


def test_an_upgrade_beside_the_old_version_costs_readers_a_reconnect(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docker-compose.yml says: new nodes first, then `up` takes the old ones, and nothing is lost.

    One reconnect, and for a reader that comes back to an old node which is yet to be told, one more.
    """
    monkeypatch.setattr(system, "_HOST", stack.address(stack.containers("proxy")[0]))
    old = set(stack.containers("api"))
    made = create(tokens=100_000, rate=40)
    begun = Semaphore(0)
    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(followed, made, begun) for _ in range(4)]
        try:
            for _ in readers:  # each is at an old node before there is a new one
                assert begun.acquire(timeout=30)
            monkeypatch.setitem(compose._ENVIRONMENT, "RELAY_LOG_ENTRIES", "64")  # as a new image would be
            stack.compose(
                "up",
                "-d",
                "--wait",
                "--no-deps",
                "--no-recreate",
                "--scale",
                "api=4",
                "api",
                within_s=UP_WITHIN_S,
            )
            assert old < set(stack.containers("api"))
            stack.compose("up", "-d", "--wait", "--no-deps", "api", within_s=UP_WITHIN_S)
            assert len(stack.containers("api")) == 2
            assert not old & set(stack.containers("api"))
        finally:
            call(8080, "DELETE", f"/v1/streams/{made['id']}", headers=KEY)
        for reader in readers:
            connections, wrong = reader.result(60)
            assert wrong == ""
            assert 2 <= connections <= 1 + len(old)


def followed(made: dict[str, str], begun: Semaphore) -> tuple[int, str]:
    """Read to the end, coming back at once: on how many connections, and what was not exact or refused.

    `begun` is released when the first connection reads.
    """
    text, after, connections = "", None, 0
    while True:
        reader = Reader(8080, made["events_url"], after=after, headers=KEY).started()
        connections += 1
        if connections == 1:
            begun.release()
        reader.run(within_s=2 * UP_WITHIN_S)
        if reader.status != 200:
            return connections, f"connection {connections} was answered {reader.status}"
        if reader.terminal is not None:
            return connections, reader.exact(before=text)
        text, after = text + reader.text, reader.last_id or after
