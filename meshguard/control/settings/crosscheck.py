"""What must agree between the sections of a configuration, each a complaint with its place.

Works on the plain values of the document, not on the models: all errors are told at once, so a wrong duration in one cluster
must not hide that a listener leads to a cluster that does not exist. A value of the wrong kind is skipped here; its model tells it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from meshguard.control.settings.delegation import delegation_complaints
from meshguard.control.settings.edge_checks import edge_complaints
from meshguard.control.settings.fleet import fleet_complaints, fleet_files
from meshguard.control.settings.outbound_checks import outbound_complaints
from meshguard.control.settings.profiles import DEVELOPMENT_CA, PERMISSIVE, PLAIN_LISTENER, PLAIN_UPSTREAM, PROFILES, permits
from meshguard.control.settings.rate_limits import rate_limit_complaints
from meshguard.control.settings.validation import validation_complaints, validation_files
from meshguard.control.settings.values import Address, parse_address, parse_moment
from meshguard.sources.complaints import Complaint, Told, nearest

__all__ = ["crosscheck"]

LONGEST_RELAXATION = timedelta(days=366)
_SOURCES = ("files", "workload_api", "development_ca")


def crosscheck(values: Mapping[str, Any], base: Path, now: float, *, files: bool = True) -> list[Complaint]:
    """All complaints about `values` (a document filled by its profile). `now` is epoch seconds; with `files` the files that the
    document names must exist."""
    profile = values.get("profile", "strict")
    check = _Check(values, profile if profile in PROFILES else "strict", datetime.fromtimestamp(now, UTC))
    out = [*check.identity(), *check.listeners(), *check.clusters(), *check.ports(), *check.policy()]
    out += edge_complaints(values)
    out += validation_complaints(values)
    out += delegation_complaints(values)
    out += fleet_complaints(values)
    out += outbound_complaints(values, profile if profile in PROFILES else "strict")
    out += _ledger(values, profile)
    if files:
        out += _files(values, base)
    return out


def _mapping(value: object, key: str) -> Mapping[str, Any]:
    inner = value.get(key) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def _list(value: object, key: str) -> list[Any]:
    inner = value.get(key) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, list) else []


def _address(value: object) -> Address | None:
    try:
        return parse_address(value)
    except ValueError:
        return None


class _Check:
    def __init__(self, values: Mapping[str, Any], profile: str, now: datetime) -> None:
        self._values = values
        self._profile = profile
        self._now = now
        self._listeners = _mapping(values, "listeners")
        self._clusters = _mapping(values, "clusters")
        identity = values.get("identity")
        self._identity = identity if isinstance(identity, Mapping) else None
        self._bundles = _mapping(_mapping(identity, "files"), "bundles")

    # -- identity ---------------------------------------------------------------------------------------------------------

    def identity(self) -> Iterator[Complaint]:
        identity = self._identity
        if identity is None:
            if "identity" not in self._values and (user := self._user_of_identity()):
                yield Complaint(("identity",), f"an identity with files, workload_api or development_ca: {user} needs one")
            return
        said = [source for source in _SOURCES if identity.get(source) is not None]
        if len(said) != 1:
            yield Complaint(
                ("identity",), "exactly one of files, workload_api and development_ca", Told(" and ".join(said) or "none of them")
            )
        if "development_ca" in said and permits(self._profile, DEVELOPMENT_CA) == "never":
            yield Complaint(("identity", "development_ca"), "files or workload_api; a development CA needs `profile: development`")
        if identity.get("workload") is not None and said and "development_ca" not in said:
            yield Complaint(("identity", "workload"), "no such key here: the SVID says who this proxy is (only for development_ca)")
        domain = identity.get("trust_domain")
        if self._bundles and isinstance(domain, str) and domain not in self._bundles:
            yield Complaint(
                ("identity", "files", "bundles"),
                f"a bundle for the own trust domain {domain}",
                Told(", ".join(map(str, self._bundles))),
                nearest(domain, self._bundles),
            )

    def _user_of_identity(self) -> str:
        for name, listener in self._listeners.items():
            tls = listener.get("tls") if isinstance(listener, Mapping) else None
            if tls in ("mutual", "permissive"):
                return f"listeners.{name} (tls: {tls})"
            if tls == "server" and listener.get("certificate") is None and not listener.get("certificates"):
                return f"listeners.{name} (tls: server without a certificate of its own)"
        for name, cluster in self._clusters.items():
            tls = _mapping(cluster, "tls")
            if tls.get("spiffe_id") is not None or tls.get("spiffe_ids") or tls.get("use_svid") is True:
                return f"clusters.{name}.tls"
        return ""

    # -- policy -----------------------------------------------------------------------------------------------------------

    def policy(self) -> Iterator[Complaint]:
        bundle = self._values.get("bundle")
        if bundle is None:
            if not self._values.get("policies"):
                yield Complaint(("policies",), "the files or directories of the policy, or a `bundle`")
            return
        if self._values.get("policies"):
            yield Complaint(("policies",), "no files beside a `bundle`: a node that requires signatures takes nothing else")
        if isinstance(bundle, Mapping) and sum(bundle.get(key) is not None for key in ("path", "url", "fleet")) != 1:
            yield Complaint(("bundle",), "exactly one of path, url and fleet")

    # -- listeners --------------------------------------------------------------------------------------------------------

    def listeners(self) -> Iterator[Complaint]:
        ids: dict[str, str] = {}
        limits: dict[str, str] = {}
        for name, listener in self._listeners.items():
            if not isinstance(listener, Mapping):
                continue
            at = ("listeners", name)
            routes = _list(listener, "routes")
            if listener.get("redirect") is None and ("to" in listener) == bool(routes):
                yield Complaint(at, "either `to: CLUSTER` or `routes`", Told("both" if routes else "neither"))
            if "to" in listener:
                yield from self._cluster_exists((*at, "to"), listener["to"])
            for index, route in enumerate(routes):
                yield from self._route((*at, "routes", index), route, listener, ids)
            yield from self._relaxation(at, listener)
            yield from self._certificate(at, listener)
            yield from rate_limit_complaints(str(name), listener, limits, bool(_list(self._values, "jwt")))
            if listener.get("trusted_proxies") and listener.get("tls") in ("none", "server"):
                yield Complaint(
                    (*at, "trusted_proxies"), "a listener with client certificates (tls: mutual): a proxy is known by its SPIFFE ID"
                )

    def _route(self, at: tuple[str | int, ...], route: object, listener: Mapping[str, Any], ids: dict[str, str]) -> Iterator[Complaint]:
        if not isinstance(route, Mapping):
            return
        if "to" in route:
            yield from self._cluster_exists((*at, "to"), route["to"])
        yield from self._fallback(at, route)
        identifier = route.get("id")
        if isinstance(identifier, str):
            if identifier in ids:
                yield Complaint((*at, "id"), f"an id that no other route has (also at {ids[identifier]})", identifier)
            else:
                ids[identifier] = f"listeners.{at[1]}.routes[{at[3]}]"
        if route.get("principals") and listener.get("tls") in ("none", "server"):
            yield Complaint((*at, "principals"), "a listener with client certificates (tls: mutual): nobody is identified here")

    def _fallback(self, at: tuple[str | int, ...], route: Mapping[str, Any]) -> Iterator[Complaint]:
        name = _mapping(route, "fallback").get("to")
        if name is None:
            return
        here = (*at, "fallback", "to")
        yield from self._cluster_exists(here, name)
        if name == route.get("to"):
            yield Complaint(here, "another cluster than the route's own", name)
        elif isinstance(self._clusters.get(name), Mapping) and not _list(self._clusters[name], "endpoints"):
            yield Complaint(here, "a cluster with endpoints", name)
        if route.get("decision_token") == "send":
            yield Complaint(here, "respond instead: a decision token is made for one server", name)

    def _cluster_exists(self, at: tuple[str | int, ...], name: object) -> Iterator[Complaint]:
        if isinstance(name, str) and name not in self._clusters:
            known = ", ".join(map(str, self._clusters)) or "none yet"
            yield Complaint(at, f"the name of a cluster ({known})", name, nearest(name, self._clusters))

    def _relaxation(self, at: tuple[str, ...], listener: Mapping[str, Any]) -> Iterator[Complaint]:
        tls, until = listener.get("tls"), listener.get("permissive_until")
        address = _address(listener.get("address"))
        remote = tls == "none" and address is not None and not address.is_loopback and listener.get("redirect") is None
        what = PERMISSIVE if tls == "permissive" else PLAIN_LISTENER if remote else None
        if what is None:
            if until is not None:
                yield Complaint((*at, "permissive_until"), "no such key here: nothing is relaxed on this listener")
            return
        if permits(self._profile, what) == "never":
            yield Complaint((*at, "tls"), f"mutual or server: the profile {self._profile} takes no plaintext from other machines", tls)
            return
        if until is None:
            yield Complaint((*at, "permissive_until"), "a value: a relaxation needs an end date, such as 2027-01-31")
            return
        try:
            end = parse_moment(until)
        except ValueError:
            return
        if end <= self._now:
            yield Complaint(
                (*at, "permissive_until"), f"a date in the future (it is {self._now:%Y-%m-%d}); or `tls: mutual` by now", str(until)
            )
        elif end > self._now + LONGEST_RELAXATION:
            yield Complaint((*at, "permissive_until"), "a date within a year", str(until))

    def _certificate(self, at: tuple[str, ...], listener: Mapping[str, Any]) -> Iterator[Complaint]:
        has = [key for key in ("certificate", "key") if listener.get(key) is not None]
        if has and listener.get("tls") != "server":
            yield Complaint((*at, has[0]), "no such key here: only `tls: server` has a certificate of its own, others show the SVID")
        elif len(has) == 1:
            missing = "key" if has == ["certificate"] else "certificate"
            yield Complaint((*at, missing), f"a value: {has[0]} and {missing} go together")

    # -- clusters ---------------------------------------------------------------------------------------------------------

    def clusters(self) -> Iterator[Complaint]:
        for name, cluster in self._clusters.items():
            at = ("clusters", name)
            if isinstance(cluster, Mapping):
                yield from self._endpoints(at, cluster)
                if isinstance(cluster.get("tls"), Mapping):
                    yield from self._cluster_tls((*at, "tls"), cluster["tls"])

    def _endpoints(self, at: tuple[str, ...], cluster: Mapping[str, Any]) -> Iterator[Complaint]:
        for index, endpoint in enumerate(_list(cluster, "endpoints")):
            address = _address(endpoint)
            if address is None:
                continue
            here: tuple[str | int, ...] = (*at, "endpoints", index)
            if cluster.get("resolve") == "static" and not address.is_ip and address.host != "localhost":
                yield Complaint(here, "an IP address, or `resolve: dns` for host names", str(endpoint))
            if address.is_any:
                yield Complaint(here, "an address to connect to", str(endpoint))
            if cluster.get("tls") is None and not address.is_loopback and permits(self._profile, PLAIN_UPSTREAM) == "never":
                yield Complaint(
                    here, f"`tls` on this cluster: the profile {self._profile} sends no plaintext to other machines", str(endpoint)
                )

    def _cluster_tls(self, at: tuple[str, ...], tls: Mapping[str, Any]) -> Iterator[Complaint]:
        said = [key for key in ("spiffe_id", "spiffe_ids", "server_name") if tls.get(key)]
        if len(said) != 1:
            yield Complaint(at, "exactly one of spiffe_id, spiffe_ids and server_name", Told(" and ".join(said) or "none of them"))
        if tls.get("ca") is not None and "server_name" not in said:
            yield Complaint((*at, "ca"), "no such key here: SPIFFE IDs are verified by the bundle of their trust domain")
        patterns: list[tuple[tuple[str | int, ...], object]] = [(("spiffe_id",), tls.get("spiffe_id"))]
        patterns += [(("spiffe_ids", index), pattern) for index, pattern in enumerate(_list(tls, "spiffe_ids"))]
        for key, pattern in patterns:
            if self._bundles and isinstance(pattern, str) and pattern.startswith("spiffe://"):
                domain = pattern.removeprefix("spiffe://").partition("/")[0]
                if domain not in self._bundles and "*" not in domain:
                    known = ", ".join(map(str, self._bundles))
                    yield Complaint(
                        (*at, *key),
                        f"a trust domain with a bundle under identity.files.bundles ({known})",
                        domain,
                        nearest(domain, self._bundles),
                    )

    # -- ports ------------------------------------------------------------------------------------------------------------

    def ports(self) -> Iterator[Complaint]:
        taken: list[tuple[tuple[str, ...], Address]] = []
        doors: list[tuple[tuple[str, ...], object]] = [
            (("admin", "address"), _mapping(self._values, "admin").get("address", "127.0.0.1:9901"))
        ]
        doors += [(("listeners", name, "address"), _mapping(self._listeners, name).get("address")) for name in self._listeners]
        for at, text in doors:
            address = _address(text)
            if address is None:
                continue
            for other_at, other in taken:
                if address.port == other.port and _overlap(address, other):
                    yield Complaint(at, f"a port that is free ({'.'.join(other_at)} has {other})", str(text))
                    break
            taken.append((at, address))


def _overlap(left: Address, right: Address) -> bool:
    hosts = {"127.0.0.1" if address.host == "localhost" else address.host for address in (left, right)}
    if len(hosts) == 1 or "::" in hosts:  # [::] is dual-stack: it takes the IPv4 port as well
        return True
    return "0.0.0.0" in hosts and not any(":" in host for host in hosts)  # noqa: S104  # a comparison, nothing is bound


def _ledger(values: Mapping[str, Any], profile: object) -> Iterator[Complaint]:
    ledger = values.get("ledger")
    if isinstance(ledger, Mapping) and profile != "development" and _mapping(ledger, "checkpoints").get("key") is None:
        expected = "the key that signs checkpoints, made by `meshguard audit key FILE`; only `profile: development` makes one by itself"
        yield Complaint(("ledger", "checkpoints", "key"), expected)


def _files(values: Mapping[str, Any], base: Path) -> Iterator[Complaint]:
    named: list[tuple[tuple[str | int, ...], object]] = []
    files = _mapping(_mapping(values, "identity"), "files")
    at: tuple[str | int, ...] = ("identity", "files")
    named += [((*at, key), files.get(key)) for key in ("certificate", "key")]
    named += [((*at, "bundles", name), path) for name, path in _mapping(files, "bundles").items()]
    named += [((*at, "crls", index), path) for index, path in enumerate(_list(files, "crls"))]
    for index, issuer in enumerate(_list(values, "jwt")):
        jwks = issuer.get("jwks") if isinstance(issuer, Mapping) else None
        named.append((("jwt", index, "jwks"), None if isinstance(jwks, str) and "://" in jwks else jwks))
    for name in _mapping(values, "listeners"):
        listener = _mapping(_mapping(values, "listeners"), name)
        named += [(("listeners", name, key), listener.get(key)) for key in ("certificate", "key")]
        for index, entry in enumerate(_list(listener, "certificates")):
            keys = ("certificate", "key") if isinstance(entry, Mapping) else ()
            named += [(("listeners", name, "certificates", index, key), entry.get(key)) for key in keys]
    for name in _mapping(values, "clusters"):
        named.append((("clusters", name, "tls", "ca"), _mapping(_mapping(_mapping(values, "clusters"), name), "tls").get("ca")))
    named += validation_files(values)
    named += fleet_files(values)
    named.append((("ledger", "checkpoints", "key"), _mapping(_mapping(values, "ledger"), "checkpoints").get("key")))
    for name in _mapping(values, "keys"):
        named.append((("keys", name, "path"), _mapping(_mapping(values, "keys"), name).get("path")))
    named += [(("policies", index), path) for index, path in enumerate(_list(values, "policies"))]
    for where, path in named:
        if isinstance(path, str) and path and "\0" not in path:
            full = base / Path(path).expanduser()
            if not full.exists():
                yield Complaint(where, f"an existing file{' or directory' if where[0] == 'policies' else ''}", path, _similar(full))
            elif full.is_dir() and where[0] != "policies":
                yield Complaint(where, "a file, not a directory", path)


def _similar(path: Path) -> str:
    """The nearest name in the directory where `path` should be."""
    try:
        names = [entry.name for entry in path.parent.iterdir()][:1000]
    except OSError:
        return ""
    return nearest(path.name, names)
