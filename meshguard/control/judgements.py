"""Small judgements of the runtime: TLS contexts and limits of listeners, the own principal, whether a peer is still trusted."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from meshguard.control.protocols import protocols
from meshguard.control.settings.listeners import ListenerConfig
from meshguard.model.errors import DocumentError, IdentityError, Problem
from meshguard.model.principal import Principal
from meshguard.net.tls import ServerMode, build_server_context
from meshguard.pipeline.peer import Peer

if TYPE_CHECKING:
    import ssl

    from meshguard.control.inputs import Inputs
    from meshguard.identity.trust import TrustStore
    from meshguard.sources.identity import IdentityUpdate

__all__ = ["address", "connection_limit", "own_principal", "refuse_restart_only", "server_context", "still_trusted"]

_FEWEST_CONNECTIONS = 64


def still_trusted(peer: Peer, trust: TrustStore | None, now: float) -> bool:
    """Also what can end without any change: a revocation list that is too old to say that a certificate is good."""
    if peer.principal is None or trust is None or not peer.chain:
        return True
    try:
        return (trust.recall(peer.chain[0], now) or trust.verify(peer.chain, now)) is not None
    except IdentityError:
        return False


def refuse_restart_only(before: Inputs, after: Inputs) -> None:
    """Changes that would need new sockets under old names or another identity source: clear words instead of half a change. Raises
    DocumentError."""
    old, new = before.configuration, after.configuration
    problems = []
    for path, was, becomes in (
        ("identity", old.identity, new.identity),
        ("admin", old.admin, new.admin),
        ("bundle", old.bundle, new.bundle),
        ("fleet", old.fleet or False, new.fleet or False),
        ("quarantine", old.quarantine, new.quarantine),
        ("ledger", old.ledger, new.ledger),
        ("decision_log", old.decision_log, new.decision_log),
        ("telemetry", old.telemetry, new.telemetry),
        ("jwt", old.jwt, new.jwt),
        ("workers", old.workers, new.workers),
        *((f"listeners.{name}.address", address(old.listeners.get(name)), address(new.listeners[name])) for name in new.listeners),
    ):
        if was is not None and was != becomes:
            problems.append(Problem(after.loaded.document.file, path, "no change while running: this takes a restart"))
    if problems:
        raise DocumentError(problems)


def address(config: ListenerConfig | None) -> str | None:
    return None if config is None else str(config.address)


def server_context(config: ListenerConfig, identity: IdentityUpdate | None, trust: TrustStore | None) -> ssl.SSLContext | None:
    if config.tls == "none":
        return None
    if config.tls == "server" and config.certificate is not None and config.key is not None:
        from meshguard.identity.material import load_material
        from meshguard.identity.pem import read_certificates

        material = load_material(read_certificates(config.certificate.read_bytes()), config.key.read_bytes(), svid=False)
        return build_server_context(material, (), mode="server", alpn=protocols(config))
    if config.certificates:
        from meshguard.control.certificates import edge_context

        return edge_context(config.certificates, protocols(config), refuse_unknown=config.unknown_names == "refuse")
    if identity is None or trust is None:
        raise IdentityError("identity_unavailable", "a TLS listener needs an own identity")
    mode: ServerMode = "server" if config.tls == "server" else "mutual"
    return build_server_context(identity.material, trust.anchors(), mode=mode, alpn=protocols(config))


def own_principal(identity: IdentityUpdate | None) -> Principal | None:
    if identity is None:
        return None
    material = identity.material
    path = material.spiffe_id.removeprefix(f"spiffe://{material.trust_domain}")
    return Principal(
        material.spiffe_id, material.trust_domain, path, material.not_before, material.not_after, material.serial, material.thumbprint
    )


def connection_limit(config: ListenerConfig) -> int:
    if config.limits.connections is not None:
        return config.limits.connections
    return max(_FEWEST_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
