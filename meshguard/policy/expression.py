"""Conditions in CEL, the Common Expression Language (`when:` of a rule): type-checked when the policy is loaded, bounded when they run.

    when: request.path.startsWith("/reports/") && identity.trust_domain == "shop.example" && now.getHours("Europe/Berlin") < 18

Variables: `request.method`, `request.path` (canonical), `request.query`, `request.host`, `request.port`, `request.headers` (lower-case
name to its lines), `identity.spiffe_id`, `identity.trust_domain`, `identity.path` (empty without identity), `connection.client_address`,
`claims` of the verified token (empty without one), `now`, `body` (its values; see `bodies`). Work is bounded by the evaluator: linear
regular expressions (RE2), a budget of iterations.

INVARIANT: only a result that is the value `true` lets an allow rule match, and a deny rule fails to match only by the value `false`:
the library *returns* errors at run time, with a text as their value. The library is loaded only for a policy with a `when`.

A body is undecided, which counts against the request, where it cannot be read, where a member of it has a name that lenient readers take
for one that the expression writes (`Role` for `role`), and where a name that it writes came several times in a form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from meshguard.policy.bodies import FORM, JSON, VEILED, Repeated, folded_name

if TYPE_CHECKING:
    from meshguard.policy.bodies import Body, Reading
    from meshguard.policy.conditions import Facts

__all__ = ["VARIABLES", "ExpressionCondition"]

VARIABLES: Mapping[str, str] = {
    "request.method": "string",
    "request.path": "string",
    "request.query": "string",
    "request.host": "string",
    "request.port": "int",
    "request.headers": "map(string, list(string))",
    "identity.spiffe_id": "string",
    "identity.trust_domain": "string",
    "identity.path": "string",
    "connection.client_address": "string",
    "claims": "map(string, dyn)",
    "now": "timestamp",
    "body": "dyn",
}
"""Name to CEL type."""
_MESSAGE = re.compile(r"ERROR: <input>:(\d+):(\d+): ([^\n]*)")
_SHOWN = 120
_MEMBER = re.compile(r"\.\s*([A-Za-z_][A-Za-z0-9_]*+)(?!\s*\()")
_INDEXED = re.compile(r"""\[\s*('[^'\\]*'|"[^"\\]*")\s*\]|('[^'\\]*'|"[^"\\]*")\s*in\b""")


class ExpressionCondition:
    """One expression. Raises ValueError, with words, for one that does not parse or is not a condition."""

    __slots__ = ("_evaluate", "_near", "_needs_now", "_plain", "_words", "identity", "needs_body", "needs_claims", "readings", "text")
    kind = "expression"

    def __init__(self, source: str, readings: Sequence[Reading] = (JSON,)) -> None:
        environment, bool_type = _environment()
        try:
            expression = environment.compile(source)
        except RuntimeError as exc:
            found = _MESSAGE.search(str(exc))
            raise ValueError(f"a CEL expression: {found[3]} (line {found[1]}, column {found[2]})" if found else "a CEL expression") from exc
        if expression.return_type() != bool_type:
            raise ValueError(f"a CEL expression that is true or false, not {expression.return_type().name()} (compare it with something)")
        self._evaluate = expression.eval
        names = [name for name in VARIABLES if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", source)]
        self._plain = tuple(name for name in names if name not in ("claims", "now", "body"))
        self._needs_now = "now" in names
        self.needs_claims = "claims" in names
        self.needs_body = "body" in names
        self.readings = tuple(readings)
        self._words = _members(source) if self.needs_body else frozenset()
        self._near = frozenset(map(folded_name, self._words))
        self.identity: tuple[object, ...] = (self.kind, source)
        if self.needs_body:
            self.identity += (frozenset(reading.identity for reading in readings),)
        self.text = source if len(source) <= _SHOWN else source[: _SHOWN - 3] + "..."

    def allows(self, facts: Facts, claims: Mapping[str, object] | None) -> bool:
        return self._result(facts, claims) is True

    def denies(self, facts: Facts, claims: Mapping[str, object] | None) -> bool:
        return self._result(facts, claims) is not False

    def _result(self, facts: Facts, claims: Mapping[str, object] | None) -> bool | None:
        """None where it cannot be evaluated: a key that is not there, a value of another type, too much work."""
        value = facts.value
        data = {name: value(name) for name in self._plain}
        if self.needs_claims:
            data["claims"] = claims or {}
        if self._needs_now:
            data["now"] = datetime.fromtimestamp(facts.now, UTC)
        if self.needs_body:
            body = facts.body(self.readings)
            if body.reading is None or self._is_doubtful(body):
                return None
            data["body"] = body.value if body.is_plain else _plain(body.value)
        try:
            result = self._evaluate(data=data).value()
        except RuntimeError:
            return None
        return result if result is True or result is False else None  # only a result of type BOOL has one of these two

    def _is_doubtful(self, body: Body) -> bool:
        words, near = self._words, self._near
        if any(name not in words and folded_name(name) in near for name in body.names):
            return True
        value = body.value
        return body.reading is FORM and isinstance(value, dict) and any(isinstance(value.get(word), Repeated) for word in words)


def _plain(value: object) -> object:
    """Lists and maps of the types that the library knows. A sealed member is left out: asking for it is an error."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if each is not VEILED}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _members(source: str) -> frozenset[str]:
    """The names of members that the expression writes: `.name`, `["name"]`, `"name" in`."""
    for name in VARIABLES:
        if "." in name:
            source = re.sub(rf"(?<![\w.]){re.escape(name)}(?!\w)", "", source)
    indexed = ((one or other)[1:-1] for one, other in _INDEXED.findall(source))
    return frozenset(_MEMBER.findall(source)).union(indexed)


@cache
def _environment() -> tuple[Any, Any]:
    """The checking environment, and the type of a condition's result. Raises ValueError where the library is not installed."""
    try:
        from cel_expr_python import cel  # type: ignore[import-untyped]  # its stubs are not marked as such
    except ImportError as exc:
        raise ValueError("the CEL library for `when` (pip install 'meshguard[cel]')") from exc
    kinds = {
        "string": cel.Type.STRING,
        "int": cel.Type.INT,
        "timestamp": cel.Type.TIMESTAMP,
        "dyn": cel.Type.DYN,
        "map(string, list(string))": cel.Type.Map(cel.Type.STRING, cel.Type.List(cel.Type.STRING)),
        "map(string, dyn)": cel.Type.Map(cel.Type.STRING, cel.Type.DYN),
    }
    return cel.NewEnv(variables={name: kinds[kind] for name, kind in VARIABLES.items()}), cel.Type.BOOL
