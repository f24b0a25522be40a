"""An endpoint (one address of a cluster) and what the cluster asks of a connection to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from meshguard.net.cluster.carrier import Carrier

__all__ = ["Address", "Connection", "Endpoint", "EndpointStats", "parse_address"]


class Address(NamedTuple):
    """Where to connect: `host` is an IP address or a host name, `port` 1..65535, `name` the host as configured."""

    host: str
    port: int
    name: str

    @property
    def key(self) -> str:
        """`host:port`, IPv6 in brackets: the identity of an endpoint within its cluster."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """`host:port` or `[v6]:port`; raises ValueError. Host names are lower-cased, their trailing dot is cut."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise ValueError(f"expected an IPv6 address in brackets, got {text!r}")
    elif ":" in host:
        raise ValueError(f"expected an IPv6 address in brackets, got {text!r}")
    if not colon or not host or not (port.isascii() and port.isdigit() and len(port) <= 5) or not 0 < int(port) < 65536:
        raise ValueError(f"expected host:port, got {text!r}")
    if not host.isascii() or not host.isprintable() or set(host) & set(" /@#?\\%"):
        raise ValueError(f"expected a host name or an address, got {text!r}")
    host = host.lower().rstrip(".")
    if not host:
        raise ValueError(f"expected host:port, got {text!r}")
    return Address(host, int(port), host)


class Connection(Protocol):
    """An open upstream connection; the cluster never looks inside.

    `endpoint` is the endpoint it was opened for, `closed` is true once it can carry nothing more. `idle_since` belongs to the
    cluster (coarse clock, set when it enters the pool). `close()` is idempotent, does not wait and may call `Cluster.lost`.
    While it is idle, whatever ends it or makes it unusable (EOF, reset, unsolicited bytes) calls `Cluster.lost(self)`.
    """

    endpoint: Endpoint
    idle_since: float

    @property
    def closed(self) -> bool: ...

    def close(self) -> None: ...


class EndpointStats:
    """Counters since the endpoint was first seen."""

    __slots__ = ("checks_failed", "connect_failures", "connects", "ejections")

    def __init__(self) -> None:
        self.connects = 0
        self.connect_failures = 0
        self.ejections = 0
        self.checks_failed = 0


class Endpoint:
    """One address of a cluster with its pool. Compared by identity.

    `healthy` is the active check's verdict, None while unknown (counts as healthy). `ejected_until` is a clock reading, 0.0 when
    not ejected. `usable` sums these up (`members.Members` writes it). `failures` counts passive failures in a row.
    INVARIANT: `in_flight == len(busy) + opening`, where `opening` counts dials that a call is waiting for; `connecting`
    counts all dials. A connection is in at most one of `idle` and `busy`. `idle` is ordered by age, the freshest last. `carriers` are the
    connections that take calls beside others; what is in `busy` of them are leases. `breadth`: how many calls one new connection is
    expected to carry.
    """

    __slots__ = (
        "address",
        "breadth",
        "busy",
        "calm_until",
        "carriers",
        "connecting",
        "ejected_until",
        "ejection_level",
        "failures",
        "gone",
        "healthy",
        "idle",
        "in_flight",
        "key",
        "stats",
        "usable",
    )

    def __init__(self, address: Address) -> None:
        self.address = address
        self.key = address.key
        self.healthy: bool | None = None
        self.usable = True
        self.gone = False
        self.ejected_until = 0.0
        self.ejection_level = 0
        self.calm_until = 0.0
        self.failures = 0
        self.in_flight = 0
        self.connecting = 0
        self.idle: list[Connection] = []
        self.busy: set[Connection] = set()
        self.carriers: list[Carrier] = []
        self.breadth = 1
        self.stats = EndpointStats()

    def __repr__(self) -> str:
        return f"Endpoint({self.key}, in_flight={self.in_flight}, idle={len(self.idle)})"
