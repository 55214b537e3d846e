"""Which job took workers with it: tried once more, it would take the next one.

A worker whose job went to another is counted as lost with it, unless it says that it lives: cut off from
Redis or stopped for longer than its lease it is refused when it comes back, and then notes so in the meta.
"""

from relay import scripts
from relay.journal import Journal

MAX_LOST = 3  # workers; a job that was lost with so many is not given to another
_LIVED = "lived:"  # fields of the meta: the numbers of claims whose workers outlived them


def note_lived(journal: Journal, claim: int) -> None:
    """The worker of this claim lost its lease, but not its life. Does not wait; unheard it counts as dead."""
    scripts.post_note(journal.wire, journal.keys, f"{_LIVED}{claim}", "1")


async def is_poison(journal: Journal, claim: int, deliveries: int) -> bool:
    """Whether this many deliveries, the last one with this claim, were the end of `MAX_LOST` workers.

    A delivery alone ended nobody: the lease was held, or Redis could not take the claim. Nor did the claims
    before a hand-over, after which deliveries are counted anew. Raises Unavailable.
    """
    tries = min(deliveries, claim)
    if tries <= MAX_LOST:
        return False
    names = set(await journal.wire.call("HKEYS", journal.keys.meta))
    lived = sum(f"{_LIVED}{number}".encode() in names for number in range(claim - tries + 1, claim))
    return tries - lived > MAX_LOST
