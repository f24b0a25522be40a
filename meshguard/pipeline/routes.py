"""Routing: which cluster a judged request goes to, and what is changed on the way.

Routes match in the order of the document; the first that matches wins. Conditions that do not depend on single headers are decided
once per (authority, path, method, identity) and kept in the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from meshguard.wire.fields import field_values, remove_fields
from meshguard.wire.target import STRICT, PathOptions

if TYPE_CHECKING:
    from meshguard.pipeline.delegation import TokenWriter
    from meshguard.pipeline.fallback import Fallback
    from meshguard.validation.contract import Contract

__all__ = ["HeaderOperations", "Redirect", "Route", "RouteTable", "authority_matcher"]


class HeaderOperations:
    """Set, append, remove on a field block, in that order of meaning: `remove` first, then `set` replaces, then `append` adds."""

    __slots__ = ("_added", "_gone")

    def __init__(self, set_: Sequence[tuple[bytes, bytes]], append: Sequence[tuple[bytes, bytes]], remove: Sequence[bytes]) -> None:
        self._gone = frozenset([*(name.lower() for name in remove), *(name.lower() for name, _ in set_)])
        self._added = b"".join(b"%b: %b\r\n" % pair for pair in (*set_, *append))

    def apply(self, block: bytes) -> bytes:
        return (remove_fields(block, self._gone) if self._gone else block) + self._added


class Route:
    """One route. `hosts` None matches every authority; `paths` is a matcher of canonical paths returning the template or None."""

    __slots__ = (
        "attempts",
        "body_bytes",
        "cluster",
        "contract",
        "fallback",
        "headers",
        "hosts",
        "id",
        "keep_trailers",
        "methods",
        "options",
        "paths",
        "principals",
        "request_operations",
        "response_operations",
        "response_s",
        "token_writer",
        "total_s",
        "websocket",
    )

    def __init__(
        self,
        id: str,
        cluster: str,
        *,
        hosts: Callable[[str], bool] | None = None,
        paths: Callable[[str], str | None] | None = None,
        methods: frozenset[str] | None = None,
        headers: Sequence[tuple[bytes, bytes]] = (),
        principals: Callable[[str | None], bool] | None = None,
        options: PathOptions = STRICT,
        request_operations: HeaderOperations | None = None,
        response_operations: HeaderOperations | None = None,
        response_s: float | None = None,
        total_s: float = 0.0,
        keep_trailers: bool = False,
        websocket: bool = True,
        body_bytes: int | None = None,
        attempts: int | None = None,
        contract: Contract | None = None,
        token_writer: TokenWriter | None = None,
        fallback: Fallback | None = None,
    ) -> None:
        self.id = id
        self.cluster = cluster
        self.hosts = hosts
        self.paths = paths
        self.methods = methods
        self.headers = headers
        self.principals = principals
        self.options = options
        self.request_operations = request_operations
        self.response_operations = response_operations
        self.response_s = response_s
        self.total_s = total_s
        self.keep_trailers = keep_trailers
        self.websocket = websocket
        self.body_bytes = body_bytes
        self.attempts = attempts
        self.contract = contract
        self.token_writer = token_writer
        self.fallback = fallback

    def could_match(self, host: str, path: str, method: str, principal: str | None) -> str | None:
        """The template (possibly empty) when everything but the header conditions matches, else None."""
        if self.hosts is not None and not self.hosts(host):
            return None
        if self.methods is not None and method not in self.methods:
            return None
        if self.principals is not None and not self.principals(principal):
            return None
        return "" if self.paths is None else self.paths(path)

    def headers_match(self, block: bytes) -> bool:
        """Each conditional field has a line with the value."""
        return all(wanted in field_values(block, name) for name, wanted in self.headers)


class Redirect:
    """Answers by the https address of a request: `port` of that address, `status` for GET and HEAD (301 or 308)."""

    __slots__ = ("port", "status")

    def __init__(self, port: int, status: int) -> None:
        self.port = port
        self.status = status

    def location(self, host: str, target: bytes) -> bytes:
        """The field line. `host` and `target` are canonical: nothing in them could end the line or change the host."""
        port = b"" if self.port == 443 else b":%d" % self.port
        return b"location: https://%b%b%b\r\n" % (host.encode("ascii"), port, target)


class RouteTable:
    """The routes of a listener. `serves` tells whether an authority is served at all (421 otherwise)."""

    __slots__ = ("lenient", "routes", "serves")

    def __init__(self, routes: Sequence[Route], serves: Callable[[str], bool] | None) -> None:
        self.routes = tuple(routes)
        self.serves = serves
        self.lenient = tuple(route for route in routes if route.options is not STRICT)

    def candidates(
        self, host: str, path: str, method: str, principal: str | None, takes: Callable[[Route], bool]
    ) -> list[tuple[Route, str]]:
        """(route, template) of the routes that can match and take the spelling, up to the first without header conditions."""
        found = []
        for route in self.routes:
            template = route.could_match(host, path, method, principal)
            if template is not None and takes(route):
                found.append((route, template))
                if not route.headers:
                    break
        return found


def authority_matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Matches a host (lower case, without port) against exact names and `*.suffix` (one or more labels in front)."""
    exact = frozenset(name.lower() for name in patterns if not name.startswith("*"))
    suffixes = tuple(name[1:].lower() for name in patterns if name.startswith("*."))
    everything = "*" in patterns

    def matches(host: str) -> bool:
        return everything or host in exact or (bool(suffixes) and host.endswith(suffixes))

    return matches
