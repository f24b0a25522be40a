"""Field rules in shadow: the same treatment, of which only the account is kept.

What would be sealed is not: a nonce is never drawn and no use of a key is counted for a value that goes nowhere. What would be opened is
opened, because only that tells if it opens; nothing of it is kept.
"""

from __future__ import annotations

from meshguard.fields.protection import Protection
from meshguard.fields.treatment import Work
from meshguard.model.errors import KeysetError
from meshguard.model.record import FieldOperation

__all__ = ["WOULD", "ShadowWork"]

WOULD = "would_"
"""How operations of rules in shadow begin."""


class ShadowWork(Work):
    """See the module."""

    __slots__ = ()
    seals = False

    def _protect(self, number: int, kind: str, protection: Protection, raw: bytes, style: int) -> bytes:
        if kind != "ciphertext":
            return super()._protect(number, kind, protection, raw, style)
        version = protection.envelope.version
        if not version:
            raise KeysetError("no version of the keyset may seal")
        self.changed = True
        self._count("seal", number, version)
        return raw

    def operations(self) -> list[FieldOperation]:
        """What would have been done; values that would only pass are not told."""
        return [
            FieldOperation(WOULD + act.operation, act.field, act.keyset, act.version, act.count)
            for act in super().operations()
            if act.operation != "pass"
        ]
