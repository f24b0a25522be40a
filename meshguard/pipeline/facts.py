"""What conditional rules may look at: single headers, verified claims, the time. Made only when a rule asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from meshguard.model.errors import IdentityError, RequestError
from meshguard.model.reasons import INTERNAL_ERROR, TOKEN_INVALID
from meshguard.policy.question import identity_value
from meshguard.wire.fields import field_values

if TYPE_CHECKING:
    from meshguard.pipeline.exchange import Exchange

__all__ = ["RequestFacts"]


class RequestFacts:
    """`policy.Facts` for one request. `now` is epoch seconds. `subject` and `issuer` are the verified token's `sub` and
    `iss` once claims were looked at."""

    __slots__ = ("_block", "_claims", "_exchange", "_looked", "issuer", "now", "subject")

    def __init__(self, exchange: Exchange, now: float) -> None:
        head = exchange.head
        self._exchange = exchange
        self._block = head.block if head is not None else b""
        self._looked = False
        self._claims: Mapping[str, object] | None = None
        self.now = now
        self.subject = ""
        self.issuer = ""

    def header(self, name: str) -> list[str]:
        """Every line of the field, in order. Octets above 127 come as ISO 8859-1, so that a comparison is one of octets."""
        return [value.decode("latin-1") for value in field_values(self._block, name.encode("ascii"))]

    def value(self, name: str) -> object:
        """A variable of an expression (`policy.expression`)."""
        exchange = self._exchange
        plan = exchange.plan
        if plan is None:
            raise RequestError(INTERNAL_ERROR, "no plan")
        match name:
            case "request.method":
                return plan.method
            case "request.path":
                return plan.path
            case "request.query":
                return plan.query.decode("latin-1") if plan.query else ""
            case "request.host":
                return plan.host
            case "request.port":
                return exchange.peer.local_port
            case "request.headers":
                return self._headers()
            case "connection.client_address":
                return exchange.peer.client_address
        return identity_value(name, exchange.principal)

    def _headers(self) -> dict[str, list[str]]:
        headers: dict[str, list[str]] = {}
        for line in self._block.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            if colon:
                headers.setdefault(name.decode("latin-1").lower(), []).append(value.strip(b" \t").decode("latin-1"))
        return headers

    @property
    def chain(self) -> Sequence[str]:
        """The callers on the way here, as far as they are proven: the direct one last."""
        exchange = self._exchange
        return exchange.chain or ((exchange.principal.spiffe_id,) if exchange.principal is not None else ())

    @property
    def principal(self) -> str | None:
        """The caller's SPIFFE ID."""
        principal = self._exchange.principal
        return principal.spiffe_id if principal is not None else None

    @property
    def claims(self) -> Mapping[str, object] | None:
        """The claims of the verified bearer token; None when there is none. Raises RequestError(TOKEN_INVALID) for a bad one."""
        if not self._looked:
            self._looked = True
            self._claims = self._verify()
        return self._claims

    def _verify(self) -> Mapping[str, object] | None:
        table = self._exchange.peer.table
        tokens = table.snapshot.tokens if table is not None else None
        if tokens is None:
            return None
        try:
            claims: Mapping[str, object] | None = tokens.claims(self.header, self.now)
        except IdentityError as exc:
            raise RequestError(TOKEN_INVALID, exc.code) from exc
        if claims is not None:
            subject = claims.get("sub")
            self.subject = subject if isinstance(subject, str) else ""
            self.issuer = str(claims.get("iss", ""))
        return claims
