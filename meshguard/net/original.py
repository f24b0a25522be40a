"""Where a redirected client had connected to, before netfilter sent it here.

REDIRECT rewrites the destination, and connection tracking remembers the first one: SO_ORIGINAL_DST (linux/netfilter_ipv4.h, and its twin in
netfilter_ipv6/ip6_tables.h). TPROXY rewrites nothing: the accepted socket has the first destination as its own address.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any, Literal

__all__ = ["CaptureMode", "make_transparent", "original_destination"]

CaptureMode = Literal["none", "redirect", "tproxy"]

_SO_ORIGINAL_DST = 80
_IP_TRANSPARENT = 19  # linux/in.h
_IPV6_TRANSPARENT = 75  # linux/in6.h
_ANY = ("0.0.0.0", "::")  # noqa: S104  # compared, never bound


def make_transparent(sock: socket.socket) -> None:
    """Lets a listening socket take connections to any address (TPROXY). Raises PermissionError without CAP_NET_ADMIN."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)


def original_destination(transport_socket: Any, mode: CaptureMode, listening: tuple[str, int]) -> tuple[str, int] | None:
    """(address, port) that the client of an accepted connection wanted; None when it wanted this listener.

    `listening` is the listener's own address, `transport_socket` what the transport gives as `socket`."""
    if mode == "redirect":
        return _tracked(transport_socket)
    host, port = transport_socket.getsockname()[:2]
    direct = port == listening[1] and listening[0] in (host, *_ANY)
    return None if direct else (str(host), int(port))


def _tracked(transport_socket: Any) -> tuple[str, int] | None:
    """What connection tracking remembers. Without an entry (ENOENT) nothing was redirected."""
    # a copy of the descriptor: the loop's own socket object offers no getsockopt with a buffer, and must not be closed here
    with socket.socket(fileno=os.dup(transport_socket.fileno())) as sock:
        own = sock.getsockname()[:2]
        try:
            if sock.family == socket.AF_INET6:
                data = sock.getsockopt(socket.IPPROTO_IPV6, _SO_ORIGINAL_DST, 28)  # struct sockaddr_in6
                found = socket.inet_ntop(socket.AF_INET6, data[8:24]), struct.unpack_from("!H", data, 2)[0]
            else:
                data = sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)  # struct sockaddr_in
                found = socket.inet_ntop(socket.AF_INET, data[4:8]), struct.unpack_from("!H", data, 2)[0]
        except OSError:
            return None
    return None if found == (own[0], own[1]) else found
