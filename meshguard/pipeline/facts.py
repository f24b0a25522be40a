"""What conditional rules may look at: single headers, verified claims, the time. Made only when a rule asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from time import time
from typing import TYPE_CHECKING

from meshguard.model.errors import IdentityError, RequestError
from meshguard.model.reasons import INTERNAL_ERROR, TOKEN_INVALID
from meshguard.policy.bodies import Body
from meshguard.policy.decision import Conditional
from meshguard.policy.question import identity_value
from meshguard.wire.fields import field_values

if TYPE_CHECKING:
    from meshguard.model.verdicts import Denial, Permit
    from meshguard.pipeline.bodies import BodyReader
    from meshguard.pipeline.exchange import Exchange
    from meshguard.pipeline.plan import Plan
    from meshguard.policy.bodies import Reading

__all__ = ["RequestFacts", "judge_again"]


class RequestFacts:
    """`policy.Facts` for one request. `now` is epoch seconds. `subject` and `issuer` are the verified token's `sub` and
    `iss` once claims were looked at. `bodies` reads the body, once it is here."""

    __slots__ = ("_claims", "_exchange", "_looked", "block", "bodies", "issuer", "now", "subject")

    def __init__(self, exchange: Exchange, now: float) -> None:
        head = exchange.head
        self._exchange = exchange
        self.block = head.block if head is not None else b""
        self._looked = False
        self._claims: Mapping[str, object] | None = None
        self.now = now
        self.subject = ""
        self.issuer = ""
        self.bodies: BodyReader | None = None

    def body(self, readings: Sequence[Reading]) -> Body:
        """What the body says; without `bodies` as much as if there were none."""
        return self.bodies.read(readings) if self.bodies is not None else Body()

    def header(self, name: str) -> list[str]:
        """Every line of the field, in order. Octets above 127 come as ISO 8859-1, so that a comparison is one of octets."""
        return [value.decode("latin-1") for value in field_values(self.block, name.encode("ascii"))]

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
        for line in self.block.split(b"\r\n"):
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


def judge_again(exchange: Exchange, plan: Plan, outlook: Conditional) -> Permit | Denial | None:
    """The verdict on a request under way, under a newer policy. A body that was judged is no longer here: where both policies rest on the
    same conditions its part of the verdict is the same too; else None."""
    facts = RequestFacts(exchange, time())
    if not outlook.needs_body:
        return outlook.decide(facts)
    verdict = outlook.without_body(facts)
    before = plan.outlook
    if verdict is None and exchange.body_judged and isinstance(before, Conditional) and before.means_as(outlook):
        return exchange.verdict
    return verdict
