"""The directory of the demonstration: identities, keys, configuration and policy, made where they are missing.

DIRECTORY/meshguard.yaml, policies/orders.yaml    copies to edit; they are never overwritten
DIRECTORY/ca/                                     the development CA
DIRECTORY/identities/NAME/svid.pem, svid.key      an SVID for each client
DIRECTORY/keys/orders-pii.json                    the keyset of the protected field
"""

from __future__ import annotations

import time
from importlib import resources
from pathlib import Path

from cryptography.exceptions import InvalidSignature

from meshguard.identity.material import load_material
from meshguard.identity.pem import read_certificates
from meshguard.identity.svid import load_certificate
from meshguard.keys import lifecycle
from meshguard.model.errors import MeshguardError
from meshguard.sources.development_ca import DevelopmentAuthority, write_private

__all__ = ["CLIENTS", "Place"]

TRUST_DOMAIN = "shop.example"
CLIENTS = ("billing", "support", "intruder")
"""Client identities: `/ns/demo/sa/NAME`. The policy gives the intruder no role."""
KEYSET = "orders-pii"
"""The keyset that seals the card number, as configuration and policy name it."""
_DOCUMENTS = ("meshguard.yaml", "policies/orders.yaml")
_LEAST_LIFE_S = 3600


class Place:
    """The paths in one demonstration directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.configuration = directory / "meshguard.yaml"
        self.bundle = directory / "ca" / "bundle.pem"
        self.keyset = directory / "keys" / f"{KEYSET}.json"
        self.log = directory / "meshguard.log"
        self.decisions = directory / "decisions.log"

    def certificate(self, client: str) -> Path:
        return self.directory / "identities" / client / "svid.pem"

    def key(self, client: str) -> Path:
        return self.directory / "identities" / client / "svid.key"

    def prepare(self) -> None:
        """Makes what is missing. Raises MeshguardError, OSError."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in _DOCUMENTS:
            target = self.directory / name
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(resources.files("meshguard.demo").joinpath("files", name).read_bytes())
        authority = DevelopmentAuthority(self.directory / "ca", TRUST_DOMAIN).open()
        for client in CLIENTS:
            if not self._is_valid(client, authority):
                self.certificate(client).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                material = authority.issue(f"/ns/demo/sa/{client}")
                write_private(self.key(client), material.key_pem())
                write_private(self.certificate(client), material.certificate_pem, mode=0o644)
        if not self.keyset.exists():
            self.keyset.parent.mkdir(mode=0o700, exist_ok=True)
            lifecycle.create(self.keyset, KEYSET, time.time())

    def _is_valid(self, client: str, authority: DevelopmentAuthority) -> bool:
        """The SVID on disk is of this CA, matches its key and lives for a while."""
        try:
            chain = read_certificates(self.certificate(client).read_bytes())
            material = load_material(chain, self.key(client).read_bytes())
            issuer = load_certificate(authority.bundle()[0])
            load_certificate(chain[0]).verify_directly_issued_by(issuer)
        except (OSError, ValueError, TypeError, InvalidSignature, MeshguardError):
            return False
        return material.not_after > time.time() + _LEAST_LIFE_S
