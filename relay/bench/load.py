"""The load client: `python -m relay.bench.load`, a process of its own with a plan on standard input.

It shares its cores with the system under test, so it is written for few microseconds a token: raw
sockets, one epoll, no tasks. Open loop: the source's schedule says when every token was due, and each
one is timed against it, whatever was late before it. Standard output gets one JSON object a line:
`{"progress": ...}` once a second, and a last `{"result": ...}`.
"""

import gc
import resource
import select
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import SplitResult, urlsplit

import orjson

from relay.bench.reader import Reader, Script, Tally
from relay.errors import RelayError

_READ_BYTES = 32 * 1024
_CONNECT_TIMEOUT_S = 5.0
_GOLDEN = 0.618034


@dataclass(frozen=True, slots=True)
class Plan:
    """One run. `urls` are API nodes, taken in turn; times in seconds, `rate` in tokens per second."""

    urls: list[str]
    responses: int
    tokens: int = 500
    rate: float = 50.0
    seed: int = 1
    ramp_s: float = 1.0
    grace_s: float = 15.0  # after the last token was due; what has not come by then counts as lost
    key: str | None = None
    model: str = "simulated"
    viewers: int = 1  # of each response, on all nodes in turn; each has its own connection

    @property
    def limit_s(self) -> float:
        """When the run ends, whatever has happened."""
        return self.ramp_s + self.tokens / self.rate + self.grace_s

    def starts_s(self) -> list[float]:
        """When each response is asked for: evenly over the ramp, and evenly within a token interval.

        Even spacing alone would leave the schedules of hundreds of responses in step with each other.
        """
        step = self.ramp_s / self.responses
        return [step * index + (_GOLDEN * index) % 1 / self.rate for index in range(self.responses)]


class Target:
    """One node: where to connect, and the two requests."""

    def __init__(self, plan: Plan, url: str) -> None:
        parts: SplitResult = urlsplit(url)
        self.address = (parts.hostname or "127.0.0.1", parts.port or 80)
        key = f"Authorization: Bearer {plan.key}\r\n" if plan.key else ""
        self._common = f" HTTP/1.1\r\nHost: {parts.netloc}\r\n{key}"
        simulated = {"tokens": plan.tokens, "tokens_per_second": plan.rate, "seed": plan.seed}
        body = orjson.dumps({"model": plan.model, "prompt": "bench", "simulation": simulated})
        head = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.create = f"POST /v1/streams{self._common}{head}".encode() + body

    def events(self, ident: str) -> bytes:
        """The request for a response's events."""
        accept = "Accept: text/event-stream\r\n\r\n"
        return f"GET /v1/streams/{ident}/events{self._common}{accept}".encode()


class Load:
    """One run of a plan, on the calling thread. `report` gets the progress, once a second."""

    def __init__(self, plan: Plan, report: Callable[[dict[str, Any]], None]) -> None:
        self.plan = plan
        self.tally = Tally()
        self._report = report
        self._script = Script(seed=plan.seed, tokens=plan.tokens, rate=plan.rate)
        self._targets = [Target(plan, url) for url in plan.urls]
        self._epoll = select.epoll()
        self._open: dict[int, tuple[socket.socket, Reader]] = {}
        self._asked = 0
        self._watched = 0

    def run(self) -> dict[str, Any]:
        """Carry it out; returns the result. Ends at the plan's limit at the latest."""
        starts_s = self.plan.starts_s()
        began, cpu = time.monotonic(), time.process_time()
        ends, next_report = began + self.plan.limit_s, began + 1.0
        try:
            while (now := time.monotonic()) < ends and (self._open or self._asked < len(starts_s)):
                while self._asked < len(starts_s) and began + starts_s[self._asked] <= now:
                    self._ask()
                if now >= next_report:
                    next_report = now + 1.0
                    self._report(self._progress())
                until = next_report
                if self._asked < len(starts_s):
                    until = min(until, began + starts_s[self._asked])
                self._turn(max(0.0, until - now))
        finally:
            for fd in list(self._open):
                self._close(fd)
            self._epoll.close()
        return self._result(time.monotonic() - began, time.process_time() - cpu)

    def _ask(self) -> None:
        """Connect and ask for the next response. A refused connection is counted, not raised."""
        target = self._targets[self._asked % len(self._targets)]
        self._asked += 1
        created = target.events if self.plan.viewers == 1 else lambda ident: self._created(target, ident)
        self._open_with(target, target.create, Reader(self._script, self.tally, created, time.time()))

    def _created(self, target: Target, ident: str) -> bytes:
        """A response is there: its other viewers come, then its first."""
        for _ in range(self.plan.viewers - 1):
            self._watched += 1
            other = self._targets[self._watched % len(self._targets)]
            reader = Reader(self._script, self.tally, other.events, time.time(), is_created=True)
            self._open_with(other, other.events(ident), reader)
        return target.events(ident)

    def _open_with(self, target: Target, request: bytes, reader: Reader) -> None:
        try:
            sock = socket.create_connection(target.address, timeout=_CONNECT_TIMEOUT_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(request)
        except OSError as error:
            self.tally.outcomes["unreachable"] += 1
            self.tally.problem(str(error))
            return
        sock.setblocking(False)
        self._open[sock.fileno()] = sock, reader
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def _turn(self, timeout_s: float) -> None:
        """Read what is there, once from each socket, so that none waits long behind another."""
        clock, readers = time.time, self._open
        for fd, _ in self._epoll.poll(timeout_s):
            sock, reader = readers[fd]
            try:
                data = sock.recv(_READ_BYTES)
                if data:
                    send = reader.receive(data, clock())
                    if send:
                        sock.sendall(send)
                else:
                    reader.closed()
            except (OSError, RelayError, ValueError, KeyError) as error:
                self.tally.problem(f"{type(error).__name__}: {error}")
                reader.closed()
            if reader.outcome is not None:
                self._close(fd)

    def _close(self, fd: int) -> None:
        sock, reader = self._open.pop(fd)
        reader.closed()
        self._epoll.unregister(fd)
        sock.close()

    def _progress(self) -> dict[str, Any]:
        tally = self.tally
        return {"asked": self._asked, "open": len(self._open), "tokens": tally.tokens, "frames": tally.frames}

    def _result(self, wall_s: float, cpu_s: float) -> dict[str, Any]:
        tally, plan = self.tally, self.plan
        expected = plan.responses * plan.viewers * plan.tokens
        return {
            "responses": plan.responses,
            "outcomes": dict(tally.outcomes),
            "tokens_expected": expected,
            "tokens": tally.tokens,
            "delivered": round(tally.tokens / expected, 5),
            "frames": tally.frames,
            "tokens_per_frame": round(tally.tokens / tally.frames, 3) if tally.frames else 0.0,
            "reads": tally.reads,
            "text_bytes": tally.text_bytes,
            "received_bytes": tally.received_bytes,
            "latency_ms": tally.latency.summary_ms(),
            "created_ms": tally.created.summary_ms(),
            "queued_ms": tally.queued.summary_ms(),
            "first_token_ms": tally.first_token.summary_ms(),
            "peak_streaming": tally.peak_streaming,
            "early_tokens": tally.early,
            "digests": {
                "checked": tally.digests_ok + tally.digests_bad,
                "ok": tally.digests_ok,
                "bad": tally.digests_bad,
            },
            "notices": dict(tally.notices),
            "problems": tally.problems,
            "wall_s": round(wall_s, 3),
            "cpu_s": round(cpu_s, 3),
            "plan": {name: value for name, value in asdict(plan).items() if name != "key"},
        }


def main() -> None:
    """Read a plan from standard input, carry it out, write progress and result to standard output."""

    def write(kind: str, value: dict[str, Any]) -> None:
        sys.stdout.buffer.write(orjson.dumps({kind: value}) + b"\n")
        sys.stdout.buffer.flush()

    plan = Plan(**orjson.loads(sys.stdin.buffer.read()))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.freeze()
    gc.disable()  # a pause of ours would look like one of theirs; what a run leaves in cycles is small
    write("result", Load(plan, lambda progress: write("progress", progress)).run())


if __name__ == "__main__":
    main()
