"""Values at rest: the field rules of the data plane, applied to stored JSON documents instead of messages.

    seal     what the rules select is sealed; what is sealed already stays
    open     what the rules select is opened; what is plain stays
    rewrap   what is sealed under an older version is sealed anew under the primary one; a document without such a value stays as it is

A rule keeps what binds its values (id, keyset, audience, tenant, record) and where it looks (`select`); routes, readers and content types
concern messages only. Rules without a keyset (mask, remove) are left out. Who may run this is decided by who has the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from meshguard.fields.compile import RuleSource, compile_fields
from meshguard.fields.keyset import Keyset
from meshguard.fields.transforms import WIRE, Reader, Transform
from meshguard.model.errors import DocumentError, Problem
from meshguard.model.record import FieldOperation

__all__ = ["OPERATIONS", "AtRest", "rules_at_rest"]

OPERATIONS = ("seal", "open", "rewrap")
_PATH = "/at-rest"
_OPENER = "at-rest"
_KEYED = ("encrypt", "seal", "deterministic", "tokenise", "hash")
_OF_MESSAGES = ("paths", "methods", "hosts", "side", "on", "content_types", "readers", "others", "form", "headers", "query", "protobuf")


class _Source:
    def __init__(self, file: str, fields: Sequence[Mapping[str, Any]]) -> None:
        self.file = file
        self.fields = fields
        self.value = self


def rules_at_rest(documents: Sequence[RuleSource], keysets: Mapping[str, Keyset], ids: Collection[str] = (), tenant: str = "") -> Transform:
    """The rules named `ids` (none: all with a keyset that select in JSON) as one transform for documents at rest. `tenant` stands in for
    a tenant that a rule takes from its caller. Raises DocumentError."""
    sources = []
    known: set[str] = set()
    for source in documents:
        kept = []
        for values in source.value.fields:
            known.add(str(values.get("id")))
            keyed = "select" in values and any(name in values for name in _KEYED)
            if keyed and (values.get("id") in ids if ids else values.get("mode") != "shadow"):  # one that is named is meant
                kept.append(_at_rest(values, tenant))
        sources.append(_Source(source.file, kept))
    missing = sorted(set(ids) - known)
    if missing:
        file = documents[0].file if documents else ""
        raise DocumentError(
            [Problem(file, "fields", f"a rule {name!r} (there is {', '.join(sorted(known)) or 'none'})") for name in missing]
        )
    plan = compile_fields(sources, [_OPENER], keysets).plan("POST", _PATH)
    if plan is None or plan.request is None:
        raise DocumentError([Problem(documents[0].file if documents else "", "fields", "a rule that selects values in JSON")])
    return plan.request


def _at_rest(values: Mapping[str, Any], tenant: str) -> dict[str, Any]:
    kept = {key: value for key, value in values.items() if key not in _OF_MESSAGES and key != "mode"}
    if tenant and kept.get("tenant") is not None and not isinstance(kept["tenant"], str):
        kept["tenant"] = tenant
    return kept | {"paths": [_PATH], "on": "request", "readers": {_OPENER: "open"}}


class AtRest:
    """One operation over many documents. `nonces(n)` gives n random octets. `counts` are the values treated, by (operation, field,
    keyset, version)."""

    def __init__(self, operation: str, transform: Transform, keysets: Mapping[str, Keyset], nonces: Callable[[int], bytes]) -> None:
        if operation not in OPERATIONS:
            raise ValueError(f"expected one of {', '.join(OPERATIONS)}")
        self._operation = operation
        self._transform = transform
        self._keysets = keysets
        self._nonces = nonces
        self._opener = Reader(frozenset({_OPENER}))
        self.counts: dict[tuple[str, str, str, int], int] = {}

    def treat(self, document: bytes, now: float) -> bytes:
        """One JSON document, treated. Raises RequestError: it does not parse, a value does not open, a key is not available."""
        if self._operation == "seal":
            return self._apply(document, WIRE, now)
        if self._operation == "open":
            return self._apply(document, self._opener, now)
        opened = self._transform.apply(document, "application/json", self._opener, self._nonces, now)
        if not any(self._is_old(act) for act in opened.operations):
            return document
        self._count(opened.operations)
        return self._apply(opened.body, WIRE, now)

    def _is_old(self, act: FieldOperation) -> bool:
        if act.operation != "open" or not act.version:
            return False
        primary = self._keysets[act.keyset].primary
        return primary is None or primary.version != act.version

    def _apply(self, document: bytes, reader: Reader, now: float) -> bytes:
        result = self._transform.apply(document, "application/json", reader, self._nonces, now)
        self._count(result.operations)
        return result.body

    def _count(self, operations: Sequence[FieldOperation]) -> None:
        for act in operations:
            if act.operation != "pass":
                key = (act.operation, act.field, act.keyset, act.version)
                self.counts[key] = self.counts.get(key, 0) + act.count
