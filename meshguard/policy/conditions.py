"""Conditions of a rule that only the request's own facts can settle: headers, token claims, time.

Each condition has `kind` and `text` (for records and explanations) and judges `Facts` in two ways, because an error in either
direction is not the same: `allows` is true only when everything that an upstream might read satisfies it, `denies` as soon as
something does. Work is bounded by the size of the head and the token, which the wire layer and the verifier limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from meshguard.policy.documents import HeaderDocument, WindowDocument
from meshguard.policy.principals import PrincipalIndex, parse_principal
from meshguard.policy.times import Window

if TYPE_CHECKING:
    from meshguard.policy.bodies import Body, Reading

__all__ = [
    "USER",
    "ChainCondition",
    "ClaimCondition",
    "Condition",
    "Facts",
    "HeaderCondition",
    "TimeCondition",
    "claim_members",
    "member_key",
    "user_name",
]

USER = ".user"
"""Path of what no token carries under this name: who it speaks for, as `jwt:ISSUER#SUB` and `jwt:ISSUER#*`. Documents cannot write it."""


_NEVER, _BEGAN = -1, -2


class Facts(Protocol):
    """What a request brings along."""

    def header(self, name: str) -> list[str]:
        """Every line of the field (lower-case `name`), in order; empty when it is absent."""
        ...

    @property
    def claims(self) -> Mapping[str, object] | None:
        """Claims of the verified token, None without a token. Asked only when a rule needs it."""
        ...

    @property
    def now(self) -> float:
        """Epoch seconds."""
        ...

    @property
    def chain(self) -> Sequence[str]:
        """SPIFFE IDs of the callers on the way here, who it began with first, the direct caller last; empty when nobody is known."""
        ...

    def value(self, name: str) -> object:
        """A variable of an expression (see `expression.VARIABLES`), but for the claims, the time and the body."""
        ...

    def body(self, readings: Sequence[Reading]) -> Body:
        """The body, read in whichever of these ways its Content-Type names. Asked only when a rule needs it."""
        ...


class Condition(Protocol):
    """One condition of a rule: the classes of this module, `bodies.BodyCondition` and `expression.ExpressionCondition`. `needs_claims`: it
    looks at the token; `needs_body`: it looks at the body."""

    kind: str
    text: str

    @property
    def needs_claims(self) -> bool: ...

    @property
    def needs_body(self) -> bool: ...

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for conditions that mean the same (hashable)."""
        ...

    def allows(self, facts: Facts, claims: Mapping[str, object] | None) -> bool:
        """Whether an allow rule may count on it."""
        ...

    def denies(self, facts: Facts, claims: Mapping[str, object] | None) -> bool:
        """Whether a deny rule has to count on it."""
        ...


class HeaderCondition:
    """A field and what its value must be (see `HeaderDocument`).

    INVARIANT: several lines of a field, and one line with the same members in a comma list, mean the same (RFC 9110 section 5.3),
    so `denies` looks at both spellings; `allows` asks every line as it stands."""

    __slots__ = ("_absent", "_contains", "_exact", "_fold", "_name", "_prefix", "_present", "_suffix", "text")
    kind = "header"
    needs_claims = False
    needs_body = False

    def __init__(self, name: str, document: HeaderDocument) -> None:
        self._name = name
        self._fold = document.ignore_case
        self._present = document.present is not None
        self._absent = document.absent is not None
        self._exact = self._values(document.exact)
        self._prefix = self._values(document.prefix)
        self._suffix = self._values(document.suffix)
        self._contains = self._values(document.contains)
        parts = []
        for key in ("exact", "prefix", "suffix", "contains"):
            values = getattr(document, key)
            if values is not None:
                parts.append(f"{'is' if key == 'exact' else key} {' or '.join(map(repr, values[:8]))}")
        self.text = f"{name} {'is present' if self._present else 'is absent' if self._absent else ' and '.join(parts)}"

    def _values(self, values: Sequence[str] | None) -> tuple[str, ...] | None:
        if values is None:
            return None
        return tuple(value.casefold() for value in values) if self._fold else tuple(values)

    @property
    def identity(self) -> tuple[object, ...]:
        listed = (self._exact, self._prefix, self._suffix, self._contains)
        values = tuple(None if each is None else frozenset(each) for each in listed)
        return (self.kind, self._name, self._fold, self._present, self._absent, values)

    def allows(self, facts: Facts, claims: Mapping[str, object] | None) -> bool:
        lines = facts.header(self._name)
        if self._absent:
            return not lines
        if not lines:
            return False
        return self._present or all(map(self._fits, lines))

    def denies(self, facts: Facts, claims: Mapping[str, object] | None) -> bool:
        lines = facts.header(self._name)
        if self._absent:
            return not lines
        if self._present:
            return bool(lines)
        for line in lines:
            if self._fits(line):
                return True
            if "," in line and any(self._fits(member.strip(" \t")) for member in line.split(",")):
                return True
        return False

    def _fits(self, value: str) -> bool:
        if self._fold:
            value = value.casefold()
        if self._exact is not None and value not in self._exact:
            return False
        if self._prefix is not None and not value.startswith(self._prefix):
            return False
        if self._suffix is not None and not value.endswith(self._suffix):
            return False
        return self._contains is None or any(part in value for part in self._contains)


class ClaimCondition:
    """A claim and its accepted values. A list claim fits when a member does; `scope` is a list of words (RFC 8693 section 4.2)."""

    __slots__ = ("keys", "path", "text")
    kind = "claim"
    needs_claims = True
    needs_body = False

    def __init__(self, path: str, values: Sequence[object]) -> None:
        self.path = path
        self.keys = frozenset(map(member_key, values))
        self.text = f"{path} is {' or '.join(repr(value) for value in values[:8])}"

    @property
    def identity(self) -> tuple[object, ...]:
        return (self.kind, self.path, self.keys)

    def allows(self, facts: Facts, claims: Mapping[str, object] | None) -> bool:
        return self.fits(claims)

    def denies(self, facts: Facts, claims: Mapping[str, object] | None) -> bool:
        return self.fits(claims)

    def fits(self, claims: Mapping[str, object] | None) -> bool:
        """Whether the token's claims satisfy it; False without a token."""
        return claims is not None and any(member_key(member) in self.keys for member in claim_members(claims, self.path))


class ChainCondition:
    """Who the request has come from and through, as far as it is proven (`identity.decision_token`). Without a token the chain is the
    direct caller alone; without a caller nothing about it is known, and an allow rule does not match."""

    __slots__ = ("_began", "_index", "_through", "identity", "text")
    kind = "chain"
    needs_claims = False
    needs_body = False

    def __init__(self, through: Sequence[str], never_through: Sequence[str], on_behalf_of: Sequence[str]) -> None:
        filed = [(pattern, number) for number, pattern in enumerate(through)]
        filed += [(pattern, _NEVER) for pattern in never_through] + [(pattern, _BEGAN) for pattern in on_behalf_of]
        self._index = PrincipalIndex((parse_principal(pattern), number) for pattern, number in filed)
        self._through = frozenset(range(len(through)))
        self._began = bool(on_behalf_of)
        self.identity: tuple[object, ...] = (self.kind, frozenset(through), frozenset(never_through), frozenset(on_behalf_of))
        parts = (("through", through), ("never through", never_through), ("on behalf of", on_behalf_of))
        self.text = "chain " + " and ".join(f"{word} {', '.join(values[:8])}" for word, values in parts if values)

    def allows(self, facts: Facts, claims: Mapping[str, object] | None) -> bool:
        chain = facts.chain
        return bool(chain) and self._fits(chain)

    def denies(self, facts: Facts, claims: Mapping[str, object] | None) -> bool:
        return self._fits(facts.chain)

    def _fits(self, chain: Sequence[str]) -> bool:
        found = [self._index.find(member) for member in chain]
        if self._began and not (found and _BEGAN in found[0]):
            return False
        return self._through <= set().union(*found[1:]) and not any(_NEVER in numbers for numbers in found)


class TimeCondition:
    """Windows of time, one of which must be open."""

    __slots__ = ("_windows", "identity", "text")
    kind = "time"
    needs_claims = False
    needs_body = False

    def __init__(self, documents: Sequence[WindowDocument]) -> None:
        self._windows = tuple(
            Window(entry.days, entry.opens, entry.closes, entry.timezone, entry.after, entry.before) for entry in documents
        )
        self.identity: tuple[object, ...] = (self.kind, frozenset(window.text for window in self._windows))
        self.text = "time in " + " or ".join(window.text for window in self._windows[:8])

    def allows(self, facts: Facts, claims: Mapping[str, object] | None) -> bool:
        now = facts.now
        return any(window.holds(now) for window in self._windows)

    denies = allows


def claim_members(claims: Mapping[str, object], path: str) -> Sequence[object]:
    """The values at `path`: members of a list, words of a scope, else the one value. Empty where the path leads nowhere.

    A path with `://` is one name (namespaced claims are URLs); otherwise dots go down into objects."""
    if path == USER:
        issuer, subject = claims.get("iss"), claims.get("sub")
        if not isinstance(issuer, str) or "#" in issuer:  # the first # ends the issuer
            return ()
        return (f"jwt:{issuer}#*", user_name(issuer, subject)) if isinstance(subject, str) and subject else (f"jwt:{issuer}#*",)
    value: object = claims
    for name in (path,) if "://" in path else path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return ()
        value = value[name]
    if isinstance(value, list | tuple):
        return value
    if path == "scope" and isinstance(value, str):
        return value.split(" ")
    return (value,)


def user_name(issuer: str, subject: str) -> str:
    """An end user as rules and records name it. A subject means nothing without its issuer."""
    return f"jwt:{issuer}#{subject}"


def member_key(value: object) -> tuple[str, object]:
    """Claim values compare by JSON type: `true` is not 1 and "1" is not 1, but 1.0 is the number 1. Others never match."""
    if isinstance(value, bool):
        return ("boolean", value)
    if isinstance(value, int | float):
        return ("number", value)
    if isinstance(value, str):
        return ("string", value)
    return ("", None)
