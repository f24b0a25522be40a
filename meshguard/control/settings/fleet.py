"""The fleet's store (NATS JetStream): where it is, how it is reached, what is kept there under which names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from meshguard.control.settings.values import DocumentPath, Name, Seconds, Section, SpiffePattern, url_of
from meshguard.sources.complaints import Complaint, Told

__all__ = [
    "BucketsConfig",
    "FleetConfig",
    "FleetLimitsConfig",
    "FleetQuarantineConfig",
    "FleetTlsConfig",
    "fleet_complaints",
    "fleet_files",
    "fleet_notes",
]

_BUCKET = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _server(value: str) -> str:
    parts = url_of(value, ("nats", "tls"), "tls://nats.shop.example:4222")
    if urlsplit(parts).path not in ("", "/"):
        raise ValueError("a URL without a path, such as tls://nats.shop.example:4222")
    return parts


def _bucket(value: str) -> str:
    if not _BUCKET.match(value):
        raise ValueError("a bucket name of letters, digits, dashes and underscores, at most 64")
    return value


Bucket = Annotated[str, AfterValidator(_bucket)]


class FleetTlsConfig(Section):
    """TLS to the store. It is expected to have a certificate for its host name (or `server_name`), or a SPIFFE ID."""

    svid: bool = Field(default=False, description="Show the own SVID as the client certificate.")
    certificate: DocumentPath | None = Field(default=None, description="Another client certificate (PEM), with `key`.")
    key: DocumentPath | None = None
    ca: DocumentPath | None = Field(default=None, description="CA certificates for the store; absent: those of the system.")
    server_name: str | None = Field(default=None, min_length=1, description="DNS name in the store's certificate; absent: that of the URL.")
    spiffe_id: SpiffePattern | None = Field(default=None, description="The store has this SPIFFE ID, vouched for by the trust bundles.")


class BucketsConfig(Section):
    """Buckets of the store, made by `meshguard fleet init`. Each can have permissions of its own."""

    bundles: Bucket = Field(default="meshguard-bundles", description="Signed policy: nodes read.")
    quarantine: Bucket = Field(default="meshguard-quarantine", description="Who is cut out of the fleet: nodes read.")
    instances: Bucket = Field(default="meshguard-instances", description="What each instance enforces: nodes write.")
    checkpoints: Bucket = Field(default="meshguard-checkpoints", description="Signed checkpoints of ledgers: nodes write.")


class FleetQuarantineConfig(Section):
    """The quarantine of the whole fleet (`meshguard quarantine add --fleet`)."""

    signers: list[DocumentPath] = Field(
        default=[], description="PEM files with public keys: one of them must have signed. Absent: whoever can write to the store decides."
    )
    threshold: int = Field(default=1, ge=1, le=16, description="So many different signers must have signed.")


class FleetLimitsConfig(Section):
    """Rate limits with `scope: fleet`."""

    sync_s: float = Field(default=0.2, ge=0.01, le=10, description="Longest time until others are told of requests that were let through.")
    away: Literal["share", "whole"] = Field(
        default="share", description="Without the store: each instance takes its share of a limit, or the whole of it."
    )


class FleetConfig(Section):
    """One store for many instances: policy bundles, quarantine, limits, who enforces what. Needs the extra `fleet` (nats-py). The proxy
    serves without the store, with what it last knew."""

    name: Name = Field(description="The name of this fleet: what belongs to another is not taken.")
    servers: list[Annotated[str, AfterValidator(_server)]] = Field(min_length=1, max_length=16, description="URLs, nats:// or tls://.")
    instance: Name | None = Field(default=None, description="Name of this instance, unique in the fleet; absent: the host's name.")
    state: DocumentPath = Field(description="Directory for what was last known: a restart without the store goes on with it.")
    tls: FleetTlsConfig | None = Field(default=None, description="Needed unless every server is on loopback.")
    user: str | None = Field(default=None, min_length=1)
    password_file: DocumentPath | None = None
    token_file: DocumentPath | None = None
    buckets: BucketsConfig = Field(default={}, validate_default=True)
    quarantine: FleetQuarantineConfig = Field(default={}, validate_default=True)
    limits: FleetLimitsConfig = Field(default={}, validate_default=True)
    connect_s: Seconds = Field(default=3.0, description="For one connection, TLS and login included.")
    answer_s: Seconds = Field(default=3.0, description="For each answer of the store.")
    check_s: Seconds = Field(default=10.0, description="Between two checks that the store answers and the watches live.")
    heartbeat_s: Seconds = Field(default=10.0, description="Between two reports of what this instance enforces.")
    stale_after_s: Seconds = Field(default=30.0, description="An instance without a report for so long counts as stale.")
    checkpoint_s: Seconds = Field(default=10.0, description="Between two checkpoints of the ledger in the store.")
    retry_s: Seconds = Field(default=0.5, description="Before the first new attempt; doubles, with jitter, up to `retry_max_s`.")
    retry_max_s: Seconds = Field(default=15.0, description="Longest wait between two attempts.")


def _mapping(value: object, key: str) -> Mapping[str, Any]:
    inner = value.get(key) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, Mapping) else {}


def fleet_complaints(values: Mapping[str, Any]) -> Iterator[Complaint]:
    """What must agree in `fleet`, and between it and the other sections."""
    fleet = values.get("fleet")
    bundle = _mapping(values, "bundle")
    if not isinstance(fleet, Mapping):
        if bundle.get("fleet") is not None:
            yield Complaint(("bundle", "fleet"), "a `fleet` section: without it there is no store")
        if _mapping(_mapping(values, "ledger"), "checkpoints").get("publish_fleet") is True:
            yield Complaint(("ledger", "checkpoints", "publish_fleet"), "a `fleet` section: without it there is no store")
        for name in _mapping(values, "listeners"):
            limits = _mapping(_mapping(values, "listeners"), name).get("rate_limits")
            for index, limit in enumerate(limits if isinstance(limits, list) else ()):
                if isinstance(limit, Mapping) and limit.get("scope") == "fleet":
                    yield Complaint(("listeners", name, "rate_limits", index, "scope"), "a `fleet` section: without it there is no store")
        return
    tls = fleet.get("tls")
    servers = fleet.get("servers")
    for index, server in enumerate(servers if isinstance(servers, list) else ()):
        if tls is None and isinstance(server, str) and not _is_loopback(server):
            yield Complaint(("fleet", "servers", index), "`tls` under `fleet`: nothing goes in plaintext to another machine", server)
    if fleet.get("user") is not None and fleet.get("password_file") is None:
        yield Complaint(("fleet", "password_file"), "a file with the password of `user`")
    if fleet.get("user") is not None and fleet.get("token_file") is not None:
        yield Complaint(("fleet", "token_file"), "no such key here: `user` and `token_file` exclude each other")
    if isinstance(tls, Mapping):
        yield from _tls(tls, values)
    quarantine = _mapping(fleet, "quarantine")
    signers, threshold = quarantine.get("signers"), quarantine.get("threshold", 1)
    if isinstance(signers, list) and isinstance(threshold, int) and 0 < len(signers) < threshold:
        yield Complaint(("fleet", "quarantine", "threshold"), "at most the number of signers", Told(str(threshold)))
    stale, heartbeat = fleet.get("stale_after_s", 30.0), fleet.get("heartbeat_s", 10.0)
    if isinstance(stale, int | float) and isinstance(heartbeat, int | float) and stale < 2 * heartbeat:
        yield Complaint(("fleet", "stale_after_s"), f"at least twice `heartbeat_s` ({heartbeat:g})", Told(str(stale)))


def _tls(tls: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[Complaint]:
    at = ("fleet", "tls")
    if tls.get("svid") is True and tls.get("certificate") is not None:
        yield Complaint((*at, "certificate"), "no such key here: `svid` is the client certificate")
    if (tls.get("certificate") is None) != (tls.get("key") is None):
        yield Complaint(at, "`certificate` and `key` together")
    if tls.get("spiffe_id") is not None and (tls.get("server_name") is not None or tls.get("ca") is not None):
        yield Complaint((*at, "spiffe_id"), "either a SPIFFE ID (vouched for by the trust bundles), or `server_name` and `ca`")
    identity = values.get("identity")
    if (tls.get("svid") is True or tls.get("spiffe_id") is not None) and not isinstance(identity, Mapping):
        yield Complaint(at, "an `identity`: its SVID and bundles are used here")
    forked = values.get("workers", 1) != 1 and _mapping(values, "bundle").get("fleet") is not None
    if tls.get("svid") is True and forked and isinstance(identity, Mapping) and identity.get("workload_api") is not None:
        expected = "`certificate` and `key` where many workers take bundles from the store: what loads them asks no Workload API"
        yield Complaint((*at, "svid"), expected)


def _is_loopback(server: str) -> bool:
    try:
        return (urlsplit(server).hostname or "") in _LOOPBACK
    except ValueError:
        return True  # its own complaint


def fleet_files(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], object]]:
    """The files that `fleet` names and that must exist, with their places."""
    fleet = _mapping(values, "fleet")
    for key in ("password_file", "token_file"):
        yield ("fleet", key), fleet.get(key)
    for key in ("certificate", "key", "ca"):
        yield ("fleet", "tls", key), _mapping(fleet, "tls").get(key)
    signers = _mapping(fleet, "quarantine").get("signers")
    for index, path in enumerate(signers if isinstance(signers, list) else ()):
        yield ("fleet", "quarantine", "signers", index), path


def fleet_notes(fleet: FleetConfig | None) -> Iterator[str]:
    """What people should know of a valid section."""
    if fleet is not None and not fleet.quarantine.signers:
        yield "fleet.quarantine: no signers, so whoever can write to the store can cut out and let in"
