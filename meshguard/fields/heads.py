"""Protected header fields and query parameters: found by name, treated one by one, written back where they stood.

A value of a header field is text of visible characters; what opens to anything else (a line break would begin another field) is
refused. Every line of a field is treated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from meshguard.fields.contexts import Caller
from meshguard.fields.form import rewrite_pairs
from meshguard.fields.reader import Reader
from meshguard.fields.transforms import NOBODY_KNOWN, failures
from meshguard.fields.treatment import Work
from meshguard.fields.views import Action, FieldPlan
from meshguard.model.errors import RequestError
from meshguard.model.reasons import BODY_INVALID, FIELD_NOT_OPENED, MALFORMED_REQUEST, RESPONSE_NOT_INSPECTABLE
from meshguard.model.record import FieldOperation

__all__ = ["HeadTransform"]

_LINE = re.compile(rb"([^:\r\n]++):([ \t]*+)([^\r\n]*+)\r\n")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")


class HeadTransform:
    """The rules of one route and direction that name header fields or query parameters."""

    __slots__ = ("_actions", "_fields", "_headers", "_query", "_request", "_work")

    def __init__(
        self,
        direction: str,
        fields: Sequence[FieldPlan],
        headers: Mapping[str, int],
        query: Mapping[str, int],
        work: type[Work] = Work,
    ) -> None:
        self._work = work
        self._request = direction == "request"
        self._fields = tuple(fields)
        self._headers = {name.encode("ascii"): number for name, number in headers.items()}
        self._query = dict(query)
        self._actions: dict[frozenset[str], tuple[Action, ...]] = {}

    @property
    def ids(self) -> tuple[str, ...]:
        """Of its field rules."""
        return tuple(field.id for field in self._fields)

    def apply(
        self, block: bytes, query: bytes, reader: Reader, nonces: Callable[[int], bytes], caller: Caller = NOBODY_KNOWN
    ) -> tuple[bytes, bytes, list[FieldOperation]]:
        """A field block and a query (without `?`) for `reader`, and what was done.

        Raises RequestError: MALFORMED_REQUEST or RESPONSE_NOT_INSPECTABLE, FIELD_NOT_OPENED, KEY_UNAVAILABLE, TENANT_UNKNOWN."""
        actions = self._actions.get(reader.roles)
        if actions is None:
            if len(self._actions) >= 1024:
                self._actions.clear()
            actions = self._actions[reader.roles] = tuple(field.action(reader) for field in self._fields)
        work = self._work(self._fields, actions, nonces, caller)
        with failures(MALFORMED_REQUEST if self._request else RESPONSE_NOT_INSPECTABLE):
            if self._headers:
                block = _LINE.sub(lambda match: self._line(match, work), block)
            if query and self._query:
                query = rewrite_pairs(query, self._query, work)
        return block, query, work.operations()

    def without(self, block: bytes) -> bytes:
        """A trailer section without the protected fields: nothing is told of them after the head."""
        return b"".join(match[0] for match in _LINE.finditer(block) if match[1].lower() not in self._headers)

    def _line(self, match: re.Match[bytes], work: Work) -> bytes:
        number = self._headers.get(match[1].lower())
        if number is None:
            return match[0]
        value = match[3].rstrip(b" \t")
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError:
            raise RequestError(BODY_INVALID if self._request else RESPONSE_NOT_INSPECTABLE, "a protected header not in UTF-8") from None
        treated = work.text(number, text)
        if treated is None:
            return b""
        if treated[0] == text:
            return match[0]
        if not _VALUE.fullmatch(treated[0]) or treated[0] != treated[0].strip(" \t"):
            raise RequestError(FIELD_NOT_OPENED, "a value that a header field cannot hold")
        return b"%b:%b%b\r\n" % (match[1], match[2], treated[0].encode())
