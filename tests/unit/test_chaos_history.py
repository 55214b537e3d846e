"""The history checker passes what is right, and catches each thing that may go wrong, planted here."""

import hashlib
import json
import zlib
from collections.abc import Callable

import pytest

from relay import simulation
from relay.events import Channel, content, encode, event
from tests.chaos.history import History, Record, check

SEED, TOKENS = 7, 12
TEXT = [simulation.token(SEED, index) for index in range(TOKENS)]
WHOLE = "".join(TEXT)
SHA = hashlib.sha256(WHOLE.encode()).hexdigest()
DONE = {"finish_reason": "stop", "text_bytes": len(WHOLE.encode()), "sha256": SHA}
PIECES = [
    encode(event(Channel.START, {"id": "rs_1"})),
    *(encode(content(text)) for text in TEXT),
    encode(event(Channel.DONE, DONE)),
]
ENDS = [sum(map(len, PIECES[: index + 1])) for index in range(len(PIECES))]
JOURNAL = b"".join(PIECES)
META = {"status": "completed", "starts": f"1:0,2:{ENDS[5]}"}


def epoch_of(index: int) -> int:
    """The first worker wrote six pieces, a second one the rest."""
    return 1 if index <= 5 else 2


def entry(index: int) -> Record:
    """Piece `index`, as the log has it."""
    return ("entry", ENDS[index], epoch_of(index), len(PIECES[index]), zlib.crc32(PIECES[index]))


def append(index: int) -> Record:
    """Piece `index`, as its worker had it acknowledged."""
    base = ENDS[index] - len(PIECES[index])
    return ("append", "w", epoch_of(index), base, ENDS[index], zlib.crc32(PIECES[index]))


def told(reader: str, index: int) -> Record:
    """Piece `index`, as a reader got it."""
    at = f"{ENDS[index]}-{epoch_of(index)}"
    if index == 0:
        return ("event", reader, "start", at, '{"id":"rs_1"}')
    if index == len(PIECES) - 1:
        return ("event", reader, "done", at, json.dumps(DONE))
    return ("event", reader, "delta", at, json.dumps({"channel": "content", "text": TEXT[index - 1]}))


def private(reader: str, name: str, **data: object) -> Record:
    """An event that is no part of the response."""
    return ("event", reader, name, "", json.dumps(data))


def right() -> list[Record]:
    """A whole life: two workers, one reader that resumes by its id, one that comes back by its name."""
    last = len(PIECES) - 1
    writers = [
        ("claim", "w1", 1, 0),
        *(entry(index) for index in range(6)),
        ("claim", "w2", 2, ENDS[5]),
        *(entry(index) for index in range(6, last + 1)),
        *(append(index) for index in range(last + 1)),
    ]
    fast = [
        ("open", "r", "start", ""),
        *(told("r", index) for index in range(4)),
        private("r", "reconnect", retry_ms=300),
        ("open", "r", "id", f"{ENDS[3]}-1"),
        *(told("r", index) for index in range(4, last + 1)),
        ("none", "r"),
    ]
    named = [
        ("open", "n", "start", ""),
        *(told("n", index) for index in range(6)),
        ("ack", "n", ENDS[3]),
        ("open", "n", "name", "n"),
        *(told("n", index) for index in range(4, last + 1)),
    ]
    late = [("open", "x", "start", ""), told("x", 0), private("x", "error", code="superseded")]
    return [
        ("plan", SEED, TOKENS, True, True),
        *writers,
        *fast,
        *named,
        *late,
        ("final", META, text(JOURNAL)),
    ]


def text(data: bytes) -> str:
    """How a record holds bytes."""
    return data.decode("latin-1")


def at(kind: str, *fields: object) -> Callable[[list[Record]], int]:
    """Where the first record is that begins so."""
    return lambda records: next(
        index for index, record in enumerate(records) if record[: 1 + len(fields)] == (kind, *fields)
    )


def without(index: int, reader: str) -> Callable[[list[Record]], None]:
    """A reader does not get piece `index`."""
    return lambda records: records.remove(told(reader, index))


def replaced(found: Callable[[list[Record]], int], record: Record) -> Callable[[list[Record]], None]:
    """Another record in this place."""

    def plant(records: list[Record]) -> None:
        records[found(records)] = record

    return plant


def added(
    found: Callable[[list[Record]], int], record: Record, behind: int = 1
) -> Callable[[list[Record]], None]:
    """One more record, behind the one found, or in its place."""

    def plant(records: list[Record]) -> None:
        records.insert(found(records) + behind, record)

    return plant


def removed(*wanted: Record) -> Callable[[list[Record]], None]:
    """These records never came."""

    def plant(records: list[Record]) -> None:
        for record in wanted:
            records.remove(record)

    return plant


def moved(record: Record, before: Record) -> Callable[[list[Record]], None]:
    """A record comes before another, that it followed."""

    def plant(records: list[Record]) -> None:
        records.remove(record)
        records.insert(records.index(before), record)

    return plant


def final(meta: dict[str, str], journal: bytes) -> Callable[[list[Record]], None]:
    """Redis has something else at the end."""
    return replaced(at("final"), ("final", meta, text(journal)))


FAILED = encode(event(Channel.ERROR, {"code": "worker_lost", "message": "lost", "retryable": True}))
LAST = len(PIECES) - 1
PLANTED = {
    "an event is left out": (without(8, "r"), "prefix"),
    "an event comes twice": (added(at("event", "r", "delta", f"{ENDS[3]}-1"), told("r", 3)), "order"),
    "text comes twice under a new id": (
        replaced(
            at("event", "r", "delta", f"{ENDS[5]}-1"),
            ("event", "r", "delta", f"{ENDS[5]}-1", json.dumps({"channel": "content", "text": TEXT[3]})),
        ),
        "prefix",
    ),
    "two events change places": (moved(told("r", 9), told("r", 8)), "prefix"),
    "a position goes back after a reconnect": (
        added(at("open", "r", "id"), told("r", 2)),
        "order",
    ),
    "an event after the terminal one": (
        added(at("event", "r", "done"), told("r", LAST - 1)),
        "nothing after the end",
    ),
    "two terminal events": (added(at("event", "r", "done"), told("r", LAST)), "nothing after the end"),
    "served again after the end": (
        added(at("event", "r", "done"), ("open", "r", "id", f"{ENDS[LAST]}-2")),
        "nothing after the end",
    ),
    "no terminal event": (removed(told("r", LAST), ("none", "r")), "one end"),
    "204 before the end": (removed(told("r", LAST)), "loss"),
    "a digest that is not the text's": (
        replaced(
            at("event", "r", "done"),
            ("event", "r", "done", f"{ENDS[LAST]}-2", json.dumps({**DONE, "sha256": "0" * 64})),
        ),
        "digest",
    ),
    "an ending that the journal has not": (
        replaced(
            at("event", "r", "done"),
            ("event", "r", "error", f"{ENDS[LAST]}-2", '{"code":"worker_lost"}'),
        ),
        "one end",
    ),
    "a rewind for which nothing was lost": (
        added(at("open", "r", "id"), private("r", "rewind", position=f"{ENDS[3]}-2")),
        "rewind",
    ),
    "a loss for which nothing was lost": (
        added(at("open", "x"), private("x", "error", code="stream_lost")),
        "loss",
    ),
    "a 404 for which nothing was lost": (added(at("open", "x"), ("gone", "x", "not_found")), "loss"),
    "an event of its own that nobody knows": (
        added(at("open", "r", "id"), private("r", "error", code="internal")),
        "form",
    ),
    "a named reader misses what it had not confirmed": (
        removed(told("n", 4), *(told("n", index) for index in (4, 5))),
        "loss",
    ),
    "a named reader misses an event": (without(9, "n"), "order"),
    "a named reader gets another's text": (
        replaced(
            at("event", "n", "delta", f"{ENDS[9]}-2"),
            (
                "event",
                "n",
                "delta",
                f"{ENDS[9]}-2",
                json.dumps({"channel": "content", "text": TEXT[8][::-1]}),
            ),
        ),
        "prefix",
    ),
    "an id that no event has": (
        replaced(at("event", "n", "done"), ("event", "n", "done", f"{ENDS[LAST] + 3}-2", json.dumps(DONE))),
        "boundary",
    ),
    "the log leaves bytes out": (removed(entry(8)), "contiguous"),
    "a fenced worker writes after a newer one": (
        replaced(at(*entry(8)[:3]), ("entry", ENDS[8], 1, *entry(8)[3:])),
        "fence",
    ),
    "an epoch is claimed twice": (added(at("claim", "w2"), ("claim", "w3", 2, ENDS[5])), "fence"),
    "a worker begins where Redis does not": (
        replaced(at("claim", "w2"), ("claim", "w2", 2, ENDS[6])),
        "fence",
    ),
    "an acknowledged append is gone": (
        added(at(*append(3)), ("append", "w", 1, ENDS[3], ENDS[4], zlib.crc32(b"others"))),
        "durable",
    ),
    "an entry is not in the journal": (
        replaced(at(*entry(4)), (*entry(4)[:4], zlib.crc32(b"others"))),
        "durable",
    ),
    "the journal ends inside a record": (final(META, JOURNAL[:-3]), "journal"),
    "the journal has other text": (
        final(META, JOURNAL.replace(TEXT[4].encode(), TEXT[4].swapcase().encode())),
        "journal",
    ),
    "two terminal records": (final(META, JOURNAL + PIECES[-1]), "one end"),
    "a status that is no end": (final({**META, "status": "running"}, JOURNAL), "one end"),
    "an error that no fault explains": (
        final({**META, "status": "failed"}, b"".join(PIECES[:-1]) + FAILED),
        "ending",
    ),
    "done too early": (final(META, b"".join([*PIECES[:6], PIECES[-1]])), "ending"),
    "a response that is gone": (final({}, b""), "loss"),
    "a resume by an id it never had": (
        replaced(at("open", "r", "id"), ("open", "r", "id", f"{ENDS[4]}-1")),
        "driver",
    ),
}


def test_a_right_history_has_no_violation() -> None:
    """The history into which each violation is planted is right without it."""
    assert check(right()) == []


@pytest.mark.parametrize("planted", PLANTED)
def test_each_planted_violation_is_caught(planted: str) -> None:
    """And named by the rule that it breaks."""
    plant, rule = PLANTED[planted]
    records = right()
    plant(records)
    found = check(records)
    assert rule in [violation.rule for violation in found], found


def test_a_cancel_explains_a_cancelled_end() -> None:
    """Somebody asked, so the ending is a truthful one; without it, it is not."""
    data = "".join(TEXT[:5]).encode()
    told = {"finish_reason": "cancelled", "text_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    journal = b"".join([*PIECES[:6], encode(event(Channel.DONE, told))])
    final = ("final", {"status": "cancelled", "starts": "1:0"}, text(journal))
    plan = ("plan", SEED, TOKENS, True, True)
    assert check([plan, ("cancel",), final]) == []
    assert [violation.rule for violation in check([plan, final])] == ["ending"]
    assert check([plan, ("alone", 31.0), final]) == []


def test_what_redis_lost_is_told_and_then_right() -> None:
    """After a loss a rewind is right, and so are other records of the same text; silence is not."""
    history = History()
    records: list[Record] = [
        ("plan", SEED, TOKENS, True, True),
        ("open", "r", "start", ""),
        *(told("r", index) for index in range(5)),
        ("loss",),
        ("event", "r", "rewind", "", json.dumps({"position": f"{ENDS[2]}-2"})),
        *(told("r", index) for index in range(3, len(PIECES))),
        ("final", META, text(JOURNAL)),
    ]
    for record in records:
        history.take(record)
    assert history.violations == []
    assert history.ending == "stop"
    before, gone = [*records[:4], ("loss",)], ("final", {}, "")
    assert [violation.rule for violation in check([*before, gone])] == ["one end"]
    assert check([*before, private("r", "error", code="stream_lost"), gone]) == []


def test_a_failover_may_lose_a_cancel_with_its_end() -> None:
    """Who saw the end has it, and the response goes on; without a cancel there is one end for all."""
    data = "".join(TEXT[:5]).encode()
    cancelled = {
        "finish_reason": "cancelled",
        "text_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    seen = [
        ("plan", SEED, TOKENS, True, True),
        ("open", "r", "start", ""),
        *(told("r", index) for index in range(6)),
        ("event", "r", "done", f"{ENDS[5] + 100}-1", json.dumps(cancelled)),
    ]
    final = ("final", META, text(JOURNAL))
    assert check([*seen, ("cancel",), ("loss",), final]) == []
    assert [found.rule for found in check([*seen, ("loss",), final])] == ["one end"]


def test_killed_workers_explain_poison() -> None:
    """The fourth worker that claims it may give it up; the third may not, nor one after workers that live."""
    failed = encode(event(Channel.ERROR, {"code": "poison", "message": "no more", "retryable": False}))
    starts = [f"{epoch}:0" for epoch in range(1, 5)]
    final = ("final", {"status": "failed", "starts": ",".join(starts)}, text(PIECES[0] + failed))
    plan = ("plan", SEED, TOKENS, True, True)
    claims = [("claim", f"w{epoch}", epoch, 0) for epoch in range(1, 5)]
    assert check([plan, *claims, ("killed", "w1", "w3"), final]) == []  # the second could not yet be heard
    assert check([plan, claims[2], claims[3], ("killed", "w3"), final]) == []  # as the first were not
    assert [found.rule for found in check([plan, *claims, ("killed", "w2", "w4"), final])] == ["ending"]
    shorter = ("final", {"status": "failed", "starts": ",".join(starts[:2])}, final[2])
    assert [found.rule for found in check([plan, *claims[:2], ("killed", "w1"), shorter])] == ["ending"]


def test_a_worker_that_is_lost_explains_an_error_only_where_the_source_cannot_go_on() -> None:
    """`worker_lost` is a truthful end of an upstream that cannot continue a prefix."""
    journal = b"".join(PIECES[:6]) + FAILED
    final = ("final", {"status": "failed", "starts": "1:0"}, text(journal))
    assert check([("plan", SEED, TOKENS, True, False), final]) == []
    assert [found.rule for found in check([("plan", SEED, TOKENS, True, True), final])] == ["ending"]


def test_a_loss_explains_what_was_seen_before_it_was_noticed() -> None:
    """Nothing else: the text of a reader is wrong all the same."""
    seen = [
        ("plan", SEED, TOKENS, True, True),
        ("open", "r", "start", ""),
        ("event", "r", "delta", "9-1", json.dumps({"channel": "content", "text": "not this"})),
        ("gone", "r", "404"),
    ]
    final = ("final", {}, "")
    assert [found.rule for found in check([*seen, final])] == ["prefix", "loss", "loss"]
    assert [found.rule for found in check([*seen, ("loss",), final])] == ["prefix"]
