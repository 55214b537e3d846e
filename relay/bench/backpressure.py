"""`relay bench backpressure`: each promise about slow readers measured, and held against its bound.

bound       text between a flooding upstream and a reader that stalls, drips, hangs up, or is fast
isolation   fast readers beside slow ones; what a stalled one costs its node
reaction    from a stall to the source being paced, and back
fast        no step of the ladder at 80 % of what the machine carries
obvious     the same faults on FastAPI, sse-starlette and redis-py, beside ours
"""

import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from relay.bench import flood, inflight, isolation, noharm, reaction
from relay.bench.flood import Upstream
from relay.bench.inflight import KINDS, Stack, Watched
from relay.bench.run import DISTURBING_CORES, Progress
from relay.bench.system import Shape, System, running, running_obvious
from relay.errors import RelayError, Unavailable
from relay.settings import KIB, MIB

SCENARIOS = ("bound", "isolation", "reaction", "fast", "obvious")
RELAY, OBVIOUS = "relay", "obvious"

WINDOW_BYTES, CREDIT_BYTES = 32 * KIB, 16 * KIB
IN_FLIGHT_BYTES = WINDOW_BYTES + CREDIT_BYTES + 256 * KIB
# The kernel doubles what a worker asks for as the receive buffer of an upstream's connection, 64 KiB.
WORKER_SOCKET_BYTES = 128 * KIB
GROWTH_KIB = 2 * KIB
RATIO, KIB_PER_STALLED = 1.5, 64.0
PACED_S, LIVE_S = 3.0, 2.0
# Flow control is to be measured, and not the cap of a response: that is set far above the upstream's text.
SETTINGS = (
    ("RELAY_MAX_RESPONSE_BYTES", str(256 * MIB)),
    ("RELAY_WINDOW_BYTES", str(WINDOW_BYTES)),
    ("RELAY_CREDIT_BYTES", str(CREDIT_BYTES)),
)
MISSING = (
    "the obvious stack needs sse-starlette, which is not installed: make install-dev, or pip install "
    "sse-starlette; or leave it out with --only bound,isolation,reaction,fast"
)
_WARM_UP_S = 2.0
_ROUNDS = {RELAY: 3, OBVIOUS: 1}
_SYSTEM_RESPONSES = 4 * isolation.READERS


class Check(NamedTuple):
    """One figure of ours and the bound that it keeps, if `holds`."""

    scenario: str
    name: str
    value: float
    bound: float
    unit: str

    @property
    def holds(self) -> bool:
        """Whether the value is within its bound."""
        return self.value <= self.bound


class Show(Protocol):
    """How progress is shown: a scenario's part, and how much of it is to come, in any unit."""

    def __call__(self, title: str, total: float) -> AbstractContextManager[Progress]:
        """A bar for as long as the block lasts."""
        ...


@dataclass(slots=True)
class Plan:
    """What to measure: the scenarios, seconds of each watch, responses that the machine carries if known.

    `slow_rate`: tokens a second of the sources of slow readers beside fast ones; 0: as fast as they are let.
    """

    scenarios: tuple[str, ...] = SCENARIOS
    seconds: float = 10.0
    capacity: int | None = None
    slow_rate: float = 0.0
    logs: Path | None = None


@dataclass(slots=True)
class Run:
    """One run of a plan. `results` by stack and scenario; `checks` are of ours alone."""

    plan: Plan
    show: Show
    say: Callable[[str], None]
    results: dict[str, dict[str, Any]] = field(default_factory=lambda: {RELAY: {}, OBVIOUS: {}})
    checks: list[Check] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def carry_out(self) -> None:
        """Every scenario that was chosen, one after the other."""
        chosen = set(self.plan.scenarios)
        if "obvious" in chosen:
            if importlib.util.find_spec("sse_starlette") is None:
                raise Unavailable(MISSING)
            chosen |= {"bound", "isolation"}  # what it is compared by
        if "bound" in chosen:
            self._bound(RELAY)
        if "isolation" in chosen:
            self._isolation(RELAY)
        if "reaction" in chosen:
            self._reaction()
        if "fast" in chosen:
            self._fast()
        if "obvious" in chosen:
            self._bound(OBVIOUS)
            self._isolation(OBVIOUS)

    # --- the scenarios

    def _bound(self, name: str) -> None:
        results = self.results[name]["bound"] = {}
        with flood.flooding() as upstream:
            for kind in KINDS:
                try:
                    watched = self._watch(name, kind, upstream)
                except RelayError as error:
                    self._failed(name, f"bound, {kind}", error)
                else:
                    results[kind] = watched.as_dict()
                    if name == RELAY:
                        self._check_watched(watched)

    def _watch(self, name: str, kind: str, upstream: Upstream) -> Watched:
        # A fresh system for each: memory that the one before has left behind would hide growth.
        seconds = self.plan.seconds
        with (
            self._system(name, upstream.base_url) as system,
            self.show(f"bound, {name}: {kind}", seconds) as update,
        ):
            stack = Stack(name, system, upstream)
            inflight.watch(stack, "stalled", _WARM_UP_S, lambda _: None)
            return inflight.watch(stack, kind, seconds, lambda gone_s: update({"done": gone_s}))

    def _failed(self, name: str, what: str, error: RelayError) -> None:
        """Ours may not fail. Another stack's failure is a result: its column stays empty, and it is told."""
        if name == RELAY:
            raise error
        self.say(f"{what}: the {name} stack failed: {error.message}")
        self.results[name].setdefault("failed", []).append(f"{what}: {error.message}")

    def _check_watched(self, watched: Watched) -> None:
        kind = watched.kind
        self._check(
            "bound", f"{kind}: read ahead of the client", watched.in_flight_bytes, IN_FLIGHT_BYTES, "B"
        )
        socket = watched.worker_socket_bytes
        self._check("bound", f"{kind}: in the worker's socket", socket, WORKER_SOCKET_BYTES, "B")
        if kind != "fast":  # its text is kept, as it is to be
            for role, kib in sorted(watched.grown_kib.items()):
                self._check("bound", f"{kind}: growth of the {role}", kib, GROWTH_KIB, "KiB")
        if not watched.is_exact:
            self.wrong.append(f"bound, {kind}: the text was not what the upstream sent")

    def _isolation(self, name: str) -> None:
        results = self.results[name]["isolation"] = {}
        if name == RELAY:
            with self._system(name) as system, self.show("memory of stalled readers", 6) as update:
                found = isolation.memory(system, progress=lambda gone_s: update({"done": gone_s}))
            results["memory"] = found
            per_reader = found["kib_per_consumer"]
            self._check("isolation", "node's memory for a stalled reader", per_reader, KIB_PER_STALLED, "KiB")
        tokens = int(50 * self.plan.seconds)
        total = isolation.READERS * tokens
        try:
            with self._system(name) as system, self.show(f"isolation, {name}", total) as update:
                found = isolation.isolation(
                    system,
                    rounds=_ROUNDS[name],
                    tokens=tokens,
                    slow_rate=self.plan.slow_rate,
                    say=self.say,
                    progress=update,
                )
        except RelayError as error:
            self._failed(name, "isolation", error)
            return
        results |= found
        others = max(phase["others"] for phase in found["cores"].values())
        if others >= DISTURBING_CORES:
            self.say(f"disturbed: other programs used {others:.1f} cores meanwhile")
        if name == RELAY:
            self._check("isolation", "p99 beside slow readers to p99 alone", found["ratio"], RATIO, "times")
            self.wrong += [f"isolation: {reason}" for reason in found["wrong"]]

    def _reaction(self) -> None:
        with self._system(RELAY) as system, self.show("reaction", reaction.READERS) as update:
            found = self.results[RELAY]["reaction"] = reaction.reaction(system, update)
        self._check("reaction", "from the stall to paced", max(found["paced_s"]), PACED_S, "s")
        self._check("reaction", "from reading again to live", max(found["live_s"]), LIVE_S, "s")
        if any(found["level_before"]):
            self.wrong.append(f"reaction: not live before the stall: levels {found['level_before']}")

    def _fast(self) -> None:
        shape, carried = self._shape(), self.plan.capacity
        found: dict[str, Any] = {}
        if carried is None:
            with self.show("capacity", 1) as update:
                search = noharm.capacity(shape, self.say, update)
            found["capacity"], carried = search, search["highest"]
        if not carried:
            self.wrong.append("fast: the machine did not carry even the first step; is it busy?")
        else:
            responses = max(1, int(carried * noharm.SHARE))
            tokens = int(50 * self.plan.seconds)
            with self.show(f"fast: {responses} responses", responses * tokens) as update:
                found |= noharm.no_harm(shape, responses, tokens, update)
            self._check(
                "fast", f"steps of the ladder, {responses} fast readers", sum(found["steps"].values()), 0, ""
            )
            self._check("fast", "notices to them", sum(found["notices"].values()), 0, "")
            self.wrong += [f"fast: {reason}" for reason in found["wrong"]]
        self.results[RELAY]["fast"] = found

    # --- help

    def _shape(self, upstream_url: str | None = None) -> Shape:
        upstream = (("RELAY_UPSTREAM_BASE_URL", upstream_url),) if upstream_url else ()
        return Shape(logs=self.plan.logs, settings=(*SETTINGS, *upstream))

    def _system(self, name: str, upstream_url: str | None = None) -> AbstractContextManager[System]:
        if name == RELAY:
            return running(self._shape(upstream_url), responses=_SYSTEM_RESPONSES)
        return running_obvious(upstream_url or "http://127.0.0.1:9/v1", logs=self.plan.logs)

    def _check(self, scenario: str, name: str, value: float, bound: float, unit: str) -> None:
        check = Check(scenario, name, value, bound, unit)
        self.checks.append(check)
        if not check.holds:
            self.wrong.append(f"{scenario}: {name}: {value:g} {unit}, more than {bound:g}")
