"""The instruments of `relay bench backpressure`: what they count is what there is."""

import socket
import threading
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.bench import flood, noharm, verdict
from relay.bench.backpressure import IN_FLIGHT_BYTES, OBVIOUS, RELAY, Check, Plan, Run
from relay.bench.client import Client
from relay.bench.inflight import KINDS, Watched
from relay.bench.queues import held
from relay.errors import Unavailable
from tests.support.wait import wait_until

BLOCKS = 3
BODY = flood._HEAD + b"".join(
    b"%x\r\n%b\r\n" % (len(block), block)
    for block in (
        b"".join(flood._EVENT % number for number in range(at * flood._BLOCK, (at + 1) * flood._BLOCK))
        for at in range(BLOCKS)
    )
)


@given(st.integers(0, len(BODY)))
def test_text_in_a_cut_answer_is_counted_to_the_event(cut: int) -> None:
    """Whole events count; one that is cut may, where chunk lines stand before it, and none beyond."""
    whole = BODY[:cut].count(b"\n\n") * flood.WORD_BYTES
    assert whole <= flood.text_of(cut) <= whole + flood.WORD_BYTES


@given(st.integers(0, 5000), st.integers(0, 300))
def test_any_part_of_the_flood_can_be_told(start: int, size: int) -> None:
    """It is the part of the whole."""
    whole = b"".join(b"%07d " % word for word in range(700))
    assert flood.text(start, start + size) == whole[start : start + size]


def test_queues_are_those_of_the_kernel() -> None:
    """What was written and not read lies at the receiver; what it could not take, at the sender."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        receiver.connect(listener.getsockname())
        sender, (_, peer) = listener.accept()
        with sender:
            port = listener.getsockname()[1]
            sender.sendall(b"x" * 100)
            # A busy kernel hands on a little later, even on loopback.
            wait_until(lambda: held(port, peer).by_receiver == 100, "it lies at the receiver")
            sender.setblocking(False)
            written = 100
            with suppress(BlockingIOError):
                while written < 1 << 30:
                    written += sender.send(b"x" * 4096)
            queues = wait_until(
                lambda: found if sum(found := held(port, peer)) >= written else None,
                "all of it lies somewhere",
            )
            assert queues.by_sender > queues.by_receiver
            assert held(peer, port) == (0, 0)


def test_a_reader_knows_what_its_kernel_has_for_it() -> None:
    """Unread text counts as confirmed once its event is whole, and looking takes nothing away."""
    events = [b'event: delta\ndata: {"channel":"content","text":"%b"}\n\n' % word for word in (b"ab", b"cde")]
    last = b'event: done\ndata: {"finish_reason":"stop"}\n\n'
    with socket.create_server(("127.0.0.1", 0)) as listener:
        served = threading.Event()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + _chunk(events[0]))
                peer.sendall(_chunk(events[1] + last[:10]))
                served.wait(10)
                peer.sendall(_chunk(last[10:]))

        thread = threading.Thread(target=serve)
        thread.start()
        with Client(f"http://127.0.0.1:{listener.getsockname()[1]}", "x") as client:
            while client.text_bytes < 2:  # a byte at a time: the rest stays in the kernel
                client.read(1, 10)
            while client.confirmed_bytes < 5:  # in the kernel soon; the timeout of the test is the deadline
                pass
            served.set()
            assert client.read_until(lambda reader: reader.ended is not None, 10)
            assert (client.text_bytes, client.ended, client.is_exact) == (5, "done", True)
        thread.join()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def test_a_broken_bound_is_told() -> None:
    """With its figure; one that is kept is not."""
    run = Run(Plan(), _no_bars, lambda _: None)
    run._check_watched(Watched("stalled", in_flight_bytes=IN_FLIGHT_BYTES + 1, is_exact=False))
    assert [check.holds for check in run.checks] == [False, True]
    assert [line.partition(":")[0] for line in run.wrong] == ["bound", "bound, stalled"]
    assert verdict.checks(run.checks).row_count == 2


def test_without_the_obvious_stack_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is measured."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    run = Run(Plan(("obvious",)), _no_bars, lambda _: None)
    with pytest.raises(Unavailable, match="make install-dev"):
        run.carry_out()
    assert run.results == {RELAY: {}, OBVIOUS: {}}


def test_figures_stand_beside_their_bounds() -> None:
    """Bytes as KiB, the others in their unit; a bound of nothing is one."""
    found = [Check("bound", "a", 2048, 4096, "B"), Check("fast", "steps", 1, 0, "")]
    table = verdict.checks(found)
    assert [list(column.cells) for column in table.columns][2:4] == [["2 KiB", "1"], ["4 KiB", "0"]]
    assert not found[1].holds


def test_steps_of_the_ladder_are_read_from_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were taken, over all workers."""
    text = 'relay_ladder_steps_total{step="pacing"} 2.0\nrelay_ladder_steps_total{step="live"} 0.0\n'
    monkeypatch.setattr(noharm, "_get", lambda _: text)
    system = noharm.System([], metrics_urls=["a", "b"])
    assert noharm.ladder_steps(system) == {"pacing": 4}


def _no_bars(_title: str, _total: float) -> Any:
    raise AssertionError("nothing is measured here")


def test_both_stacks_stand_side_by_side() -> None:
    """Every fault and every figure of it, ours first."""
    watched = [Watched(kind, in_flight_bytes=1024 * n).as_dict() for n, kind in enumerate(KINDS, 1)]
    bound = {each["kind"]: each for each in watched}
    isolated = {"together_ms": 2.0, "alone_ms": 1.0, "ratio": 2.0, "delivered": 1.0}
    other = {"bound": {kind: {**each, "in_flight_bytes": 0} for kind, each in bound.items()}}
    results = {RELAY: {"bound": bound, "isolation": isolated}, OBVIOUS: {**other, "isolation": isolated}}
    rows = list(zip(*(column.cells for column in verdict.side_by_side(results, 5).columns), strict=True))
    ahead = [row[2:] for row in rows if str(row[1]).startswith("text read ahead")]
    assert ahead == [("1 KiB", "0 KiB"), ("2 KiB", "0 KiB"), ("3 KiB", "0 KiB"), ("4 KiB", "0 KiB")]
    assert rows[-2][1:] == ("ratio", "2", "2")


def test_a_stack_that_fails_is_told_and_not_hidden() -> None:
    """Another's column says so; ours ends the run."""
    said: list[str] = []
    run = Run(Plan(), _no_bars, said.append)
    run._failed(OBVIOUS, "isolation", Unavailable("no answer"))
    assert said == ["isolation: the obvious stack failed: no answer"]
    with pytest.raises(Unavailable):
        run._failed(RELAY, "isolation", Unavailable("no answer"))
    empty: dict[str, Any] = {"bound": {}, "isolation": {}}
    table = verdict.side_by_side({RELAY: empty, OBVIOUS: empty}, 5)
    assert set(table.columns[3].cells) == {"failed"}
