"""Callers that a proxy speaks for: behind a sidecar or gateway that ended their mTLS, X-Forwarded-Client-Cert says who they are (P6).

Only where the listener asks for it (`caller: xfcc`), only from a peer that is authenticated and listed under `trusted_proxies`, and only by
the last element: the nearest hop's word about the one that had connected to it. A proxy that names nobody is no caller itself: the
request is refused, because otherwise a proxy that forgets the field would lend everybody its own rights.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, cast

from meshguard.identity.spiffe import parse_spiffe_id
from meshguard.model.errors import IdentityError, RequestError
from meshguard.model.principal import Principal
from meshguard.model.reasons import CALLER_UNKNOWN
from meshguard.wire.xfcc import last_element

if TYPE_CHECKING:
    from collections.abc import Sequence

    from meshguard.net.stream import Stream
    from meshguard.pipeline.exchange import Exchange
    from meshguard.pipeline.peer import Peer
    from meshguard.pipeline.snapshot import Snapshot
    from meshguard.policy.quarantine import Quarantine

__all__ = ["caller_of", "exchange_of"]

_CALLERS = 256
_REMEMBERED = 2048
"""Callers remembered for a connection, and octets of a value up to which it is: the proxy's clients choose them."""


def caller_of(peer: Peer, specials: Sequence[tuple[bytes, bytes]], snapshot: Snapshot, quarantine: Quarantine) -> Peer:
    """The peer that this request is judged as. Raises RequestError(CALLER_UNKNOWN)."""
    value = b",".join(value for name, value in specials if name == b"x-forwarded-client-cert")
    known = peer.callers.get(value) if peer.callers is not None else None
    if known is not None:
        return known
    made = copy(peer)
    made.callers = made.told = None
    made.principal = principal = _principal(value, peer.principal, snapshot)
    made.proxy = peer.principal.spiffe_id if peer.principal is not None else ""
    made.table = snapshot.table(snapshot.listeners[peer.listener], principal)
    made.judge_again(quarantine)
    if peer.callers is not None and len(value) <= _REMEMBERED:
        if len(peer.callers) >= _CALLERS:
            peer.callers.clear()
        peer.callers[value] = made
    return made


def exchange_of(stream: Stream) -> Exchange:
    """What the journey has put there, or the tunnel that it has become."""
    return cast("Exchange", getattr(stream, "owner", stream))


def _principal(value: bytes, proxy: Principal | None, snapshot: Snapshot) -> Principal:
    """INVARIANT: nobody is vouched for by a proxy of another trust domain than our own, but the workloads of that domain."""
    if proxy is None:
        raise RequestError(CALLER_UNKNOWN, "the proxy has no identity")
    pairs = last_element(value)
    named = [text for key, text in pairs if key == "uri"]
    if len(named) != 1:
        raise RequestError(CALLER_UNKNOWN, f"{len(named)} identities in the last element of x-forwarded-client-cert")
    if any(text != proxy.spiffe_id for key, text in pairs if key == "by"):
        raise RequestError(CALLER_UNKNOWN, "the last element of x-forwarded-client-cert is of another hop")
    try:
        caller = parse_spiffe_id(named[0])
        own = parse_spiffe_id(snapshot.own_id).trust_domain
    except IdentityError as exc:
        raise RequestError(CALLER_UNKNOWN, exc.code) from exc
    if not caller.path:
        raise RequestError(CALLER_UNKNOWN, "spiffe_path_root")
    if proxy.trust_domain not in (own, caller.trust_domain):
        raise RequestError(CALLER_UNKNOWN, "a proxy of another trust domain")
    if snapshot.trust is None or caller.trust_domain not in snapshot.trust.trust_domains:
        raise RequestError(CALLER_UNKNOWN, "trust_domain_unknown")
    return Principal(caller.uri, caller.trust_domain, caller.path, proxy.not_before, proxy.not_after, "", "")
