"""TLS contexts: what is spoken, whose certificates count, and what the peer showed.

OpenSSL decides only if a peer's chain ends at *some* configured bundle. Which identity that makes is `identity.trust`'s to say, per
trust domain, after *every* handshake: one context holds the CAs of all domains, so OpenSSL alone would let a federated CA mint
local identities (security.md 3).

Resumption. TLS 1.3 tickets are never issued (`num_tickets = 0`) and TLS 1.2 tickets are off (`OP_NO_TICKET`). What is left is the
TLS 1.2 session id, whose cache CPython gives no switch for. It lives in the context, so a rotation empties it, and a resumed
session skips OpenSSL's verification and keeps the old certificate: INVARIANT the caller verifies `peer_chain()` with the current
trust store after each handshake, resumed or not, and a connection without a chain has no identity.

That cache also takes memory: 12 KiB for each TLS 1.2 connection that was closed properly, up to OpenSSL's 20480 entries and for two
hours, which is 240 MB. So a listener asks `worn_out()` now and then (every 64 connections, say) and builds a new context when it is so.

A context is never changed once it is in use: a rotation builds a new one, publishes it whole, and keeps the old one if that fails.
"""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from meshguard.model.errors import IdentityError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from meshguard.identity.material import Material

__all__ = ["CIPHERS_TLS12", "ServerMode", "build_client_context", "build_server_context", "peer_chain", "peer_leaf", "worn_out"]

ServerMode = Literal["mutual", "optional", "server"]
"""`mutual`: a client certificate is required. `optional`: asked for, verified when given. `server`: not asked for."""

CIPHERS_TLS12 = ":".join(
    (
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "ECDHE-ECDSA-CHACHA20-POLY1305",
        "ECDHE-RSA-CHACHA20-POLY1305",
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        # Level 2 (112 bits) also keeps SHA-1 signatures and short keys out of chains, whatever the distribution's default is.
        "@SECLEVEL=2",
    )
)
"""TLS 1.2: forward secrecy and AEAD only (RFC 9325, 4.2). The suites of TLS 1.3 are all of that kind."""

MAX_SESSIONS = 256
"""3 MiB of sessions. A new context costs about 2 ms: 8 us for each of so many TLS 1.2 connections. TLS 1.3 leaves no session."""

_VERIFY_FLAGS = (
    ssl.VERIFY_X509_STRICT  # RFC 5280 to the letter
    | ssl.VERIFY_X509_PARTIAL_CHAIN  # each certificate of a bundle is an anchor, also one that another CA has signed
    | ssl.VERIFY_X509_TRUSTED_FIRST
)
_OPTIONS = ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET | ssl.OP_SINGLE_ECDH_USE | ssl.OP_CIPHER_SERVER_PREFERENCE


def build_server_context(
    material: Material, anchors: Sequence[bytes], *, mode: ServerMode = "mutual", alpn: Sequence[str] = ("h2", "http/1.1")
) -> ssl.SSLContext:
    """A context for a listener.

    `anchors` are the DER CA certificates of every trust domain (`TrustStore.anchors()`); they are needed unless `mode` is `server`.
    `alpn` are the protocols in order of preference. Takes about 2 ms. Raises IdentityError (`tls_context`).
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, alpn)
    context.num_tickets = 0  # each one costs 130 us on OpenSSL 3.0, and would outlive the identity that earned it
    _load(context, material)
    if mode == "server":
        context.verify_mode = ssl.CERT_NONE
        return context
    _trust(context, anchors)
    context.verify_mode = ssl.CERT_REQUIRED if mode == "mutual" else ssl.CERT_OPTIONAL
    return context


def build_client_context(
    material: Material | None, anchors: Sequence[bytes] | None, *, server_name: bool = False, alpn: Sequence[str] = ("http/1.1",)
) -> ssl.SSLContext:
    """A context for calls to an upstream.

    With `server_name` false the upstream is expected to have a SPIFFE ID: no host name is compared, and the caller MUST verify
    `peer_chain()` with its trust store and compare the ID. With `server_name` true the host name given to the handshake is compared
    with the certificate's DNS names (RFC 9525; the common name does not count); `anchors` None then means the system's CAs.
    Raises IdentityError (`tls_context`).
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, alpn)
    context.check_hostname = server_name
    context.verify_mode = ssl.CERT_REQUIRED
    if server_name:
        context.hostname_checks_common_name = False
    if anchors is None:
        if not server_name:
            raise IdentityError("tls_context", "the system's CAs cannot vouch for a SPIFFE ID: a trust bundle is needed")
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        _trust(context, anchors)
    if material is not None:
        _load(context, material)
    return context


def worn_out(context: ssl.SSLContext) -> bool:
    """If the context of a listener holds so many TLS 1.2 sessions that a new one, which holds none, should take its place. 4 us."""
    return context.session_stats()["number"] >= MAX_SESSIONS


def peer_leaf(connection: ssl.SSLObject | ssl.SSLSocket) -> bytes | None:
    """The peer's certificate as DER, None when it has shown none. 0.3 us."""
    return connection.getpeercert(True)


def peer_chain(connection: ssl.SSLObject | ssl.SSLSocket) -> list[bytes]:
    """The peer's certificates as DER, its own first, in the order and number it sent them: *unverified*, but for what OpenSSL did.

    Empty when the peer has shown none, or when only its own certificate is known (nothing is made up then: a chain that cannot be
    built fails closed in the trust store).
    """
    leaf = connection.getpeercert(True)
    if leaf is None:
        return []
    if sys.version_info >= (3, 13):
        return list(connection.get_unverified_chain()) or [leaf]
    # Python 3.10 to 3.12 have it on the inner object only.
    inner: Any = getattr(connection, "_sslobj", None)
    if inner is None:
        return [leaf]
    return [certificate.public_bytes(_ENCODING_DER) for certificate in inner.get_unverified_chain() or ()] or [leaf]


_ENCODING_DER = 2
"""`_ssl.ENCODING_DER`: X509_FILETYPE_ASN1 is 2, PEM is 1."""


def _context(protocol: ssl._SSLMethod, alpn: Sequence[str]) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.set_ciphers(CIPHERS_TLS12)
    context.options |= _OPTIONS
    # Without this flag an end of stream is an error unless the peer closed TLS properly: truncation is seen (OpenSSL >= 3).
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    context.verify_flags |= _VERIFY_FLAGS
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def _trust(context: ssl.SSLContext, anchors: Sequence[bytes]) -> None:
    if not anchors:
        raise IdentityError("tls_context", "no trust bundle: nobody could be verified")
    try:
        context.load_verify_locations(cadata=b"".join(dict.fromkeys(anchors)))
    except ssl.SSLError as exc:
        raise IdentityError("tls_context", f"a bundle was not accepted by OpenSSL: {exc.reason}") from exc


def _load(context: ssl.SSLContext, material: Material) -> None:
    """Hand our certificates and key to OpenSSL, the key without touching a disk.

    With a lone leaf OpenSSL would build the rest of the chain from its trust store *in every handshake* (100 to 180 us for P-256
    on OpenSSL 3.0) and send the root, which the peer has anyway. Python has no way to set SSL_MODE_NO_AUTO_CHAIN, but OpenSSL
    leaves an explicit chain alone: so the leaf is given as its own companion. A peer has to accept superfluous certificates
    (RFC 8446, 4.4.2), and does: tests/net/test_tls.py.
    """
    chain = material.certificate_pem
    if len(material.chain) == 1:
        chain = chain + chain
    try:
        with _path_of(chain + material.key_pem()) as path:
            # The key is never encrypted here; a password callback keeps OpenSSL from asking on the terminal should that change.
            context.load_cert_chain(path, password=lambda: b"")
    except ssl.SSLError as exc:
        raise IdentityError("tls_context", f"the certificate or key was not accepted by OpenSSL: {exc.reason}") from exc


@contextmanager
def _path_of(secret: bytes) -> Iterator[str]:
    """A path, for as long as the block runs, from which OpenSSL can read `secret`: anonymous memory where the system has it. Else a file
    that only we can read, in memory where there is such a place, emptied and unlinked as soon as it was read."""
    descriptor, path, named = -1, "", False
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("meshguard-svid", os.MFD_CLOEXEC)
        path = f"/proc/self/fd/{descriptor}"
        if not os.path.exists(path):  # /proc is not mounted
            os.close(descriptor)
            descriptor = -1
    if descriptor < 0:
        named = True
        import tempfile  # loads half of the library, for nobody on a usual system

        memory = "/dev/shm"  # noqa: S108 # mkstemp makes a file of its own there, mode 0600
        descriptor, path = tempfile.mkstemp(prefix="meshguard-", dir=memory if os.path.isdir(memory) else None)
    try:
        view = memoryview(secret)
        while view:
            view = view[os.write(descriptor, view) :]
        yield path
    finally:
        if named:
            os.ftruncate(descriptor, 0)
            os.unlink(path)
        os.close(descriptor)
