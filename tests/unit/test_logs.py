"""Log lines: JSON, with the response's id, and without anybody's text."""

import ast
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import structlog

from relay import logs
from relay.ladder import Decision, Kind, Level, Step, Terms
from relay.settings import Settings
from workers.governor import Governor
from workers.metrics import Metrics
from workers.sources.openai_errors import in_stream, refusal

ROOT = Path(__file__).parents[2]
METHODS = frozenset(("debug", "info", "warning", "error", "exception", "critical"))


def calls() -> Iterator[tuple[str, ast.Call]]:
    """Every `log.METHOD(...)` of the code, with where it stands."""
    for package in ("relay", "workers", "api"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if (
                    isinstance(node, ast.Call)
                    and isinstance(node.func, ast.Attribute)
                    and node.func.attr in METHODS
                    and isinstance(node.func.value, ast.Name)
                    and node.func.value.id == "log"
                ):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_no_call_gives_a_field_that_the_line_has_by_itself() -> None:
    """`level=` once stood for the ladder's, and came out as the severity. `exc_info` is for that purpose."""
    found = list(calls())
    assert len(found) > 20
    given = {
        where: {word.arg for word in call.keywords} & (logs.RESERVED - {"exc_info"}) for where, call in found
    }
    assert {where: names for where, names in given.items() if names} == {}


def test_an_event_is_a_plain_word_and_never_made_of_values() -> None:
    """Values are fields: a line can be found by its event, and no text hides in it."""
    for where, call in calls():
        event = call.args[0]
        if isinstance(event, ast.IfExp):
            assert isinstance(event.body, ast.Constant), where
            assert isinstance(event.orelse, ast.Constant), where
        else:
            assert isinstance(event, ast.Constant), where
            assert str(event.value).isidentifier(), where


def lines(code: str, **settings: object) -> list[dict[str, Any]]:
    """What a process logs that configures its logs and runs this code."""
    whole = (
        "import asyncio, logging, structlog\nfrom relay import logs\nfrom relay.settings import Settings\n"
        f"logs.configure(Settings(**{settings!r}))\nlog = structlog.get_logger('x')\n{code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", whole], check=True, timeout=30, capture_output=True, text=True, env={}, cwd="/"
    )
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_text_is_dropped_unless_it_is_asked_for() -> None:
    """Whatever a caller of the log gives under the names that may hold some."""
    code = "log.warning('source_failed', response='rs_1', code='c', said='the prompt', prompt='p', text='t')"
    (quiet,) = lines(code)
    assert (
        quiet.items()
        >= {"event": "source_failed", "response": "rs_1", "code": "c", "level": "warning"}.items()
    )
    assert not quiet.keys() & logs.TEXT_FIELDS
    (loud,) = lines(code, log_text=True)
    assert loud["said"] == "the prompt"


def test_what_an_upstream_says_of_a_prompt_is_text() -> None:
    """A refusal that repeats the prompt: its code and our own words are logged, its words are not."""
    body = b'{"error": {"message": "cannot read: MY-SECRET-PROMPT"}}'
    for status in (400, 422, 500):
        fields = refusal(status, {}, body, secret=None).logged
        kept = logs._without_text(None, "warning", {"event": "source_failed", **fields})
        assert kept["code"].startswith("upstream_")
        assert str(status) in kept["error"]
        assert "SECRET" not in json.dumps(kept)
    fields = in_stream("odd: MY-SECRET-PROMPT", secret=None).logged
    assert "SECRET" in fields["said"]
    assert "SECRET" not in fields["error"]


def test_what_other_libraries_log_is_json_too() -> None:
    """One warning, with its logger's name; what they tell at info is not wanted."""
    code = "l = logging.getLogger('uvicorn.error')\nl.info('started')\nl.warning('odd %s', 'thing')"
    (line,) = lines(code)
    assert (line["event"], line["level"], line["logger"]) == ("odd thing", "warning", "uvicorn.error")


def test_a_traceback_is_one_line() -> None:
    """A collector of logs takes a line for an event."""
    code = "try:\n    1/0\nexcept ZeroDivisionError:\n    log.exception('broke')"
    (line,) = lines(code)
    assert "ZeroDivisionError" in line["exception"]


async def test_each_step_of_the_ladder_is_one_line_with_its_level_and_reason() -> None:
    """As it is one event of the stream and one count of a metric."""
    terms = Terms(window_bytes=1024, flush_s=0.01, pause_max_s=1, abandon_after_s=1, background=False)
    writer: Any = SimpleNamespace(flush_s=0.0)
    readers: Any = SimpleNamespace()
    metrics = Metrics()
    told: list[Step] = []
    governor = Governor("rs_1", readers, writer, terms, metrics, tell=told.append, abandon=lambda: None)
    steps = (
        Step(Kind.COALESCING, Level.COALESCE, "behind"),
        Step(Kind.PAUSED, Level.PAUSE, "the window is full"),
    )
    with structlog.testing.capture_logs() as captured:
        governor._apply(Decision(Level.PAUSE, 0.1, steps=steps))
    assert [(line["kind"], line["ladder"], line["reason"]) for line in captured] == [
        ("coalescing", 1, "behind"),
        ("paused", 3, "the window is full"),
    ]
    assert {line["response"] for line in captured} == {"rs_1"}
    assert [step.kind for step in told] == [Kind.COALESCING, Kind.PAUSED]
    governor.end()


def test_the_root_logger_is_left_as_it_was_found() -> None:
    """Importing the module configures nothing."""
    assert Settings().log_text is False
    assert all(type(handler).__module__ != "structlog.stdlib" for handler in logging.getLogger().handlers)
