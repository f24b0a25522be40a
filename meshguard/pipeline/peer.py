"""The peer of a downstream connection: who it is, and the header lines that say so to the upstream.

One per connection; its exchanges share it. INVARIANT: `principal` comes from a verified certificate chain or is None; nothing a
client sends in a header can change it, but for what a listed proxy says on a listener with `caller: xfcc` (`pipeline.callers`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import time
from typing import TYPE_CHECKING, Any

from meshguard.model.principal import Principal
from meshguard.model.reasons import QUARANTINED, Reason
from meshguard.wire import xfcc

if TYPE_CHECKING:
    from meshguard.net.limits import ConnectionLimits
    from meshguard.pipeline.forwarding import Forwarding
    from meshguard.pipeline.plan import Table
    from meshguard.policy.quarantine import Quarantine

__all__ = ["VIA", "Peer", "chained_lines", "forwarded_lines"]

VIA = {"http/1.1": b"via: 1.1 meshguard\r\n", "h2": b"via: 2 meshguard\r\n"}


class Peer:
    """See `model.record.PeerFacts`. `chain` is what the client presented (leaf first, DER): judged again when the trust changes.
    `table` holds the decisions for this identity under `table.snapshot`. `refusal` is why this connection may not be served."""

    __slots__ = (
        "answer_lines",
        "callers",
        "certificate_tag",
        "chain",
        "client_address",
        "client_port",
        "expires",
        "forwarding",
        "limits",
        "lines",
        "listener",
        "local_address",
        "local_port",
        "original",
        "outbound",
        "principal",
        "protocol",
        "proxy",
        "quarantined_until",
        "refusal",
        "serves",
        "table",
        "tls_version",
        "told",
        "trusted_proxy",
    )

    def __init__(self, listener: str, limits: ConnectionLimits, client: tuple[str, int], local: tuple[str, int]) -> None:
        self.listener = listener
        self.limits = limits
        self.client_address, self.client_port = client
        self.local_address, self.local_port = local
        self.principal: Principal | None = None
        self.chain: Sequence[bytes] = ()
        self.expires = float("inf")
        self.protocol = "http/1.1"
        self.tls_version = ""
        self.refusal: Reason | None = None
        self.quarantined_until = 0.0  # epoch seconds, with the refusal QUARANTINED; 0: no end is known
        self.table: Table | None = None
        self.trusted_proxy = False
        self.callers: dict[bytes, Peer] | None = None  # of a proxy that speaks for others: those that it has spoken for
        self.proxy = ""  # the SPIFFE ID of the proxy that speaks for this caller
        self.outbound = False  # the caller is this workload itself
        self.original: tuple[str, int] | None = None  # where a redirected client had connected to
        self.serves: Callable[[str], bool] | None = None  # hosts that the certificate shown is for
        self.forwarding: Forwarding | None = None  # the peer is trusted to tell who its client is
        self.told: tuple[Any, ...] | None = None
        self.answer_lines = b""  # fields of our own answers
        self.certificate_tag = b""
        self.lines = b""

    def judge_again(self, quarantine: Quarantine) -> bool:
        """Whether it is in the quarantine; its requests are then refused."""
        entry = quarantine.find(self.principal.spiffe_id, self.principal.serial, time()) if quarantine and self.principal else None
        if entry is not None:
            self.refusal = QUARANTINED
            self.quarantined_until = entry.until
        return entry is not None


def forwarded_lines(peer: Peer, own_id: str) -> bytes:
    """The lines that tell the upstream about an untrusted client: everything it said of itself was cut before."""
    lines = b"x-forwarded-for: %b\r\nx-forwarded-proto: %b\r\n" % (
        peer.client_address.encode("ascii"),
        b"https" if peer.tls_version else b"http",
    )
    if peer.principal is not None:
        peer.certificate_tag = xfcc.element(own_id, peer.principal)
        lines += b"x-forwarded-client-cert: %b\r\n" % peer.certificate_tag
    return lines + VIA[peer.protocol]


def chained_lines(peer: Peer, specials: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The same behind a trusted proxy: what it said goes on, with this hop appended on the right (RFC 7239 section 4 order)."""
    said: dict[bytes, list[bytes]] = {}
    for name, value in specials:
        said.setdefault(name, []).append(value)
    addresses = b", ".join([*said.get(b"x-forwarded-for", ()), peer.client_address.encode("ascii")])
    proto = said.get(b"x-forwarded-proto", [b""])[-1].lower()
    if proto not in (b"http", b"https"):
        proto = b"https" if peer.tls_version else b"http"
    lines = b"x-forwarded-for: %b\r\nx-forwarded-proto: %b\r\n" % (addresses, proto)
    if b"x-forwarded-host" in said:
        lines += b"x-forwarded-host: %b\r\n" % said[b"x-forwarded-host"][-1]
    certificates = xfcc.join(said.get(b"x-forwarded-client-cert", ()), peer.certificate_tag)
    if certificates:
        lines += b"x-forwarded-client-cert: %b\r\n" % certificates
    return lines + VIA[peer.protocol]
