"""One response of the load: created, followed to its end, every token timed, every digest checked.

A reader is a small state machine fed with what its socket received; it owns no socket and no clock,
so tests feed it bytes. Everything that happens once a token is in `_stream`; keep it that short.
"""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import orjson

from relay import simulation
from relay.bench.frames import Frames, fields, split_head
from relay.bench.histogram import Histogram
from relay.errors import WireProtocol

_DELTA: Final = b"event: delta\n"
_DATA: Final = b"\ndata: "
_SAMPLES = 5  # of what went wrong; a thousand lines help nobody


class Script:
    """What every response of one run says and when: computed once, looked up for every token."""

    __slots__ = ("due_s", "ends", "text")

    def __init__(self, *, seed: int, tokens: int, rate: float) -> None:
        self.text = simulation.text(seed, 0, tokens).encode()
        self.due_s = [index / rate for index in range(tokens)]
        self.ends: list[int] = []
        end = 0
        for index in range(tokens):
            end += simulation.token_size(seed, index)
            self.ends.append(end)
        self.ends.append(1 << 62)  # no text reaches this: it ends the walk


@dataclass(slots=True)
class Tally:
    """What all readers of a run add up to."""

    latency: Histogram = field(default_factory=Histogram)
    created: Histogram = field(default_factory=Histogram)  # from the POST to its answer
    queued: Histogram = field(default_factory=Histogram)  # from that answer to the source's start
    first_token: Histogram = field(default_factory=Histogram)  # from the POST to the first token
    outcomes: Counter[str] = field(default_factory=Counter)
    notices: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    streaming: int = 0  # responses between their first token and their end
    peak_streaming: int = 0
    tokens: int = 0
    frames: int = 0
    reads: int = 0
    text_bytes: int = 0
    received_bytes: int = 0
    early: int = 0  # tokens that arrived before they were due: two clocks, or a source that runs ahead
    digests_ok: int = 0
    digests_bad: int = 0

    def problem(self, text: str) -> None:
        """Keep the first few that differ."""
        if len(self.problems) < _SAMPLES and text not in self.problems:
            self.problems.append(text)


class Reader:
    """One response: POST, then GET of its events on the same connection, to the terminal event.

    With `is_created` the response is there already: GET is the first request.

    `receive(data, now)` takes what the socket gave and the Unix time in seconds at which it did, and
    returns what to send next; `outcome` is None until the response has come to its end.
    """

    __slots__ = (
        "_asked_at", "_created_at", "_frames", "_get", "_head", "_script", "_started_at", "_tally", "_text",
        "_token", "outcome", "receive",
    )  # fmt: skip

    def __init__(
        self,
        script: Script,
        tally: Tally,
        get: Callable[[str], bytes],
        asked_at: float,
        *,
        is_created: bool = False,
    ) -> None:
        self._script = script
        self._tally = tally
        self._get = get  # the request for the events of a response, by its id
        self._head = b""
        self._frames = Frames()
        self._text = bytearray()
        self._token = 0
        self._asked_at = asked_at
        self._created_at = self._started_at = 0.0
        self.outcome: str | None = None
        self.receive: Callable[[bytes, float], bytes] = self._opened if is_created else self._created

    def _created(self, data: bytes, now: float) -> bytes:
        """Waiting for the answer to the POST."""
        self._head += data
        split = split_head(self._head)
        if split is None:
            return b""
        head, body = split
        size = int(head.headers.get(b"content-length", b"0"))
        if len(body) < size:
            return b""
        if head.status != 201:
            self._end("refused", f"POST answered {head.status}: {body[:200]!r}")
            return b""
        self._head = b""
        self._created_at = now
        self._tally.created.record(int((now - self._asked_at) * 1e6))
        self.receive = self._opened
        return self._get(orjson.loads(body)["id"])

    def _opened(self, data: bytes, now: float) -> bytes:
        """Waiting for the head of the events."""
        self._head += data
        split = split_head(self._head)
        if split is None:
            return b""
        head, rest = split
        if head.status != 200:
            self._end("refused", f"GET events answered {head.status}: {rest[:200]!r}")
        elif head.headers.get(b"transfer-encoding", b"").lower() != b"chunked":
            raise WireProtocol("the events are not in chunked encoding")
        else:
            self.receive = self._stream
            if rest:
                self._stream(rest, now)
        return b""

    def _stream(self, data: bytes, now: float) -> bytes:
        tally = self._tally
        tally.reads += 1
        tally.received_bytes += len(data)
        for frame in self._frames.feed(data):
            if frame.startswith(_DELTA):
                tally.frames += 1
                delta = orjson.loads(frame[frame.index(_DATA) + 7 :])
                if delta["channel"] == "content":
                    self._text += delta["text"].encode()
            else:
                self._event(frame)
        size, token, ends = len(self._text), self._token, self._script.ends
        if ends[token] <= size:
            if not token:
                self._begin(now)
            due_s, record = self._script.due_s, tally.latency.record
            since_us, first = (now - self._started_at) * 1e6, token
            while ends[token] <= size:
                us = int(since_us - due_s[token] * 1e6)
                if us < 0:
                    tally.early += 1
                record(us)
                token += 1
            tally.tokens += token - first
            self._token = token
        if self._frames.ended:
            self.closed()
        return b""

    def _begin(self, now: float) -> None:
        """The first token is here."""
        tally = self._tally
        tally.first_token.record(int((now - self._asked_at) * 1e6))
        if self._created_at:
            tally.queued.record(int((self._started_at - self._created_at) * 1e6))
        tally.streaming += 1
        tally.peak_streaming = max(tally.peak_streaming, tally.streaming)

    def _event(self, frame: bytes) -> None:
        """Everything that is not a delta; a handful for each response."""
        name, _, data = fields(frame)
        if name == b"start":
            self._started_at = float(orjson.loads(data)["started_at"])
        elif name == b"notice":
            self._tally.notices[str(orjson.loads(data).get("kind"))] += 1
        elif name == b"done":
            self._done(orjson.loads(data))
        elif name:  # error, rewind, reconnect: none of them belongs into a benchmark
            self._end(name.decode(), frame[:200].decode(errors="replace"))

    def _done(self, data: dict[str, object]) -> None:
        tally = self._tally
        tally.text_bytes += len(self._text)
        digest = hashlib.sha256(self._text).hexdigest()
        if digest == data["sha256"] and self._script.text.startswith(self._text):
            tally.digests_ok += 1
        else:
            tally.digests_bad += 1
            tally.problem(f"text of {len(self._text)} bytes has sha256 {digest}, done says {data}")
        self._end(str(data["finish_reason"]))

    def closed(self) -> None:
        """The connection has ended, or the run has: without a terminal event, that is a loss."""
        if self.outcome is None:
            self._end("cut", f"cut after {len(self._text)} bytes")

    def _end(self, outcome: str, problem: str | None = None) -> None:
        if self.outcome is None:
            self.outcome = outcome
            self._tally.outcomes[outcome] += 1
            self._tally.streaming -= self._token > 0
            if problem is not None:
                self._tally.problem(problem)
