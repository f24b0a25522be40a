"""The certificates of an edge listener: read from files, held to the names they are shown for, made into one TLS context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from meshguard.control.settings.edge import CertificateConfig
from meshguard.model.errors import IdentityError
from meshguard.net.server_names import covers, name_contexts
from meshguard.net.tls import build_server_context

if TYPE_CHECKING:
    import ssl

__all__ = ["edge_context"]


def edge_context(configs: Sequence[CertificateConfig], alpn: Sequence[str], *, refuse_unknown: bool) -> ssl.SSLContext:
    """Raises IdentityError (`certificate_names` where a certificate is not for a name it should be shown for), OSError."""
    return name_contexts([_one(config, alpn) for config in configs], refuse=refuse_unknown)


def _one(config: CertificateConfig, alpn: Sequence[str]) -> tuple[list[str], ssl.SSLContext]:
    from meshguard.identity.material import load_material
    from meshguard.identity.pem import read_certificates

    chain = read_certificates(config.certificate.read_bytes())
    material = load_material(chain, config.key.read_bytes(), svid=False)
    own = dns_names(chain[0])
    for name in config.names:
        if not any(covers(pattern, name) for pattern in own):
            raise IdentityError("certificate_names", f"{config.certificate} is not for {name} but for {', '.join(own) or 'no DNS name'}")
    names = config.names or own
    if not names:
        raise IdentityError("certificate_names", f"{config.certificate} has no DNS name: say for which names it is")
    return list(names), build_server_context(material, (), mode="server", alpn=alpn)


def dns_names(leaf_der: bytes) -> list[str]:
    """The DNS names of a certificate, lower case, in order."""
    from cryptography import x509

    try:
        names = x509.load_der_x509_certificate(leaf_der).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    return [name.lower() for name in names.value.get_values_for_type(x509.DNSName)]
