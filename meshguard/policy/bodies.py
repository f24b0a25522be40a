"""Bodies as rules see them: how a rule wants a body read, what came of it, and the conditions on its values.

Nothing is parsed here. Whoever has the octets gives `Facts.body(readings)`: a `Body` that was read in one of the ways that the rule
knows, or that could not be read. Values are those of JSON (of forms: texts; of protobuf: the fields by their names).

Which error is worse depends on the rule, so each condition judges in two ways:

    allow   there is a value, and all that are selected fit
    deny    one that is selected fits, or cannot be judged: it is of another type than those the rule names (readers convert), a member on
            the way is no container where one is needed, or has a name beside it that lenient readers take for the same (`Role`, `role[]`)

`null` is no value: it fits only where it is listed, and neither `present` for an allow rule nor `absent` for one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from operator import ge, gt, le, lt
from typing import TYPE_CHECKING, Any, Protocol

from meshguard.model.selectors import Step, parse_selector

if TYPE_CHECKING:
    from meshguard.model.reasons import Reason
    from meshguard.policy.body_documents import BodyDocument, ValueDocument
    from meshguard.policy.conditions import Facts

__all__ = [
    "FORM", "JSON", "VEILED", "Body", "BodyCondition", "Entries", "Messages", "Reading", "Repeated", "folded_name", "names_in",
]  # fmt: skip

_DROPPED = str.maketrans("", "", " ._-")
_DECIMAL = re.compile(r"-?[0-9]{1,40}(?:\.[0-9]{1,40})?")


class Messages(Protocol):
    """The messages of a descriptor set."""

    @property
    def digest(self) -> str: ...

    def read(self, path: str, message: bytes) -> object:
        """Fields by name of a message that is the body of a call to `path`. Raises ValueError for one that cannot be read."""

    def write(self, path: str, values: Mapping[str, object]) -> bytes:
        """The message with these values, for tests of policies. Raises ValueError, LookupError."""

    def problem(self, field: str) -> str:
        """What was expected instead of the field at this dotted path, in words; empty where some message has it."""


class Reading:
    """A way to read bodies: `kind` is json, form or protobuf, `messages` those of a descriptor set. Equal ones read alike."""

    __slots__ = ("_key", "kind", "messages")

    def __init__(self, kind: str, messages: Messages | None = None) -> None:
        self.kind = kind
        self.messages = messages
        self._key = (kind, messages.digest if messages is not None else "")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Reading) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def identity(self) -> tuple[str, str]:
        return self._key


JSON, FORM = Reading("json"), Reading("form")


class Repeated(list[object]):
    """The values of a name that came several times in a form, or of a repeated field: selected one by one."""

    __slots__ = ()


class Entries(dict[str, object]):
    """A map of a message: its values are selected one by one."""

    __slots__ = ()


class Veiled:
    """A value that is sealed, or a token for one. What it will be when it is opened nobody knows: it has no type that a rule names."""

    __slots__ = ()


VEILED = Veiled()


class Body:
    """What came of a body. `reading` is the one that read it, None where none could; then `reason` says why, None where there is no body.
    `names` are all member names in it. `is_plain`: its value is one of JSON, with nothing that only this package knows."""

    __slots__ = ("is_plain", "names", "reading", "reason", "value")

    def __init__(
        self, reading: Reading | None = None, value: object = None, reason: Reason | None = None, names: frozenset[str] = frozenset()
    ) -> None:
        self.reading = reading
        self.value = value
        self.reason = reason
        self.names = names
        self.is_plain = False


def folded_name(name: str) -> str:
    """What lenient readers make of a member's name: without case, brackets, and what joins words."""
    return name.partition("\0")[0].partition("[")[0].casefold().translate(_DROPPED)


def names_in(value: object) -> Iterator[str]:
    """Every member name of a value."""
    stack = [value]
    while stack:
        each = stack.pop()
        if isinstance(each, dict):
            yield from each
            stack += each.values()
        elif isinstance(each, list):
            stack += each


class _Test:
    """One place and what its values must be."""

    __slots__ = ("_accepts", "_decimals", "_document", "_exact", "_fold", "_ranges", "_steps", "_text", "identity", "text")

    def __init__(self, where: str, steps: Sequence[Step], document: ValueDocument, *, as_text: bool) -> None:
        self._steps = tuple(steps)
        self._document = document
        self._fold = document.ignore_case
        self._text = as_text  # the values of a form are texts
        exact = document.exact or ()
        accepts = {kind for kind, _ in map(_keyed, exact)}
        if any(getattr(document, key) is not None for key in ("prefix", "suffix", "contains")):
            accepts.add("string")
        if any(getattr(document, key) is not None for key in ("min", "max", "above", "below")):
            accepts.add("number")
        self._accepts = frozenset(accepts)
        self._exact = frozenset(_keyed(value.casefold() if self._fold and isinstance(value, str) else value) for value in exact)
        # numbers of forms compare with what is written in the policy, not with the doubles that stand for it
        self._decimals = frozenset(Decimal(repr(key)) for kind, key in self._exact if kind == "number")
        bounds = [(sign, bound) for sign in ("min", "max", "above", "below") if (bound := getattr(document, sign)) is not None]
        self._ranges = [(sign, bound, Decimal(repr(bound))) for sign, bound in bounds]
        told = document.model_dump(exclude_defaults=True)
        self.identity = (where, repr(sorted((key, _sorted(value)) for key, value in told.items())))
        self.text = f"{where} {_words(document)}"

    def allows(self, root: object) -> bool:
        values: list[object] = []
        if _select(root, self._steps, 0, values):
            return False
        document = self._document
        if document.absent:
            return not values
        if document.present:
            return bool(values) and all(value is not None for value in values)
        return bool(values) and all(self._fits(value) is True for value in values)

    def denies(self, root: object) -> bool:
        values: list[object] = []
        if _select(root, self._steps, 0, values):
            return True
        document = self._document
        if document.absent:
            return not values or any(value is None for value in values)
        if document.present:
            return bool(values)
        return any(self._fits(value) is not False for value in values)

    def _fits(self, value: object) -> bool | None:
        """None: of another type than those that the rule names."""
        kind, key = _keyed(value)
        if kind == "null":
            return ("null", None) in self._exact
        if self._text and isinstance(value, str):
            return self._fits_text(value)
        if kind not in self._accepts:
            return None
        if isinstance(value, str):
            return self._fits_string(value)
        if kind == "number" and isinstance(value, int | float):
            return self._fits_number(value)
        return (kind, key) in self._exact

    def _fits_text(self, value: str) -> bool | None:
        """A value of a form: what it is depends on its reader."""
        found: list[bool] = []
        if "string" in self._accepts:
            found.append(self._fits_string(value))
        if "number" in self._accepts and _DECIMAL.fullmatch(value):
            found.append(self._fits_number(Decimal(value)) is True)
        if "boolean" in self._accepts and value in ("true", "false"):
            found.append(("boolean", value == "true") in self._exact)
        return any(found) if found else None

    def _fits_string(self, value: str) -> bool:
        document = self._document
        if self._fold:
            value = value.casefold()
        fold = str.casefold if self._fold else str
        if document.exact is not None and ("string", value) not in self._exact:
            return False
        if document.prefix is not None and not value.startswith(tuple(map(fold, document.prefix))):
            return False
        if document.suffix is not None and not value.endswith(tuple(map(fold, document.suffix))):
            return False
        return document.contains is None or any(fold(part) in value for part in document.contains)

    def _fits_number(self, value: float | Decimal) -> bool | None:
        """Exactly and as a double; None where the two differ, because readers do."""
        exact = self._in_range(value)
        try:
            return exact if self._in_range(float(value)) is exact else None
        except OverflowError:
            return None

    def _in_range(self, value: float | Decimal) -> bool:
        is_decimal = isinstance(value, Decimal)
        if self._document.exact is not None:
            return value in self._decimals if is_decimal else ("number", value) in self._exact
        return all(_COMPARE[sign](value, decimal if is_decimal else bound) for sign, bound, decimal in self._ranges)


_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {"min": ge, "max": le, "above": gt, "below": lt}


def _keyed(value: object) -> tuple[str, object]:
    """A value with its type: `true` is not 1."""
    if value is None:
        return ("null", None)
    if isinstance(value, bool):
        return ("boolean", value)
    if isinstance(value, int | float):
        return ("number", value)
    if isinstance(value, str):
        return ("string", value)
    return ("container", None)


def _words(document: ValueDocument) -> str:
    """What the policy says, never what a request said."""
    if document.present or document.absent:
        return "is present" if document.present else "is absent"
    parts = []
    for key in ("exact", "prefix", "suffix", "contains"):
        values = getattr(document, key)
        if values is not None:
            parts.append(f"{'is' if key == 'exact' else key} {' or '.join(map(repr, values[:8]))}")
    parts += [f"{key} {bound}" for key in ("min", "max", "above", "below") if (bound := getattr(document, key)) is not None]
    return " and ".join(parts)


def _sorted(value: object) -> object:
    return sorted(map(repr, value)) if isinstance(value, list) else value


class BodyCondition:
    """The `body` of a rule. Of several readings the one counts that the body was read in."""

    __slots__ = ("_tests", "identity", "readings", "text")
    kind = "body"
    needs_claims = False
    needs_body = True

    def __init__(self, document: BodyDocument, messages: Messages | None) -> None:
        tests: dict[Reading, tuple[_Test, ...]] = {}
        if document.json_ is not None:
            listed = [_Test(where, parse_selector(where).steps, value, as_text=False) for where, value in document.json_.items()]
            tests[JSON] = tuple(listed)
        if document.form is not None:
            tests[FORM] = tuple(_Test(name, (Step(name=name),), value, as_text=True) for name, value in document.form.items())
        if document.protobuf is not None:
            fields = document.protobuf.fields_.items()
            tests[Reading("protobuf", messages)] = tuple(_Test(path, _field_steps(path), value, as_text=False) for path, value in fields)
        self._tests = tests
        self.readings = tuple(tests)
        self.identity: tuple[object, ...] = (
            self.kind,
            frozenset((reading.identity, frozenset(test.identity for test in each)) for reading, each in tests.items()),
        )
        parts = [" and ".join(test.text for test in each[:8]) or "is readable" for each in tests.values()]
        self.text = "body " + " or ".join(f"{reading.kind} {part}" for reading, part in zip(tests, parts, strict=True))

    def allows(self, facts: Facts, claims: Mapping[str, object] | None) -> bool:
        body = facts.body(self.readings)
        return body.reading is not None and all(test.allows(body.value) for test in self._tests[body.reading])

    def denies(self, facts: Facts, claims: Mapping[str, object] | None) -> bool:
        body = facts.body(self.readings)
        return body.reading is None or all(test.denies(body.value) for test in self._tests[body.reading])


def _field_steps(path: str) -> list[Step]:
    return [Step(name=name) for name in path.split(".")]


def _select(value: object, steps: Sequence[Step], place: int, out: list[object]) -> bool:
    """Appends what the steps from `place` on select; True where that cannot be told for certain."""
    if place == len(steps):
        out += value if isinstance(value, Repeated) else value.values() if isinstance(value, Entries) else (value,)
        return False
    step = steps[place]
    doubt = False
    if step.deep:
        children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        for child in children:
            doubt |= _select(child, steps, place, out)
    if isinstance(value, Repeated | Entries):
        for element in value.values() if isinstance(value, Entries) else value:
            doubt |= _select(element, steps, place, out)
        return doubt
    if value is None:
        return doubt
    if isinstance(value, dict):
        if step.name is not None:
            if step.name in value:
                doubt |= _select(value[step.name], steps, place + 1, out)
            near = folded_name(step.name)
            return doubt or any(name != step.name and folded_name(name) == near for name in value)
        if step.index is None:
            for child in value.values():
                doubt |= _select(child, steps, place + 1, out)
            return doubt
    elif isinstance(value, list) and step.name is None:
        for child in value if step.index is None else value[step.index : step.index + 1]:
            doubt |= _select(child, steps, place + 1, out)
        return doubt
    return doubt or not step.deep
