"""What does not go together in field rules: two rules for one value, and rules that would lose a value."""

from __future__ import annotations

from collections.abc import Sequence

from meshguard.fields.documents import FieldRuleDocument, MaskDocument
from meshguard.fields.json_body import scope_of
from meshguard.fields.selectors import Selector, parse_selector
from meshguard.model.errors import Problem

__all__ = ["overlaps", "strays"]


def overlaps(documents: Sequence[tuple[FieldRuleDocument, str, str]]) -> list[Problem]:
    """Places of two rules (with file and place of each) that can surely meet where one value is certain to be of both: no single set of
    readers."""
    problems = []
    parsed = [[(parse_selector(text), text) for text in document.select] for document, _, _ in documents]
    for later, (document, file, where) in enumerate(documents):
        for earlier in range(later):
            other = documents[earlier][0]
            if not _meet(document, other):
                continue
            apart = f"of rule {other.id!r}, which has its own readers"
            for number, (mine, _) in enumerate(parsed[later]):
                for theirs, text in parsed[earlier]:
                    if mine.may_contain(theirs) or theirs.may_contain(mine):
                        expected = f"a selection apart from {text!r} {apart}"
                        problems.append(Problem(file, f"{where}.select[{number}]", expected, value=repr(mine.text)))
            for place in ("form", "headers", "query"):
                taken = getattr(other, place) or ()
                for number, name in enumerate(getattr(document, place) or ()):
                    if name in taken:
                        problems.append(Problem(file, f"{where}.{place}[{number}]", f"a name apart from those {apart}", value=repr(name)))
            if document.protobuf is not None and other.protobuf is not None:
                for number, name in enumerate(document.protobuf.fields):
                    if any(f"{name}.".startswith(f"{taken}.") or f"{taken}.".startswith(f"{name}.") for taken in other.protobuf.fields):
                        expected = f"a field apart from those {apart}"
                        problems.append(Problem(file, f"{where}.protobuf.fields[{number}]", expected, value=repr(name)))
    return problems


def _meet(one: FieldRuleDocument, other: FieldRuleDocument) -> bool:
    """True when two rules can surely meet in one message: a template in common, the same direction, method, host and side."""
    if "both" not in (one.on, other.on) and one.on != other.on:
        return False
    if "any" not in (one.side, other.side) and one.side != other.side:
        return False
    if one.methods is not None and other.methods is not None and not set(one.methods) & set(other.methods):
        return False
    if one.hosts is not None and other.hosts is not None and not set(one.hosts) & set(other.hosts):
        return False
    return bool({path.casefold() for path in one.paths} & {path.casefold() for path in other.paths})


def strays(document: FieldRuleDocument) -> list[tuple[str, str]]:
    """What is wrong within one rule, beyond its syntax: (key, what was expected)."""
    found = []
    if document.on != "response" and isinstance(document.others, MaskDocument):
        found.append(("others", "ciphertext or remove where requests are treated: a mask would be stored in place of the value"))
    if document.record is not None:
        record = parse_selector(document.record)
        scope = scope_of(record)
        if any(step.deep for step in record.steps):
            found.append(("record", "a selector without '..': which record a value belongs to must be certain"))
        for number, text in enumerate(document.select):
            selector = parse_selector(text)
            if scope is not None and selector.steps[: len(scope.steps)] != scope.steps:
                found.append(
                    (f"select[{number}]", f"a selection that begins like the record key, {document.record!r}, up to its last wildcard")
                )
            if _contains(selector, record):
                found.append(("record", f"a member that is not protected itself, as it is by {text!r}"))
    return found


def _contains(selector: Selector, record: Selector) -> bool:
    return selector.may_contain(record)
