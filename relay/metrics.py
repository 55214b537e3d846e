"""What every process measures alike, and how a hot path counts without paying for it.

The hot path adds to plain integers; `Counted` hands their values to prometheus_client at the scrape.
No label ever holds a response or consumer id.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from relay.settings import Settings
from relay.topology import Topology

LATENCY_BUCKETS = (
    0.001, 0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip

Samples = Callable[[], Iterable[tuple[tuple[str, ...], float]]]


class Buckets:
    """A histogram that costs a bisection and two additions; prometheus_client's takes a lock for each."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Iterable[float]) -> None:
        self._bounds = sorted(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count one value, or the same one several times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        """What a scrape is told: cumulative counts, and the sum."""
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        counts = accumulate(self._counts)
        return HistogramMetricFamily(name, text, list(zip(bounds, counts, strict=True)), self._sum)


class Counted(Collector):
    """Counters and gauges read from the process's own state when somebody scrapes."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._families: list[tuple[type[Metric], str, str, tuple[str, ...], Samples]] = []
        self._histograms: list[tuple[str, str, Buckets]] = []
        registry.register(self)

    def counter(self, name: str, text: str, labels: tuple[str, ...], samples: Samples) -> None:
        """A counter; `name` is without `_total`."""
        self._families.append((CounterMetricFamily, name, text, labels, samples))

    def gauge(self, name: str, text: str, labels: tuple[str, ...], samples: Samples) -> None:
        """A gauge."""
        self._families.append((GaugeMetricFamily, name, text, labels, samples))

    def histogram(self, name: str, text: str, bounds: Iterable[float]) -> Buckets:
        """A histogram without labels, to be observed into."""
        buckets = Buckets(bounds)
        self._histograms.append((name, text, buckets))
        return buckets

    def collect(self) -> Iterator[Metric]:
        """One family each, with the samples of this moment."""
        for kind, name, text, labels, samples in self._families:
            family = kind(name, text, labels=list(labels))  # type: ignore[call-arg]
            for values, value in samples():
                family.add_metric(list(values), value)  # type: ignore[attr-defined]
            yield family
        for name, text, buckets in self._histograms:
            yield buckets.family(name, text)


def one(value: Callable[[], float]) -> Samples:
    """The samples of a family without labels."""
    return lambda: [((), value())]


def by_label(values: Mapping[str, float]) -> Samples:
    """The samples of a family with one label, read from a mapping."""
    return lambda: [((label,), value) for label, value in values.items()]


def loop_metrics(counted: Counted) -> None:
    """How much the event loop that runs now has to do: what a leak of tasks would show in."""
    loop = asyncio.get_running_loop()
    counted.gauge(
        "relay_asyncio_tasks", "Tasks of the event loop.", (), one(lambda: len(asyncio.all_tasks(loop)))
    )


def redis_metrics(counted: Counted, topology: Topology) -> None:
    """What every process knows of its connections to Redis."""
    counted.counter(
        "relay_redis_reconnects",
        "Connections to Redis made again after a break.",
        (),
        one(lambda: topology.reconnects),
    )
    counted.gauge(
        "relay_redis_inflight",
        "Commands sent to Redis that have no reply yet.",
        (),
        one(lambda: sum(wire.inflight for wire in topology.wires())),
    )


def settings_metrics(counted: Counted, settings: Settings) -> None:
    """The settings that are numbers, so that an alert's threshold is the setting and no copy of it."""
    values = {name: float(value) for name, value in settings if type(value) in (int, float)}
    counted.gauge("relay_setting", "A setting of this process, by its name.", ("name",), by_label(values))
