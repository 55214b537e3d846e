"""Spans: where their context goes, what they hold, and that there are none unless somebody asked."""

import itertools
import subprocess
import sys
import threading
import timeit
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from relay import tracing
from relay.settings import Settings

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exported() -> Iterator[InMemorySpanExporter]:
    """Tracing on, into memory."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.use(provider)
    yield exporter
    tracing.shutdown()


class FakeWriter:
    """What appends are seen by."""

    head = 100
    epoch = 2
    sent_at = 0.0


def by_name(exporter: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    """The last span of each name."""
    return {span.name: span for span in exporter.get_finished_spans()}


@pytest.mark.parametrize(
    ("settings", "environment", "on"),
    [
        ({}, {}, False),
        ({"otlp_endpoint": "http://c:4318"}, {}, True),
        ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({}, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"otlp_endpoint": "http://c:4318"}, {"OTEL_SDK_DISABLED": "true"}, False),
        ({"otlp_endpoint": "http://c:4318"}, {"OTEL_TRACES_EXPORTER": "none"}, False),
        ({}, {"OTEL_SERVICE_NAME": "x"}, False),
    ],
)
def test_it_is_on_where_a_collector_is_named(
    settings: dict[str, str], environment: dict[str, str], on: bool
) -> None:
    """By our setting or by OpenTelemetry's, and theirs that turn it off count."""
    assert tracing.wanted(Settings(**settings), environment) is on  # type: ignore[arg-type]


def test_off_nothing_is_imported_and_nothing_travels() -> None:
    """A process that traces nothing has not even loaded the SDK."""
    code = (
        "import sys\nfrom relay import tracing\nfrom relay.settings import Settings\n"
        "tracing.configure(Settings(), 'x')\n"
        "with tracing.span('a') as span: assert span is None\n"
        "assert tracing.fields() == {} and tracing.job('rs', '', 0.0) == ''\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30, env={"PATH": ""}, cwd="/")


def test_off_a_span_costs_less_than_two_microseconds() -> None:
    """The best of several: what a loaded machine adds is not ours."""

    def once() -> None:
        with tracing.span("relay.generation"):
            pass

    assert min(timeit.repeat(once, number=1000, repeat=20)) / 1000 < 2e-6


def test_the_context_travels_as_traceparent_through_the_job(exported: InMemorySpanExporter) -> None:
    """The caller's trace is the request's, the job's, the generation's and the appends'."""
    with tracing.span("POST /v1/streams", parent=CALLER, kind="server"):
        fields = tracing.fields()
    context = tracing.job("rs_1", fields["traceparent"], queued_s=1000.0)
    with tracing.generation("rs_1", context, "worker-1"):
        pass
    spans = by_name(exported)
    chain = [spans[name] for name in ("POST /v1/streams", "relay.job", "relay.generation")]
    assert {f"{span.context.trace_id:032x}" for span in chain} == {CALLER.split("-")[1]}
    assert f"{chain[0].parent.span_id:016x}" == CALLER.split("-")[2]
    for above, below in itertools.pairwise(chain):
        assert below.parent.span_id == above.context.span_id
    assert chain[0].kind is SpanKind.SERVER
    assert chain[1].start_time == 1000 * 10**9  # since it was queued


def test_a_malformed_context_begins_a_trace_of_its_own(exported: InMemorySpanExporter) -> None:
    """What a caller sends is only a header."""
    with tracing.span("a", parent="00-not-a-trace"):
        pass
    assert by_name(exported)["a"].parent is None


async def test_each_append_is_a_span_up_to_a_bound(exported: InMemorySpanExporter) -> None:
    """With its bytes; past the bound only the numbers of the generation go on."""
    writer = FakeWriter()
    with tracing.generation("rs_1", "", "worker-1"):
        appends = tracing.Appends(writer)
        for count in range(tracing.APPENDS_MOST + 10):
            appends.told(110 + 10 * count)
    made = [span for span in exported.get_finished_spans() if span.name == "relay.append"]
    assert len(made) == tracing.APPENDS_MOST
    assert [span.attributes["relay.bytes"] for span in made] == [10] * tracing.APPENDS_MOST
    generation = by_name(exported)["relay.generation"]
    assert {span.parent.span_id for span in made} == {generation.context.span_id}
    assert generation.attributes["relay.appends"] == tracing.APPENDS_MOST + 10


def test_a_delivery_is_in_the_trace_of_its_response(exported: InMemorySpanExporter) -> None:
    """So that it is sampled with it. The link tells whose connection it was."""
    with tracing.span("GET", kind="server"), tracing.delivery("rs_1", "c-1", CALLER):
        pass
    spans = by_name(exported)
    delivery, connection = spans["relay.delivery"], spans["GET"]
    assert f"{delivery.context.trace_id:032x}" == CALLER.split("-")[1]
    assert [link.context.span_id for link in delivery.links] == [connection.context.span_id]
    assert connection.context.trace_id != delivery.context.trace_id


def test_a_delivery_of_an_untraced_response_is_in_that_of_its_connection(
    exported: InMemorySpanExporter,
) -> None:
    """A response from before tracing was on still has readers to be seen."""
    with tracing.span("GET", kind="server"), tracing.delivery("rs_1", "c-1", ""):
        pass
    spans = by_name(exported)
    assert spans["relay.delivery"].parent.span_id == spans["GET"].context.span_id
    assert spans["relay.delivery"].links == ()


def test_an_exception_leaves_no_text_in_its_span(exported: InMemorySpanExporter) -> None:
    """Its message might hold a prompt."""
    with pytest.raises(ValueError, match="secret"), tracing.span("a"):
        raise ValueError("secret prompt")
    span = by_name(exported)["a"]
    assert "secret" not in span.to_json()
    assert span.status.status_code is StatusCode.UNSET


def test_a_collector_that_hangs_holds_no_shutdown_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was not sent is lost, and the process ends."""
    asked, released = threading.Event(), threading.Event()

    class Hanging(TracerProvider):
        def shutdown(self) -> None:
            asked.set()
            released.wait(60)

    monkeypatch.setattr(tracing, "SHUTDOWN_S", 0.05)
    tracing.use(Hanging())
    tracing.shutdown()
    assert not released.is_set()
    assert not tracing.is_on()
    assert asked.wait(30)  # its thread may come to it late
    released.set()
