"""The authority of a request (RFC 9110 section 7.2): exactly one host, optionally a port, nothing else."""

from __future__ import annotations

import functools
import ipaddress

from meshguard.model.errors import RequestError
from meshguard.model.reasons import AMBIGUOUS_AUTHORITY
from meshguard.wire.grammar import AUTHORITY

__all__ = ["parse_authority"]


@functools.lru_cache(maxsize=1024)  # bounded: the names come from clients
def parse_authority(text: bytes) -> tuple[bytes, str]:
    """(authority to send upstream, host for matching).

    Lower case, one spelling of an IPv6 address (RFC 5952) and of a port, trailing dot and an empty port removed. Raises
    RequestError(AMBIGUOUS_AUTHORITY) for user info, lists, paths, a bad address or port, an empty name or anything outside the grammar.
    """
    match = AUTHORITY(text)
    if match is None:
        raise RequestError(AMBIGUOUS_AUTHORITY, "not a host with an optional port")
    host, port = match.groups()
    host = host.lower()
    if host.startswith(b"["):
        try:
            host = b"[%b]" % str(ipaddress.IPv6Address(host[1:-1].decode("ascii"))).encode("ascii")
        except ValueError as exc:
            raise RequestError(AMBIGUOUS_AUTHORITY, "not an IPv6 address") from exc
    else:
        host = host.removesuffix(b".")
        if host.endswith(b"-") or len(host) > 253 or not all(0 < len(label) < 64 for label in host.split(b".")):
            raise RequestError(AMBIGUOUS_AUTHORITY, "not a host name")
    if not port:
        return host, host.decode("ascii")
    number = int(port)
    if number > 65535:
        raise RequestError(AMBIGUOUS_AUTHORITY, "port out of range")
    return b"%b:%d" % (host, number), host.decode("ascii")
