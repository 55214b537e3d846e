"""What the demo knows at one moment, and what it says about it. No I/O."""

import time
from dataclasses import dataclass, field
from typing import Any

from relay.cli.demo_reader import Track

LEVELS = ("live", "coalesce", "pace", "pause", "shorten", "cancel")
_SLOW_SHARE = 0.15
_SLOW_READ_BYTES = 64
_SLOWEST_BYTES_PER_S = 60.0
_TOGETHER_S = 1.5  # both read as fast as it comes for this long, so that the difference can be seen after

_BEHIND_BYTES = 256  # beyond what a few frames in flight explain: the relay itself holds back


@dataclass
class Scene:
    """The response, its two readers, and the time."""

    source: str
    expected_bytes: int  # of the journal, to draw to scale before the end is known
    fast: Track
    slow: Track
    status: str = "queued"
    level: int = 0
    made: int = 0
    began: float = field(default_factory=time.monotonic)
    text_s: float | None = None  # when the first text came
    made_s: float | None = None  # when the source had ended

    @property
    def elapsed_s(self) -> float:
        """Since the curtain rose."""
        return time.monotonic() - self.began

    @property
    def tracks(self) -> tuple[Track, Track]:
        """Both readers."""
        return self.fast, self.slow

    @property
    def is_together(self) -> bool:
        """Whether both still read as fast as it comes."""
        return self.text_s is None or self.elapsed_s < self.text_s + _TOGETHER_S

    @property
    def is_made(self) -> bool:
        """Whether the source has ended."""
        return self.status in {"completed", "failed", "cancelled"}

    @property
    def is_over(self) -> bool:
        """Whether both readers have come to an end."""
        return all(track.is_over for track in self.tracks)

    @property
    def is_exact(self) -> bool:
        """Whether both have exactly what was made."""
        return all(track.is_exact for track in self.tracks)

    def told(self, answer: dict[str, Any]) -> None:
        """Enter what the relay says: `GET /v1/streams/{id}`."""
        was_made = self.is_made
        self.status, self.level = str(answer["status"]), int(answer.get("level") or 0)
        self.made = max(self.made, int(answer["position"]))
        if self.is_made and not was_made:
            self.made_s = self.elapsed_s
        for consumer in answer.get("consumers", ()):
            for track in self.tracks:
                if consumer["id"] == track.name:
                    track.confirmed, track.state = int(consumer["position"]), str(consumer["state"])
        self.measure()

    def measure(self) -> None:
        """Lag is a subtraction: what was made, less the reader's position."""
        self.made = max(self.made, *(track.position for track in self.tracks))
        if self.text_s is None and self.fast.text:
            self.text_s = self.elapsed_s
        for track in self.tracks:
            track.confirmed = max(track.confirmed, track.position)
            track.lag = self.made - track.position
            track.lag_max = max(track.lag_max, track.lag)

    def remember(self) -> None:
        """Keep the lags of this moment, to draw their history."""
        for track in self.tracks:
            track.lags.append(track.lag)

    def pace_of_slow(self) -> tuple[int, float]:
        """The slow reader's habit: with the fast one, then a trickle, then catching up at leisure."""
        if self.is_made:
            return 128, 0.03
        if self.is_together:
            return 1024, 0.01
        # A share of what the fast one gets, so that it falls behind a slow source too.
        share = self.fast.wire_bytes / self.elapsed_s * _SLOW_SHARE
        return _SLOW_READ_BYTES, _SLOW_READ_BYTES / max(_SLOWEST_BYTES_PER_S, share)

    def caption(self) -> str:
        """What is being shown, in a sentence or two."""
        if self.slow.is_over:
            return "Both have read the same bytes, each at its own speed; the digests are compared below."
        if self.is_made:
            return (
                "The source has ended. The slow reader catches up at its own speed: nothing was queued for "
                "it, the relay reads the rest from the journal as it is taken."
            )
        if not self.fast.text:
            return "One response, two readers. Nothing has been made yet."
        if self.is_together:
            return "One response, two readers. A position is a byte offset into it; lag is a subtraction."
        if self.made - self.slow.confirmed > _BEHIND_BYTES:
            return (
                "Its kernel is full, so the relay has stopped sending to it: memory stays bounded. "
                "The fast reader and the source do not notice."
            )
        return "Now the right one takes 64 bytes at a time. It falls behind; the left one is not held back."
