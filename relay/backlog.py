"""How old the oldest byte is that somebody lacks. Pure: time is a parameter, in seconds.

Growth of a response is noted as (offset, time) samples, at most one each `spacing_s`; confirmed ones are
dropped. The age is exact to the spacing, whatever has happened to the records meanwhile.
"""

from collections import deque

SPACING_S = 0.1
MAX_SAMPLES = 256  # when it is full nothing new is noted: the oldest is the one that counts


class Backlog:
    """What has been produced and not confirmed, by time."""

    __slots__ = ("_samples", "_spacing_s")

    def __init__(self, spacing_s: float = SPACING_S) -> None:
        self._samples: deque[tuple[int, float]] = deque()
        self._spacing_s = spacing_s

    def grew(self, offset: int, now: float) -> None:
        """The response ends at `offset` since `now`."""
        samples = self._samples
        if samples and (now - samples[-1][1] < self._spacing_s or len(samples) >= MAX_SAMPLES):
            # Within the spacing the newer end counts from the earlier time: older by the spacing at most.
            samples[-1] = (max(offset, samples[-1][0]), samples[-1][1])
        else:
            samples.append((offset, now))

    def confirmed(self, offset: int) -> None:
        """Somebody has everything up to `offset`."""
        samples = self._samples
        while samples and samples[0][0] <= offset:
            samples.popleft()

    def age(self, now: float) -> float:
        """For how long the oldest byte that is lacking has been there; 0 when none is."""
        return max(0.0, now - self._samples[0][1]) if self._samples else 0.0
