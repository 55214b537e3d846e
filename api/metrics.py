"""What an API node measures. The names are those of the contract."""

import time
from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest

from api import sse
from api.ending import Ending
from relay.events import Placed
from relay.metrics import LATENCY_BUCKETS, Counted, Samples, by_label, one
from relay.pressure import THRESHOLDS

if TYPE_CHECKING:
    from api.watch import Watch

LAG_BYTES_BUCKETS = (0, 256, 1024, 4096, 8192, 16_384, 32_768, 65_536, 262_144, 1_048_576)
LAG_SECONDS_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 60)
# There from the start, so that a rate sees the first of them.
SHED_REASONS = (*THRESHOLDS, "background", "degrade", "consumers")


class Metrics:
    """One per API node."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.events: Counter[str] = Counter(dict.fromkeys(sse.LABELS, 0))
        self.bytes: Counter[str] = Counter(dict.fromkeys(sse.LABELS, 0))
        self.resumes: Counter[str] = Counter(log=0, journal=0, done=0)
        self.shed: Counter[str] = Counter(dict.fromkeys(SHED_REASONS, 0))
        self.degraded: Counter[str] = Counter(limited=0, fallback=0)
        self.endings: Counter[str] = Counter({ending.name.lower(): 0 for ending in Ending})
        self.trims_repaired = 0
        self.gap_bytes = 0
        self.checked = 0
        self.disagreements: Counter[str] = Counter(pending=0, ahead=0, behind=0)
        self.states: dict[str, int] = {"live": 0, "slow": 0, "stalled": 0, "detached": 0}
        self.lag_bytes_max = 0.0
        self.lag_seconds_max = 0.0
        self._drains_since: float | None = None
        self.counted = counted = Counted(self.registry)
        self._delivery_s = counted.histogram(
            "relay_delivery_seconds", "From the append to the client's socket.", LATENCY_BUCKETS
        )
        self.lag_bytes = counted.histogram(
            "relay_consumer_lag_bytes", "Bytes a consumer lacks, each second.", LAG_BYTES_BUCKETS
        )
        self.lag_seconds = counted.histogram(
            "relay_consumer_lag_seconds", "Age of what a consumer lacks, each second.", LAG_SECONDS_BUCKETS
        )
        self._describe(self.counted)

    def _describe(self, counted: Counted) -> None:
        for name, text, label, values in (
            ("relay_events_sent", "Events written to consumers.", "event", self.events),
            ("relay_bytes_sent", "Bytes of events written.", "event", self.bytes),
            ("relay_resumes", "Connections that came back, by where they went on.", "source", self.resumes),
            ("relay_shed", "Requests refused to protect what runs.", "reason", self.shed),
            ("relay_degraded", "Requests let in with less than they asked for.", "step", self.degraded),
            (
                "relay_position_disagreements",
                "Consumers that Redis places elsewhere.",
                "kind",
                self.disagreements,
            ),
            ("relay_stream_endings", "Ends of connections, by reason.", "reason", self.endings),
        ):
            counted.counter(name, text, (label,), by_label(values))
        counted.counter(
            "relay_trims_repaired",
            "Holes in the log read from the journal.",
            (),
            one(lambda: self.trims_repaired),
        )
        counted.counter(
            "relay_gap_bytes",
            "Text of whole answers that a reader missed, or had twice; must stay 0.",
            (),
            one(lambda: self.gap_bytes),
        )
        counted.gauge(
            "relay_draining_seconds",
            "For how long this node has drained; 0: it does not.",
            (),
            one(self._drained_s),
        )
        counted.counter(
            "relay_position_checks",
            "Consumers compared with what Redis says of them.",
            (),
            one(lambda: self.checked),
        )
        counted.gauge("relay_consumers", "Consumers of this node.", ("state",), by_label(self.states))
        counted.gauge(
            "relay_consumer_lag_bytes_max", "The largest lag now.", (), one(lambda: self.lag_bytes_max)
        )
        counted.gauge(
            "relay_consumer_lag_seconds_max", "The oldest lag now.", (), one(lambda: self.lag_seconds_max)
        )

    def drains(self) -> None:
        """The node has begun to drain."""
        self._drains_since = self._drains_since or time.monotonic()

    def _drained_s(self) -> float:
        return 0.0 if self._drains_since is None else time.monotonic() - self._drains_since

    def watch(self, watch: "Watch") -> None:
        """Show what the node watches of the deployment."""
        for name, text, field in (
            ("relay_jobs_waiting", "Jobs that no worker has taken.", "waiting"),
            ("relay_jobs_pending", "Jobs that are taken and not finished.", "pending"),
            ("relay_jobs_oldest_seconds", "Age of the oldest waiting job.", "oldest_s"),
        ):
            self.counted.gauge(name, text, ("priority",), _queues(watch, field))
        self.counted.gauge(
            "relay_pressure_level", "Pressure on new work, 0 to 3.", (), one(lambda: watch.pressure.level)
        )
        self.counted.gauge(
            "relay_redis_memory_bytes", "Memory that Redis uses.", (), one(lambda: watch.memory_bytes)
        )
        self.counted.gauge(
            "relay_redis_memory_budget_bytes",
            "What it may use; 0: no bound.",
            (),
            one(lambda: watch.budget_bytes),
        )
        self.counted.gauge(
            "relay_redis_evicts",
            "1 when Redis may delete running responses to make room.",
            (),
            one(lambda: watch.evicts),
        )

    def delivered(self, seconds: float, readers: int = 1) -> None:
        """A batch was read and written to so many; the age is that of its oldest entry."""
        self._delivery_s.observe(max(0.0, seconds), readers)

    def sent(self, placed: list[Placed], frames: list[bytes]) -> None:
        """Frames were written."""
        for item, data in zip(placed, frames, strict=True):
            name = sse.LABELS[item.record.channel]
            self.events[name] += 1
            self.bytes[name] += len(data)

    def exposition(self) -> bytes:
        """The text format that Prometheus scrapes."""
        return generate_latest(self.registry)


def _queues(watch: "Watch", field: str) -> Samples:
    return lambda: [((queue,), float(getattr(state, field))) for queue, state in watch.queues.items()]
