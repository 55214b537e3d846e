"""Structured logs on stderr: JSON lines, or the console's form; of other libraries too.

No prompt and no token text is in them unless RELAY_LOG_TEXT asks for it: what may hold some is in the
fields of TEXT_FIELDS and nowhere else, and these are dropped here. The fields that a line has by itself
are RESERVED: a caller's field of that name would be overwritten, so none is given.
"""

import logging
import os
import sys

import structlog
from structlog.typing import EventDict, Processor

from relay.settings import Settings, misspelt

TEXT_FIELDS = frozenset(("prompt", "said", "text"))
RESERVED = frozenset(("event", "exc_info", "exception", "level", "logger", "stack_info", "timestamp"))


def configure(settings: Settings) -> None:
    """Set structlog up once per process, and warn of variables that nothing reads."""
    least = logging.getLevelNamesMapping()[settings.log_level.upper()]
    renderer: Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer()
    )
    first: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = [structlog.processors.format_exc_info, renderer]
    structlog.configure(
        processors=[*first, *([] if settings.log_text else [_without_text]), *last],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    _take_over(first, last, least)
    if unknown := misspelt(os.environ):
        structlog.get_logger("relay").warning("unknown_variables_ignored", nearest=unknown)


def _without_text(_logger: object, _method: str, event: EventDict) -> EventDict:
    return {name: value for name, value in event.items() if name not in TEXT_FIELDS}


def _take_over(first: list[Processor], last: list[Processor], least: int) -> None:
    """What asyncio, uvicorn and others log through the standard library: warnings, in the same form."""
    handler = logging.StreamHandler(sys.stderr)
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    named = structlog.stdlib.add_logger_name
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=[*first, named], processors=[remove, *last])
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(least, logging.WARNING))
