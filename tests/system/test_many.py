"""Many responses on one connection: each with its own credit, position and end, across nodes and cuts."""

import hashlib
from collections import defaultdict
from typing import Any

import pytest

from tests.support.stage import Stage, text_of
from tests.support.system import Api, Event, Reader, Worker, call
from tests.support.topologies import deployed
from tests.support.wait import wait_until

pytestmark = pytest.mark.timeout(180)

KEYS = "ann:key-of-ann-1,bob:key-of-bob-1"
ANN, BOB = {"Authorization": "Bearer key-of-ann-1"}, {"Authorization": "Bearer key-of-bob-1"}


class Shared:
    """What one or more connections brought, by response."""

    def __init__(self, *readers: Reader) -> None:
        self.by_stream: dict[str, list[Event]] = defaultdict(list)
        for reader in readers:
            for event in reader.events:
                self.by_stream[event.data.get("stream", "")].append(event)

    def text(self, stream: str) -> str:
        return "".join(e.data["text"] for e in self.by_stream[stream] if e.name == "delta")

    def end(self, stream: str) -> Event | None:
        return next((e for e in self.by_stream[stream] if e.name in ("done", "error")), None)

    def exact(self, stream: str) -> str:
        """ "" when the digest of `done` is that of the text, and its positions grow."""
        end = self.end(stream)
        if end is None or end.name != "done":
            return f"{stream} has no done: {end}"
        raw = self.text(stream).encode()
        if hashlib.sha256(raw).hexdigest() != end.data["sha256"]:
            return f"{stream}: {len(raw)} bytes, {end.data['text_bytes']} made, not the same"
        offsets = [offset_of(e) for e in self.by_stream[stream] if "position" in e.data and e.id is not None]
        return "" if offsets == sorted(set(offsets)) else f"positions that do not grow: {offsets}"


def offset_of(event: Event) -> int:
    """Where an event of a shared connection ends in its own response."""
    return int(event.data["position"].partition("-")[0])


def opened(scene: Stage, api: Api, *made: dict[str, Any], more: str = "", **given: Any) -> Reader:
    """One connection for these responses."""
    path = "/v1/events?streams=" + ",".join(one["id"] for one in made) + more
    return scene.reader(api, {"events_url": path}, **given)


def is_over(*made: dict[str, Any]) -> Any:
    """Whether a reader has the ends of these."""
    return lambda reader: all(Shared(reader).end(one["id"]) for one in made)


@pytest.fixture
def api(scene: Stage) -> Api:
    """A node, and a worker behind it."""
    api = scene.api()
    scene.worker(pause_max_s=300)  # what stands still is not shortened while a test is at work
    return api


def test_each_response_is_whole_and_the_connection_ends_with_the_last(scene: Stage, api: Api) -> None:
    """A slow and a fast one side by side: the fast one's end is not the connection's, and both are exact."""
    slow, fast = api.create(tokens=300, rate=60, seed=1), api.create(tokens=900, rate=0, seed=2)
    reader = opened(scene, api, slow, fast).run()
    assert reader.ended
    shared = Shared(reader)
    assert [shared.exact(one["id"]) for one in (slow, fast)] == ["", ""]
    assert shared.text(slow["id"]) == text_of(1, 300)
    of_slow = [event for event in reader.events if event.data.get("stream") == slow["id"]]
    assert reader.events[-1] == of_slow[-1] == shared.end(slow["id"])
    later = reader.events[reader.events.index(shared.end(fast["id"])) :]  # type: ignore[arg-type]
    assert len([event for event in later if event in of_slow]) > 1  # text after the end of the fast one


def test_one_that_is_not_acknowledged_does_not_hold_the_others(scene: Stage, api: Api) -> None:
    """With explicit acks, one stalls at its window while another goes to its end."""
    stalled = api.create(tokens=4000, rate=0, window_bytes=2048)
    flowing = api.create(tokens=1200, rate=400, seed=3, window_bytes=2048)
    reader = opened(scene, api, stalled, flowing, more="&window=2048&consumer=both")

    acked = 0

    def acknowledged(reader: Reader) -> bool:
        nonlocal acked
        mine = [e for e in Shared(reader).by_stream[flowing["id"]] if e.id is not None]
        if mine and offset_of(mine[-1]) >= acked + 1024:  # half a window at a time
            path = f"/v1/streams/{flowing['id']}/consumers/both/ack"
            body = {"position": mine[-1].data["position"]}
            assert api.call("POST", path, body).status == 204
            acked = offset_of(mine[-1])
        return Shared(reader).end(flowing["id"]) is not None

    reader.until(acknowledged, "the end of the one that is acknowledged", 100)
    shared = Shared(reader)
    assert shared.exact(flowing["id"]) == ""
    sent = [offset_of(e) for e in shared.by_stream[stalled["id"]] if e.id is not None]
    assert sent[-1] <= 2048 + 4096  # its window, and one record to look for the end
    told = api.status(stalled["id"])
    assert told["status"] in ("running", "paused")
    assert [one["position"] for one in told["consumers"]] == [0]


def test_a_cut_is_resumed_from_the_last_id_with_what_was_added(scene: Stage, api: Api) -> None:
    """The last id tells where all stand, also those added by a call: at another node nothing is lost."""
    other = scene.api()
    first, second = api.create(tokens=400, rate=150, seed=1), api.create(tokens=60, rate=0, seed=2)
    reader = opened(scene, api, first, second, more="&keep=true").some(5)
    third = other.create(tokens=400, rate=150, seed=3)
    told = other.call(
        "POST", f"/v1/events/{reader.headers['relay-connection']}/streams", {"add": [third["id"]]}
    )
    assert told.status == 202, told
    reader.until(lambda reader: len(Shared(reader).text(third["id"])) > 200, "text of the third")
    reader.close()
    path = f"/v1/events?streams={first['id']},{second['id']}"
    rest = scene.reader(other, {"events_url": path}, after=reader.last_id).run()
    both = Shared(reader, rest)
    assert [both.exact(one["id"]) for one in (first, second, third)] == ["", "", ""]
    again = call(other.port, "GET", path, headers={"Last-Event-ID": rest.last_id})
    assert again.status in (200, 204)


def test_all_over_and_read_is_204(scene: Stage, api: Api) -> None:
    """The id of the end is answered with 204, which stops an EventSource; without it all is read again."""
    made = [api.create(tokens=10, seed=seed) for seed in (1, 2)]
    reader = opened(scene, api, *made).run()
    path = "/v1/events?streams=" + ",".join(one["id"] for one in made)
    assert call(api.port, "GET", path, headers={"Last-Event-ID": reader.last_id}).status == 204
    again = scene.reader(api, {"events_url": path}).run()
    assert [Shared(again).exact(one["id"]) for one in made] == ["", ""]
    places = [Shared(reader).end(one["id"]).data["position"] for one in made]  # type: ignore[union-attr]
    at = ",".join(f"{one['id']}@{place}" for one, place in zip(made, places, strict=True))
    assert call(api.port, "GET", f"/v1/events?streams={at}").status == 204


def test_responses_join_and_leave_an_open_connection(scene: Stage, api: Api) -> None:
    """With keep=true it outlives every response in it; one that is removed is silent, and stops no other."""
    reader = scene.reader(api, {"events_url": "/v1/events?keep=true"}).some(1)
    where = f"/v1/events/{reader.events[0].data['connection']}/streams"
    short, long = api.create(tokens=20, seed=1), api.create(tokens=3000, rate=100, seed=2)
    assert api.call("POST", where, {"add": [short["id"], long["id"]]}).status == 202
    reader.until(is_over(short), "the end of the short one")
    assert api.call("POST", where, {"remove": [long["id"]]}).status == 202
    reader.until(lambda reader: reader.named("removed"), "its removal")
    assert reader.named("removed")[0].data == {"stream": long["id"]}
    later = api.create(tokens=20, seed=3)
    assert api.call("POST", where, {"add": [later["id"], later["id"]]}).status == 422
    assert api.call("POST", where, {"add": [later["id"]]}).status == 202
    reader.until(is_over(later), "the end of the one that came later")
    assert reader.events[-1].data["stream"] == later["id"]
    assert not reader.ended
    assert [Shared(reader).exact(one["id"]) for one in (short, later)] == ["", ""]
    wait_until(
        lambda: [one["state"] for one in api.status(long["id"])["consumers"]] in ([], ["detached"]),
        "the removed one has no reader",
    )


def test_there_is_room_for_so_many_and_more_are_refused_in_words(scene: Stage, api: Api) -> None:
    """33 in the address are 422; the 33rd that joins is refused in the stream, and the others go on."""
    made = [api.create(tokens=3000, rate=1, seed=seed) for seed in range(33)]
    path = "/v1/events?streams=" + ",".join(one["id"] for one in made)
    assert call(api.port, "GET", path).status == 422
    reader = opened(scene, api, *made[:32]).until(lambda reader: len(reader.named("joined")) == 32, "all")
    where = f"/v1/events/{reader.headers['relay-connection']}/streams"
    assert api.call("POST", where, {"add": [made[32]["id"]]}).status == 202
    reader.until(lambda reader: reader.named("refused"), "a refusal")
    assert "at most 32" in reader.named("refused")[0].data["message"]


def test_what_cannot_be_read_is_an_error_of_its_own(scene: Stage, api: Api) -> None:
    """One unknown id among others is told in an event; alone, or a bad address, it is the answer's status."""
    made = api.create(tokens=20)
    unknown = "rs_" + "0" * 24
    reader = opened(scene, api, made, {"id": unknown}).run()
    shared = Shared(reader)
    assert shared.exact(made["id"]) == ""
    assert shared.end(unknown).data["code"] == "not_found"  # type: ignore[union-attr]
    for path, status in (
        (f"/v1/events?streams={unknown}", 404),
        ("/v1/events", 422),
        (f"/v1/events?streams={made['id']},{made['id']}", 422),
        (f"/v1/events?streams={made['id']}@nonsense", 400),
        (f"/v1/events?streams={made['id']}&after=1-1,2-2,3-3", 400),
        (f"/v1/events?streams={made['id']}&window=3", 422),
    ):
        assert call(api.port, "GET", path).status == status, path
    assert api.call("POST", "/v1/events/ev_0/streams", {"add": [made["id"]]}).status == 404


def test_keys_and_tokens_open_their_own(scene: Stage) -> None:
    """A key reads and steers its own; tokens, comma-separated, each the response that they are of."""
    api = scene.api(api_keys=KEYS)
    scene.worker()
    # The first, which leaves one of the connections, lasts until it is cancelled.
    mine = [api.create(tokens=n, rate=100, seed=seed, headers=ANN) for seed, n in ((1, 100_000), (2, 400))]
    path = "/v1/events?streams=" + ",".join(one["id"] for one in mine)
    assert call(api.port, "GET", path).status == 401
    assert call(api.port, "GET", path, headers=BOB).status == 403
    assert call(api.port, "GET", f"{path}&token=nonsense").status == 403
    tokens = ",".join(one["token"] for one in mine)
    by_token = scene.reader(api, {"events_url": f"{path}&token={tokens}"})
    by_key = scene.reader(api, {"events_url": path}, headers=ANN).some(3)
    where = f"/v1/events/{by_key.headers['relay-connection']}/streams"
    theirs = api.create(tokens=10, headers=BOB)
    assert call(api.port, "POST", where, {"add": [theirs["id"]]}, ANN).status == 403
    assert call(api.port, "POST", where, {"add": [theirs["id"]]}, BOB).status == 404  # not Bob's connection
    assert call(api.port, "POST", where, {"remove": [mine[0]["id"]]}).status == 401
    assert call(api.port, "POST", where, {"remove": [mine[0]["id"]]}, ANN).status == 202
    by_key.until(lambda reader: reader.named("removed"), "its removal")
    assert call(api.port, "DELETE", f"/v1/streams/{mine[0]['id']}", headers=ANN).status == 202
    by_key.run()
    by_token.run()
    assert [Shared(by_token).exact(one["id"]) for one in mine] == ["", ""]
    assert Shared(by_key).end(mine[0]["id"]) is None
    assert Shared(by_key).exact(mine[1]["id"]) == ""


def test_a_node_that_drains_says_so_once(scene: Stage) -> None:
    """SIGTERM: one `reconnect` for the whole connection, and the last id goes on elsewhere."""
    first, second = scene.api(), scene.api()
    scene.worker()
    made = [first.create(tokens=500, rate=60, seed=seed) for seed in (1, 2, 3)]
    reader = opened(scene, first, *made).some(10)
    first.terminate()
    reader.run()
    assert reader.ended
    assert len(reader.named("reconnect")) == 1
    assert not reader.named("error")
    rest = opened(scene, second, *made, after=reader.last_id).run()
    both = Shared(reader, rest)
    assert [both.exact(one["id"]) for one in made] == ["", "", ""]


def test_a_lost_client_takes_every_reader_with_it(scene: Stage, api: Api) -> None:
    """Who hangs up leaves no consumer behind at any of the responses."""
    made = [api.create(tokens=2000, rate=20, seed=seed) for seed in (1, 2)]
    reader = opened(scene, api, *made).some(5)
    reader.close()
    for one in made:
        wait_until(
            lambda one=one: all(c["state"] == "detached" for c in api.status(one["id"])["consumers"]),
            "nobody reads",
        )


def test_a_client_that_reads_nothing_holds_little_and_reads_on(scene: Stage, api: Api) -> None:
    """Eight sources as fast as they are let, and a frozen client: each waits at its own window."""
    made = [api.create(tokens=3000, rate=0, seed=seed, window_bytes=4096) for seed in range(8)]
    reader = opened(scene, api, *made, receive_buffer=4096, maxseg=1448)
    for one in made:
        told = api.wait_status(one["id"], "paused", within_s=60)
        assert told["position"] < 16_000  # its window, its share of the credit, and what the kernels hold
    reader.run()
    assert [Shared(reader).exact(one["id"]) for one in made] == [""] * 8


def test_on_a_cluster_responses_and_the_call_may_be_anywhere() -> None:
    """Six responses over the slots of a cluster; one joins and one leaves by a call at another node."""
    with deployed("cluster") as redis, Api(redis.url) as api, Api(redis.url) as other, Worker(redis.url):
        # The one that leaves would go on for long, so that it is there to leave.
        made = [api.create(tokens=300 if seed else 3000, rate=100, seed=seed) for seed in range(6)]
        with Reader(api.port, "/v1/events?streams=" + ",".join(one["id"] for one in made)) as reader:
            reader.some(10)
            joins, leaves = other.create(tokens=100, rate=50, seed=9), made[0]
            where = f"/v1/events/{reader.headers['relay-connection']}/streams"
            body = {"add": [joins["id"]], "remove": [leaves["id"]]}
            assert other.call("POST", where, body).status == 202
            reader.run()
    shared = Shared(reader)
    assert [shared.exact(one["id"]) for one in (*made[1:], joins)] == [""] * 6
    assert shared.end(leaves["id"]) is None
