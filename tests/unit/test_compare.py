"""What counts as a disagreement between a node's positions and Redis's."""

import pytest

from api.crosscheck import Ours, Theirs, compare


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (Ours(0, 0, 0), Theirs(0, 0, None)),
        (Ours(50, 50, 0), Theirs(50, 0, None)),
        (Ours(50, 90, 0), Theirs(50, 0, None)),  # it reads the journal: its group stands at what is confirmed
        (Ours(50, 90, 2), Theirs(90, 2, 70)),  # two entries are read and not confirmed
        (Ours(60, 90, 2), Theirs(90, 2, 70)),  # the client has a part of the oldest
        (Ours(50, 90, 3), Theirs(140, 3, 70)),  # read, and there was no credit to write it all
    ],
)
def test_the_same(ours: Ours, theirs: Theirs) -> None:
    """What is read and unconfirmed, or sent by the journal, is no difference."""
    assert compare(ours, theirs) is None


@pytest.mark.parametrize(
    ("ours", "theirs", "kind"),
    [
        (Ours(50, 90, 0), Theirs(51, 0, None), "ahead"),
        (Ours(50, 90, 2), Theirs(90, 0, None), "ahead"),  # all was acknowledged for the client
        (Ours(50, 90, 2), Theirs(90, 1, 90), "pending"),  # the oldest was
        (Ours(50, 90, 1), Theirs(90, 2, 70), "pending"),
        (Ours(50, 50, 0), Theirs(0, 0, None), "behind"),
        (Ours(50, 50, 2), Theirs(50, 2, 20), "behind"),  # read again, and never to be acknowledged
    ],
)
def test_a_difference(ours: Ours, theirs: Theirs, kind: str) -> None:
    """Another count, or a group past or before what the client has confirmed."""
    assert compare(ours, theirs) == kind
