"""Max-Forwards: how many more proxies an OPTIONS request may pass (RFC 9110 section 7.6.2).

It means nothing on other methods but TRACE, which is not served. Made part of a plan for OPTIONS, so that no other request pays for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshguard.model.errors import RequestError
from meshguard.model.reasons import LAST_RECIPIENT, MALFORMED_REQUEST
from meshguard.wire.fields import field_values, remove_fields

if TYPE_CHECKING:
    from meshguard.pipeline.routes import HeaderOperations

__all__ = ["MaxForwards"]

_NAME = b"max-forwards"
_NAMES = frozenset((_NAME,))
_DIGITS = frozenset(b"0123456789")
_MOST = 10  # digits; the RFC leaves a maximum to the recipient, and no chain of proxies has a billion


class MaxForwards:
    """What is done to the fields of an OPTIONS request: the count goes down by one, then the route's own changes apply."""

    __slots__ = ("_operations",)

    def __init__(self, operations: HeaderOperations | None) -> None:
        self._operations = operations

    def apply(self, block: bytes) -> bytes:
        """The block to send. Raises RequestError: LAST_RECIPIENT at zero, MALFORMED_REQUEST for anything but one number."""
        values = field_values(block, _NAME)
        if values:
            value = values[0].strip(b" \t")
            if len(values) != 1 or not 0 < len(value) <= _MOST or not _DIGITS.issuperset(value):
                raise RequestError(MALFORMED_REQUEST, "max-forwards")
            left = int(value)
            if not left:
                raise RequestError(LAST_RECIPIENT)
            block = remove_fields(block, _NAMES) + b"max-forwards: %d\r\n" % (left - 1)
        return block if self._operations is None else self._operations.apply(block)
