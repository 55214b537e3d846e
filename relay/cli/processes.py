"""Child processes that cannot outlive us, and the port they are to listen on.

A child is started by a line of shell that leaves a guard behind and becomes the child. The guard waits on
a pipe of which only this process holds the other end, and kills the child's process group when it closes,
which it does for every kind of our death. `relay.embedded` says why this and not PR_SET_PDEATHSIG. Being
in a session of its own, a child does not receive a terminal's Ctrl-C: we drain in our own order.
"""

import asyncio
import contextlib
import errno
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from relay.errors import SettingsInvalid, Unavailable

_READY_WITHIN_S = 30.0
# The guard keeps neither of the child's outputs: their end is how we see that the child has ended.
_GUARDED_EXEC = 'exec 3<&0 </dev/null; { read -r l <&3; kill -KILL 0; } >&- 2>&- & exec "$@" 3<&-'


class ChildEnded(Unavailable):
    """A child process ended that should not have."""


def relay_command(*args: str) -> list[str]:
    """The command line of another `relay` process, of this same installation."""
    # -P: a folder named `api` or `workers` where the user stands must not be taken for ours.
    safe_path = [] if str(Path.cwd()) in sys.path else ["-P"]
    return [sys.executable, *safe_path, "-m", "relay.cli.main", *args]


class Child:
    """One child process, which can be started again when it has ended."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: Path | None = None,
        log: IO[bytes] | None = None,
    ) -> None:
        self.name = name
        self._command = command
        self._env = env  # all of it
        self._cwd = cwd
        self._log = log  # its stderr; ours when None
        self._process: asyncio.subprocess.Process | None = None
        self._guard: int | None = None

    async def start(self) -> str:
        """Start it and wait, at most 30 s, for its ready line, which is returned.

        Raises ChildEnded when it ends or stays silent instead.
        """
        await self.stop(0)
        end, self._guard = os.pipe()
        try:
            self._process = await asyncio.create_subprocess_exec(
                "/bin/sh", "-c", _GUARDED_EXEC, "relay-child", *self._command,
                stdin=end, stdout=asyncio.subprocess.PIPE, stderr=self._log,
                env=self._env, cwd=self._cwd, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(end)
        try:
            return await asyncio.wait_for(self._ready_line(), _READY_WITHIN_S)
        except TimeoutError:
            await self.stop(0)
            raise ChildEnded(f"the {self.name} was not ready within {_READY_WITHIN_S:g} s") from None

    async def wait(self) -> int:
        """Wait for its end; its exit code, negative for a signal."""
        if self._process is None:
            return 0
        with contextlib.suppress(ValueError):  # a line over 64 KiB: the reader drops it and we go on
            while await self._lines.readline():
                pass
        return await self._process.wait()

    async def stop(self, grace_s: float, hurry: asyncio.Event | None = None) -> None:
        """End it: SIGTERM, and SIGKILL after `grace_s` or as soon as `hurry` is set. May be repeated."""
        process, self._process = self._process, None
        try:
            if process is not None and process.returncode is None:
                await _end(process, grace_s, hurry)
        finally:
            # The guard wakes and takes with it what is left of the child's group, then itself.
            guard, self._guard = self._guard, None
            if guard is not None:
                os.close(guard)

    async def _ready_line(self) -> str:
        while line := (await self._lines.readline()).decode(errors="replace").strip():
            if line.startswith("ready"):
                return line
        raise ChildEnded(f"the {self.name} ended before it was ready")

    @property
    def _lines(self) -> asyncio.StreamReader:
        if self._process is None or self._process.stdout is None:
            raise RuntimeError(f"the {self.name} was not started")
        return self._process.stdout


async def _end(process: asyncio.subprocess.Process, grace_s: float, hurry: asyncio.Event | None) -> None:
    ended = asyncio.ensure_future(process.wait())
    hurried = asyncio.ensure_future((hurry or asyncio.Event()).wait())
    try:
        if grace_s > 0:
            process.terminate()
            await asyncio.wait((ended, hurried), timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await ended
    finally:
        hurried.cancel()


def check_port_free(host: str, port: int) -> None:
    """Raises SettingsInvalid, in one line that says what to do, when nothing can listen there."""
    name = host.strip("[]")
    try:
        family, _, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except socket.gaierror as error:
        raise SettingsInvalid(f"--host {host}: {error.strerror}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsInvalid(
                f"--port {port}: in use on {host}; stop what listens there or choose another"
            ) from error
        raise SettingsInvalid(f"--host {host} --port {port}: {error.strerror}") from error


def log_tail(path: Path) -> str:
    """The last line of a log, for a message."""
    lines = path.read_text(errors="replace").strip().splitlines()
    return lines[-1][-300:] if lines else ""
