"""Cancelling and abandoning, with real processes: soon, everywhere, and told to whoever returns."""

import asyncio
import time
from pathlib import Path

import pytest

from tests.support.stage import (
    SHORT_LEASE,
    Stage,
    ask,
    has_text,
    is_running,
    models_file,
    text_of,
)
from tests.support.stopwatch import Stopwatch
from tests.support.system import Api, Reader, metric
from tests.support.upstream import Call, chunk, silence
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(180)

SLOW_LEASE = {"lease_s": 60, "lease_renew_s": 30}  # so that nothing is heard by way of a renewal


def stop(api: Api, response_id: str) -> Stopwatch:
    """DELETE it; runs since that was answered."""
    assert api.call("DELETE", f"/v1/streams/{response_id}").status == 202
    return Stopwatch()


def cancelled(reader: Reader) -> None:
    """Read to the end, which is well formed."""
    reader.run()
    assert reader.exact() == ""
    assert reader.terminal is not None
    assert reader.terminal.data["finish_reason"] == "cancelled"


async def words(call: Call) -> None:
    """A word every 10 ms for as long as the client is there."""
    await call.head()
    for _ in range(100_000):
        await call.event(chunk(" word"))
        await asyncio.sleep(0.01)


def test_a_cancel_closes_the_upstream_within_a_second(scene: Stage, tmp_path: Path) -> None:
    """On whichever worker it runs, from any node; what was asked for and not made is counted as saved."""
    upstream = scene.upstream(words)
    file = models_file(tmp_path, upstream)
    nodes = [scene.api(models_file=file), scene.api(models_file=file)]
    workers = [scene.worker(1, models_file=file, **SLOW_LEASE) for _ in range(4)]
    made, readers = [], []
    for _ in workers:  # one after the other, so that the upstream is called in their order
        made.append(ask(nodes[0], max_tokens=50_000))
        readers.append(scene.reader(nodes[0], made[-1]).until(has_text(20), "some text"))
    assert all(is_running(worker) for worker in workers)
    for one, reader, call in zip(made, readers, upstream.calls, strict=True):
        assert not call.disconnected.is_set()
        asked = stop(nodes[1], one["id"])
        cancelled(reader)
        wait_until(call.disconnected.is_set, "its upstream is closed")
        asked.within(1, "from the cancel to the ends of reader and upstream")
    for worker in workers:
        wait_until(lambda worker=worker: not is_running(worker), "the worker lets go")
        made_here = metric(worker.metrics_port, "relay_tokens_total")
        assert metric(worker.metrics_port, "relay_tokens_saved_total") == 50_000 - made_here > 0


def test_a_cancel_does_not_wait_for_an_upstream_that_says_nothing(scene: Stage, tmp_path: Path) -> None:
    """Connected, and silent: there is no append that would bring the news."""
    upstream = scene.upstream(silence())
    file = models_file(tmp_path, upstream)
    api, _ = scene.api(models_file=file), scene.worker(models_file=file, **SLOW_LEASE)
    made = ask(api)
    reader = scene.reader(api, made)
    wait_until(lambda: upstream.calls, "the upstream is asked")
    asked = stop(api, made["id"])
    cancelled(reader)
    wait_until(upstream.calls[0].disconnected.is_set, "its connection is closed")
    asked.within(1, "from the cancel to the upstream's end")


def test_what_is_queued_is_cancelled_here_and_now(scene: Stage) -> None:
    """Without a worker: the answer to the DELETE says so, and no worker ever touches it."""
    api = scene.api()
    made, later = [api.create(tokens=50) for _ in range(3)], api.create(tokens=20)
    reader = scene.reader(api, made[0]).started()
    for one in made:
        answer = api.call("DELETE", f"/v1/streams/{one['id']}")
        assert (answer.status, answer.json["status"]) == (202, "cancelled")
    cancelled(reader)
    assert reader.text == ""
    worker = scene.worker()
    assert scene.reader(api, later).run().exact() == ""
    assert metric(worker.metrics_port, "relay_tokens_total") == 20


def test_what_waits_for_its_next_worker_is_cancelled_here_and_now(scene: Stage) -> None:
    """Handed over, or without its worker: the digest is that of the text that is there."""
    api, worker = scene.api(), scene.worker(worker_drain_s=0, **SHORT_LEASE)
    handed_over, lost = (api.create(tokens=5000, rate=100, seed=seed) for seed in (1, 2))
    readers = [scene.reader(api, one).until(has_text(100), "some text") for one in (handed_over, lost)]
    worker.terminate()
    assert worker.wait() == 0
    assert api.status(handed_over["id"])["status"] == "queued"
    stop(api, handed_over["id"])
    cancelled(readers[0])
    assert text_of(1, 5000).startswith(readers[0].text)
    with scene.worker(**SHORT_LEASE) as second:
        readers[1].until(has_text(len(readers[1].drain().text) + 20), "it goes on")
        second.kill()
    # Nobody holds it once its lease has run out; until then it may have a worker that is only slow.
    wait_until(lambda: stop(api, lost["id"]) and api.status(lost["id"])["status"] == "cancelled", "it ends")
    cancelled(readers[1])
    assert text_of(2, 5000).startswith(readers[1].text)


def test_a_cancel_outlives_the_node_that_took_it(scene: Stage) -> None:
    """The worker hears nothing when it is said; its next sign of life tells it, though the node is gone."""
    # A lease that outlasts the pause: else whoever cancels ends it here and now.
    first, second, worker = scene.api(), scene.api(), scene.worker(lease_s=60, lease_renew_s=1)
    made = first.create(tokens=100_000, rate=100, seed=3)
    reader = scene.reader(second, made).until(has_text(100), "some text")
    worker.pause()
    stop(first, made["id"])
    first.kill()
    assert second.status(made["id"])["status"] == "running"
    worker.resume()
    cancelled(reader)
    wait_until(lambda: not is_running(worker), "the worker lets go")


def test_a_cancel_outlives_node_and_worker(scene: Stage) -> None:
    """Both are gone: whoever takes the response over finds the wish, and generates nothing."""
    first, second, worker = scene.api(), scene.api(), scene.worker(**SHORT_LEASE)
    made = first.create(tokens=100_000, rate=100, seed=4)
    reader = scene.reader(second, made).until(has_text(100), "some text")
    worker.pause()
    stop(first, made["id"])
    first.kill()
    worker.kill()
    heir = scene.worker(**SHORT_LEASE)
    cancelled(reader)
    assert metric(heir.metrics_port, "relay_tokens_total") == 0
    assert text_of(4, 100_000 // 20).startswith(reader.text)


# --- a disconnect is not a stop


def test_a_disconnect_stops_nothing_before_its_time(scene: Stage) -> None:
    """Whoever comes back in time goes on; after abandon_after_s it is ended, and who returns is told."""
    api, worker = scene.api(), scene.worker(abandon_after_s=8, **SHORT_LEASE)
    made = api.create(tokens=100_000, rate=50, seed=5)
    with scene.reader(api, made) as first:
        first.until(has_text(100), "some text")
    left = time.monotonic()
    before = api.status(made["id"])["position"]
    wait_until(lambda: api.status(made["id"])["position"] > before + 200, "it runs on without a reader")
    with scene.reader(api, made, after=first.last_id) as second:
        second.until(has_text(100), "what was made meanwhile")
        wait_until(lambda: second.drain() and time.monotonic() - left > 9, "longer than the timer")
        assert second.terminal is None  # the timer begins anew with whoever reads
        second.until(has_text(len(second.text) + 50), "it still runs")
    gone = time.monotonic()
    told = api.wait_status(made["id"], "cancelled", within_s=60)
    assert time.monotonic() - gone > 7
    assert told["finish_reason"] == "cancelled"
    saved = metric(worker.metrics_port, "relay_tokens_saved_total")
    assert saved == 100_000 - metric(worker.metrics_port, "relay_tokens_total")
    late = scene.reader(api, made, after=second.last_id).run()
    assert late.exact(before=first.text + second.text) == ""
    assert late.terminal is not None
    assert late.terminal.data["finish_reason"] == "cancelled"
    assert scene.reader(api, made, after=late.last_id).run().status == 204
