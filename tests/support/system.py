"""Real processes and readers on raw sockets, for tests of the whole.

    with EmbeddedServer() as redis, Api(redis.url) as api, Worker(redis.url) as worker:
        made = api.create(tokens=200, rate=100)
        reader = Reader(api.port, made["events_url"]).run()
        assert reader.exact() == ""

Everything is synchronous and bounded; what takes longer raises AssertionError with the ends of the logs.
Processes run in an empty folder (no `.env`), without the `RELAY_*` variables of whoever runs the tests,
and are signalled by their own pid alone. Settings are keyword arguments: `Api(url, keepalive_s=1)`.
"""

import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import pytest

from tests.support.wait import wait_until

READY_WITHIN_S = 60.0
STOP_WITHIN_S = 40.0
ANSWER_WITHIN_S = 30.0
LOG_TAIL_LINES = 30
_CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("RELAY_")}
_HOST = "127.0.0.1"


class Process:
    """One `relay` command that stays up. A context manager: SIGKILL at its end, whatever its state.

    Args:
        args: the command line after `relay`.
        settings: `RELAY_*` variables, by the setting's name in lower case: `lease_s=1`.
    """

    living: ClassVar[list["Process"]] = []  # those that `logs_if_failed` shows

    def __init__(self, *args: str, **settings: object) -> None:
        self.name = f"relay {args[0]}"
        self._folder = tempfile.TemporaryDirectory(prefix="relay-system-")
        self._out, self._err = (Path(self._folder.name) / name for name in ("stdout", "stderr"))
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "relay.cli.main", *args],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self._folder.name,
                env={**_CLEAN, **{f"RELAY_{name.upper()}": str(value) for name, value in settings.items()}},
            )
        self.living.append(self)
        self.ready = ""  # the `ready ...` line, once `wait_ready` has returned

    def wait_ready(self, within_s: float = READY_WITHIN_S) -> Self:
        """Wait for its `ready` line. Raises AssertionError, with its log, when it ends or takes longer."""
        try:
            wait_until(self._is_ready, f"{self.name} prints its ready line", within_s)
        except BaseException as error:
            error.add_note(self.log)
            self.close()
            raise
        return self

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, f"{self.name} ended with code {self._process.returncode}"
        lines = [line for line in self.stdout.splitlines(keepends=True) if line.startswith("ready")]
        if lines and lines[0].endswith("\n"):
            self.ready = lines[0].strip()
        return bool(self.ready)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self._process.poll()

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        """What it has logged so far."""
        return self._err.read_text()

    @property
    def log(self) -> str:
        """The end of its log, with a heading."""
        tail = "\n".join(self.stderr.splitlines()[-LOG_TAIL_LINES:])
        return f"--- {self.name}, pid {self.pid}, exit code {self.code}:\n{tail}"

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, and nobody else; nothing when it has ended."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a crash would (SIGKILL)."""
        self.signal(signal.SIGKILL)
        self._process.wait(STOP_WITHIN_S)

    def pause(self) -> None:
        """Stop the clock for it (SIGSTOP); `resume` lets it go on."""
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.signal(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM, without waiting: see `wait`."""
        self.signal(signal.SIGTERM)

    def wait(self, within_s: float = STOP_WITHIN_S) -> int:
        """Wait for its end; its exit code. Raises AssertionError when it runs on."""
        try:
            return self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {within_s:g} s\n{self.log}") from None

    def close(self) -> None:
        """Kill it and remove its folder. May be repeated."""
        if self in self.living:
            self.living.remove(self)
            self.kill()
            self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            print(self.log)
        self.close()


class Answer(NamedTuple):
    """A whole HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


def call(
    port: int,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    *,
    within_s: float = ANSWER_WITHIN_S,
) -> Answer:
    """One HTTP call on a connection of its own. `body`: bytes as they are, anything else as JSON."""
    given = dict(headers or {})
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).encode()
        given.setdefault("Content-Type", "application/json")
    with contextlib.closing(http.client.HTTPConnection(_HOST, port, timeout=within_s)) as connection:
        connection.request(method, path, body, given)
        answer = connection.getresponse()
        return Answer(
            answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        )


def metric(port: int, name: str, headers: Mapping[str, str] | None = None) -> float:
    """The sum of a metric over its labels, of an API node's or a worker's `/metrics`."""
    text = call(port, "GET", "/metrics", headers=headers).body.decode()
    lines = [line for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} "))]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


class Api(Process):
    """A ready API node on a free port of its own, which it prints."""

    def __init__(self, redis_url: str, *args: str, **settings: object) -> None:
        # Other tests make a node's loop late, which is pressure on admission: no answer is cut for that.
        given = {"limited_tokens": 1_000_000, **settings}
        super().__init__("api", "--port", "0", *args, redis_url=redis_url, **given)
        self.wait_ready()
        self.port = int(self.ready.rpartition(":")[2])

    def call(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """`call` at this node."""
        return call(self.port, method, path, body, headers)

    def create(
        self,
        tokens: int = 20,
        rate: float = 0,
        seed: int = 1,
        headers: Mapping[str, str] | None = None,
        **more: object,
    ) -> dict[str, Any]:
        """Make a simulated response, `rate` in tokens/s (0: as fast as it is let); the create's JSON."""
        simulation = {"tokens": tokens, "tokens_per_second": rate, "seed": seed}
        body = {"model": "simulated", "prompt": "Say it.", "simulation": simulation, **more}
        answer = self.call("POST", "/v1/streams", body, headers)
        assert answer.status == 201, answer
        made: dict[str, Any] = answer.json
        return made

    def status(self, response_id: str) -> dict[str, Any]:
        """The status JSON of a response."""
        answer = self.call("GET", f"/v1/streams/{response_id}")
        assert answer.status == 200, answer
        told: dict[str, Any] = answer.json
        return told

    def wait_status(self, response_id: str, *statuses: str, within_s: float = 15.0) -> dict[str, Any]:
        """Wait until a response is in one of these states; its status JSON."""

        def there() -> dict[str, Any]:
            told = self.status(response_id)
            return told if told["status"] in statuses else {}

        return wait_until(there, f"{response_id} is {' or '.join(statuses)}", within_s)


class Worker(Process):
    """A ready worker. `id` is its name, `metrics_port` where it serves its metrics."""

    def __init__(self, redis_url: str, *args: str, concurrency: int = 64, **settings: object) -> None:
        super().__init__("worker", "--concurrency", str(concurrency), *args, redis_url=redis_url, **settings)
        self.wait_ready()
        words = self.ready.split()
        self.id = words[2]
        self.metrics_port = int(words[-1].removesuffix("/metrics").rpartition(":")[2])


@contextlib.contextmanager
def logs_if_failed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print the log of every process that lives when the test of this request has failed."""
    before = request.session.testsfailed
    yield
    if request.session.testsfailed > before:
        for process in Process.living:
            print(process.log)


class Event(NamedTuple):
    """One server-sent event; `id` is None where it has none."""

    name: str
    data: dict[str, Any]
    id: str | None


class Reader:
    """One SSE reader on a raw socket, as slow as the test likes: nothing is read but by `pump`.

    Keeps what came: `events`, `text` (the content), `ids`, `notices`, `comments`, `terminal` (its done
    or error event). `ended` is the end of the body, `closed` the end of the connection, clean or not.

    Args:
        after: sent as Last-Event-ID.
        receive_buffer: SO_RCVBUF, set before the connection is made, so that the window is small.
        maxseg: TCP_MAXSEG: loopback's large segments hide what a small window does.
    """

    def __init__(
        self,
        port: int,
        path: str,
        *,
        after: str | None = None,
        headers: Mapping[str, str] | None = None,
        receive_buffer: int | None = None,
        maxseg: int | None = None,
    ) -> None:
        self.path = path
        self.status = 0  # 0 until the head has come
        self.headers: dict[str, str] = {}
        self.events: list[Event] = []
        self.comments: list[str] = []
        self.received_bytes = 0
        self.ended = self.closed = False
        self._raw = self._body = b""
        self._chunked = False
        self._socket = socket.socket()
        try:
            if receive_buffer is not None:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if maxseg is not None:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, maxseg)
            self._socket.settimeout(ANSWER_WITHIN_S)
            self._socket.connect((_HOST, port))
            sent = {"Host": _HOST, "Accept": "text/event-stream", **(headers or {})}
            if after is not None:
                sent["Last-Event-ID"] = after
            lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
            self._socket.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
        except BaseException:
            self._socket.close()
            raise

    # --- reading

    def pump(self, size: int = 65_536, within_s: float = ANSWER_WITHIN_S) -> bool:
        """Read once, up to `size` bytes. False when the body or the connection has ended, or none came."""
        if self.ended or self.closed:
            return False
        self._socket.settimeout(within_s)
        try:
            data = self._socket.recv(size)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        self.received_bytes += len(data)
        self._raw += data
        self._parse()
        return not self.ended

    def until(self, reached: Callable[["Reader"], object], description: str, within_s: float = 30.0) -> Self:
        """Read until `reached` is true of this reader. Raises AssertionError when it will not be."""
        deadline = time.monotonic() + within_s
        while not reached(self):
            left = deadline - time.monotonic()
            assert left > 0, f"waited {within_s:g} s for: {description}. {self}"
            if not self.pump(within_s=left):
                assert reached(self), f"nothing more comes, and not: {description}. {self}"
        return self

    def run(self, within_s: float = 30.0) -> Self:
        """Read to the end of the answer, and hang up."""
        try:
            return self.until(lambda reader: reader.ended or reader.closed, "the end of the answer", within_s)
        finally:
            self.close()

    def started(self) -> Self:
        """Read until the head and the first comment or event are there."""
        return self.until(lambda reader: reader.ended or reader.comments or reader.events, "the first bytes")

    def some(self, count: int) -> Self:
        """Read until there are `count` events, or the end of the answer."""
        return self.until(lambda reader: reader.ended or len(reader.events) >= count, f"{count} events")

    def past(self, offset: int) -> Self:
        """Read until an id lies past `offset`."""
        return self.until(lambda reader: reader.position > offset, f"an id past {offset}")

    def drain(self) -> Self:
        """Take what is here already, without waiting."""
        while self.pump(within_s=0.001):
            pass
        return self

    def close(self) -> None:
        """Hang up."""
        self.closed = True
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what came

    @property
    def text(self) -> str:
        """The content so far."""
        return "".join(
            event.data["text"]
            for event in self.events
            if event.name == "delta" and event.data["channel"] == "content"
        )

    @property
    def taken_back(self) -> str:
        """The text without what came after a position to which it was sent back: `text` has that too."""
        had: list[tuple[int, str]] = []
        for event in self.events:
            if event.name == "rewind":
                position = int(str(event.data["position"]).partition("-")[0])
                had = [one for one in had if one[0] <= position]
            elif event.name == "delta" and event.id:
                had.append((int(event.id.partition("-")[0]), event.data["text"]))
        return "".join(text for _, text in had)

    @property
    def ids(self) -> list[str]:
        """Every id, in order."""
        return [event.id for event in self.events if event.id is not None]

    @property
    def last_id(self) -> str:
        """What a client would send to resume; "" before the first id."""
        return self.ids[-1] if self.ids else ""

    @property
    def position(self) -> int:
        """The offset of the last id."""
        return int(self.last_id.partition("-")[0] or 0)

    @property
    def notices(self) -> list[str]:
        """The kinds of the notices."""
        return [event.data["kind"] for event in self.named("notice")]

    @property
    def terminal(self) -> Event | None:
        """The event that ends the response, or this reader of it."""
        return next((event for event in self.events if event.name in ("done", "error")), None)

    def named(self, name: str) -> list[Event]:
        """The events of one name."""
        return [event for event in self.events if event.name == name]

    def exact(self, before: str = "") -> str:
        """ "" when `before` and the text have the digest of `done` and the ids grow; else what is wrong."""
        terminal = self.terminal
        if terminal is None or terminal.name != "done":
            return f"no done event: {self}"
        raw = (before + self.text).encode()
        if len(raw) != terminal.data["text_bytes"]:
            return f"{len(raw)} bytes of text read, {terminal.data['text_bytes']} made"
        if hashlib.sha256(raw).hexdigest() != terminal.data["sha256"]:
            return "as many bytes as were made, and not the same"
        offsets = [int(position.partition("-")[0]) for position in self.ids]
        return "" if offsets == sorted(set(offsets)) else f"ids that do not grow: {self.ids}"

    def __repr__(self) -> str:
        last = self.events[-1] if self.events else None
        return (
            f"Reader({self.path}: status {self.status}, {len(self.events)} events,"
            f" {self.received_bytes} bytes, ended {self.ended}, closed {self.closed}, last {last})"
        )

    # --- parsing

    def _parse(self) -> None:
        if not self.status:
            head, found, rest = self._raw.partition(b"\r\n\r\n")
            if not found:
                return
            self._raw = rest
            first, *lines = head.decode("latin-1").split("\r\n")
            self.headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
            self._chunked = self.headers.get("transfer-encoding") == "chunked"
            self.status = int(first.split(" ")[1])
        if self._chunked:
            self._dechunk()
        else:
            self._body, self._raw = self._body + self._raw, b""
            length = int(self.headers.get("content-length", 0))
            self.ended = self.status == 204 or len(self._body) >= length
        if self.headers.get("content-type", "").startswith("text/event-stream"):
            while b"\n\n" in self._body:
                block, _, self._body = self._body.partition(b"\n\n")
                self._take(block.decode())

    def _dechunk(self) -> None:
        """RFC 9112 section 7.1, without extensions and trailers."""
        while not self.ended:
            size, found, rest = self._raw.partition(b"\r\n")
            if not found or len(rest) < int(size, 16) + 2:
                return
            length = int(size, 16)
            assert rest[length : length + 2] == b"\r\n", f"a chunk that does not end where it says: {rest!r}"
            self._body, self._raw = self._body + rest[:length], rest[length + 2 :]
            self.ended = length == 0

    def _take(self, block: str) -> None:
        name, data, position = "message", [], None
        for line in block.split("\n"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not field:
                self.comments.append(value)
            elif field == "event":
                name = value
            elif field == "data":
                data.append(value)
            elif field == "id":
                position = value
        if data:
            self.events.append(Event(name, json.loads("\n".join(data)), position))
