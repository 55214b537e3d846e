"""Bytes of an HTTP/1.1 answer to Server-Sent Events frames, for the load clients. Pure; no sockets.

Only what a relay node writes is understood, and that quickly: chunked encoding (RFC 9112, section 7.1)
and frames with `\\n` line ends. The common case, one read that holds exactly one chunk of whole frames,
takes a few slices; every other way of cutting the same bytes gives the same frames.
"""

from typing import NamedTuple

from relay.errors import WireProtocol

_HEAD_MAX = 16 * 1024  # no node writes longer headers; an answer that never ends its head is not HTTP
_CHUNK_LINE_MAX = 128


class Head(NamedTuple):
    """The head of an answer."""

    status: int
    headers: dict[bytes, bytes]


def split_head(data: bytes) -> tuple[Head, bytes] | None:
    """The head and the bytes behind it, or None while the head is not complete.

    Raises WireProtocol when it is not an HTTP/1.1 head, or over 16 KiB.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > _HEAD_MAX:
            raise WireProtocol("the head of the answer does not end")
        return None
    status, *lines = data[:end].split(b"\r\n")
    parts = status.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1].isdigit():
        raise WireProtocol(f"not an HTTP/1.1 answer: {status[:80]!r}")
    headers = {}
    for line in lines:
        name, _, value = line.partition(b":")
        headers[name.strip().lower()] = value.strip()
    return Head(int(parts[1]), headers), data[end + 4 :]


class Chunks:
    """The content of a chunked body, fed in pieces of any size. Trailers are left out."""

    __slots__ = ("_left", "_raw", "ended")

    def __init__(self) -> None:
        self._raw = b""  # the start of a chunk's size line, or the rest of the line end behind a chunk
        self._left = 0  # bytes still to come of a chunk that was cut, its line end included
        self.ended = False  # the last chunk has been seen

    def content(self, data: bytes) -> bytes:
        """What `data` holds besides framing. Raises WireProtocol when the chunked encoding is broken."""
        out: list[bytes] = []
        data = self._raw + data
        at, total = 0, len(data)
        self._raw = b""
        while at < total and not self.ended:
            if not self._left:
                line = data.find(b"\r\n", at, at + _CHUNK_LINE_MAX)
                if line < 0:
                    if total - at >= _CHUNK_LINE_MAX:
                        raise WireProtocol("not a chunk: its size line does not end")
                    self._raw = data[at:]
                    break
                size = _size(data, line, at)
                at = line + 2
                if not size:
                    self.ended = True
                    break
                self._left = size + 2
            piece = data[at : at + self._left]
            at += len(piece)
            # The chunk's own line end is counted in `_left`, and is not content.
            out.append(piece[: max(0, self._left - 2)])
            self._left -= len(piece)
        return b"".join(out)


class Frames(Chunks):
    """The frames of a chunked answer of a relay node."""

    __slots__ = ("_tail",)

    def __init__(self) -> None:
        super().__init__()
        self._tail = b""  # a frame that was cut

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that `data` completes, without the empty line that ends each.

        Raises WireProtocol when the chunked encoding is broken.
        """
        if not self._raw and not self._left:
            line = data.find(b"\r\n", 0, _CHUNK_LINE_MAX)
            if line > 0:
                size = _size(data, line)
                if size and line + size + 4 == len(data):
                    return self._frames(data[line + 2 : -2])
        return self._frames(self.content(data))

    def _frames(self, content: bytes) -> list[bytes]:
        if self._tail:
            content = self._tail + content
        frames = content.split(b"\n\n")
        self._tail = frames.pop()
        return frames


def _size(data: bytes, end: int, start: int = 0) -> int:
    line = data[start:end]
    try:
        # Behind a semicolon stand extensions, which the RFC allows and no node of ours writes.
        size = int(line if line.isalnum() else line.partition(b";")[0], 16)
    except ValueError:
        size = -1
    if size < 0:
        raise WireProtocol(f"not a chunk size: {line[:40]!r}")
    return size


def fields(frame: bytes) -> tuple[bytes, bytes, bytes]:
    """Event name, id and data of one frame; empty where it has none. Comments are left out."""
    name = ident = b""
    data: list[bytes] = []
    for line in frame.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            name = value
        elif field == b"id":
            ident = value
        elif field == b"data":
            data.append(value)
    return name, ident, b"\n".join(data)
