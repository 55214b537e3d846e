"""Where a consumer's records leave: frames on the socket, within its credit, and what is confirmed."""

from typing import NamedTuple

import orjson
import structlog

from api.form import NATIVE, Form
from api.ledger import Credit, Ledger
from api.metrics import Metrics
from api.sink import Sink
from relay.events import HEADER_MAX, MAX_PAYLOAD, TERMINAL, Channel, Placed, Record, decode, merge

log = structlog.get_logger("relay.api")

# Unconfirmed frames of a reader of the journal. Live readers are bounded by entries.
BEHIND_FRAMES = 8
_LARGEST_RECORD = MAX_PAYLOAD + HEADER_MAX


class Batch(NamedTuple):
    """Frames that leave in one write, with the records that they tell of."""

    data: bytes
    placed: list[Placed]
    frames: list[bytes]


def render(placed: list[Placed], epoch: int, form: Form = NATIVE) -> Batch:
    """The frames of records, neighbours merged."""
    merged = merge(placed) if len(placed) > 1 else placed
    frames = [form.frame(item.record, item.end, epoch) for item in merged]
    return Batch(frames[0] if len(frames) == 1 else b"".join(frames), merged, frames)


class Outlet:
    """The writing half of a consumer. Credit counts bytes of the response, not of the frames."""

    __slots__ = (
        "_from_start",
        "_metrics",
        "_refused_at",
        "_text_bytes",
        "_unfit_at",
        "_unfit_room",
        "credit",
        "epoch",
        "form",
        "has_terminal",
        "ledger",
        "socket",
    )

    def __init__(
        self,
        socket: Sink,
        credit: Credit,
        metrics: Metrics,
        offset: int,
        epoch: int,
        *,
        form: Form = NATIVE,
    ) -> None:
        self.socket = socket
        self.form = form
        self.credit = credit
        self.ledger = Ledger(offset)
        self.epoch = epoch
        self.has_terminal = False
        self._metrics = metrics
        self._from_start = offset == 0
        self._text_bytes = 0  # of content that was written here
        # The offset, and the room in which no whole record was found there.
        self._unfit_at, self._unfit_room = -1, 0
        self._refused_at = -1  # the offset of a record that is known, and not terminal, and did not fit

    def at(self, offset: int, epoch: int) -> "Outlet":
        """The same, with nothing written yet."""
        return Outlet(self.socket, self.credit, self._metrics, offset, epoch, form=self.form)

    @property
    def room(self) -> int:
        """How many bytes may be read from the log."""
        return self.credit.size - self.ledger.unconfirmed

    @property
    def room_behind(self) -> int:
        """How many from the journal."""
        # Few frames on their way: what gathers meanwhile leaves as one, so a slow reader gets large frames,
        # and what frames cost over their text does not fill buffers that credit does not count.
        return self.room_within(BEHIND_FRAMES)

    def room_within(self, frames: int) -> int:
        """How many bytes, with so many frames at most; 0 also where it is known that no record fits.

        Where one record may exceed a small credit, there is room for it. With explicit acks there is room
        to see the next record whatever is out, once: it may be the terminal one, for which nobody waits.
        """
        ledger = self.ledger
        out = ledger.unconfirmed
        may_be_last = self.credit.explicit and ledger.sent != self._refused_at and ledger.frames < frames
        if self._may_exceed or may_be_last:
            return max(self.credit.size - out, _LARGEST_RECORD)
        room = self.credit.size - out if ledger.frames < frames else 0
        return 0 if ledger.sent == self._unfit_at and room <= self._unfit_room else room

    @property
    def _may_exceed(self) -> bool:
        """Whether one record may go past the credit: with nothing out, for else its reader waits for ever.

        With explicit acks also while less than half is out: clients confirm half a window at a time, and
        one that has less than that waits for text as we would wait for its ack.
        """
        out = self.ledger.unconfirmed
        return not out or (self.credit.explicit and out * 2 < self.credit.size)

    def write(self, placed: list[Placed]) -> bool:
        """Write the records that the credit holds; False when some did not fit and must be read again.

        A terminal record needs no credit, and the first record may exceed it where little is out.
        """
        ledger = self.ledger
        limit = ledger.confirmed + self.credit.size
        fitting = placed
        if placed and placed[-1].end > limit:
            fitting = []
            for item in placed:
                may_exceed = item.record.channel in TERMINAL or (not fitting and self._may_exceed)
                if item.end > limit and not may_exceed:
                    break
                fitting.append(item)
        if fitting:
            self.send(render(fitting, self.epoch, self.form))
        if len(fitting) < len(placed):
            self._refused_at = ledger.sent
        return len(fitting) == len(placed)

    def write_part(self, data: bytes) -> None:
        """Write what fits of bytes that follow on what was sent: as many as there was room for, or all."""
        at = self.ledger.sent
        self.write(decode(data, at)[0])
        if self.ledger.sent == at:
            self._unfit_at, self._unfit_room = at, len(data)

    def send(self, batch: Batch) -> None:
        """Write a batch, which may be many readers'; its caller has seen to the credit."""
        data, placed, frames = batch
        if data:
            self.socket.write(data)
        # The chunk's own end comes after its data: these marks are late by two bytes, never early.
        at = self.socket.written - len(data)
        if len(frames) == 1:  # nearly always
            self.ledger.wrote(at + len(data), placed[0].end)
        else:
            for item, frame in zip(placed, frames, strict=True):
                at += len(frame)
                self.ledger.wrote(at, item.end)
        for _, (channel, payload) in placed:
            if channel is Channel.CONTENT:
                self._text_bytes += len(payload)
        last = placed[-1].record
        self.has_terminal = last.channel in TERMINAL
        self._metrics.sent(placed, frames)
        if last.channel is Channel.DONE and self._from_start:
            self._audit(last)

    def _audit(self, done: Record) -> None:
        """Compare what was written with what was made: a check of all above that knows nothing of it."""
        made = orjson.loads(done.payload).get("text_bytes")
        if made is not None and made != self._text_bytes:
            self._metrics.gap_bytes += abs(made - self._text_bytes)
            log.error("gap", made=made, written=self._text_bytes)

    def acknowledged(self) -> int:
        """The offset that the client's kernel has, as of now."""
        if not self.ledger.frames:
            return self.ledger.confirmed
        return self.ledger.acknowledged(self.socket.written - self.socket.outstanding())
