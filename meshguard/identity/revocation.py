"""Certificate revocation lists (RFC 5280, 5 and 6.3): complete, direct lists only, and closed whenever one is in doubt."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.x509.oid import ExtensionOID

from meshguard.identity.algorithms import check_signature_algorithm
from meshguard.identity.authority import Authority
from meshguard.model.errors import IdentityError

__all__ = ["RevocationList", "check_revocation"]

_UNDERSTOOD = frozenset({ExtensionOID.AUTHORITY_KEY_IDENTIFIER, ExtensionOID.CRL_NUMBER})


class RevocationList:
    """One parsed list; immutable but for the memory of whose signature it carries.

    Raises IdentityError when made from what cannot be used: `crl_malformed`, `crl_unsupported` (a delta or partitioned list: its
    silence about a certificate would prove nothing), `signature_algorithm`.
    """

    __slots__ = ("_signers", "crl", "issuer", "next_update", "serials", "this_update")

    def __init__(self, der: bytes) -> None:
        try:
            self.crl = crl = x509.load_der_x509_crl(der)
            self.issuer = crl.issuer.public_bytes()
            extensions = list(crl.extensions)
            until = crl.next_update_utc
            self.this_update = crl.last_update_utc.timestamp()
            self.serials = frozenset(entry.serial_number for entry in crl)
        except (ValueError, TypeError, x509.DuplicateExtension) as exc:
            raise IdentityError("crl_malformed", str(exc)[:200]) from exc
        if until is None:
            raise IdentityError("crl_unsupported", f"the list of {self.shown} has no next update, so it would never be out of date")
        self.next_update = until.timestamp()
        for value in extensions:
            if value.oid == ExtensionOID.DELTA_CRL_INDICATOR or (value.critical and value.oid not in _UNDERSTOOD):
                raise IdentityError("crl_unsupported", f"the list of {self.shown} is not complete: it has {value.oid._name}")
        check_signature_algorithm(crl)
        self._signers: dict[bytes, bool] = {}

    @property
    def shown(self) -> str:
        return ascii(self.crl.issuer.rfc4514_string()[:120])

    def signed_by(self, authority: Authority) -> bool:
        """If this authority, being allowed to, has signed the list. Remembered per key."""
        if not authority.signs_crls or authority.name != self.issuer:
            return False
        key = authority.public_key_der()
        known = self._signers.get(key)
        if known is None:
            try:
                known = self.crl.is_signature_valid(authority.certificate.public_key())  # type: ignore[arg-type]  # check_key has pinned the types
            except (TypeError, ValueError, UnsupportedAlgorithm):
                known = False
            if len(self._signers) < 64:  # keys of intermediates that a peer presents: bounded
                self._signers[key] = known
        return known


def check_revocation(
    certificate: x509.Certificate, issuer: Authority, lists: dict[bytes, list[RevocationList]], required: bool, now: float
) -> float:
    """Refuse a certificate that its issuer has revoked; return until when (epoch seconds) this holds, infinity where no list is asked for.

    `lists` are all that there are, by issuer name; `required` says that the trust domain uses revocation. Raises IdentityError:
    `revoked`; `crl_missing` (required, and there is none of this issuer), `crl_bad_signature`, `crl_not_yet_valid`, `crl_expired`.
    """
    named = lists.get(issuer.name, ())
    if not named:
        if required:
            raise IdentityError("crl_missing", f"revocation is configured, but no list of {issuer.shown} is loaded: refused until then")
        return float("inf")
    genuine = [value for value in named if value.signed_by(issuer)]
    if not genuine:
        raise IdentityError("crl_bad_signature", f"no revocation list in the name of {issuer.shown} carries its signature")
    # An outdated list still proves what it revokes; it does not prove what it leaves out.
    if any(certificate.serial_number in value.serials for value in genuine):
        raise IdentityError("revoked", f"serial {certificate.serial_number:x} is on the revocation list of {issuer.shown}")
    begun = [value for value in genuine if value.this_update <= now]
    if not begun:
        raise IdentityError("crl_not_yet_valid", f"the revocation list of {issuer.shown} is not valid yet")
    until = max(value.next_update for value in begun)
    if until < now:
        raise IdentityError("crl_expired", f"the revocation list of {issuer.shown} is out of date: refused until a new one is loaded")
    return until
