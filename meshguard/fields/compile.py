"""Field rules to compiled fields: resolves roles and keysets, finds overlaps, reports every problem at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Protocol

from pydantic import ValidationError

from meshguard.fields.documents import FieldRuleDocument, MaskDocument
from meshguard.fields.envelope import Envelope
from meshguard.fields.keyset import Keyset
from meshguard.fields.masks import MASKS
from meshguard.fields.paths import PathTemplate, parse_path
from meshguard.fields.selectors import Matcher, Selector, parse_selector
from meshguard.fields.transforms import Action, FieldPlan, Transform
from meshguard.model.errors import DocumentError, Problem

__all__ = ["CompiledFields", "RoutePlan", "RuleSource", "compile_fields"]


class _Rules(Protocol):
    @property
    def fields(self) -> Sequence[Mapping[str, Any]]: ...


class RuleSource(Protocol):
    """A policy document with its name: what `compile_fields` reads is `value.fields`, the rules as plain mappings."""

    @property
    def file(self) -> str: ...
    @property
    def value(self) -> _Rules: ...


class RoutePlan:
    """What happens to the bodies of one method and path; None: the body is not looked at."""

    __slots__ = ("request", "response")

    def __init__(self, request: Transform | None, response: Transform | None) -> None:
        self.request = request
        self.response = response


class _Rule:
    """A rule that is resolved."""

    __slots__ = ("content_types", "field", "methods", "on", "paths", "selectors")

    def __init__(self, document: FieldRuleDocument, field: FieldPlan) -> None:
        self.field = field
        self.paths: tuple[PathTemplate, ...] = tuple(map(parse_path, document.paths))
        self.methods = frozenset(document.methods) if document.methods is not None else None
        self.on = ("request", "response") if document.on == "both" else (document.on,)
        self.content_types = tuple(document.content_types)
        self.selectors: tuple[Selector, ...] = tuple(map(parse_selector, document.select))

    def covers(self, method: str, path: str, readings: Sequence[str]) -> bool:
        if self.methods is not None and method.upper() not in self.methods:
            return False
        return any(template.fits(path, readings) for template in self.paths)


class CompiledFields:
    """All field rules. `digest` is `sha256:<hex>` over what they say (never over keys); `ids` are the rules in order."""

    __slots__ = ("_plans", "_rules", "digest", "ids")

    def __init__(self, rules: Sequence[_Rule], digest: str) -> None:
        self._rules = tuple(rules)
        self._plans: dict[tuple[int, ...], RoutePlan] = {}
        self.digest = digest
        self.ids = tuple(rule.field.id for rule in rules)

    def plan(self, method: str, path: str, readings: Sequence[str] = ()) -> RoutePlan | None:
        """The rules for a method and a canonical path, or any of its `readings`; None when no body has to be read.

        Costs one expression per template: the caller remembers the answer. Equal sets of rules share one plan.
        """
        numbers = tuple(number for number, rule in enumerate(self._rules) if rule.covers(method, path, readings))
        if not numbers:
            return None
        plan = self._plans.get(numbers)
        if plan is None:
            rules = [self._rules[number] for number in numbers]
            plan = self._plans[numbers] = RoutePlan(_transform("request", rules), _transform("response", rules))
        return plan


def compile_fields(documents: Sequence[RuleSource], roles: Collection[str], keysets: Mapping[str, Keyset]) -> CompiledFields:
    """Compile the field rules of all documents. `roles` are the names that readers may have; `keysets` by name.

    Raises DocumentError with every problem: malformed rules, ids used twice, unknown roles and keysets, selections that overlap.
    """
    problems: list[Problem] = []
    documents_of: list[tuple[FieldRuleDocument, str, str]] = []
    for source in documents:
        for number, values in enumerate(source.value.fields):
            where = f"fields[{number}]"
            try:
                documents_of.append((FieldRuleDocument.model_validate(values), source.file, where))
            except ValidationError as exc:
                problems += _problems(exc, source.file, where)
    rules: list[_Rule] = []
    first: dict[str, str] = {}
    for document, file, where in documents_of:
        if document.id in first:
            problems.append(Problem(file, f"{where}.id", f"an id that is not taken: {first[document.id]} has it", value=repr(document.id)))
        first.setdefault(document.id, f"{where} in {file}")
        for role in document.readers:
            if role not in roles:
                problems.append(_unknown(file, f"{where}.readers.{role}", "a role that the policy names", role, roles))
        keyset = keysets.get(document.seal)
        if keyset is None:
            problems.append(_unknown(file, f"{where}.seal", "a keyset of the configuration's `keys`", document.seal, keysets))
            continue
        rules.append(_Rule(document, _field(document, keyset)))
        if document.on != "response" and isinstance(document.others, MaskDocument):
            expected = "ciphertext or remove where requests are treated: a mask would be stored in place of the value"
            problems.append(Problem(file, f"{where}.others", expected))
    problems += _overlaps(documents_of)
    if problems:
        raise DocumentError(problems)
    text = json.dumps([document.canonical() for document, _, _ in documents_of], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return CompiledFields(rules, "sha256:" + hashlib.sha256(text.encode()).hexdigest())


def _field(document: FieldRuleDocument, keyset: Keyset) -> FieldPlan:
    readers = [(role, _action(what)) for role, what in document.readers.items()]
    readers.sort(key=lambda pair: pair[1].kind != "open")  # stable: masks keep their order
    envelope = Envelope(keyset, document.id, document.audience or "", document.tenant or "")
    return FieldPlan(document.id, envelope, readers, _action(document.others), document.seal_null)


def _action(what: str | MaskDocument) -> Action:
    return Action("mask", MASKS[what.mask]) if isinstance(what, MaskDocument) else Action(what)


def _transform(direction: str, rules: Sequence[_Rule]) -> Transform | None:
    chosen = [rule for rule in rules if direction in rule.on]
    if not chosen:
        return None
    selectors = [selector for rule in chosen for selector in rule.selectors]
    owners = [number for number, rule in enumerate(chosen) for _ in rule.selectors]
    # every rule has to be able to read the body, so only what all of them name is accepted
    types = [name for name in chosen[0].content_types if all(name in rule.content_types for rule in chosen)]
    return Transform(direction, [rule.field for rule in chosen], Matcher(selectors, owners), types)


def _overlaps(documents: Sequence[tuple[FieldRuleDocument, str, str]]) -> list[Problem]:
    """Selections of two rules that share a path template where one is certain to contain the other: no single set of readers."""
    problems = []
    parsed = [[(parse_selector(text), text) for text in document.select] for document, _, _ in documents]
    for later, (document, file, where) in enumerate(documents):
        for earlier in range(later):
            other = documents[earlier][0]
            if not _meet(document, other):
                continue
            for number, (mine, _) in enumerate(parsed[later]):
                for theirs, text in parsed[earlier]:
                    if mine.may_contain(theirs) or theirs.may_contain(mine):
                        expected = f"a selection apart from {text!r} of rule {other.id!r}, which has its own readers"
                        problems.append(Problem(file, f"{where}.select[{number}]", expected, value=repr(mine.text)))
    return problems


def _meet(one: FieldRuleDocument, other: FieldRuleDocument) -> bool:
    """True when two rules can surely meet in one body: a template in common, the same direction and method."""
    if "both" not in (one.on, other.on) and one.on != other.on:
        return False
    if one.methods is not None and other.methods is not None and not set(one.methods) & set(other.methods):
        return False
    return bool({path.casefold() for path in one.paths} & {path.casefold() for path in other.paths})


def _unknown(file: str, path: str, expected: str, value: str, known: Collection[str]) -> Problem:
    nearest = get_close_matches(value, list(known), 1)
    return Problem(file, path, expected, value=repr(value), nearest=nearest[0] if nearest else "")


def _problems(error: ValidationError, file: str, where: str) -> list[Problem]:
    """The errors of one rule in the words of its author: places without the names of models, `what was expected`."""
    found: dict[str, Problem] = {}
    for item in error.errors(include_url=False):
        names = [
            part for part in item["loc"] if isinstance(part, int) or not part.startswith(("literal[", "MaskDocument", "function-", "list["))
        ]
        path = where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in names)
        keys = list(MaskDocument.model_fields if "MaskDocument" in item["loc"] else FieldRuleDocument.model_fields)
        nearest = ""
        value = repr(item["input"])[:80]
        match item["type"]:
            case "extra_forbidden":
                expected, value = f"one of the keys {', '.join(keys)}", ""
                nearest = next(iter(get_close_matches(str(names[-1]), keys, 1)), "")
            case "missing":
                expected, value = "a value, this key is required", ""
            case "literal_error" if "readers" in names:
                expected = "open or {mask: NAME}"
            case "literal_error" if "others" in names:
                expected = "ciphertext, remove or {mask: NAME}"
            case _:
                expected = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        if path not in found or item["type"] == "value_error":  # a union tells once for each of its kinds
            found[path] = Problem(file, path, expected, value=value, nearest=nearest)
    # what is inside a value says more than that the value is of none of its kinds
    return [problem for path, problem in found.items() if not any(other.startswith((f"{path}.", f"{path}[")) for other in found)]
