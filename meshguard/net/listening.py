"""Listening sockets: how an address is taken. The light half of `net.listener`: a supervisor binds with it and loads nothing else.

Several processes share a port in one of two ways. Sockets with SO_REUSEPORT form a group, and the kernel deals new connections out
over its members by a hash of the addresses; or one socket is held by several processes, and whoever accepts first has the
connection. A socket lives as long as any process holds it: what waits in its accept queue is lost only when the last one closes it.
That is why sockets are handed from process to process here and are never bound anew while something may wait in them.
"""

from __future__ import annotations

import socket

__all__ = ["bind"]


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A non-blocking TCP socket bound to the address, not listening yet. `shared` joins (or begins) a group on the port, which the
    kernel allows to processes of the same user only. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("127.0.0.1" if host == "localhost" else host, port))
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
