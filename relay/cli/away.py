"""A relay that does not answer: the one line that says what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager

from relay.errors import Unavailable


class NobodyThere(Unavailable):
    """Nothing answers at the address: a mistake rather than an outage, so it is not tried again."""

    retryable = False


@contextmanager
def must_answer() -> Iterator[None]:
    """For a command's first call. Raises NobodyThere, which says what to do, when there is no answer."""
    from relay.client import Disconnected  # noqa: PLC0415 - imported for the commands that need it alone

    try:
        yield
    except Disconnected as error:
        raise NobodyThere(
            f"{error.message}; `relay up` starts one here, --url or RELAY_URL names another"
        ) from error
