"""A worker that cannot carry more claims nothing, until that is over."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.wait import wait_until_async
from workers.gate import LATE_HIGH_S, LATE_LOW_S, LOOKS, PROBES, Gate, keep, resident_bytes
from workers.metrics import HELD, Metrics

BUDGET = 100_000_000


class Fixture:
    """A gate, and how often it has opened again."""

    def __init__(self, memory_bytes: int | None = BUDGET) -> None:
        self.metrics = Metrics()
        self.opened = 0
        self.gate = Gate(self.metrics, memory_bytes=memory_bytes, reopened=self._open)

    def _open(self) -> None:
        self.opened += 1

    def look(self, late_s: float = 0.0, resident: int | None = 0, times: int = 1) -> bool:
        """Whether it is open after so many looks alike."""
        for _ in range(times):
            self.gate.observe(late_s, resident)
        return self.gate.is_open

    @property
    def held(self) -> set[str]:
        """The reasons that the metric shows."""
        return {reason for reason, is_held in self.metrics.held.items() if is_held}


@pytest.fixture
def the() -> Fixture:
    return Fixture()


def test_one_late_look_is_nothing(the: Fixture) -> None:
    """A process that was stopped, or a long collection, is late once; a loop that is late stays so."""
    assert the.look(30.0)
    assert the.look(times=LOOKS)
    assert the.look(LATE_HIGH_S, times=LOOKS - 1)
    assert not the.look(LATE_HIGH_S)
    assert the.held == {"loop"}


def test_a_late_loop_is_on_time_again_for_a_second(the: Fixture) -> None:
    """It is let go when every look of a second came in time, and not by one that did."""
    the.look(1.0, times=LOOKS)
    assert not the.look(LATE_LOW_S, times=LOOKS - 1)
    assert not the.look(LATE_HIGH_S)
    assert not the.look(LATE_LOW_S, times=LOOKS - 1)
    assert the.look(LATE_LOW_S)
    assert the.opened == 1
    assert the.held == set()


def test_memory_has_water_marks(the: Fixture) -> None:
    """Closed at the budget, and until a tenth of it is free."""
    assert the.look(resident=BUDGET - 1)
    assert not the.look(resident=BUDGET)
    assert the.held == {"memory"}
    assert not the.look(resident=int(0.91 * BUDGET))
    assert the.look(resident=int(0.9 * BUDGET))
    assert the.opened == 1


def test_where_memory_is_not_known_it_holds_nobody(the: Fixture) -> None:
    """macOS does not tell."""
    assert the.look(resident=None)


def test_a_refused_write_holds_until_writes_are_taken(the: Fixture) -> None:
    """Two probes in a row; a refusal meanwhile begins again."""
    the.metrics.out_of_memory += 1
    assert not the.look()
    assert the.held == {"redis"}
    assert the.gate.asks_redis
    the.gate.probed(is_taken=True)
    assert not the.look()
    the.metrics.out_of_memory += 5
    assert not the.look()
    the.gate.probed(is_taken=True)
    the.gate.probed(is_taken=False)
    the.gate.probed(is_taken=True)
    assert not the.look()
    the.gate.probed(is_taken=True)
    assert the.look()
    assert not the.gate.asks_redis
    assert the.opened == 1


def test_every_reason_must_be_over(the: Fixture) -> None:
    """Two reasons at once: the end of one opens nothing."""
    the.metrics.out_of_memory += 1
    assert not the.look(resident=BUDGET)
    assert the.held == {"memory", "redis"}
    assert not the.look()
    for _ in range(PROBES):
        the.gate.probed(is_taken=True)
    assert the.look()
    assert the.opened == 1


@given(st.lists(st.tuples(st.floats(0, 2), st.integers(0, 2 * BUDGET), st.booleans(), st.booleans())))
def test_it_is_open_exactly_when_nothing_holds(looks: list[tuple[float, int, bool, bool]]) -> None:
    """Whatever happens, the metric tells the truth, and each opening is told once."""
    the = Fixture()
    openings = 0
    for late_s, resident, is_refused, is_taken in looks:
        was_open = the.gate.is_open
        the.metrics.out_of_memory += is_refused
        if the.gate.asks_redis:
            the.gate.probed(is_taken=is_taken)
        is_open = the.look(late_s, resident)
        openings += is_open and not was_open
        assert is_open == (not the.held)
        assert the.held <= set(HELD)
        if is_refused or resident >= BUDGET:
            assert not is_open
    assert the.opened == openings


async def test_a_loop_that_is_blocked_closes_it() -> None:
    """On a real event loop: work that hogs it closes the gate, and it opens when the loop is free."""
    the = Fixture(memory_bytes=None)  # that of whoever runs the tests is its own affair

    async def hog() -> None:
        while the.gate.is_open:
            time.sleep(2 * LATE_HIGH_S)  # noqa: ASYNC251 to block it is the point
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as tasks:
        keeper = tasks.create_task(keep(the.gate, None))  # type: ignore[arg-type] # Redis is not asked
        await asyncio.wait_for(hog(), 40)
        assert the.held == {"loop"}
        await wait_until_async(lambda: the.gate.is_open, "it opens", 30)
        keeper.cancel()
    assert the.opened >= 1  # a busy machine may make the loop late once more


@pytest.mark.skipif(resident_bytes() is None, reason="the kernel does not tell")
def test_resident_memory_is_this_process_s() -> None:
    """Bytes, not pages: a Python process is between 5 MB and a few GB, and grows with what it holds."""
    before = resident_bytes() or 0
    held = b"x" * 50_000_000
    assert 5_000_000 < before < 5_000_000_000
    assert (resident_bytes() or 0) > before + len(held) // 2
