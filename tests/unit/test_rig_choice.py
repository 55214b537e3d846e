"""Which servers a test run asks for, and what happens when one is not there."""

import pytest

from tests.support.servers import VARIANTS, may_skip, requested


def test_all_variants_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to know the list to test on all of it."""
    monkeypatch.delenv("RELAY_TEST_SERVERS", raising=False)
    assert requested() == ["embedded", "redis7", "redis7-tls", "redis8", "valkey8"]
    assert set(requested()) == set(VARIANTS)


def test_a_list_in_its_own_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spaces and a trailing comma do no harm."""
    monkeypatch.setenv("RELAY_TEST_SERVERS", "redis7, embedded,")
    assert requested() == ["redis7", "embedded"]


@pytest.mark.parametrize("value", ["redis6", "embedded,redis6", "", " , "])
def test_a_list_that_would_test_less_than_it_says_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    """A typing error must not turn into a run without tests."""
    monkeypatch.setenv("RELAY_TEST_SERVERS", value)
    with pytest.raises(ValueError, match="comma-separated list of embedded, redis7"):
        requested()


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [("CI", "true", False), ("RELAY_TEST_NO_SKIP", "1", False), ("CI", "", True), ("CI", "false", True)],
)
def test_a_missing_server_is_a_failure_in_ci(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, allowed: bool
) -> None:
    """A laptop may lack one, the machine that says "green" may not."""
    for name in ("CI", "RELAY_TEST_NO_SKIP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    assert may_skip() is allowed
