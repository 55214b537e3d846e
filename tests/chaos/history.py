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

What can be checked as it comes is checked there (`seen`). Checked at the end: every acknowledged append is
in the journal as it was sent; no epoch was claimed twice; each reader's positions are boundaries of the
journal and say the same text there; one terminal record, the last, and the same ending for all who saw
one; and the ending is one that the faults explain.

Memory: two numbers an event a reader, and three an entry.
"""

import hashlib
import zlib

import orjson

from relay.events import TERMINAL, Channel, Placed, decode
from relay.lifecycle import TERMINAL as ENDED
from tests.chaos.seen import LOST_CODES, Reader, Record, Seen, Violation

# How a response may end with an error though no code is wrong: it is typed, and somebody was lost.
UPSTREAM_CODES = frozenset(("worker_lost", "upstream_cut", "upstream_unreachable", "upstream_timeout"))
POISONED = 3  # workers killed with one response: nobody tries it again
UNREACHABLE = 1  # workers that live and cannot say so, for the nemesis has its hands on them
ABANDONED_S = 4.0  # alone for less than this is no reason to end a response


class History(Seen):
    """All of it, with the verdict at its end: `ending` is how it ended, once `final` came."""

    ending = ""

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

        A failover may lose an end, with the cancel that made it or the job that was done: then the response
        goes on, or is tried again by a worker that cannot.
        """
        if self._is_lossy:
            retold = {seen[1], kept[1]} & (LOST_CODES | UPSTREAM_CODES)
            return seen[:2] != kept[:2] and not self._is_cancelled and not retold
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
