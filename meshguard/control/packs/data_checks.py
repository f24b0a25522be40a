"""Checks of protected data: account numbers (PAN) in contracts and field rules, and the keys that they are sealed with.

What is an account number is told by its name: `pan`, `card_number`, `primaryAccountNumber` and the like, as the last step of a selector, a
form, header or query name, or as a property of an OpenAPI document or JSON Schema that requests are validated by.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from meshguard.control.packs.model import Fault, NotJudged, Subject
from meshguard.fields.documents import FieldRuleDocument

__all__ = ["DATA_CHECKS", "field_rules", "holds_account_numbers"]

_PAN = re.compile(
    r"(?:^|[_.\-$\]])(?:pan|(?:credit_?|debit_?|payment_?)?card_?(?:no|num|number)|cc_?(?:no|num|number)|(?:primary_?)?account_?number)$"
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_MASKS = ("all", "card", "last4", "last2", "first4")
"""Masks that show of a card number at most the BIN and the last four (PCI DSS 4.0, 3.4.1)."""
_DEPTH = 40


def _is_pan(name: str) -> bool:
    return _PAN.search(_CAMEL.sub("_", name.rstrip("]*[")).lower()) is not None


def holds_account_numbers(rule: FieldRuleDocument) -> bool:
    """A rule about account numbers, by its id or by the names of its places."""
    fields = rule.protobuf.fields if rule.protobuf is not None else ()
    names = (rule.id, *rule.select, *(rule.form or ()), *(rule.headers or ()), *(rule.query or ()), *fields)
    return any(_is_pan(name.rpartition(".")[2] if name.startswith("$") or "." in name else name) or _is_pan(name) for name in names)


def field_rules(subject: Subject) -> Iterator[tuple[str, int, FieldRuleDocument]]:
    """(file, number, rule) of the field rules of a policy."""
    for loaded in subject.policies().documents:
        for number, values in enumerate(loaded.value.fields):
            yield loaded.file, number, FieldRuleDocument.model_validate(values)


def _account_rules(subject: Subject) -> list[tuple[str, int, FieldRuleDocument]]:
    return [found for found in field_rules(subject) if holds_account_numbers(found[2])]


def pan_masked(subject: Subject) -> Iterator[Fault]:
    rules = _account_rules(subject)
    if not rules:
        raise NotJudged("not_assessed", "no field rule names an account number (pan, card_number, ...)")
    for file, number, rule in rules:
        at = ("fields", number)
        views = [(("readers", reader), view) for reader, view in rule.readers.items()] + [(("others",), rule.others)]
        for place, view in views:
            mask = getattr(view, "mask", None)
            if mask is not None and mask not in _MASKS:
                yield Fault((*at, *place), f"one of the masks {', '.join(_MASKS)}", file, mask)
        if rule.mask is not None and rule.mask not in _MASKS:
            yield Fault((*at, "mask"), f"one of the masks {', '.join(_MASKS)}", file, rule.mask)


def pan_protected(subject: Subject) -> Iterator[Fault]:
    rules = _account_rules(subject)
    found = False
    for file, number, rule in rules:
        found = True
        if getattr(rule, "mode", "enforce") == "shadow":
            yield Fault(("fields", number, "mode"), "enforce: in shadow nothing is protected", file, rule.id)
        wide = [name for name in rule.readers if name.startswith("spiffe:") and rule.readers[name] == "open" and name.endswith("/**")]
        for name in wide:
            yield Fault(("fields", number, "readers", name), "readers by name: who has to read it", file, name)
    covered = {name.rpartition(".")[2].rstrip("]*[").lower() for _, _, rule in rules for name in (*rule.select, *(rule.form or ()))}
    for name in sorted(set(_contract_names(subject))):
        found = True
        if name.lower() not in covered:
            yield Fault((), "a field rule for each account number that a contract names", value=name)
    if not found:
        raise NotJudged("not_assessed", "neither field rules nor contracts name an account number (pan, card_number, ...)")


def _contract_names(subject: Subject) -> Iterator[str]:
    if subject.loaded is None:
        return
    from meshguard.control.contracts import contract_files
    from meshguard.model.errors import DocumentError
    from meshguard.sources.yamltext import Malformed, parse_json, parse_yaml

    for path in contract_files(subject.loaded.configuration):
        try:
            text = path.read_text("utf-8-sig")
            yield from _properties((parse_json if path.suffix == ".json" else parse_yaml)(text), _DEPTH)
        except (OSError, ValueError, DocumentError, Malformed):
            continue  # `check` itself tells what is wrong with a contract


def _properties(value: Any, depth: int) -> Iterator[str]:
    """Names of properties of schemas that are account numbers."""
    if depth == 0:
        return
    if isinstance(value, Mapping):
        properties = value.get("properties")
        if isinstance(properties, Mapping):
            yield from (name for name in properties if isinstance(name, str) and _is_pan(name))
        for item in value.values():
            yield from _properties(item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            yield from _properties(item, depth - 1)


def keys_wrapped(subject: Subject) -> Iterator[Fault]:
    keys = subject.configuration.keys
    if not keys:
        raise NotJudged("not_applicable", "no keysets are configured")
    for name, config in keys.items():
        if config.provider == "file":
            yield Fault(("keys", name, "provider"), "vault, awskms or pkcs11: the key that wraps them is out of reach here", value="file")


def keys_rotated(subject: Subject) -> Iterator[Fault]:
    keys = subject.configuration.keys
    if not keys:
        raise NotJudged("not_applicable", "no keysets are configured")
    for name, config in keys.items():
        if config.rotate_after is None:
            yield Fault(("keys", name), "rotate_after: the age at which a new version is made", value="never")
        elif config.rotate_after > 366 * 86400:
            yield Fault(("keys", name, "rotate_after"), "a year at most", value=f"{config.rotate_after / 86400:.0f} days")


DATA_CHECKS = {
    "pan_masked": pan_masked,
    "pan_protected": pan_protected,
    "keys_wrapped": keys_wrapped,
    "keys_rotated": keys_rotated,
}
