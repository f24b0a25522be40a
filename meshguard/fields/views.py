"""Who sees what of a field, and what is kept of it: actions, views, readers, and the compiled rule.

An *action* protects a value on its way to whoever is not to read it: `encrypt`, `deterministic`, `tokenise`, `hash`, `mask`, `remove`. A
*view* is what one recipient gets: `open`, `mask`, `token`, `ciphertext` (what the action makes), `nothing`.
"""

from __future__ import annotations

from collections.abc import Sequence

from meshguard.fields.contexts import Caller, Context, TenantSelector
from meshguard.fields.keyset import Keyset
from meshguard.fields.masks import Mask
from meshguard.fields.protection import Protection
from meshguard.fields.reader import Reader

__all__ = ["WIRE", "Action", "FieldPlan"]

MAX_TENANTS = 1024
"""Tenants whose protections a rule keeps at hand; more start over."""


WIRE = Reader(frozenset(("\0wire",)))
"""Nobody yet: a request on its way to the proxy of its receiver, which judges who reads. It gets what the action makes, no view."""


class Action:
    """What a recipient gets. `kind`: `open`, `mask` (with `mask`), `token`, `remove`, or an action that keeps the value protected
    (`ciphertext` of an encrypting rule, `deterministic`, `tokenise`, `reversible`, `hash`)."""

    __slots__ = ("kind", "mask")

    def __init__(self, kind: str, mask: Mask | None = None) -> None:
        self.kind = kind
        self.mask = mask


class FieldPlan:
    """One compiled rule. `readers` are (role, action), best first; `others` is for everyone else, `wire` for the way between proxies.

    `keyset` is None for rules that keep nothing (`mask`, `remove`). `padding` rounds the length of sealed values up to a multiple of it.
    """

    __slots__ = (
        "_audience", "_of_tenants", "_single", "has_records", "id", "keyset", "keyset_name", "others", "padding", "readers", "seal_null",
        "tenant", "wire",
    )  # fmt: skip

    def __init__(
        self,
        id: str,
        keyset: Keyset | None,
        readers: Sequence[tuple[str, Action]],
        others: Action,
        wire: Action,
        *,
        seal_null: bool = False,
        audience: str = "",
        tenant: str | TenantSelector = "",
        has_records: bool = False,
        padding: int = 0,
    ) -> None:
        self.id = id
        self.keyset = keyset
        self.keyset_name = keyset.name if keyset is not None else ""
        self.readers = tuple(readers)
        self.others = others
        self.wire = wire
        self.seal_null = seal_null
        self.padding = padding
        self.has_records = has_records
        self.tenant = tenant
        self._audience = audience
        self._of_tenants: dict[str, Protection] = {}
        fixed = keyset is not None and isinstance(tenant, str) and not has_records
        self._single = self._make(tenant, "") if fixed and isinstance(tenant, str) else None

    def action(self, reader: Reader) -> Action:
        """What a recipient gets."""
        if reader is WIRE:
            return self.wire
        roles = reader.roles
        return next((action for role, action in self.readers if role in roles), self.others)

    def protection(self, caller: Caller, record: str = "") -> Protection | None:
        """How values are protected for a caller's tenant and for a record; None for a rule without keys.

        Raises RequestError(TENANT_UNKNOWN), KeysetError."""
        if self._single is not None or self.keyset is None:
            return self._single
        tenant = self.tenant if isinstance(self.tenant, str) else self.tenant.of(caller)
        if record:
            return self._make(tenant, record)
        found = self._of_tenants.get(tenant)
        if found is None:
            if len(self._of_tenants) >= MAX_TENANTS:
                self._of_tenants.clear()
            found = self._make(tenant, "")
            if found is not None:
                self._of_tenants[tenant] = found
        return found

    def _make(self, tenant: str, record: str) -> Protection | None:
        return None if self.keyset is None else Protection(self.keyset, Context(self.id, self._audience, tenant, record))
