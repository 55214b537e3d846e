"""Structured logs on stderr: JSON lines, or the console's form. No prompt or token text is ever logged."""

import logging
import os
import sys

import structlog

from relay.settings import Settings, misspelt


def configure(settings: Settings) -> None:
    """Set structlog up once per process, and warn of variables that nothing reads."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[settings.log_level.upper()]
        ),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    if unknown := misspelt(os.environ):
        structlog.get_logger("relay").warning("unknown_variables_ignored", nearest=unknown)
