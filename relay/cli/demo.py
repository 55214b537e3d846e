"""`relay demo`: one response, a fast and a slow reader, side by side."""

from relay.errors import Unavailable


def demo() -> None:
    """One response, a fast and a slow reader, side by side."""
    raise Unavailable("demo: its place is kept; the commit after this one fills it")
