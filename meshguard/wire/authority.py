"""The authority of a request (RFC 9110 section 7.2): exactly one host, optionally a port, nothing else."""

from __future__ import annotations

import functools
from ipaddress import IPv6Address

from meshguard.model.errors import RequestError
from meshguard.model.reasons import AMBIGUOUS_AUTHORITY
from meshguard.wire.grammar import AUTHORITY

__all__ = ["parse_authority"]


@functools.lru_cache(maxsize=1024)  # bounded: the names come from clients
def parse_authority(text: bytes) -> tuple[bytes, str]:
    """(authority to send upstream, host for matching).

    Lower case, trailing dot and an empty port removed. Raises RequestError(AMBIGUOUS_AUTHORITY) for user info, lists, paths, a bad
    port, an empty name or anything outside the grammar.
    """
    match = AUTHORITY(text)
    if match is None:
        raise RequestError(AMBIGUOUS_AUTHORITY, "not a host with an optional port")
    host, port = match.groups()
    host = host.lower()
    if host.startswith(b"["):
        try:
            IPv6Address(host[1:-1].decode("ascii"))
        except ValueError as exc:
            raise RequestError(AMBIGUOUS_AUTHORITY, "not an IPv6 address") from exc
    else:
        host = host.removesuffix(b".")
        if b".." in host or host.endswith((b".", b"-")) or len(host) > 253:
            raise RequestError(AMBIGUOUS_AUTHORITY, "not a host name")
    if port and int(port) > 65535:
        raise RequestError(AMBIGUOUS_AUTHORITY, "port out of range")
    return (host + b":" + port if port else host), host.decode("ascii")
