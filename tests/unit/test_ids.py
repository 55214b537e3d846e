"""An id tells when its response was made."""

import re

from relay.ids import has_expired, new_id

NOW = 1_795_000_000.7


def test_ids_are_of_one_form_and_differ() -> None:
    """`rs_` and 24 hex digits, as many random bits as nobody guesses, and later ones sort later."""
    ids = [new_id(NOW) for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(re.fullmatch("rs_[0-9a-f]{24}", one) for one in ids)
    assert max(ids) < new_id(NOW + 1)


def test_what_has_expired() -> None:
    """Older than the retention; younger ones, later ones and made-up times are none of that."""
    assert has_expired(new_id(NOW - 3602), NOW, 3600)
    assert not has_expired(new_id(NOW - 3598), NOW, 3600)
    assert not has_expired(new_id(NOW + 3600), NOW, 3600)
    for made_up in ("0" * 24, "f" * 24, "00000001" + "a" * 16, "0123456789abcdef01234567"):
        assert not has_expired(f"rs_{made_up}", NOW, 3600)
