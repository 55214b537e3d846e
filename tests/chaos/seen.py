"""What the parties of one response have seen so far, checked as it comes: the kinds are told in `history`.

A reader's positions grow, but for a rewind, which takes a loss; its text is at all times a prefix of the
plan's; after a terminal event nothing comes; the digest of `done` is that of the text received. The log's
entries follow one on another, no older epoch after a newer one.
"""

import hashlib
from array import array
from typing import Any, NamedTuple

import orjson

from relay import simulation

Record = tuple[Any, ...]
# Codes that a reader may be told where Redis lost what it had.
LOST_CODES = frozenset(("stream_lost", "not_found"))


class Violation(NamedTuple):
    """A rule that did not hold: its name, and what was seen."""

    rule: str
    seen: str


class Reader:
    """What one reader has, over all its connections."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.offset = 0
        self.epoch = 0
        self.text_bytes = 0
        self.offsets = array("Q")  # where each event ended, in the response
        self.texts = array("Q")  # and in its content
        self.epochs = array("L")  # under which it was told
        self.terminal: tuple[str, str, int] | None = None  # name, its code or reason, its offset
        self.is_told_gone = False
        self.is_away = False  # superseded, or gone by its own will
        self.acked = 0
        # Of a connection by name alone: where its events lie in the content is known with the journal.
        self.floating: list[tuple[int, int, str]] | None = None
        self.runs: list[tuple[Reader, int, list[tuple[int, int, str]]]] = []

    @property
    def has_ended(self) -> bool:
        """Whether it was told how the response ended."""
        return self.terminal is not None or self.is_told_gone

    @property
    def last_id(self) -> str:
        """What it sends to resume; "" before its first event."""
        return f"{self.offset}-{self.epoch}" if self.offset else ""

    def mark(self, offset: int) -> None:
        """An event ended here."""
        self.offset = offset
        self.offsets.append(offset)
        self.texts.append(self.text_bytes)
        self.epochs.append(self.epoch)

    def rewind(self, target: int) -> None:
        """Forget what came after `target`: back to the last event that ended there or before."""
        while self.offsets and self.offsets[-1] > target:
            self.offsets.pop()
            self.texts.pop()
            self.epochs.pop()
        while self.floating and self.floating[-1][0] > target:
            self.floating.pop()
        self.offset = self.offsets[-1] if self.offsets else 0
        self.text_bytes = self.texts[-1] if self.texts else 0
        self.epoch = self.epochs[-1] if self.epochs else 0
        if self.floating:
            self.offset = self.floating[-1][0]


class Seen:
    """One response, as its parties saw it. `take` its records; `violations` grows."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.checked = 0
        self.readers: dict[str, Reader] = {}
        self._text = b""
        self._exact = self._continues = True
        self._is_lossy = self._is_cancelled = False
        self._explained_by_loss: list[int] = []  # which violations so far
        self._dead: set[str] = set()
        self._alone_s = 0.0
        self._claims: list[tuple[int, int, str]] = []
        self._appends: list[tuple[int, int, int, int]] = []
        self._entries: list[tuple[int, int, int, int]] = []

    def take(self, record: Record) -> None:
        """Check one record. An unknown kind is an error of the caller."""
        self.checked += 1
        getattr(self, f"_{record[0]}")(*record[1:])

    @property
    def is_lossy(self) -> bool:
        """Whether Redis has lost something of it, or may have."""
        return self._is_lossy

    def reader(self, name: str) -> Reader:
        """A reader, made with its first record."""
        found = self.readers.get(name)
        if found is None:
            found = self.readers[name] = Reader(name)
        return found

    def _wrong(self, rule: str, seen: str) -> None:
        self.violations.append(Violation(rule, seen))

    def _wrong_without_loss(self, rule: str, seen: str) -> None:
        """Not if Redis has lost writes, which may be noticed, and told, only after what it led to."""
        if not self._is_lossy:
            self._explained_by_loss.append(len(self.violations))
            self._wrong(rule, seen)

    # --- what is to be, and what the nemesis did

    def _plan(self, seed: int, tokens: int, exact: bool, continues: bool) -> None:
        self._text = simulation.text(seed, 0, tokens).encode()
        self._exact, self._continues = exact, continues

    def _loss(self) -> None:
        self._is_lossy = True
        for index in reversed(self._explained_by_loss):
            del self.violations[index]
        self._explained_by_loss.clear()

    def _cancel(self) -> None:
        self._is_cancelled = True

    def _killed(self, *workers: str) -> None:
        self._dead |= set(workers)

    def _alone(self, seconds: float) -> None:
        self._alone_s = max(self._alone_s, seconds)

    # --- writers

    def _claim(self, worker: str, epoch: int, head: int) -> None:
        self._claims.append((epoch, head, worker))

    def _append(self, _worker: str, epoch: int, base: int, end: int, crc: int) -> None:
        self._appends.append((epoch, base, end, crc))

    def _entry(self, end: int, epoch: int, size: int, crc: int) -> None:
        if self._entries:
            last_end, last_epoch, _, _ = self._entries[-1]
            if epoch < last_epoch:
                self._wrong_without_loss("fence", f"entry {end}-{epoch} was written after epoch {last_epoch}")
            if end - size != last_end:
                self._wrong_without_loss(
                    "contiguous", f"entry {end}-{epoch} begins at {end - size}, not at {last_end}"
                )
        self._entries.append((end, epoch, size, crc))

    def _hole(self, end: int) -> None:
        epoch = self._entries[-1][1] if self._entries else 0
        self._entries.append((end, epoch, 0, 0))

    # --- readers

    def _open(self, reader: str, how: str, after: str) -> None:
        who = self.reader(reader)
        if who.has_ended:
            self._wrong("nothing after the end", f"{reader} was served again after {who.terminal}")
        if how == "name":
            who.floating = []
            earlier = self.reader(after)
            # What was never acknowledged must not be left out; without acks, what was never received.
            who.runs.append((earlier, earlier.acked or earlier.offset, who.floating))
        elif how == "start":
            who.rewind(0)
            who.floating = None
        elif after != who.last_id:
            self._wrong("driver", f"{reader} sent {after}, and has {who.last_id}")

    def _none(self, reader: str) -> None:
        who = self.reader(reader)
        if not who.has_ended:
            self._wrong("loss", f"{reader} at {who.offset} was answered 204 and has seen no end")

    def _gone(self, reader: str, code: str) -> None:
        self.reader(reader).is_told_gone = True
        self._wrong_without_loss("loss", f"{reader} was told {code}, and Redis lost nothing")

    def _left(self, reader: str) -> None:
        self.reader(reader).is_away = True

    def _ack(self, reader: str, offset: int) -> None:
        self.reader(reader).acked = max(self.reader(reader).acked, offset)

    def _event(self, reader: str, name: str, event_id: str, data: str) -> None:
        who = self.reader(reader)
        if who.terminal is not None:
            self._wrong("nothing after the end", f"{reader} got {name} {event_id} after {who.terminal}")
        told = orjson.loads(data)
        if name == "rewind":
            self._rewound(who, told)
        elif name == "reconnect" or (not event_id and name == "notice"):
            return
        elif not event_id:
            self._private(who, name, told)
        else:
            self._placed(who, name, event_id, told)

    def _rewound(self, who: Reader, told: dict[str, Any]) -> None:
        target = int(str(told["position"]).partition("-")[0])
        self._wrong_without_loss("rewind", f"{who.name} was sent back to {target}, and Redis lost nothing")
        if target > who.offset:
            self._wrong("rewind", f"{who.name} at {who.offset} was sent forward to {target}")
        who.rewind(target)

    def _private(self, who: Reader, name: str, told: dict[str, Any]) -> None:
        code = str(told.get("code", ""))
        if name == "error" and code == "superseded":
            who.is_away = True
            return
        if name == "error" and code in LOST_CODES:
            who.is_told_gone = True
            self._wrong_without_loss("loss", f"{who.name} was told {code}, and Redis lost nothing")
            return
        self._wrong("form", f"{who.name} got {name} without an id: {told}")

    def _placed(self, who: Reader, name: str, event_id: str, told: dict[str, Any]) -> None:
        offset, _, epoch = event_id.partition("-")
        end = int(offset)
        if end <= who.offset and not (who.floating is not None and not who.floating):
            self._wrong("order", f"{who.name} got {name} {event_id} after {who.offset}")
            return
        text = told["text"] if name == "delta" and told.get("channel") == "content" else ""
        who.epoch = int(epoch)
        if who.floating is not None:
            who.floating.append((end, len(text.encode()), text))
            who.offset = end
        else:
            self._read_on(who, text, event_id)
            who.mark(end)
        if name in {"done", "error"}:
            who.terminal = (name, str(told.get("finish_reason" if name == "done" else "code")), end)
            if name == "done" and who.floating is None:
                self._digest(who, told)

    def _read_on(self, who: Reader, text: str, event_id: str) -> None:
        data = text.encode()
        expected = self._text[who.text_bytes : who.text_bytes + len(data)]
        if data != expected:
            self._wrong(
                "prefix", f"{who.name} at {who.text_bytes}, {event_id}: {data[:60]!r}, not {expected[:60]!r}"
            )
        who.text_bytes += len(data)

    def _digest(self, who: Reader, told: dict[str, Any]) -> None:
        had = self._text[: who.text_bytes]
        if told["text_bytes"] != who.text_bytes or told["sha256"] != hashlib.sha256(had).hexdigest():
            self._wrong("digest", f"{who.name} has {who.text_bytes} bytes; done says {told}")
