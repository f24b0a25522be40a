"""One request as a question to a policy, for tests, explanations and replays: everything at hand, nothing from a connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from meshguard.model.principal import Principal
from meshguard.model.verdicts import Denial, Permit
from meshguard.policy.bodies import Body, Reading
from meshguard.policy.compiled import CompiledPolicy
from meshguard.policy.decision import Conditional

__all__ = ["Question", "ask", "identity_value", "principal_of"]


class Question:
    """A request: `path` canonical with its `readings`, `headers` by lower-case name with every line, `claims` of a verified token (None:
    no token), `now` in epoch seconds, `read` reads the body (None: there is none). It is its own `Facts`."""

    __slots__ = (
        "_read", "before", "claims", "client", "headers", "host", "method", "now", "path", "port", "principal", "query", "readings",
    )  # fmt: skip

    def __init__(
        self,
        method: str,
        path: str,
        readings: tuple[str, ...],
        *,
        host: str,
        port: int,
        now: float,
        headers: Mapping[str, Sequence[str]] | None = None,
        claims: Mapping[str, object] | None = None,
        query: str = "",
        client: str = "",
        before: Sequence[str] = (),
        read: Callable[[Sequence[Reading]], Body] | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.readings = readings
        self.host = host
        self.port = port
        self.now = now
        self.headers = headers or {}
        self.claims = claims
        self.query = query
        self.client = client
        self.before = tuple(before)  # callers before the principal
        self._read = read
        self.principal: Principal | None = None  # set by `ask`

    def header(self, name: str) -> list[str]:
        """Every line of the field."""
        return list(self.headers.get(name, ()))

    def body(self, readings: Sequence[Reading]) -> Body:
        """What `read` gives; without it there is no body."""
        return self._read(readings) if self._read is not None else Body()

    @property
    def chain(self) -> Sequence[str]:
        """The callers, the principal last."""
        return (*self.before, self.principal.spiffe_id) if self.principal is not None else ()

    def value(self, name: str) -> object:
        """A variable of an expression."""
        match name:
            case "request.method":
                return self.method
            case "request.path":
                return self.path
            case "request.query":
                return self.query
            case "request.host":
                return self.host
            case "request.port":
                return self.port
            case "request.headers":
                return {key: list(lines) for key, lines in self.headers.items()}
            case "connection.client_address":
                return self.client
        return identity_value(name, self.principal)


def identity_value(name: str, principal: Principal | None) -> str:
    """An `identity.` variable of an expression; empty without an identity. Raises KeyError for another name."""
    if name == "identity.spiffe_id":
        return "" if principal is None else principal.spiffe_id
    if name == "identity.trust_domain":
        return "" if principal is None else principal.trust_domain
    if name == "identity.path":
        return "" if principal is None else principal.path
    raise KeyError(name)


def ask(policy: CompiledPolicy, principal: Principal | None, question: Question) -> Permit | Denial:
    """The verdict, by the very code that decides live requests."""
    question.principal = principal
    outlook = policy.bind(principal).outlook(question.method, question.path, question.readings, question.host, question.port)
    return outlook.decide(question) if isinstance(outlook, Conditional) else outlook


def principal_of(spiffe_id: str) -> Principal:
    """A principal with this identity, valid for ever: for questions only, it never came over a connection."""
    domain, _, path = spiffe_id.removeprefix("spiffe://").partition("/")
    return Principal(spiffe_id, domain, "/" + path, 0.0, float("inf"), "", "")
