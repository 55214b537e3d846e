"""`relay top` in a terminal: keys sort and end it, trouble is said, and the terminal is put back."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.stage import Stage

pytestmark = pytest.mark.timeout(240)

WITHIN_S = 60.0  # of which a start on a busy machine takes some


class Terminal:
    """A command on a terminal of its own; what it has shown so far."""

    def __init__(self, process: subprocess.Popen[bytes], fd: int) -> None:
        self.process = process
        self.fd = fd
        self.shown = ""

    def until(self, text: str) -> None:
        """Read until this is shown, after what was looked for before."""
        deadline = time.monotonic() + WITHIN_S
        while text not in self.shown:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} was not shown in {WITHIN_S:g} s:\n{self.shown[-3000:]}"
            if select.select([self.fd], [], [], left)[0]:
                self.shown += os.read(self.fd, 65_536).decode(errors="replace")
        self.shown = self.shown.partition(text)[2]

    def press(self, keys: str) -> None:
        """As on the keyboard."""
        os.write(self.fd, keys.encode())


@contextmanager
def terminal(*args: str, columns: int = 100, lines: int = 24) -> Iterator[Terminal]:
    """`relay` with these arguments on a terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    env = {**os.environ, "TERM": "xterm-256color"}
    env = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    command = [sys.executable, "-m", "relay.cli.main", *args]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    try:
        yield Terminal(process, ours)
        if process.poll() is not None:
            flags = termios.tcgetattr(theirs)[3]
            assert flags & termios.ICANON, "the terminal reads lines again"
            assert flags & termios.ECHO, "and shows what is typed"
    finally:
        process.kill()
        process.wait(WITHIN_S)
        os.close(ours)
        os.close(theirs)


def test_keys_sort_and_end_it(scene: Stage) -> None:
    """Live rows with a lag and bars; l and r change the order at once, q ends with 0."""
    api = scene.api()
    scene.worker(pause_max_s=600)  # it is there, and stalled, for as long as it takes to see
    made = api.create(tokens=4000, rate=100)
    scene.reader(api, {"events_url": made["events_url"] + "?window=512"}).some(2)
    with terminal("top", "--url", f"http://127.0.0.1:{api.port}") as screen:
        screen.until("1 active shown")
        screen.until("sort: newest")
        screen.press("l")
        screen.until("sort: lag")
        screen.press("r")
        screen.until("sort: lag reversed")
        screen.until("workers")
        screen.until("stalled")
        screen.until("█")
        screen.press("q")
        assert screen.process.wait(WITHIN_S) == 0


def test_a_relay_that_goes_away_is_waited_for(scene: Stage) -> None:
    """The last picture stays, with the trouble in words; Ctrl-C ends it all the same."""
    api = scene.api()
    with terminal("top", "--url", f"http://127.0.0.1:{api.port}", columns=140) as screen:
        screen.until("0 active shown")
        api.kill()
        screen.until("this is how it was")
        screen.process.send_signal(signal.SIGINT)
        assert screen.process.wait(WITHIN_S) in (0, 130)
