"""The nemesis in short: some of its faults by a fixed seed, and not one violation.

`make chaos` is the long form, with all faults, more in flight and every topology; CI runs three minutes of
it.
"""

from pathlib import Path

import pytest

from tests.chaos.run import chaos
from tests.chaos.stage import run_to_end

SEED = 1862  # kills and rolls workers, nodes and Redis within its first seven faults
MINUTES = 0.7
RESPONSES, TOKENS = 40, 80
FAULTS = 7  # at least, however long a machine takes for them that has other things to do


@pytest.mark.timeout(MINUTES * 60 + 500)
def test_whatever_is_done_to_it_every_reader_has_the_exact_text_or_a_truthful_end(tmp_path: Path) -> None:
    """Processes, Redis and the network fail one after the other; every history is right."""
    run = run_to_end(
        chaos(
            "single",
            minutes=MINUTES,
            seed=SEED,
            responses=RESPONSES,
            keep=tmp_path,
            most_tokens=TOKENS,
            least_faults=FAULTS,
        )
    )
    print(run.summary())
    assert run.problems == []
    assert sum(run.faults.values()) >= FAULTS
    assert run.endings["stop"] > RESPONSES
    assert run.observer.traced > 1000
