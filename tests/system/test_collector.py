"""A response seen by an OpenTelemetry collector: from a caller's request to the last byte delivered."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from relay.embedded import EmbeddedServer
from tests.support.system import Api, Reader, Worker, call
from tests.support.wait import wait_until

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
PROMPT = "a prompt that no trace may hold"


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """An OTLP collector: where it is, and every body that came."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", bodies
        finally:
            server.shutdown()
            thread.join(10)


def spans_of(bodies: list[bytes]) -> dict[str, list[Span]]:
    """What was exported, by name."""
    found: dict[str, list[Span]] = {}
    for body in list(bodies):
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    found.setdefault(span.name, []).append(span)
    return found


@pytest.mark.timeout(120)
def test_a_collector_sees_a_response_from_the_request_to_its_delivery() -> None:
    """One trace through the job and the appends to the reader, linked to its connection; no text in any."""
    with EmbeddedServer() as redis, collector() as (url, bodies):
        settings = {"otlp_endpoint": url, "drain_delay_s": 0, "worker_drain_s": 1}
        with Api(redis.url, **settings) as api, Worker(redis.url, **settings) as worker:
            body = {
                "model": "simulated",
                "prompt": PROMPT,
                "simulation": {"tokens": 20, "tokens_per_second": 100},
            }
            made = call(api.port, "POST", "/v1/streams", body, headers={"traceparent": CALLER}).json
            with Reader(api.port, made["events_url"]) as reader:
                assert reader.run().exact() == ""
                text = reader.text
            for process in (api, worker):  # what is left is sent as they go
                process.terminate()
                assert process.wait() == 0
        wait_until(lambda: "relay.delivery" in spans_of(bodies), "the spans have come", 10)
    spans = spans_of(bodies)
    (request,), (job,), (generation,) = (
        spans[name] for name in ("POST /v1/streams", "relay.job", "relay.generation")
    )
    (delivery,) = spans["relay.delivery"]
    trace_id, caller = (bytes.fromhex(part) for part in CALLER.split("-")[1:3])
    assert {span.trace_id for span in (request, job, generation, *spans["relay.append"], delivery)} == {
        trace_id
    }
    assert request.parent_span_id == caller
    assert job.parent_span_id == request.span_id
    assert generation.parent_span_id == job.span_id
    assert {span.parent_span_id for span in spans["relay.append"]} == {generation.span_id}
    assert delivery.parent_span_id == request.span_id
    (connection,) = spans["GET /v1/streams/{response_id}/events"]
    assert [link.span_id for link in delivery.links] == [connection.span_id]
    assert connection.trace_id != trace_id
    told = b"".join(bodies)
    assert made["id"].encode() in told
    assert PROMPT.encode() not in told
    assert text[:40].encode() not in told


@pytest.mark.timeout(120)
def test_each_response_of_a_shared_connection_is_delivered_in_its_own_trace() -> None:
    """Also one that joins while the connection is open; each is linked to the one connection."""
    with EmbeddedServer() as redis, collector() as (url, bodies):
        settings = {"otlp_endpoint": url, "drain_delay_s": 0, "worker_drain_s": 1}
        with Api(redis.url, **settings) as api, Worker(redis.url, **settings):
            first, second, later = (api.create(tokens=20, rate=200, seed=seed) for seed in (1, 2, 3))
            path = f"/v1/events?keep=true&streams={first['id']},{second['id']}"
            with Reader(api.port, path) as reader:
                connection = reader.some(1).events[0].data["connection"]
                added = api.call("POST", f"/v1/events/{connection}/streams", {"add": [later["id"]]})
                assert added.status == 202
                reader.until(lambda reader: len(reader.named("done")) == 3, "the ends of all three")
            api.terminate()
            assert api.wait() == 0
        wait_until(lambda: "GET /v1/events" in spans_of(bodies), "the spans have come", 10)
    spans = spans_of(bodies)
    created = {span.trace_id: span.span_id for span in spans["POST /v1/streams"]}
    assert len(created) == len(spans["relay.delivery"]) == 3
    assert {span.trace_id: span.parent_span_id for span in spans["relay.delivery"]} == created
    (shared,) = spans["GET /v1/events"]
    assert [link.span_id for span in spans["relay.delivery"] for link in span.links] == [shared.span_id] * 3
    about = [attribute(span, "relay.response") for span in spans["relay.delivery"]]
    assert sorted(about) == sorted(one["id"] for one in (first, second, later))
    assert all(int(attribute(span, "relay.confirmed")) > 0 for span in spans["relay.delivery"])


def attribute(span: Span, name: str) -> str:
    """One attribute of a span, as text."""
    (value,) = (one.value for one in span.attributes if one.key == name)
    return value.string_value or str(value.int_value)
