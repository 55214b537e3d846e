"""OpenTelemetry spans, off unless configured: from the request through the job to the last byte delivered.

    POST /v1/streams        server    the create; a caller's `traceparent` is taken up
      relay.job             consumer  from the queue to the claim of a worker
        relay.generation    internal  one worker's part of it; a takeover is another, of the same parent
          relay.append      client    each append until APPENDS_MOST, with its bytes
      relay.delivery        producer  one reader, from the attach to its end, with the bytes that it confirmed
    GET .../events          server    a reader's connection, in its caller's trace; its deliveries link to it

The context travels as W3C Trace Context's `traceparent`: in the job's entry, for the worker, and in the
response's meta, for the readers. Spans hold ids and numbers, never a prompt or a token.

Off means that neither the SDK nor an exporter is imported, nothing is written to Redis, and a call here
costs a look at one name. On, spans leave in batches by a thread of the exporter's, whose queue is bounded
(OTEL_BSP_MAX_QUEUE_SIZE, 2048): what does not fit is dropped there, for a trace is not worth a token's
delay. Sampling is OTEL_TRACES_SAMPLER's; the default follows the caller and keeps what has none.
"""

import asyncio
import os
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from relay.errors import SettingsInvalid
from relay.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Link, Span, SpanKind, Tracer

TRACEPARENT = "traceparent"
APPENDS_MOST = 16  # spans of one generation's appends, some 40 us of CPU each; the rest is told in numbers
SHUTDOWN_S = 3.0
_STANDARD = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_tracer: "Tracer | None" = None
_provider: "TracerProvider | None" = None


class Writes(Protocol):
    """What appends are seen by: a worker's writer."""

    head: int
    epoch: int

    @property
    def sent_at(self) -> float:
        """When the last append left, by the loop's clock."""
        ...


def is_on() -> bool:
    """Whether spans are made."""
    return _tracer is not None


def wanted(settings: Settings, environment: Mapping[str, str]) -> bool:
    """Whether a collector is named, by our setting or by OpenTelemetry's own variables."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "otlp").lower() == "none":
        return False
    return settings.otlp_endpoint is not None or any(environment.get(name) for name in _STANDARD)


def configure(settings: Settings, service: str) -> None:
    """Start tracing if it is wanted; once per process. Raises SettingsInvalid without the packages."""
    if not wanted(settings, os.environ):
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise SettingsInvalid(
            f"tracing is configured and {error.name} is not installed: "
            "pip install 'llm-stream-relay[tracing]', "
            "or unset RELAY_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_ENDPOINT"
        ) from error
    name = {} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": service}
    provider = TracerProvider(resource=Resource.create(name))
    at = settings.otlp_endpoint
    exporter = OTLPSpanExporter(endpoint=f"{at.rstrip('/')}/v1/traces") if at else OTLPSpanExporter()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    use(provider)


def use(provider: "TracerProvider | None") -> None:
    """Make spans with this provider; with None stop making any."""
    global _tracer, _provider  # noqa: PLW0603 one per process, as the log's configuration is
    _provider = provider
    _tracer = provider.get_tracer("relay") if provider is not None else None


def shutdown() -> None:
    """Send what is left, for SHUTDOWN_S at most, and stop: a collector that hangs holds no deploy up."""
    if _provider is not None:
        ending = threading.Thread(target=_provider.shutdown, daemon=True)
        ending.start()
        ending.join(SHUTDOWN_S)
        use(None)


def traceparent() -> str:
    """The current span's context for somebody else; empty without one, and when off."""
    if _tracer is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(TRACEPARENT, "")


def fields() -> dict[str, str]:
    """The current context as fields of a job or of a response's meta: none when off."""
    found = traceparent()
    return {TRACEPARENT: found} if found else {}


def span(
    name: str,
    *,
    parent: str = "",
    link: str = "",
    kind: str = "internal",
    start_s: float | None = None,
    attributes: Mapping[str, str | int | float] | None = None,
) -> "AbstractContextManager[Span | None]":
    """A span that is the current one inside the block; None when off.

    `parent` and `link` are traceparents; without a parent the current span is it. `start_s`: Unix time.
    """
    if _tracer is None:
        return nullcontext()
    return _tracer.start_as_current_span(
        name,
        context=_context(parent),
        kind=_kind(kind),
        links=_links(link),
        start_time=None if start_s is None else int(start_s * 1e9),
        attributes=dict(attributes or {}),
        # The message of an exception might hold a caller's text.
        record_exception=False,
        set_status_on_exception=False,
    )


def job(response_id: str, context: str, queued_s: float) -> str:
    """The span of a job that was claimed now, queued at that Unix time; its context, for the generation."""
    if _tracer is None:
        return ""
    with span("relay.job", parent=context, kind="consumer", start_s=queued_s, attributes=_about(response_id)):
        return traceparent()


def generation(response_id: str, context: str, worker: str) -> "AbstractContextManager[Span | None]":
    """The span of one worker's part of a response."""
    about = _about(response_id) | {"relay.worker": worker}
    return span("relay.generation", parent=context, attributes=about)


def delivery(response_id: str, consumer: str, context: str) -> "AbstractContextManager[Span | None]":
    """The span of one reader, from its attach to its end, linked to its connection's.

    In the trace of the response, whose `context` it is given, so that a sampler keeps all of one or nothing;
    in the connection's where the response has none.
    """
    about = _about(response_id) | {"relay.consumer": consumer}
    link = traceparent() if context else ""
    return span("relay.delivery", parent=context, link=link, kind="producer", attributes=about)


class Appends:
    """The spans of one generation's appends, made as their replies come; ends with its numbers told."""

    def __init__(self, writer: Writes) -> None:
        from opentelemetry.trace import get_current_span  # noqa: PLC0415

        self._writer = writer
        self._generation = get_current_span()
        self._context = traceparent()
        self._head = writer.head
        self.count = 0

    def told(self, head: int) -> None:
        """An append was acknowledged."""
        size, self._head = head - self._head, head
        self.count += 1
        if _tracer is None or not self._generation.is_recording():
            return
        self._generation.set_attribute("relay.appends", self.count)
        self._generation.set_attribute("relay.position", head)
        if self.count > APPENDS_MOST:
            return
        took_s = asyncio.get_running_loop().time() - self._writer.sent_at
        with span(
            "relay.append",
            parent=self._context,
            kind="client",
            start_s=time.time() - took_s,
            attributes={"relay.bytes": size, "relay.position": head, "relay.epoch": self._writer.epoch},
        ):
            pass


def _about(response_id: str) -> dict[str, str | int | float]:
    return {"relay.response": response_id}


def _kind(name: str) -> "SpanKind":
    from opentelemetry.trace import SpanKind  # noqa: PLC0415

    return SpanKind[name.upper()]


def _context(parent: str) -> "Context | None":
    """None, for the current one, without a parent and for one that is malformed."""
    if not parent:
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    return TraceContextTextMapPropagator().extract({TRACEPARENT: parent})


def _links(context: str) -> "list[Link]":
    if not context:
        return []
    from opentelemetry.trace import Link, get_current_span  # noqa: PLC0415

    found = get_current_span(_context(context)).get_span_context()
    return [Link(found)] if found.is_valid else []
