"""Which addresses a destination may have: never one of ours, never one that is no single machine.

Judged at the dial, on the address that a name has led to: a name can lead anywhere, and to somewhere else a second later.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from meshguard.model.errors import UpstreamError
from meshguard.model.reasons import DESTINATION_REFUSED, LOOP_DETECTED
from meshguard.wire.forwarded import Network

__all__ = ["AddressGuard", "is_literal", "is_local"]

_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_literal(host: str) -> bool:
    """Whether a resolver would take `host` for an address: also in brackets, and in the spellings of inet_aton(3) (`127.1`,
    `0x7f000001`, `2130706433`), which name an address without looking like one."""
    try:
        socket.inet_aton(host)
    except (OSError, UnicodeError):
        return host.startswith("[") or ":" in host
    return True


def is_local(ip: _Ip) -> bool:
    """Whether `ip` belongs to this machine (this network namespace): the kernel lets a socket have it. About 5 us."""
    if ip.is_loopback:
        return True
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(ip), 0))
        except OSError:
            return False
    return True


class AddressGuard:
    """`own` are the (host, port) that this process listens on, `refused` the networks that no destination may be in."""

    __slots__ = ("_own", "_refused")

    def __init__(self, own: Sequence[tuple[str, int]], refused: Sequence[Network]) -> None:
        self._own = [(_plain(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)), port) for host, port in own]
        self._refused = tuple(refused)

    def judge(self, host: str, port: int) -> None:
        """Raises UpstreamError: LOOP_DETECTED for an address of our own listeners, DESTINATION_REFUSED for one that is refused."""
        ip = _plain(ipaddress.ip_address(host.partition("%")[0]))
        if ip.is_unspecified or ip.is_multicast or (ip.version == 4 and int(ip) == 0xFFFFFFFF):
            raise UpstreamError(DESTINATION_REFUSED, f"{host} is no address of one machine")
        if any(ip.version == network.version and ip in network for network in self._refused):
            raise UpstreamError(DESTINATION_REFUSED, f"{host} is in a refused range")
        for bound, own_port in self._own:
            if own_port == port and (bound == ip or (bound.is_unspecified and bound.version == ip.version and is_local(ip))):
                raise UpstreamError(LOOP_DETECTED, f"{host}:{port} is this proxy")


def _plain(ip: _Ip) -> _Ip:
    """An IPv4 address that is written as an IPv6 one is that IPv4 address (RFC 4291 section 2.5.5.2)."""
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip
