"""Checks of listeners, upstreams and identity: who is asked for a certificate, what goes in the clear, how long certificates live."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

from meshguard.control.packs.model import Fault, NotJudged, Subject
from meshguard.model.errors import MeshguardError
from meshguard.policy.principals import parse_principal

__all__ = ["TRANSPORT_CHECKS"]

DAY_S = 86400.0


def tls_inbound(subject: Subject) -> Iterator[Fault]:
    for name, listener in subject.configuration.listeners.items():
        at = ("listeners", name)
        if listener.tls == "permissive":
            yield Fault((*at, "tls"), "tls: mutual", value="permissive")
        elif listener.tls == "none" and listener.direction == "inbound" and listener.redirect is None:
            yield Fault((*at, "tls"), "TLS on every listener that others call: a network is no identity", value="none")


def no_relaxation(subject: Subject) -> Iterator[Fault]:
    for name, listener in subject.configuration.listeners.items():
        if listener.permissive_until is not None:
            yield Fault(("listeners", name, "permissive_until"), "no relaxation: tls: mutual or server", value=f"tls: {listener.tls}")


def tls_upstream(subject: Subject) -> Iterator[Fault]:
    for name, cluster in subject.configuration.clusters.items():
        if cluster.tls is not None:
            continue
        remote = [str(endpoint) for endpoint in cluster.endpoints if not endpoint.is_loopback]
        if remote or not cluster.endpoints:
            yield Fault(("clusters", name), "tls: plaintext leaves this machine", value=", ".join(remote) or "any destination")


def tls_floor(subject: Subject) -> Iterator[Fault]:
    """Of contexts as this installation makes them: its OpenSSL, with its configuration, decides."""
    from meshguard.net.tls import build_client_context

    context = build_client_context(None, None, server_name=True)
    if context.minimum_version < ssl.TLSVersion.TLSv1_2:
        yield Fault((), "TLS 1.2 as the lowest version", value=context.minimum_version.name)
    for cipher in context.get_ciphers():
        if not (cipher["aead"] and ("ECDHE" in cipher["name"] or cipher["name"].startswith("TLS_"))):
            yield Fault((), "suites with forward secrecy and authenticated encryption", value=str(cipher["name"]))


def upstreams_named(subject: Subject) -> Iterator[Fault]:
    named = False
    for name, cluster in subject.configuration.clusters.items():
        if cluster.tls is None:
            continue
        named = True
        for number, text in enumerate(cluster.tls.spiffe_ids):
            if not parse_principal(text).exact:
                yield Fault(("clusters", name, "tls", "spiffe_ids", number), "an exact SPIFFE ID of the server", value=text)
        if cluster.tls.spiffe_id is not None and "*" in cluster.tls.spiffe_id:
            yield Fault(("clusters", name, "tls", "spiffe_id"), "an exact SPIFFE ID of the server", value=cluster.tls.spiffe_id)
    if not named:
        raise NotJudged("not_applicable", "no upstream is called over TLS")


def destinations_named(subject: Subject) -> Iterator[Fault]:
    dynamic = {name: cluster for name, cluster in subject.configuration.clusters.items() if not cluster.endpoints}
    for name, cluster in dynamic.items():
        if cluster.destinations is None or not cluster.destinations.authorities or "*" in cluster.destinations.authorities:
            place = ("clusters", name) if cluster.destinations is None else ("clusters", name, "destinations")
            yield Fault(place, "destinations.authorities: which destinations requests may name", value="any")


def no_development_ca(subject: Subject) -> Iterator[Fault]:
    identity = subject.configuration.identity
    if identity is None:
        raise NotJudged("not_applicable", "no own identity is configured")
    if identity.development_ca is not None:
        yield Fault(("identity", "development_ca"), "files or workload_api", value="a development CA")


def _certificates(subject: Subject, days: float) -> Iterator[Fault]:
    identity = subject.configuration.identity
    if identity is None:
        raise NotJudged("not_applicable", "no own identity is configured")
    if identity.files is None:
        raise NotJudged("not_assessed", "the life of certificates is their issuer's to say: it is judged at each request")
    from meshguard.identity.pem import read_certificates

    try:
        from cryptography.x509 import load_der_x509_certificate

        leaf = load_der_x509_certificate(read_certificates(identity.files.certificate.read_bytes())[0])
    except (OSError, ValueError, IndexError, MeshguardError) as exc:
        raise NotJudged("not_assessed", f"the certificate cannot be read here: {type(exc).__name__}") from exc
    lives_s = (leaf.not_valid_after_utc - leaf.not_valid_before_utc).total_seconds()
    if lives_s > days * DAY_S + 3600:  # issuers back-date against clocks that are slow
        yield Fault(("identity", "files", "certificate"), f"a certificate of {days:g} days at most", value=f"{lives_s / DAY_S:.1f} days")


def certificate_1d(subject: Subject) -> Iterator[Fault]:
    yield from _certificates(subject, 1)


def certificate_90d(subject: Subject) -> Iterator[Fault]:
    yield from _certificates(subject, 90)


def tokens_at_edges(subject: Subject) -> Iterator[Fault]:
    configuration = subject.configuration
    for name, listener in configuration.listeners.items():
        if listener.tls == "server" and not configuration.jwt:
            yield Fault(("listeners", name, "tls"), "issuers of tokens (jwt): nobody is identified on this listener", value="server")


def workloads_measured(subject: Subject) -> Iterator[Fault]:
    raise NotJudged("not_assessed", "workloads are not measured by this configuration: show it by other means")
    yield  # a generator like the others


def no_underscores(subject: Subject) -> Iterator[Fault]:
    for name, listener in subject.configuration.listeners.items():
        if listener.underscores == "allow":
            yield Fault(("listeners", name, "underscores"), "refuse or drop: servers read X_Name as X-Name", value="allow")


def edge_limited(subject: Subject) -> Iterator[Fault]:
    edges = {name: listener for name, listener in subject.configuration.listeners.items() if listener.tls == "server"}
    if not edges:
        raise NotJudged("not_applicable", "no listener is an edge (tls: server)")
    for name, listener in edges.items():
        if listener.redirect is None and not any(not limit.shadow for limit in listener.rate_limits):
            yield Fault(("listeners", name), "rate_limits that refuse", value="none")


def attempts_limited(subject: Subject) -> Iterator[Fault]:
    configuration = subject.configuration
    if not configuration.jwt:
        raise NotJudged("not_applicable", "no tokens are taken; a certificate cannot be guessed")
    for name, listener in configuration.listeners.items():
        if listener.direction == "outbound" or listener.redirect is not None:
            continue
        if not any(limit.before == "decision" and not limit.shadow for limit in listener.rate_limits):
            yield Fault(("listeners", name), "a rate limit with `before: decision`: it bounds tokens that somebody guesses", value="none")


TRANSPORT_CHECKS = {
    "tls_inbound": tls_inbound,
    "no_relaxation": no_relaxation,
    "tls_upstream": tls_upstream,
    "tls_floor": tls_floor,
    "upstreams_named": upstreams_named,
    "destinations_named": destinations_named,
    "no_development_ca": no_development_ca,
    "certificate_1d": certificate_1d,
    "certificate_90d": certificate_90d,
    "tokens_at_edges": tokens_at_edges,
    "workloads_measured": workloads_measured,
    "no_underscores": no_underscores,
    "edge_limited": edge_limited,
    "attempts_limited": attempts_limited,
}
