"""Client sockets that behave badly on purpose: small buffers, resets, and peers that are simply gone.

socket(7), tcp(7). Everything here acts on one connected socket and returns at once.
"""

import ctypes
import fcntl
import socket
import struct
import sys

from relay.errors import Unavailable

_LINUX = sys.platform == "linux"
_SO_ATTACH_FILTER = 26
_FIONREAD = 0x541B
_DROP_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0)  # classic BPF: return 0 bytes of every packet
_ESTABLISHED, _CLOSED = 1, 7  # of include/net/tcp_states.h, the first byte of struct tcp_info
_LINGER_0 = struct.pack("ii", 1, 0)


def unconnected(family: int, receive_buffer: int | None, maxseg: int | None) -> socket.socket:
    """A non-blocking TCP socket. Both sizes in bytes; they must be there before it connects.

    `receive_buffer` decides the window that the peer is offered, `maxseg` the peer's segments too:
    loopback's are of 64 KB, in which a small window does not show.
    """
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if maxseg is not None:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, maxseg)
    except BaseException:
        sock.close()
        raise
    return sock


def vanish(sock: socket.socket) -> None:
    """From now on the peer hears nothing from this socket: no data, no acknowledgement, no FIN, no RST.

    A packet filter on the socket drops whatever arrives, before TCP sees it; as a cable that is pulled.
    It needs no rights. What is closed later says so to the peer. Raises Unavailable outside Linux.
    """
    if not _LINUX:
        raise Unavailable("a vanished reader needs Linux: it is made by a packet filter on its socket")
    instruction = ctypes.create_string_buffer(_DROP_ALL, len(_DROP_ALL))
    program = struct.pack("HL", 1, ctypes.addressof(instruction))  # struct sock_fprog
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def reset(sock: socket.socket) -> None:
    """Close with a RST, whatever is unread or on its way."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
    sock.close()


def ending(sock: socket.socket) -> str:
    """What the peer has done, without reading: `open`, `closed` (a FIN came) or `reset`."""
    if not _LINUX:
        return "open"
    state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[0]
    return {_ESTABLISHED: "open", _CLOSED: "reset"}.get(state, "closed")


def unread(sock: socket.socket) -> int:
    """Bytes that have arrived and that nobody has read."""
    if not _LINUX:
        return 0
    return int.from_bytes(fcntl.ioctl(sock.fileno(), _FIONREAD, b"\0\0\0\0"), sys.byteorder)
