"""Who is calling: a principal proven by a verified X.509-SVID."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Principal"]


@dataclass(frozen=True, slots=True)
class Principal:
    """A verified workload identity.

    `spiffe_id` is the full URI, compared byte for byte. `not_before` and `not_after` are epoch seconds of the tightest
    certificate in the verified chain. `serial` is lower-case hex, `thumbprint` the lower-case hex SHA-256 of the leaf's DER.
    """

    spiffe_id: str
    trust_domain: str
    path: str
    not_before: float
    not_after: float
    serial: str
    thumbprint: str
