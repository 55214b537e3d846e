"""The history of one response, and what must be true of it. Pure: records in, violations out.

A record is a tuple that begins with its kind; what the parties saw, in the order in which it reached the
driver. Sizes and offsets are bytes; `crc` is zlib's CRC-32 of an entry's bytes.

    plan      seed, tokens, exact, continues   what is to come: the text is a pure function of the seed;
                                               exact: no ending but a whole one is right; continues: a
                                               lost worker is no reason for an error
    claim     worker, epoch, head              a worker's word: it began here
    append    worker, epoch, base, end, crc    a worker's word: Redis acknowledged this
    entry     end, epoch, size, crc            an entry of the log, as Redis showed it to the driver
    hole      end                              entries up to here were trimmed before the driver looked
    open      reader, how, after               a connection that was answered 200; how: "start", "id" (after
                                               it), "name" (no id: after what reader `after` confirmed)
    event     reader, name, id, data           an event that came, its data as text; id "" where it has none
    none      reader                           answered 204: there is nothing after the reader's position
    gone      reader, code                     answered that there is no such response
    ack       reader, offset                   an explicit ack, when it was sent
    left      reader                           it went away and does not come back
    cancel                                     somebody asked for a stop
    alone     seconds                          for so long nobody read it
    loss                                       the nemesis made Redis lose acknowledged writes
    killed    worker, ...                      the workers that it has killed so far
    final     meta, journal                    how Redis has it at the end: fields (none: it is not there),
                                               and the journal as Latin-1

Checked as they come: a reader's positions grow, but for a rewind, which takes a loss; its text is at all
times a prefix of the plan's; after a terminal event nothing comes; the digest of `done` is that of the
text received. Checked at the end: the log's entries follow one on another, no older epoch after a newer
one; every acknowledged append is in the journal as it was sent; no epoch was claimed twice; each reader's
positions are boundaries of the journal and say the same text there; one terminal record, the last, and
the same ending for all who saw one; and the ending is one that the faults explain.

Memory: two numbers an event a reader, and three an entry.
"""

import hashlib
import zlib
from array import array
from typing import Any, NamedTuple

import orjson

from relay import simulation
from relay.events import TERMINAL, Channel, Placed, decode
from relay.lifecycle import TERMINAL as ENDED

Record = tuple[Any, ...]
# How a response may end with an error though no code is wrong: it is typed, and somebody was lost.
LOST_CODES = frozenset(("stream_lost", "not_found"))
UPSTREAM_CODES = frozenset(("worker_lost", "upstream_cut", "upstream_unreachable", "upstream_timeout"))
POISONED = 3  # workers killed with one response: nobody tries it again
UNREACHABLE = 1  # workers that live and cannot say so, for the nemesis has its hands on them
ABANDONED_S = 4.0  # alone for less than this is no reason to end a response


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


class History:
    """One response. `take` its records; `violations` grows; `ending` is how it ended, once `final` came."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []
        self.checked = 0
        self.ending = ""
        self.readers: dict[str, Reader] = {}
        self._text = b""
        self._exact = self._continues = True
        self._is_lossy = self._is_cancelled = False
        self._dead: set[str] = set()
        self._alone_s = 0.0
        self._claims: list[tuple[int, int, str]] = []
        self._appends: list[tuple[int, int, int, int]] = []
        self._entries: list[tuple[int, int, int, int]] = []

    def take(self, record: Record) -> None:
        """Check one record. An unknown kind is an error of the caller."""
        self.checked += 1
        getattr(self, f"_{record[0]}")(*record[1:])

    def reader(self, name: str) -> Reader:
        """A reader, made with its first record."""
        found = self.readers.get(name)
        if found is None:
            found = self.readers[name] = Reader(name)
        return found

    def _wrong(self, rule: str, seen: str) -> None:
        self.violations.append(Violation(rule, seen))

    # --- what is to be, and what the nemesis did

    def _plan(self, seed: int, tokens: int, exact: bool, continues: bool) -> None:
        self._text = simulation.text(seed, 0, tokens).encode()
        self._exact, self._continues = exact, continues

    def _loss(self) -> None:
        self._is_lossy = True

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
        if self._entries and not self._is_lossy:
            last_end, last_epoch, _, _ = self._entries[-1]
            if epoch < last_epoch:
                self._wrong("fence", f"entry {end}-{epoch} was written after epoch {last_epoch}")
            if end - size != last_end:
                self._wrong("contiguous", f"entry {end}-{epoch} begins at {end - size}, not at {last_end}")
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
        if not self._is_lossy:
            self._wrong("loss", f"{reader} was told {code}, and Redis lost nothing")

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
        if not self._is_lossy:
            self._wrong("rewind", f"{who.name} was sent back to {target}, and Redis lost nothing")
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
            if not self._is_lossy:
                self._wrong("loss", f"{who.name} was told {code}, and Redis lost nothing")
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

    # --- the end

    def _final(self, meta: dict[str, str], journal: str) -> None:
        data = journal.encode("latin-1")
        if not meta:
            self._lost_whole()
            return
        placed, reached = decode(data)
        if reached != len(data):
            self._wrong("journal", f"the journal ends in a cut record at {reached} of {len(data)}")
        content = b"".join(item.record.payload for item in placed if item.record.channel is Channel.CONTENT)
        if not self._text.startswith(content):
            self._wrong("journal", f"its {len(content)} bytes of content are not what the seed makes")
        self._check_writers(data, meta)
        self._check_readers(_content_ends(placed))
        self._check_end(placed, meta, content)

    def _lost_whole(self) -> None:
        self.ending = "lost"
        if not self._is_lossy:
            self._wrong("loss", "the response is gone from Redis, which lost nothing")
        for who in self.readers.values():
            if not who.has_ended and not who.is_away:
                self._wrong("one end", f"{who.name} was never told that the response is gone")

    def _check_writers(self, data: bytes, meta: dict[str, str]) -> None:
        epochs = [epoch for epoch, _, _ in self._claims]
        if len(epochs) != len(set(epochs)) and not self._is_lossy:
            self._wrong("fence", f"an epoch was claimed twice: {self._claims}")
        starts = meta.get("starts", "").split(",")
        for epoch, head, worker in self._claims:
            if not self._is_lossy and f"{epoch}:{head}" not in starts:
                self._wrong("fence", f"{worker} says epoch {epoch} began at {head}; Redis says {starts}")
        if self._is_lossy:
            return
        for epoch, base, end, crc in self._appends:
            if end > len(data) or zlib.crc32(data[base:end]) != crc:
                self._wrong("durable", f"epoch {epoch} had {base}-{end} acknowledged; the journal differs")
        for end, epoch, size, crc in self._entries:
            if size and (end > len(data) or zlib.crc32(data[end - size : end]) != crc):
                self._wrong("durable", f"the entry {end}-{epoch} is not what the journal has there")

    def _check_readers(self, ends: dict[int, int]) -> None:
        if self._is_lossy:
            return  # another worker may have cut the same text into other records
        for who in self.readers.values():
            for offset, text_bytes in zip(who.offsets, who.texts, strict=True):
                if ends.get(offset) != text_bytes:
                    self._wrong(
                        "boundary",
                        f"{who.name} had {text_bytes} bytes at {offset}; there are {ends.get(offset)}",
                    )
                    break
            for earlier, had, run in who.runs:
                self._check_run(who, earlier, had, run, ends)

    def _check_run(
        self, who: Reader, earlier: Reader, had: int, run: list[tuple[int, int, str]], ends: dict[int, int]
    ) -> None:
        """A connection by name alone: it may repeat what was not confirmed, and must leave nothing out."""
        before: int | None = None
        for end, size, text in run:
            at = ends.get(end)
            if at is None:
                self._wrong("boundary", f"{who.name} got an event that ends at {end}, which none does")
                return
            if before is None and (known := ends.get(had)) is not None and at - size > known:
                self._wrong(
                    "loss", f"{who.name} goes on at {at - size} of the text; {earlier.name} had {known}"
                )
            if before is not None and at - size != before:
                self._wrong("order", f"{who.name}: {size} bytes that end at {at} after {before}")
            if self._text[at - size : at] != text.encode():
                self._wrong("prefix", f"{who.name}: {text[:60]!r} is not what ends at {at}")
            before = at

    def _check_end(self, placed: list[Placed], meta: dict[str, str], content: bytes) -> None:
        last = [item for item in placed if item.record.channel in TERMINAL]
        if meta["status"] not in ENDED:
            self._wrong("one end", f"its status is {meta['status']}, and it should have ended")
            return
        if len(last) != 1 or last[0] is not placed[-1]:
            self._wrong("one end", f"{len(last)} terminal records, the last of all {bool(last)}")
            return
        told = orjson.loads(last[0].record.payload)
        is_done = last[0].record.channel is Channel.DONE
        expected = ("done", told["finish_reason"]) if is_done else ("error", told["code"])
        self.ending = expected[1]
        for who in self.readers.values():
            if who.terminal is None:
                if not (who.is_told_gone or who.is_away):
                    self._wrong("one end", f"{who.name} at {who.offset} was never told of {expected}")
            elif self._is_another_end(who.terminal, (*expected, last[0].end)):
                self._wrong("one end", f"{who.name} saw {who.terminal}; the journal has {expected}")
        if is_done and told["sha256"] != hashlib.sha256(content).hexdigest():
            self._wrong("digest", f"done has {told['sha256']}; the content has another")
        claims = len(meta.get("starts", "").split(","))
        self._check_reason(is_done, expected[1], content, placed, claims)

    def _is_another_end(self, seen: tuple[str, str, int], kept: tuple[str, str, int]) -> bool:
        """Whether two of the response's readers were told different ends, and no loss explains it.

        A failover may lose a cancel together with the end that it made: then the response goes on.
        """
        if self._is_lossy:
            return seen[:2] != kept[:2] and not self._is_cancelled
        return seen != kept

    def _lost_with_it(self, claims: int) -> int:
        """How many of the workers that claimed it may have died, all but the last; not all were seen."""
        return claims - 1 - sum(worker not in self._dead for _, _, worker in sorted(self._claims)[:-1])

    def _check_reason(
        self, is_done: bool, reason: str, content: bytes, placed: list[Placed], claims: int
    ) -> None:
        """Whether the ending is one that the plan and the faults explain."""
        whole = content == self._text
        notices = [item.record.payload for item in placed if item.record.channel is Channel.NOTICE]
        shortened = any(orjson.loads(payload)["kind"] == "shortened" for payload in notices)
        if is_done:
            right = {
                "stop": whole,
                "length": shortened and not self._exact,
                "cancelled": self._is_cancelled or self._alone_s > ABANDONED_S,
            }.get(reason, False)
        else:
            right = (
                (reason in LOST_CODES and self._is_lossy)
                or (reason in UPSTREAM_CODES and not self._continues)
                or (reason == "poison" and self._lost_with_it(claims) >= POISONED - UNREACHABLE)
            )
        if not right:
            self._wrong("ending", f"it ended {reason} after {len(content)} of {len(self._text)} bytes")


def _content_ends(placed: list[Placed]) -> dict[int, int]:
    """For each record's end how much content there is up to it; of the beginning as well."""
    ends, text_bytes = {0: 0}, 0
    for end, record in placed:
        if record.channel is Channel.CONTENT:
            text_bytes += len(record.payload)
        ends[end] = text_bytes
    return ends


def check(records: list[Record]) -> list[Violation]:
    """All that is wrong with a whole history."""
    history = History()
    for record in records:
        history.take(record)
    return history.violations
