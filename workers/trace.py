"""What this worker did, line by line, for whoever checks histories: `RELAY_TRACE_FILE`, off by default.

    claim ID EPOCH HEAD             it has the lease and goes on from HEAD
    append ID EPOCH BASE END CRC32  Redis has acknowledged these bytes of the journal

Each line is one write(2), so a worker that is killed has told all that it knew. Costs nothing when off: the
writer's callback is wrapped only where a file was asked for.
"""

import os
import zlib
from pathlib import Path
from typing import Protocol

from relay import tracing
from relay.errors import SettingsInvalid
from relay.settings import Settings
from workers.writer import Writer


class Follower(Protocol):
    """Whoever wants to see what a writer writes."""

    def follow(self, response_id: str, writer: Writer) -> None:
        """From its claim on."""
        ...


def follower(settings: Settings) -> Follower | None:
    """What follows the writers here: nobody, the trace file, the spans, or both."""
    found: list[Follower] = [] if settings.trace_file is None else [Trace(settings.trace_file)]
    if tracing.is_on():
        found.append(Spans())
    return Both(found) if len(found) > 1 else next(iter(found), None)


class Both:
    """Several that follow one writer."""

    def __init__(self, followers: list[Follower]) -> None:
        self._followers = followers

    def follow(self, response_id: str, writer: Writer) -> None:
        """Each of them does."""
        for each in self._followers:
            each.follow(response_id, writer)


class Spans:
    """A span for each append, under the span of the generation that is the current one."""

    @staticmethod
    def follow(response_id: str, writer: Writer) -> None:  # noqa: ARG004 the form of a follower
        """From now on."""
        appends, told = tracing.Appends(writer), writer.on_append

        def on_append(head: int) -> None:
            told(head)
            appends.told(head)

        writer.on_append = on_append


class Trace:
    """One per worker process."""

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise SettingsInvalid(f"RELAY_TRACE_FILE={path}: cannot write it: {error.strerror}") from error

    def follow(self, response_id: str, writer: Writer) -> None:
        """Note the claim of a new writer, and each of its appends."""
        self._write(f"claim {response_id} {writer.epoch} {writer.head}\n")
        told = writer.on_append

        def on_append(head: int) -> None:
            data = writer.entry(head)
            if data is not None:
                base, crc = head - len(data), zlib.crc32(data)
                self._write(f"append {response_id} {writer.epoch} {base} {head} {crc}\n")
            told(head)

        writer.on_append = on_append

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._fd)

    def _write(self, line: str) -> None:
        os.write(self._fd, line.encode())
