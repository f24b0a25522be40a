"""How this instance reaches the store: TLS contexts out of SVIDs or files, and the login, each read anew for each connection."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from meshguard.control.settings.fleet import FleetConfig, FleetTlsConfig
from meshguard.identity.material import Material
from meshguard.identity.pem import read_certificates
from meshguard.identity.trust import TrustStore
from meshguard.model.errors import IdentityError
from meshguard.net.tls import build_client_context, peer_chain
from meshguard.policy.principals import PrincipalIndex, parse_principal
from meshguard.sources.files import load_material_files
from meshguard.sources.identity import IdentityUpdate
from meshguard.sources.nats_store import Access

__all__ = ["Identity", "access_of", "instance_name"]

Identity = Callable[[], Awaitable[IdentityUpdate | None]]


def instance_name(config: FleetConfig) -> str:
    """What this instance is called."""
    return config.instance or socket.gethostname() or "unnamed"


def access_of(config: FleetConfig, identity: Identity) -> Access:
    """`identity` is asked for each connection that needs it."""

    async def context() -> ssl.SSLContext | None:
        tls = config.tls
        if tls is None:
            return None
        update = await identity() if tls.svid or tls.spiffe_id is not None else None
        return await asyncio.to_thread(_context, tls, update)

    def login() -> tuple[str, ...]:
        if config.user is not None and config.password_file is not None:
            return "user", config.user, _secret(config.password_file)
        return ("token", _secret(config.token_file)) if config.token_file is not None else ()

    name = config.tls.server_name if config.tls is not None else None
    return Access(tuple(config.servers), instance_name(config), context, name, login, config.connect_s, config.answer_s)


def _secret(path: Path) -> str:
    return path.read_text("utf-8").strip()


def _context(tls: FleetTlsConfig, update: IdentityUpdate | None) -> ssl.SSLContext:
    if (tls.svid or tls.spiffe_id is not None) and update is None:
        raise IdentityError("identity_unavailable", "the store needs an own identity")
    material: Material | None = update.material if tls.svid and update is not None else None
    if tls.certificate is not None and tls.key is not None:
        material = load_material_files(tls.certificate, tls.key, svid=False)
    if tls.spiffe_id is not None and update is not None:
        trust = update.trust_store(0)
        context = build_client_context(material, trust.anchors(), alpn=())
        context.sslobject_class = _expecting(tls.spiffe_id, trust)
        return context
    anchors = read_certificates(tls.ca.read_bytes()) if tls.ca is not None else None
    return build_client_context(material, anchors, server_name=True, alpn=())


def _expecting(pattern: str, trust: TrustStore) -> type[ssl.SSLObject]:
    """A class of TLS connections whose handshake fails unless the peer has a SPIFFE ID of `pattern`: before an octet is sent on it."""
    index = PrincipalIndex([(parse_principal(pattern), 0)])

    class Expecting(ssl.SSLObject):
        def do_handshake(self, *arguments: Any) -> None:
            super().do_handshake(*arguments)
            try:
                peer = trust.verify(peer_chain(self), time.time())
            except IdentityError as exc:
                raise ssl.SSLCertVerificationError(f"the store's certificate: {exc}") from exc
            if not index.find(peer.spiffe_id):
                raise ssl.SSLCertVerificationError(f"the store is {peer.spiffe_id}, {pattern} was expected")

    return Expecting
