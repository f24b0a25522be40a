"""Who the client is and what the upstream is told of it, under one listener's rules (`wire.forwarded` reads and writes the fields).

The client's address is determined once for each request, from what trusted proxies appended, and everybody uses that one: the record,
rate limits, and the fields sent on. What stands left of it is the client's own claim and goes no further.

Only listeners that trust somebody, or write other fields than X-Forwarded-*, have one of these: `peer.forwarded_lines` serves the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from meshguard.pipeline.peer import VIA, chained_lines, forwarded_lines
from meshguard.wire import xfcc
from meshguard.wire.forwarded import (
    Hop,
    Network,
    client_by_count,
    client_by_networks,
    forwarded_line,
    is_within,
    parse_forwarded,
    parse_forwarded_for,
    parse_host,
    parse_proto,
)

if TYPE_CHECKING:
    from meshguard.pipeline.peer import Peer

__all__ = ["Forwarding"]

X_FORWARDED, RFC_7239, NONE = "x-forwarded", "rfc7239", "none"


class Forwarding:
    """`kind` is which fields are written, and read from trusted peers. Trusted are the `count` proxies in front, or those in `networks`,
    or (by its identity) a peer with `trusted_proxy`."""

    __slots__ = ("_count", "_kind", "_networks")

    def __init__(self, kind: str = X_FORWARDED, count: int = 0, networks: Sequence[Network] = ()) -> None:
        self._kind = kind
        self._count = count
        self._networks = tuple(networks)

    def lines(self, peer: Peer, own_id: str) -> bytes:
        """The lines about a client that nobody vouches for: everything it said of itself was cut."""
        lines = forwarded_lines(peer, own_id)  # also makes the peer's certificate tag
        if self._kind == X_FORWARDED:
            return lines
        return (forwarded_line([_own(peer)]) if self._kind == RFC_7239 else b"") + _certificates(peer, ()) + VIA[peer.protocol]

    def trusts(self, peer: Peer) -> bool:
        """Whether what the peer says of its client is believed."""
        if self._kind == NONE:
            return peer.trusted_proxy  # for its XFCC
        return peer.trusted_proxy or self._count > 0 or is_within(peer.client_address, self._networks)

    def judge(self, peer: Peer, specials: Sequence[tuple[bytes, bytes]]) -> tuple[str, bytes]:
        """(address of the client, lines for the upstream) of a request from a trusted peer."""
        said: dict[bytes, list[bytes]] = {}
        for name, value in specials:
            said.setdefault(name, []).append(value)
        if self._kind == NONE:
            return peer.client_address, _certificates(peer, said.get(b"x-forwarded-client-cert", ())) + VIA[peer.protocol]
        hops = self._hops(said)
        hops.append(_own(peer))
        client = client_by_networks(hops, self._networks) if self._networks else client_by_count(hops, self._count or 1)
        address = hops[client].address
        if not (self._count or self._networks):
            if self._kind == X_FORWARDED:
                return address, chained_lines(peer, specials)  # an authenticated proxy: what it said goes on as it is
            client = 0
        hops = hops[client:]
        certificates = _certificates(peer, said.get(b"x-forwarded-client-cert", ()))
        if self._kind == RFC_7239:
            return address, forwarded_line(hops) + certificates + VIA[peer.protocol]
        return address, _x_forwarded(hops, said) + certificates + VIA[peer.protocol]

    def _hops(self, said: dict[bytes, list[bytes]]) -> list[Hop]:
        if self._kind == RFC_7239:
            return parse_forwarded(said.get(b"forwarded", ()))
        return parse_forwarded_for(said.get(b"x-forwarded-for", ()))


def _own(peer: Peer) -> Hop:
    return Hop(peer.client_address, b"https" if peer.tls_version else b"http")


def _certificates(peer: Peer, received: Sequence[bytes]) -> bytes:
    """INVARIANT: certificates of others are believed only from a proxy that has proven who it is, never by address."""
    value = xfcc.join(received if peer.trusted_proxy else (), peer.certificate_tag if peer.principal is not None else b"")
    return b"x-forwarded-client-cert: %b\r\n" % value if value else b""


def _x_forwarded(hops: Sequence[Hop], said: dict[bytes, list[bytes]]) -> bytes:
    addresses = ", ".join(hop.address for hop in hops if hop.address).encode("ascii")
    proto = parse_proto(said.get(b"x-forwarded-proto", (b"",))[-1]) or hops[-1].proto
    lines = b"x-forwarded-for: %b\r\nx-forwarded-proto: %b\r\n" % (addresses, proto)
    host = parse_host(said.get(b"x-forwarded-host", (b"",))[-1])
    return lines + b"x-forwarded-host: %b\r\n" % host if host else lines
