"""The ids of responses: they tell when, so that one that has expired is known as such.

rs_6a1b2c3d0123456789abcdef     rs_ <8 hex: Unix seconds> <16 hex: random>
"""

import secrets

_PREFIX = "rs_"
# A time before this is none of ours: somebody made the id up.
_FIRST_S = 1_767_225_600  # 2026-01-01


def new_id(now_s: float) -> str:
    """An id for a response made now, by Redis's clock in Unix seconds."""
    return f"{_PREFIX}{int(now_s):08x}{secrets.token_hex(8)}"


def has_expired(response_id: str, now_s: float, retention_s: float) -> bool:
    """Whether a response that is not there was, as far as its id tells: it is older than its retention.

    `response_id` is `rs_` and 24 hex digits. One that is younger and not there was never made, or lost.
    """
    made_s = int(response_id[len(_PREFIX) : len(_PREFIX) + 8], 16)
    return _FIRST_S <= made_s < now_s - retention_s
