"""What a worker measures. The names are those of the contract."""

from collections import Counter

from prometheus_client import CollectorRegistry

from relay.errors import OutOfMemory, RelayError
from relay.metrics import LATENCY_BUCKETS, Counted, by_label, one

HELD = ("loop", "memory", "redis")  # why a worker claims nothing
ENTRIES_BUCKETS = (8, 16, 32, 64, 128, 256, 512, 1024)


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
        self.paused = 0
        self.slots = 0
        self.held: dict[str, int] = dict.fromkeys(HELD, 0)
        self.throttled_s: dict[str, float] = {"pace": 0.0, "window": 0.0, "memory": 0.0}
        self.steps: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.saved: Counter[str] = Counter()
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
        self._describe(counted)

    def _describe(self, counted: Counted) -> None:
        counted.counter("relay_tokens", "Tokens taken from sources.", (), one(lambda: self.tokens))
        counted.counter("relay_appends", "Appends that Redis took.", (), one(lambda: self.appends))
        counted.counter(
            "relay_append_failures", "Appends to be tried again.", (), one(lambda: self.append_failures)
        )
        counted.counter(
            "relay_redis_refused_writes",
            "Writes that Redis refused for want of memory.",
            (),
            one(lambda: self.out_of_memory),
        )
        counted.counter(
            "relay_resent_bytes",
            "Bytes sent again after Redis lost them.",
            (),
            one(lambda: self.resent_bytes),
        )
        counted.counter(
            "relay_jobs_reclaimed", "Jobs taken over from lost workers.", (), one(lambda: self.reclaimed)
        )
        counted.counter(
            "relay_fenced_writes",
            "Writes refused because a newer epoch exists.",
            (),
            one(lambda: self.fenced),
        )
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
        for name, text, label, values in (
            ("relay_throttled_seconds", "Time for which sources were not read.", "cause", self.throttled_s),
            ("relay_ladder_steps", "Steps of the ladder taken.", "step", self.steps),
            ("relay_generations", "Generations ended.", "outcome", self.outcomes),
            ("relay_tokens_saved", "Tokens not generated thanks to cancel or shorten.", "reason", self.saved),
        ):
            counted.counter(name, text, (label,), by_label(values))

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
