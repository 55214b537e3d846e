"""What a worker measures. The names are those of the contract."""

import time
from collections import Counter

from prometheus_client import CollectorRegistry

from relay.errors import OutOfMemory, RelayError
from relay.ladder import Kind
from relay.lifecycle import TERMINAL
from relay.metrics import LATENCY_BUCKETS, Counted, by_label, one

HELD = ("loop", "memory", "redis")  # why a worker claims nothing
ENTRIES_BUCKETS = (8, 16, 32, 64, 128, 256, 512, 1024)
FILL_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.8, 0.95, 1.0)


class Metrics:
    """One per worker process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.tokens = 0
        self.appends = 0
        self.append_failures = 0
        self.out_of_memory = 0
        self.resent_bytes = 0
        self.reclaimed = 0
        self.fenced = 0
        self.running = 0
        self._pauses: dict[int, float] = {}  # since when, monotonic, by whoever holds a source
        self._drains_since: float | None = None
        self.slots = 0
        self.held: dict[str, int] = dict.fromkeys(HELD, 0)
        self.throttled_s: dict[str, float] = {"pace": 0.0, "window": 0.0, "memory": 0.0}
        # There from the start, so that a rate sees the first of them.
        self.steps: Counter[str] = Counter(dict.fromkeys(map(str, Kind), 0))
        self.outcomes: Counter[str] = Counter(dict.fromkeys(map(str, TERMINAL), 0))
        self.saved: Counter[str] = Counter(abandon=0, cancel=0, shorten=0)
        counted = Counted(self.registry)
        self._append_s = counted.histogram(
            "relay_append_seconds", "One append: from the write to Redis's reply.", LATENCY_BUCKETS
        )
        self.first_token_s = counted.histogram(
            "relay_first_token_seconds", "From the create to the first text from the source.", LATENCY_BUCKETS
        )
        self.stream_entries = counted.histogram(
            "relay_stream_entries", "Length of a response's log at its end.", ENTRIES_BUCKETS
        )
        self.journal_fill = counted.histogram(
            "relay_journal_fill_ratio", "Share of its bound that a journal has at its end.", FILL_BUCKETS
        )
        self._describe(counted)

    def _describe(self, counted: Counted) -> None:
        for name, text, value in (
            ("relay_tokens", "Tokens taken from sources.", lambda: self.tokens),
            ("relay_appends", "Appends that Redis took.", lambda: self.appends),
            ("relay_append_failures", "Appends to be tried again.", lambda: self.append_failures),
            ("relay_resent_bytes", "Bytes sent again after Redis lost them.", lambda: self.resent_bytes),
            ("relay_jobs_reclaimed", "Jobs taken over from lost workers.", lambda: self.reclaimed),
            ("relay_fenced_writes", "Writes refused because a newer epoch exists.", lambda: self.fenced),
        ):
            counted.counter(name, text, (), one(value))
        counted.gauge("relay_worker_slots", "Responses it may run at once.", (), one(lambda: self.slots))
        counted.gauge(
            "relay_worker_held",
            "1 while it claims nothing for this reason: it cannot carry more.",
            ("reason",),
            by_label(self.held),
        )
        counted.gauge(
            "relay_worker_responses",
            "Responses it runs now.",
            ("state",),
            lambda: [(("running",), self.running - self.paused), (("paused",), self.paused)],
        )
        counted.gauge(
            "relay_paused_seconds_max",
            "For how long the longest pause of now has lasted.",
            (),
            one(self._paused_s),
        )
        counted.gauge(
            "relay_draining_seconds",
            "For how long this worker has drained; 0: it does not.",
            (),
            one(lambda: _since(self._drains_since)),
        )
        for name, text, label, values in (
            ("relay_throttled_seconds", "Time for which sources were not read.", "cause", self.throttled_s),
            ("relay_ladder_steps", "Steps of the ladder taken.", "step", self.steps),
            ("relay_generations", "Generations ended.", "outcome", self.outcomes),
            ("relay_tokens_saved", "Tokens not generated thanks to cancel or shorten.", "reason", self.saved),
        ):
            counted.counter(name, text, (label,), by_label(values))

    @property
    def paused(self) -> int:
        """Responses whose source is paused."""
        return len(self._pauses)

    def pauses(self, holder: int, *, is_paused: bool) -> None:
        """A source is paused, or is not; to say the same again changes nothing."""
        if is_paused:
            self._pauses.setdefault(holder, time.monotonic())
        else:
            self._pauses.pop(holder, None)

    def _paused_s(self) -> float:
        return _since(min(list(self._pauses.values()), default=None))  # a scrape has a thread of its own

    def drains(self) -> None:
        """The worker has begun to drain."""
        self._drains_since = time.monotonic()

    def appended(self, seconds: float) -> None:
        """An append was acknowledged."""
        self.appends += 1
        self._append_s.observe(seconds)

    def append_failed(self, error: RelayError) -> None:
        """An append will be tried again."""
        self.append_failures += 1
        self.out_of_memory += isinstance(error, OutOfMemory)

    def resent(self, size: int) -> None:
        """Redis lost bytes that it had acknowledged."""
        self.resent_bytes += size


def _since(began: float | None) -> float:
    return 0.0 if began is None else time.monotonic() - began
