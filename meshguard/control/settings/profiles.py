"""Profiles: one line that fills the defaults of everything a document does not say, and what each of them permits.

`ROWS` and `PERMITS` are the whole meaning of a profile. Strict is the default and equals the defaults of the models. Migration is
for a mesh that is being introduced: plaintext may be taken besides mTLS until a date that is written next to it; requests that no rule
allows are denied all the same (a rule is tried out by its own `shadow: true` in the policy). Development is for one machine: its
own CA, every trace sampled, a fast stop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["PERMITS", "PROFILES", "ROWS", "fill", "permits", "table"]

PROFILES = ("strict", "migration", "development")

Row = tuple[str, tuple[object, object, object]]
UNSET = object()

ROWS: tuple[Row, ...] = (
    # key                             strict              migration           development
    ("listeners.*.tls", ("mutual", "mutual", "mutual")),
    ("listeners.*.underscores", ("refuse", "drop", "refuse")),  # older clients send X_Name; dropped is as safe as refused
    ("telemetry.sample", (0.01, 0.1, 1.0)),
    ("drain_s", (30, 30, 1)),
    ("identity.trust_domain", (UNSET, UNSET, "mesh.example")),
    ("identity.development_ca", (UNSET, UNSET, "./identity")),
    ("identity.workload", (UNSET, UNSET, "/ns/dev/sa/meshguard")),
)

PERMITS: tuple[tuple[str, tuple[str, str, str]], ...] = (
    # what                                            strict   migration  development
    ("plaintext on an mTLS listener (tls: permissive)", ("never", "dated", "dated")),
    ("a plaintext listener beyond loopback (tls: none)", ("never", "dated", "dated")),
    ("plaintext to an upstream beyond loopback", ("never", "told", "told")),
    ("a development CA", ("never", "never", "yes")),
)
"""`dated`: with `permissive_until`, a date within a year; `told`: allowed, and named by `check` and at every start."""

PERMISSIVE, PLAIN_LISTENER, PLAIN_UPSTREAM, DEVELOPMENT_CA = (what for what, _ in PERMITS)

_SOURCES = ("files", "workload_api", "development_ca")


def permits(profile: str, what: str) -> str:
    """`never`, `dated`, `told` or `yes`."""
    return dict(PERMITS)[what][PROFILES.index(profile)]


def fill(said: Mapping[str, Any], environment: Mapping[str, str]) -> dict[str, Any]:
    """The document with what its profile sets added. Values that are of a wrong kind stay as they are, for the models to tell.

    A document without an identity source gets the Workload API socket of the SPIFFE standard's own environment variable
    (SPIFFE_ENDPOINT_SOCKET), else what the profile says. `resolve` of a cluster follows its endpoints.
    """
    profile = said.get("profile", "strict")
    column = PROFILES.index(profile) if profile in PROFILES else 0
    out: dict[str, Any] = dict(said)
    identity = out.get("identity", {})
    if isinstance(identity, Mapping):
        if "trust_domain" in identity and not any(source in identity for source in _SOURCES) and environment.get("SPIFFE_ENDPOINT_SOCKET"):
            identity = {**identity, "workload_api": environment["SPIFFE_ENDPOINT_SOCKET"]}
            out["identity"] = identity
        chosen = next((source for source in _SOURCES if source in identity), None)
    else:
        chosen = "unknown"
    for key, values in ROWS:
        value = values[column]
        if value is UNSET or (key in ("identity.development_ca", "identity.workload") and chosen not in (None, "development_ca")):
            continue
        out = _set(out, key.split("."), value)
    clusters = out.get("clusters")
    if isinstance(clusters, Mapping):
        out["clusters"] = {name: _resolving(cluster) for name, cluster in clusters.items()}
    return out


def _set(values: Mapping[str, Any], path: list[str], value: object) -> dict[str, Any]:
    out = dict(values)
    first, rest = path[0], path[1:]
    names = list(out) if first == "*" else [first]
    for name in names:
        if not rest:
            out.setdefault(name, value)
        elif rest[0] == "*" and name not in out:
            continue
        else:
            inner = out.get(name, {})
            if isinstance(inner, Mapping):
                out[name] = _set(inner, rest, value)
    return out


def _resolving(cluster: object) -> object:
    if not isinstance(cluster, Mapping) or "resolve" in cluster or not isinstance(cluster.get("endpoints"), list):
        return cluster
    hosts = [str(endpoint).rpartition(":")[0] for endpoint in cluster["endpoints"]]
    named = any(host and not host.startswith("[") and not host.replace(".", "").isdigit() for host in hosts)
    return {**cluster, "resolve": "dns" if named else "static"}


def table() -> Iterator[tuple[str, ...]]:
    """The rows for people: key, and the value in each profile."""
    yield ("", *PROFILES)
    for key, values in ROWS:
        yield (key, *("-" if value is UNSET else str(value) for value in values))
    for what, answers in PERMITS:
        yield (what, *answers)
