"""Workers that are killed and stopped, with real processes: new text or a typed end, soon, on every node."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from relay.keys import keys_of
from tests.support.servers import admin
from tests.support.stage import (
    LEASE_S,
    SHORT_LEASE,
    TAKE_OVER_S,
    Stage,
    ask,
    has_text,
    holder_first,
    is_running,
    models_file,
    text_of,
)
from tests.support.stopwatch import Stopwatch
from tests.support.system import Reader, metric
from tests.support.upstream import Call, answer, chunk, silence
from tests.support.wait import wait_until
from workers.prefix import SPENT

pytestmark = pytest.mark.timeout(240)


def until_news(reader: Reader) -> float:
    """Seconds until more than what is here already arrives: text or an end."""
    had = len(reader.drain().events)
    watch = Stopwatch()
    reader.until(lambda reader: len(reader.events) > had, "text goes on, or ends")
    return watch.elapsed_s


def at_once(*does: Callable[[], None]) -> None:
    """Do all of it side by side, in threads; the first failure fails the test."""
    failures: list[BaseException] = []

    def run(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as failure:  # noqa: BLE001 raised again below, in the test's own thread
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(one,)) for one in does]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


# --- killed


def test_every_reader_on_every_node_goes_on_within_the_lease_and_a_little(scene: Stage) -> None:
    """Forty responses lose their worker at once; each goes on, exactly, on both nodes within lease + 3 s."""
    nodes = [scene.api(), scene.api()]
    first = scene.worker(**SHORT_LEASE)
    # Long enough that the second worker may take its time to start.
    made = [nodes[0].create(tokens=450, rate=30, seed=seed) for seed in range(40)]
    readers = [scene.reader(node, one) for one in made for node in nodes]
    for reader in readers:
        reader.until(has_text(20), "some text")
    second = scene.worker(**SHORT_LEASE)
    assert not is_running(second)
    first.kill()
    watch = Stopwatch()
    waited: list[float] = []
    at_once(*(lambda reader=reader: waited.append(until_news(reader)) for reader in readers))  # type: ignore[misc]
    assert len(waited) == len(readers)
    watch.within(TAKE_OVER_S, "from the loss of a worker to new text", max(waited))
    at_once(*(lambda reader=reader: reader.run(90) for reader in readers))  # type: ignore[misc]
    for index, reader in enumerate(readers):
        assert reader.exact() == ""
        assert reader.text == text_of(index // 2, 450)
        assert reader.named("rewind") == []
    assert metric(second.metrics_port, "relay_jobs_reclaimed_total") == 40
    print(f"from kill -9 to new text: {min(waited):.2f} to {max(waited):.2f} s, lease {LEASE_S} s")


def test_a_job_that_kills_three_workers_is_poison(scene: Stage) -> None:
    """The fourth does not try: a typed error that is not worth a retry, and the worker lives on."""
    api = scene.api()
    made = api.create(tokens=2000, rate=30, seed=9)
    reader = scene.reader(api, made)
    for _ in range(3):
        victim = scene.worker(**SHORT_LEASE)
        wait_until(lambda victim=victim: is_running(victim), "it has the job")
        until_news(reader)
        victim.kill()
    last = scene.worker(**SHORT_LEASE)
    watch = Stopwatch()
    reader.run()
    watch.within(TAKE_OVER_S, "from the last worker's start to the end")
    assert reader.terminal is not None
    assert (reader.terminal.name, reader.terminal.data["code"]) == ("error", "poison")
    assert reader.terminal.data["retryable"] is False
    told = api.status(made["id"])
    assert (told["status"], told["claims"]) == ("failed", 4)
    assert text_of(9, 2000).startswith(reader.text)
    assert api.call("GET", made["text_url"]).body.decode() == reader.text
    wait_until(lambda: not is_running(last), "the last lets go")
    assert metric(last.metrics_port, "relay_tokens_total") == 0
    assert scene.reader(api, api.create(tokens=20)).run().exact() == ""


# --- an upstream's answer


def endless(*first: dict[str, Any]) -> Callable[[Call], Any]:
    """These chunks, then a word whenever there is time, until the client goes."""

    async def script(call: Call) -> None:
        await call.head()
        for one in first:
            await call.event(one)
        for number in range(100_000):
            await call.event(chunk(f" w{number}"))
            await asyncio.sleep(0.02)

    return script


def _is_noted(client: Redis, response_id: str) -> bool:
    """Whether the tokens of some dozens of words are noted beside their bytes."""
    noted = str(client.hget(keys_of(response_id).meta, SPENT) or "0 0")
    return int(noted.partition(" ")[0]) >= 40


def test_an_upstream_that_continues_is_asked_for_the_rest(scene: Stage, tmp_path: Path) -> None:
    """With what was delivered as the message to go on from, and with the tokens that are left."""
    upstream = scene.upstream(endless(), answer(" and", " the", " end."))
    file = models_file(tmp_path, upstream, continues="true")
    api, first = scene.api(models_file=file), scene.worker(models_file=file, **SHORT_LEASE)
    made = ask(api, max_tokens=10_000)
    reader = scene.reader(api, made).until(
        has_text(300), "so much text that a renewal's part of it is little"
    )
    with admin(scene.redis.url) as client:
        wait_until(lambda: _is_noted(client, made["id"]), "a renewal has noted what was spent")
    first.kill()
    scene.worker(models_file=file, **SHORT_LEASE)
    reader.run()
    assert reader.exact() == ""
    again = upstream.calls[1].json
    delivered = again["messages"][-1]
    assert delivered["role"] == "assistant"
    assert (again["continue_final_message"], again["add_generation_prompt"]) == (True, False)
    assert reader.text == delivered["content"] + " and the end."
    words = len(delivered["content"].split())
    # What came after the last renewal is estimated, by what was spent until then.
    assert abs(again["max_tokens"] - (10_000 - words)) <= 0.1 * words
    assert reader.named("start")[1:] == []
    assert api.status(made["id"])["claims"] == 2


def test_an_upstream_that_does_not_continue_ends_in_a_typed_error(scene: Stage, tmp_path: Path) -> None:
    """Nobody is asked again: `worker_lost`, retryable, after exactly what was delivered."""
    upstream = scene.upstream(endless())
    file = models_file(tmp_path, upstream)
    api, first = scene.api(models_file=file), scene.worker(models_file=file, **SHORT_LEASE)
    made = ask(api)
    reader = scene.reader(api, made).until(has_text(50), "some text")
    scene.worker(models_file=file, **SHORT_LEASE)
    first.kill()
    watch = Stopwatch()
    reader.run()
    watch.within(TAKE_OVER_S, "from the loss of a worker to the end")
    assert reader.terminal is not None
    assert (reader.terminal.name, reader.terminal.data["code"]) == ("error", "worker_lost")
    assert reader.terminal.data["retryable"] is True
    assert api.call("GET", made["text_url"]).body.decode() == reader.text
    assert len(upstream.calls) == 1
    wait_until(upstream.calls[0].disconnected.is_set, "the dead worker's connection is gone")


def test_reasoning_is_not_said_twice(scene: Stage, tmp_path: Path) -> None:
    """A cut after reasoning alone cannot be begun afresh: the reader has it already."""
    upstream = scene.upstream(silence_after(chunk(reasoning_content="Let me think. ")))
    file = models_file(tmp_path, upstream, continues="true")
    api, first = scene.api(models_file=file), scene.worker(models_file=file, **SHORT_LEASE)
    reader = scene.reader(api, ask(api)).until(lambda reader: reader.named("delta"), "the reasoning")
    first.kill()
    scene.worker(models_file=file, **SHORT_LEASE)
    reader.run()
    assert [event.data for event in reader.named("delta")] == [
        {"channel": "reasoning", "text": "Let me think. "}
    ]
    assert reader.terminal is not None
    assert reader.terminal.data["code"] == "worker_lost"
    assert len(upstream.calls) == 1


def silence_after(*chunks: dict[str, Any]) -> Callable[[Call], Any]:
    """These chunks, and then nothing with the connection open."""

    async def script(call: Call) -> None:
        await call.head()
        for one in chunks:
            await call.event(one)
        await call.hold()

    return script


def test_what_nobody_has_seen_is_begun_afresh(scene: Stage, tmp_path: Path) -> None:
    """The upstream had not said a word: the same request again, and a reader cannot tell."""
    upstream = scene.upstream(silence(), answer("Whole", " and", " new."))
    file = models_file(tmp_path, upstream)
    api, first = scene.api(models_file=file), scene.worker(models_file=file, **SHORT_LEASE)
    reader = scene.reader(api, ask(api, max_tokens=50))
    wait_until(lambda: upstream.calls, "the upstream is asked")
    first.kill()
    scene.worker(models_file=file, **SHORT_LEASE)
    reader.run()
    assert reader.exact() == ""
    assert reader.text == "Whole and new."
    assert len(reader.named("start")) == 1
    assert upstream.calls[1].json == upstream.calls[0].json


# --- stopped


def test_a_worker_stopped_past_its_lease_hangs_up_on_its_upstream(scene: Stage, tmp_path: Path) -> None:
    """Continued, it is refused and counted, closes its connection, and works on; no reader can tell."""
    upstream = scene.upstream(endless(), answer(" and", " the", " end."))
    file = models_file(tmp_path, upstream, continues="true")
    api, first = scene.api(models_file=file), scene.worker(models_file=file, **SHORT_LEASE)
    made = ask(api)
    reader = scene.reader(api, made).until(has_text(100), "some text")
    second = scene.worker(models_file=file, **SHORT_LEASE)
    first.pause()
    reader.run()
    assert reader.exact() == ""
    assert reader.text == upstream.calls[1].json["messages"][-1]["content"] + " and the end."
    assert not upstream.calls[0].disconnected.is_set()  # its kernel keeps the connection while it stands
    first.resume()
    wait_until(upstream.calls[0].disconnected.is_set, "the upstream's connection is closed")
    wait_until(lambda: metric(first.metrics_port, "relay_fenced_writes_total") == 1, "it is counted")
    wait_until(lambda: not is_running(first), "it lets go")
    assert scene.reader(api, made).run().text == reader.text
    second.kill()
    assert scene.reader(api, ask(api)).run().exact() == ""


def test_of_two_workers_that_both_hold_it_one_writes(scene: Stage) -> None:
    """Stopped and continued again and again around its lease, neither ever spoils the text."""
    api = scene.api()
    workers = [scene.worker(**SHORT_LEASE), scene.worker(**SHORT_LEASE)]
    made = api.create(tokens=600, rate=60, seed=12)
    reader = scene.reader(api, made).until(has_text(50), "some text")
    for _ in range(2):
        holder, other = holder_first(*workers)
        holder.pause()
        wait_until(lambda other=other: is_running(other), "the other takes over")
        holder.resume()
        wait_until(lambda holder=holder: not is_running(holder), "the first lets go")
    reader.run()
    assert reader.exact() == ""
    assert reader.text == text_of(12, 600)
    assert api.status(made["id"])["claims"] == 3
    assert sum(metric(worker.metrics_port, "relay_fenced_writes_total") for worker in workers) == 2
