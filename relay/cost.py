"""What a deployment costs, from its requests a day: pure arithmetic over constants that were measured.

    Load        what is asked for: requests, answers, and how their readers behave
    Constants   what this software takes for it, and which command measured that
    Prices      of a core, of memory, of the network, of tokens
    estimate    all of it together, beside the same work without the pattern

Every result is for the load's peak where it sizes something, and for a month of 30 days where it costs
something. Answers' lengths are taken as exponential around their mean, as lengths of chats about are: then
what is left of an answer, whenever its reader leaves, is on average a whole mean again.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

DAY_S, MONTH_DAYS = 86_400, 30
KIB, GIB = 1024, 1024**3
TRIM_SLACK = 50  # entries over its cap that a log has on average: Redis trims whole nodes of 100


_FAST = "relay bench backpressure --only fast: its step of 400 responses, two thirds of the most that held"
_OBVIOUS = "relay bench backpressure --only obvious --seconds 6"
_USED = "relay bench latency -n 50 --tokens 400, with Redis's INFO before and after"
# Where the constants are from, and what measured them.
SOURCES = (
    f"api_us, worker_us, redis_us, tokens_per_frame: {_FAST}",
    "api_mib, worker_mib, slot_kib: the same, resident memory over its steps of 200 to 800 responses",
    f"text_bytes, egress_bytes, redis_net_bytes: {_USED}",
    "redis_kib, redis_entry_bytes: relay bench tune --lever cap",
    f"reader_kib, obvious_us, obvious_entry_bytes: {_OBVIOUS}",
    "obvious_us is a lower bound: that stack did not keep up with the 5,000 tokens a second asked of it",
    "on: AMD EPYC, 2 cores, Linux 6.18, Python 3.11.7, Valkey 9.1.2, the load client on the same cores",
)


@dataclass(frozen=True, slots=True)
class Load:
    """A day of requests. Shares are of all requests, 0 to 1."""

    requests_per_day: int
    tokens: float = 400.0  # of an answer, mean
    prompt_tokens: float = 1000.0
    tokens_per_s: float = 50.0  # of one answer, as its source makes them
    peak: float = 3.0  # the busiest minute over the mean of the day
    abandoned: float = 0.08  # readers who leave for good
    told: float = 0.5  # of those, whose client sends the DELETE; the others are noticed by their absence
    cut: float = 0.03  # connections that break in mid-answer and come back
    stalled: float = 0.02  # readers who stop reading and stay
    abandon_after_s: float = 30.0  # RELAY_ABANDON_AFTER_S
    window_bytes: float = 32_768.0  # RELAY_WINDOW_BYTES
    retention_s: float = 3600.0  # RELAY_RETENTION_S
    log_entries: float = 256.0  # RELAY_LOG_ENTRIES


@dataclass(frozen=True, slots=True)
class Constants:
    """What was measured, on one machine, by the commands in `sources`."""

    api_us: float = 40.9  # CPU per token
    worker_us: float = 30.5
    redis_us: float = 21.1
    tokens_per_frame: float = 1.34
    text_bytes: float = 5.4  # per token
    egress_bytes: float = 81.0  # per token, to the client: the events as they are on the wire
    redis_net_bytes: float = 781.0  # per token, in and out
    redis_kib: float = 2.4  # per response kept, beside its text and its log's entries
    redis_entry_bytes: float = 50.0  # per entry of a log
    api_mib: float = 66.0  # of a process without readers
    worker_mib: float = 62.0
    reader_kib: float = 47.6  # of a node's memory, for a reader that stalls; about 35 for one that reads
    slot_kib: float = 32.0  # of a worker's memory, for a running generation
    obvious_us: float = 318.0  # CPU per token of the obvious stack, all its processes
    obvious_entry_bytes: float = 54.0  # of Redis for a token in a stream without a cap
    sources: tuple[str, ...] = SOURCES


@dataclass(frozen=True, slots=True)
class Prices:
    """In dollars: defaults are round figures of large clouds, to be replaced by yours."""

    core_hour: float = 0.04
    gib_hour: float = 0.005
    egress_gib: float = 0.08
    output_million: float = 2.00  # tokens that a model makes
    input_million: float = 0.50  # tokens that a model reads


@dataclass(frozen=True, slots=True)
class Sizing:
    """How a deployment is cut to processes."""

    utilisation: float = 0.6  # of a core, at the peak: what is left is for bursts and for a lost process
    spare: int = 2  # least number of nodes and of workers
    slots: int = 256  # generations of one worker


class Peak(NamedTuple):
    """What the busiest minute asks for."""

    requests_per_s: float
    answers_at_once: float
    tokens_per_s: float


class Machines(NamedTuple):
    """Processes, cores and memory at the peak; Redis in primaries, without replicas."""

    nodes: int
    workers: int
    redis: int
    api_cores: float
    worker_cores: float
    redis_cores: float
    redis_gib: float
    process_gib: float
    egress_gib_month: float
    redis_mbit: float


class Tokens(NamedTuple):
    """Tokens a month: what is made for nobody, with relay and without, and what resuming saves."""

    abandoned_without: float
    abandoned_with: float
    stalled_without: float
    stalled_with: float
    again_out: float  # made a second time for a connection that was cut
    again_in: float  # read a second time for it

    @property
    def saved(self) -> float:
        """Output tokens that need not be made."""
        made = self.abandoned_without + self.stalled_without + self.again_out
        return made - self.abandoned_with - self.stalled_with


class Money(NamedTuple):
    """Dollars a month. `without`: the obvious stack for the same work, with its tokens for nobody."""

    redis: float
    processes: float
    egress: float
    tokens_for_nobody: float
    without_machines: float
    without_tokens: float

    @property
    def relay(self) -> float:
        """All of ours."""
        return self.redis + self.processes + self.egress + self.tokens_for_nobody

    @property
    def without(self) -> float:
        """All of theirs, with the same network."""
        return self.without_machines + self.egress + self.without_tokens


class Estimate(NamedTuple):
    """The whole answer."""

    load: Load
    peak: Peak
    machines: Machines
    tokens: Tokens
    money: Money


def estimate(load: Load, constants: Constants, prices: Prices, sizing: Sizing) -> Estimate:
    """What a load takes and costs."""
    peak = peak_of(load)
    machines = machines_of(load, peak, constants, sizing)
    tokens = tokens_of(load, constants)
    return Estimate(load, peak, machines, tokens, _money(load, machines, tokens, constants, prices, sizing))


def peak_of(load: Load) -> Peak:
    """Little's law: answers at once are those that begin in the time that one takes."""
    rate = load.requests_per_day / DAY_S * load.peak
    return Peak(rate, rate * load.tokens / load.tokens_per_s, rate * load.tokens)


def machines_of(load: Load, peak: Peak, constants: Constants, sizing: Sizing) -> Machines:
    """One process uses one core; a node or worker more than the load needs is kept for the one that fails."""
    cores = [
        peak.tokens_per_s * us / 1e6 for us in (constants.api_us, constants.worker_us, constants.redis_us)
    ]
    nodes = max(sizing.spare, math.ceil(cores[0] / sizing.utilisation) + 1)
    by_slots = math.ceil(peak.answers_at_once / sizing.slots)
    workers = max(sizing.spare, by_slots, math.ceil(cores[1] / sizing.utilisation) + 1)
    memory_kib = (nodes * constants.api_mib + workers * constants.worker_mib) * KIB + peak.answers_at_once * (
        constants.reader_kib + constants.slot_kib
    )
    month_tokens = load.requests_per_day * MONTH_DAYS * load.tokens
    return Machines(
        nodes,
        workers,
        max(1, math.ceil(cores[2] / sizing.utilisation)),
        api_cores=cores[0],
        worker_cores=cores[1],
        redis_cores=cores[2],
        redis_gib=kept_of(load, peak) * _kept_bytes(load, constants) / GIB,
        process_gib=memory_kib * KIB / GIB,
        egress_gib_month=month_tokens * constants.egress_bytes / GIB,
        redis_mbit=peak.tokens_per_s * constants.redis_net_bytes * 8 / 1e6,
    )


def kept_of(load: Load, peak: Peak) -> float:
    """Responses in Redis at the peak: those that run, and those that ended within the retention."""
    return peak.requests_per_s * (load.tokens / load.tokens_per_s + load.retention_s)


def _kept_bytes(load: Load, constants: Constants) -> float:
    entries = min(load.log_entries + TRIM_SLACK, load.tokens / constants.tokens_per_frame)
    text = load.tokens * constants.text_bytes
    return constants.redis_kib * KIB + entries * constants.redis_entry_bytes + text


def tokens_of(load: Load, constants: Constants) -> Tokens:
    """What is made for nobody in a month.

    Without the pattern an answer whose reader has gone or stands still is made to its end: a mean more.
    With it, it ends with the DELETE at once, or `abandon_after_s` later, and is never made further ahead
    than the window; before a reader that stalls it is held there, and cut after a pause.
    """
    requests = load.requests_per_day * MONTH_DAYS
    left = requests * load.abandoned * load.tokens
    window = load.window_bytes / constants.text_bytes
    noticed = min(window, load.abandon_after_s * load.tokens_per_s)
    after_absence = 1 - math.exp(-noticed / load.tokens)
    after_window = 1 - math.exp(-window / load.tokens)
    still = requests * load.stalled * load.tokens
    return Tokens(
        abandoned_without=left,
        abandoned_with=left * (1 - load.told) * after_absence,
        stalled_without=still,
        stalled_with=still * after_window,
        again_out=requests * load.cut * load.tokens,
        again_in=requests * load.cut * load.prompt_tokens,
    )


def _money(  # noqa: PLR0917 the parts of one estimate
    load: Load, machines: Machines, tokens: Tokens, constants: Constants, prices: Prices, sizing: Sizing
) -> Money:
    hours = MONTH_DAYS * 24
    per_core, per_gib = prices.core_hour * hours, prices.gib_hour * hours
    out, read = prices.output_million / 1e6, prices.input_million / 1e6
    obvious_cores = peak_of(load).tokens_per_s * constants.obvious_us / 1e6 / sizing.utilisation
    obvious_gib = kept_of(load, peak_of(load)) * load.tokens * constants.obvious_entry_bytes / GIB
    return Money(
        redis=machines.redis * per_core + machines.redis_gib * per_gib,
        processes=(machines.nodes + machines.workers) * per_core + machines.process_gib * per_gib,
        egress=machines.egress_gib_month * prices.egress_gib,
        tokens_for_nobody=(tokens.abandoned_with + tokens.stalled_with) * out,
        without_machines=max(2 * sizing.spare, math.ceil(obvious_cores)) * per_core + obvious_gib * per_gib,
        without_tokens=(tokens.abandoned_without + tokens.stalled_without + tokens.again_out) * out
        + tokens.again_in * read,
    )
