"""What is under way between an upstream that floods and a reader: in bytes of text, in sockets, in memory.

Looked at from outside, and alike for every stack: what the upstream's kernel has taken, less what lies in
the two sockets of that connection, has been read by the stack; what the client's kernel has is confirmed.
The client's part is looked up first and the upstream's last: the difference is rather too large than too
small.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from relay.bench import flood, machine
from relay.bench.client import Client, call, create
from relay.bench.flood import Upstream
from relay.bench.queues import held
from relay.bench.system import System
from relay.errors import ServerUnfit

FIRST_BYTES = 1024  # of text, read before a reader shows what kind it is
_FIRST_WITHIN_S = 15.0
_SAMPLE_EVERY_S = 0.2
_DRIP_EVERY_S = 0.1
DRIP_BYTES_PER_S = 1024
_AFTERWARDS_S = 1.5  # of reading as fast as it comes, to see that the text is exact beyond the fault


class Stack(NamedTuple):
    """What is measured: a system, with the upstream that its model `flood` is."""

    name: str
    system: System
    upstream: Upstream

    @property
    def url(self) -> str:
        """The node that is asked."""
        return self.system.urls[0]


@dataclass(slots=True)
class Watched:
    """One reader's response: the most that was seen. Bytes of text; for sockets, of the upstream's events."""

    kind: str
    seconds: float = 0.0
    read_bytes: int = 0  # by the stack, at the end
    confirmed_bytes: int = 0  # by the client, at the end
    in_flight_bytes: int = 0
    worker_socket_bytes: int = 0
    upstream_socket_bytes: int = 0
    grown_kib: dict[str, int] = field(default_factory=dict)  # by role
    is_exact: bool = False
    text_bytes: int = 0  # read by the client in all, also after the fault
    ended: str | None = None

    @property
    def tokens_for_nobody(self) -> int:
        """Tokens that were read from the upstream and that no client had at the end."""
        return max(0, self.read_bytes - self.confirmed_bytes) // flood.WORD_BYTES

    def as_dict(self) -> dict[str, Any]:
        """For the result."""
        return {name: getattr(self, name) for name in self.__slots__} | {
            "tokens_for_nobody": self.tokens_for_nobody
        }


def stalled(_client: Client, until: float) -> None:
    """Reads nothing."""
    time.sleep(max(0.0, until - time.monotonic()))


def dripping(client: Client, until: float) -> None:
    """Reads 1 KB a second."""
    while (left := until - time.monotonic()) > 0:
        client.read(int(DRIP_BYTES_PER_S * _DRIP_EVERY_S), 0.001)
        time.sleep(min(_DRIP_EVERY_S, left))


def fast(client: Client, until: float) -> None:
    """Reads as fast as it comes."""
    client.read_until(lambda _: False, until - time.monotonic())


def gone(client: Client, until: float) -> None:
    """Hangs up."""
    client.close()
    stalled(client, until)


KINDS: dict[str, Callable[[Client, float], None]] = {
    "stalled": stalled,
    "dripping": dripping,
    "fast": fast,
    "gone": gone,
}


def watch(stack: Stack, kind: str, seconds: float, progress: Callable[[float], None]) -> Watched:
    """Let one reader of that kind read a flooding response. `progress` is told the seconds gone."""
    act = KINDS[kind]
    watched = Watched(kind, seconds)
    asked_before = len(stack.upstream.answers())
    rss_before = _rss(stack)
    response_id = create(stack.url, model="flood")
    try:
        with Client(stack.url, response_id, small=kind != "fast", is_right=_is_right) as client:
            if not client.read_until(lambda reader: reader.text_bytes >= FIRST_BYTES, _FIRST_WITHIN_S):
                raise ServerUnfit(
                    f"{stack.name}: no text of the flooding upstream within {_FIRST_WITHIN_S:g} s"
                )
            began = time.monotonic()
            while (now := time.monotonic()) < began + seconds and client.ended is None:
                act(client, now + _SAMPLE_EVERY_S)
                _sample(stack, client, asked_before, rss_before, watched)
                progress(time.monotonic() - began)
            if kind in ("stalled", "dripping"):
                client.read_until(lambda _: False, _AFTERWARDS_S)
            watched.is_exact, watched.text_bytes = client.is_exact, client.text_bytes
            watched.ended = client.ended
    finally:
        call(stack.url, "DELETE", f"/v1/streams/{response_id}")
    return watched


def _sample(stack: Stack, client: Client, answer: int, rss_before: dict[str, int], watched: Watched) -> None:
    watched.confirmed_bytes = max(watched.confirmed_bytes, client.confirmed_bytes)
    answers = stack.upstream.answers()
    queues = held(sender=stack.upstream.port, receiver=answers[answer].peer)
    sent = stack.upstream.answers()[answer].sent
    watched.read_bytes = flood.text_of(sent - queues.by_sender - queues.by_receiver)
    in_flight = watched.read_bytes - watched.confirmed_bytes
    watched.in_flight_bytes = max(watched.in_flight_bytes, in_flight)
    watched.worker_socket_bytes = max(watched.worker_socket_bytes, queues.by_receiver)
    watched.upstream_socket_bytes = max(watched.upstream_socket_bytes, queues.by_sender)
    for role, kib in _rss(stack).items():
        watched.grown_kib[role] = max(watched.grown_kib.get(role, 0), kib - rss_before[role])


def _rss(stack: Stack) -> dict[str, int]:
    """Resident memory by role, in KiB."""
    found: dict[str, int] = {}
    for role, pid in stack.system.pids:
        found[role] = found.get(role, 0) + machine.rss_kib(pid)
    return found


def _is_right(offset: int, text: bytes) -> bool:
    return text == flood.text(offset, offset + len(text))
