"""Who a request came from, as proxies before us tell it: X-Forwarded-For and Forwarded (RFC 7239), read and written.

Both are lists to which each proxy appends the address it sees, so only what trusted proxies appended may be believed: it is read from the
right. An entry that is no address (`unknown`, an obfuscated name, garbage) ends what can be known; it is told as "".
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

__all__ = [
    "Hop", "Network", "client_by_count", "client_by_networks", "forwarded_line", "is_within", "parse_forwarded", "parse_forwarded_for",
    "parse_host", "parse_networks", "parse_proto",
]  # fmt: skip

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
MAX_HOPS = 64
"""Entries looked at, from the right: an honest chain has a handful."""

_V4_PORT = re.compile(r"([0-9.]+):[0-9]{1,5}\Z")
_V6_PORT = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?\Z")
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
# RFC 7239 section 4: a list of elements, each a list of token "=" ( token / quoted-string ), both may have empty members
_PAIR = re.compile(rb"[ \t]*(" + _TOKEN + rb")=(?:(" + _TOKEN + rb")|\"((?:[^\"\\\x00-\x08\x0a-\x1f\x7f]|\\[\t\x20-\x7e])*)\")[ \t]*")
_QUOTED_PAIR = re.compile(rb"\\(.)")
_HOST = re.compile(rb"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*)|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?\Z")


class Hop:
    """One element: the `address` that a proxy saw ("" when it does not tell one), and what it told of the request it received."""

    __slots__ = ("address", "host", "proto")

    def __init__(self, address: str, proto: bytes = b"", host: bytes = b"") -> None:
        self.address = address
        self.proto = proto
        self.host = host


def parse_forwarded_for(lines: Sequence[bytes]) -> list[Hop]:
    """The entries of X-Forwarded-For over all its lines, in order, the last MAX_HOPS of them. Ports are dropped."""
    entries = [entry for line in lines for entry in line.split(b",")][-MAX_HOPS:]
    return [Hop(_address(entry.strip(b" \t").decode("latin-1"))) for entry in entries]


def parse_forwarded(lines: Sequence[bytes]) -> list[Hop]:
    """The elements of Forwarded over all its lines, in order, the last MAX_HOPS of them. A line that does not parse tells nothing, nor
    does anything before it: where its quotes end cannot be known, and an open one would swallow what was appended behind it."""
    hops: list[Hop] = []
    for line in lines:
        found = _elements(line)
        if found is None:
            hops = [Hop("")]
        else:
            hops += found
    return hops[-MAX_HOPS:]


def _elements(line: bytes) -> list[Hop] | None:
    hops: list[Hop] = []
    pairs: dict[bytes, bytes] = {}
    at = 0
    while True:
        match = _PAIR.match(line, at)
        if match is not None:
            name = match[1].lower()
            if name in pairs:
                return None  # RFC 7239 section 4: each parameter once
            pairs[name] = match[2] if match[2] is not None else _QUOTED_PAIR.sub(rb"\1", match[3])
            at = match.end()
        else:
            while at < len(line) and line[at] in b" \t":
                at += 1
        if at == len(line) or line[at] == 0x2C:
            if pairs:
                address = _address(pairs.get(b"for", b"").decode("latin-1"))
                hops.append(Hop(address, parse_proto(pairs.get(b"proto", b"")), parse_host(pairs.get(b"host", b""))))
                pairs = {}
            if at == len(line):
                return hops
        elif line[at] != 0x3B:
            return None
        at += 1


def _address(text: str) -> str:
    """The canonical text of an address, with or without port and brackets; "" for anything else."""
    match = _V6_PORT.match(text) or _V4_PORT.match(text)
    if match is not None:
        text = match[1]
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return ""
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return str(mapped or ip)


def client_by_count(hops: Sequence[Hop], count: int) -> int:
    """Index of the client in `hops` (the connection's own peer as the last) behind `count` trusted proxies."""
    return _known(hops, max(0, len(hops) - 1 - count))


def client_by_networks(hops: Sequence[Hop], networks: Sequence[Network]) -> int:
    """Index of the client: the first address from the right that is in none of the trusted `networks`; the leftmost when all are."""
    for index in range(len(hops) - 1, -1, -1):
        text = hops[index].address
        if not text:
            return _known(hops, index)
        if not is_within(text, networks):
            return index
    return 0


def parse_networks(texts: Sequence[str]) -> tuple[Network, ...]:
    """`10.0.0.0/8`, `fe80::/10`, single addresses. Raises ValueError."""
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


def is_within(address: str, networks: Sequence[Network]) -> bool:
    """Whether the address (canonical text) is in one of the networks."""
    if not networks:
        return False
    ip = ipaddress.ip_address(address)
    return any(ip.version == network.version and ip in network for network in networks)


def _known(hops: Sequence[Hop], index: int) -> int:
    """The first hop from `index` on behind which every address is told: what a proxy could not read, it cannot vouch for."""
    for at in range(len(hops) - 1, index - 1, -1):
        if not hops[at].address:
            return at + 1
    return index


def parse_proto(value: bytes) -> bytes:
    """`http` or `https`, else nothing."""
    lowered = value.lower()
    return lowered if lowered in (b"http", b"https") else b""


def parse_host(value: bytes) -> bytes:
    """A host with optional port, else nothing."""
    return value if _HOST.match(value) else b""


def forwarded_line(hops: Sequence[Hop]) -> bytes:
    """The field line. IPv6 addresses stand in brackets *and* quotes (RFC 7239 section 6), hosts in quotes when they have a port."""
    return b"forwarded: %b\r\n" % b", ".join(map(_element, hops))


def _element(hop: Hop) -> bytes:
    address = hop.address.encode("ascii")
    text = b'for="[%b]"' % address if b":" in address else b"for=%b" % (address or b"unknown")
    if hop.proto:
        text += b";proto=%b" % hop.proto
    if hop.host:
        text += b';host="%b"' % hop.host if b":" in hop.host else b";host=%b" % hop.host
    return text
