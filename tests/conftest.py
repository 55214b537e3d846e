"""Fixtures: real servers to test on, and a check that no test leaves a key for ever.

`server`        each variant of `RELAY_TEST_SERVERS` in turn, one process or container for the whole session
`redis_url`     its URL, the database emptied before the test and searched for leaked keys after it
`embedded_url`  the same on the embedded server alone, for what need not run on every version
"""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support.keys import assert_no_leaks
from tests.support.servers import IN_DOCKER, Missing, Server, admin, requested, running, skip_or_fail

# How long an example takes says how busy the machine is: no example has a deadline, and to be slow at making
# them is no finding. The rest is as Hypothesis has it, in CI as it has it there.
settings.register_profile(
    "relay", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("relay")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that narrows a test to some of the variants."""
    config.addinivalue_line("markers", "only_on(*names): run on these of the requested servers alone")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background job: it ignores Ctrl-C, and so would all processes that the tests start.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test that uses a server once on each variant asked for."""
    if "server" not in metafunc.fixturenames:
        return
    only = metafunc.definition.get_closest_marker("only_on")
    try:
        names = requested()
    except ValueError as invalid:
        raise pytest.UsageError(str(invalid)) from invalid
    marks = {name: [pytest.mark.docker] for name in IN_DOCKER}
    variants = [
        pytest.param(name, marks=marks.get(name, ()), id=name)
        for name in names
        if only is None or name in only.args
    ]
    metafunc.parametrize("server", variants, indirect=True, scope="session")


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A running server of the variant this test runs on: `.name` and `.url`."""
    yield from _run(request.param)


@pytest.fixture(scope="session")
def _embedded_server() -> Iterator[Server]:
    yield from _run("embedded")


@pytest.fixture
def redis_url(server: Server) -> Iterator[str]:
    """The URL of `server`, its database empty; afterwards the test must have left no key without a TTL."""
    yield from _clean(server)


@pytest.fixture
def embedded_url(_embedded_server: Server) -> Iterator[str]:
    """`redis_url` on the embedded server only."""
    yield from _clean(_embedded_server)


def _run(name: str) -> Iterator[Server]:
    try:
        with running(name) as server:
            yield server
            return
    except Missing as missing:
        reason = f"{name}: {missing}"
    skip_or_fail(reason)


def _clean(server: Server) -> Iterator[str]:
    with admin(server.url) as client:
        client.flushdb()
    yield server.url
    with admin(server.url) as client:
        assert_no_leaks(client)
