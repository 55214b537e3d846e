"""The levers that are measured are settings, and each curve has the default on it."""

import pytest

from relay.bench.tune import LEVERS
from relay.cli.bench_tune import table
from relay.settings import Settings


@pytest.mark.parametrize("name", LEVERS)
def test_a_lever_is_a_setting_measured_at_its_default_and_to_both_sides(name: str) -> None:
    """A curve without the default says nothing about moving away from it."""
    lever = LEVERS[name]
    field = Settings.model_fields[lever.setting.removeprefix("RELAY_").lower()]
    assert field.default in lever.values
    assert min(lever.values) < field.default < max(lever.values)
    for value in lever.values:
        Settings(**{lever.setting.removeprefix("RELAY_").lower(): value})


def test_the_table_has_a_line_for_each_point() -> None:
    """Its columns are the figures, the setting first."""
    made = table([{"RELAY_FLUSH_MS": 0.0, "p50, ms": 1.5}, {"RELAY_FLUSH_MS": 15.0, "p50, ms": 2.5}])
    assert [column.header for column in made.columns] == ["RELAY_FLUSH_MS", "p50, ms"]
    assert made.row_count == 2
