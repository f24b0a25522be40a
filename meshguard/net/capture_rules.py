"""The netfilter rules that send traffic of other processes through our listeners, as text for `nft -f`.

Everything is in one table of our own, which is replaced as a whole in one transaction: applying twice is applying once, and removing the
table removes everything. What the proxy itself sends is exempt, or its calls would come back to it.

    application --connect--> output: not ours, not local, not excluded, a captured port --> outbound listener
    other machine --connect--> prerouting: a captured port --> inbound listener

IPv4 and IPv6 have listeners of their own. A family without one is sent to the other's port all the same: nothing listens there, so its
connections are refused instead of going past.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

__all__ = ["TABLE", "CaptureRules", "Door", "remove_script", "routing_commands"]

TABLE = "meshguard"
MARK = 0x6D67
"""Mark of packets on their way to a transparent listener; also the number of the routing table that brings them to it."""
_MANGLE, _DSTNAT = -150, -100
_FAMILY = {4: "ip", 6: "ip6"}


@dataclass(frozen=True, slots=True)
class Door:
    """A listener that takes redirected connections of one IP `version`. `ports` are the destination ports it takes; empty: all."""

    port: int
    version: int
    outbound: bool
    transparent: bool
    ports: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CaptureRules:
    """What to capture. The proxy is known by `uids`, `gids` or `marks`; `excluded` networks and `excluded_ports` are left alone."""

    doors: Sequence[Door]
    uids: Sequence[int] = ()
    gids: Sequence[int] = ()
    marks: Sequence[int] = ()
    excluded: Sequence[str] = ()
    excluded_ports: Sequence[int] = ()

    def __post_init__(self) -> None:
        for text in self.excluded:
            ipaddress.ip_network(text, strict=False)
        if any(door.outbound for door in self.doors) and not (self.uids or self.gids or self.marks):
            raise ValueError("who the proxy is (a user, a group or a mark): its own calls must not be captured")
        for door in self.doors:
            if not door.outbound and not door.ports:
                raise ValueError("the application's ports: an inbound listener cannot take all ports of the machine")
        for outbound in (True, False):
            chosen = [door for door in self.doors if door.outbound is outbound]
            if len({door.version for door in chosen}) < len(chosen) or len({door.transparent for door in chosen}) > 1:
                raise ValueError("for each direction one listener of an address family at most, and one way: redirect or tproxy")

    @property
    def transparent(self) -> bool:
        """Routing is needed besides the table."""
        return any(door.transparent for door in self.doors)

    def script(self) -> str:
        """Makes the table, and nothing else, what it should be: one transaction."""
        return "\n".join([*_cleared(), f"table inet {TABLE} {{", *(f"\t{line}" for line in self._chains()), "}", ""])

    def _chains(self) -> Iterator[str]:
        out, inward = self._direction(outbound=True), self._direction(outbound=False)
        if out:
            if out[0].transparent:
                kind, lines = f"type route hook output priority {_MANGLE}", [_captured(out[0], f"meta mark set {MARK:#x}")]
            else:
                kind, lines = f"type nat hook output priority {_DSTNAT}", [_redirected(door) for door in out]
            yield from _chain("output", kind, [*self._own(), "fib daddr type local return", *self._left_alone(), *lines])
        if inward and not inward[0].transparent:
            lines = ["fib daddr type != local return", *self._left_alone("saddr"), *map(_redirected, inward)]
            yield from _chain("inward", f"type nat hook prerouting priority {_DSTNAT}", lines)
        if self.transparent:
            yield from _chain("transparent", f"type filter hook prerouting priority {_MANGLE}", list(self._to_transparent(out, inward)))

    def _direction(self, *, outbound: bool) -> list[Door]:
        """The listener of IPv4 and that of IPv6; empty when there is none."""
        doors = {door.version: door for door in self.doors if door.outbound is outbound}
        return [replace(doors.get(version) or next(iter(doors.values())), version=version) for version in (4, 6)] if doors else []

    def _to_transparent(self, out: Sequence[Door], inward: Sequence[Door]) -> Iterator[str]:
        # INVARIANT: a packet of a connection that a transparent socket already has goes to that socket
        yield f"meta l4proto tcp socket transparent 1 meta mark set {MARK:#x} accept"
        for door in out:
            if door.transparent:
                yield f"meta mark {MARK:#x} iif lo meta l4proto tcp tproxy {_FAMILY[door.version]} to :{door.port} accept"
        if inward and inward[0].transparent:
            yield "fib daddr type != local return"
            yield from self._left_alone("saddr")
            for door in inward:
                yield _captured(door, f"tproxy {_FAMILY[door.version]} to :{door.port} meta mark set {MARK:#x} accept")

    def _own(self) -> Iterator[str]:
        for name, values in (("skuid", self.uids), ("skgid", self.gids), ("mark", self.marks)):
            if values:
                yield f"meta {name} {_set(values)} return"

    def _left_alone(self, direction: str = "daddr") -> Iterator[str]:
        for version, family in ((4, "ip"), (6, "ip6")):
            networks = [ipaddress.ip_network(text, strict=False) for text in self.excluded]
            chosen = [str(network) for network in ipaddress.collapse_addresses([n for n in networks if n.version == version])]  # type: ignore[type-var]  # of one version
            if chosen:
                yield f"{family} {direction} {_set(chosen)} return"
        if self.excluded_ports:
            yield f"tcp dport {_set(self.excluded_ports)} return"


def _chain(name: str, kind: str, lines: Sequence[str]) -> list[str]:
    return [f"chain {name} {{", f"\t{kind}; policy accept;", *(f"\t{line}" for line in lines), "}"]


def _redirected(door: Door) -> str:
    return f"meta nfproto ipv{door.version} " + _captured(door, f"redirect to :{door.port}")


def _captured(door: Door, target: str) -> str:
    return f"tcp dport {_set(door.ports)} {target}" if door.ports else f"meta l4proto tcp {target}"


def _set(values: Sequence[object]) -> str:
    return "{ " + ", ".join(map(str, dict.fromkeys(values))) + " }"


def _cleared() -> list[str]:
    """An empty table first: deleting one that is not there would fail the transaction."""
    return [f"table inet {TABLE}", f"delete table inet {TABLE}"]


def remove_script() -> str:
    """Removes the table, if it is there."""
    return "\n".join([*_cleared(), ""])


def routing_commands(*, remove: bool = False) -> list[list[str]]:
    """Arguments of `ip` that bring marked packets to this machine itself, for IPv4 and IPv6."""
    commands = []
    for family in ("-4", "-6"):
        if remove:
            commands += [
                [family, "rule", "del", "fwmark", f"{MARK:#x}", "lookup", str(MARK)],
                [family, "route", "flush", "table", str(MARK)],
            ]
        else:
            commands += [
                [family, "rule", "add", "fwmark", f"{MARK:#x}", "lookup", str(MARK)],
                [family, "route", "replace", "local", "default", "dev", "lo", "table", str(MARK)],
            ]
    return commands
