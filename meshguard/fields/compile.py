"""Field rules to compiled fields: resolves roles and keysets, finds overlaps, reports every problem at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Protocol

from pydantic import ValidationError

from meshguard.fields.contexts import TenantSelector
from meshguard.fields.documents import FieldRuleDocument, MaskDocument, ProtobufDocument, TenantDocument
from meshguard.fields.keyset import Keyset
from meshguard.fields.masks import MASKS
from meshguard.fields.overlaps import overlaps, strays
from meshguard.fields.plans import CompiledFields, RoutePlan, Rule
from meshguard.fields.views import Action, FieldPlan
from meshguard.model.errors import DocumentError, Problem

__all__ = ["CompiledFields", "Descriptors", "RoutePlan", "RuleSource", "compile_fields"]


class _Rules(Protocol):
    @property
    def fields(self) -> Sequence[Mapping[str, Any]]: ...


class RuleSource(Protocol):
    """A policy document with its name: what `compile_fields` reads is `value.fields`, the rules as plain mappings."""

    @property
    def file(self) -> str: ...
    @property
    def value(self) -> _Rules: ...


Descriptors = Callable[[str, str], bytes]
"""The octets of a descriptor set by (file of the policy document, name in it). Raises OSError."""


def _no_descriptors(file: str, name: str) -> bytes:
    raise FileNotFoundError(name)


def compile_fields(
    documents: Sequence[RuleSource],
    roles: Collection[str],
    keysets: Mapping[str, Keyset],
    descriptors: Descriptors = _no_descriptors,
) -> CompiledFields:
    """Compile the field rules of all documents. `roles` are the names that readers may have (SPIFFE IDs and patterns need not be among
    them); `keysets` by name; `descriptors` reads descriptor sets.

    Raises DocumentError with every problem: malformed rules, ids used twice, unknown roles and keysets, selections that overlap,
    descriptors without the message or field.
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
    rules: list[Rule] = []
    first: dict[str, str] = {}
    sets: dict[tuple[str, str], object] = {}
    for document, file, where in documents_of:
        if document.id in first:
            problems.append(Problem(file, f"{where}.id", f"an id that is not taken: {first[document.id]} has it", value=repr(document.id)))
        first.setdefault(document.id, f"{where} in {file}")
        for role in document.readers:
            if role not in roles and not role.startswith("spiffe://"):
                problems.append(_unknown(file, f"{where}.readers.{role}", "a role that the policy names", role, roles))
        keyset = keysets.get(document.keyset) if document.keyset is not None else None
        if keyset is None and document.keyset is not None:
            expected = "a keyset of the configuration's `keys`"
            problems.append(_unknown(file, f"{where}.{document.keyset_key}", expected, document.keyset, keysets))
            continue
        problems += [Problem(file, f"{where}.{path}", expected) for path, expected in strays(document)]
        rule = Rule(document, _field(document, keyset))
        if document.protobuf is not None:
            problems += _read_descriptor(rule, document.protobuf, file, f"{where}.protobuf", descriptors, sets)
        rules.append(rule)
    for mode in ("enforce", "shadow"):  # what is tried may concern what is enforced
        problems += overlaps([each for each in documents_of if each[0].mode == mode])
    if problems:
        raise DocumentError(problems)
    text = json.dumps([document.canonical() for document, _, _ in documents_of], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return CompiledFields(rules, "sha256:" + hashlib.sha256(text.encode()).hexdigest())


_RANKS = {"open": 0, "mask": 1, "token": 2, "ciphertext": 3, "remove": 4}


def _field(document: FieldRuleDocument, keyset: Keyset | None) -> FieldPlan:
    wire = _wire(document)
    readers = [(role, _view(what, wire)) for role, what in document.readers.items()]
    ranks = {id(action): _RANKS.get(action.kind, 3) for _, action in readers}
    readers.sort(key=lambda pair: ranks[id(pair[1])])  # stable: masks keep their order
    tenant = document.tenant
    return FieldPlan(
        document.id,
        keyset,
        readers,
        _view(document.others or "ciphertext", wire),
        wire,
        seal_null=document.seal_null,
        audience=document.audience or "",
        tenant=TenantSelector(claim=tenant.claim or "", segment=tenant.spiffe or "")
        if isinstance(tenant, TenantDocument)
        else tenant or "",
        has_records=document.record is not None,
        padding=document.padding or 0,
    )


def _wire(document: FieldRuleDocument) -> Action:
    """What the action makes of a value."""
    if document.mask is not None:
        return Action("mask", MASKS[document.mask])
    if document.remove is not None:
        return Action("remove")
    if document.tokenise is not None:
        return Action("reversible" if document.detokenise else "tokenise")
    return Action("ciphertext" if document.action == "encrypt" else document.action)


def _view(what: str | MaskDocument, wire: Action) -> Action:
    if isinstance(what, MaskDocument):
        return Action("mask", MASKS[what.mask])
    if what == "ciphertext":
        return Action(wire.kind, wire.mask)
    return Action("remove" if what in ("nothing", "remove") else what)


def _read_descriptor(
    rule: Rule, document: ProtobufDocument, file: str, where: str, descriptors: Descriptors, sets: dict[tuple[str, str], object]
) -> list[Problem]:
    """Finds the messages and fields of a rule in its descriptor set; each set is parsed once."""
    from meshguard.fields.protobuf_descriptor import DescriptorError, DescriptorSet

    name = document.descriptor
    found = sets.get((file, name))
    if found is None:
        try:
            found = sets[file, name] = DescriptorSet(descriptors(file, name))
        except OSError as exc:
            return [Problem(file, f"{where}.descriptor", f"a file that can be read ({exc.strerror or 'not found'})", value=repr(name))]
        except DescriptorError as exc:
            return [Problem(file, f"{where}.descriptor", str(exc), value=repr(name))]
    if not isinstance(found, DescriptorSet):
        return []
    return [Problem(file, f"{where}.{path}", expected, value=value) for path, expected, value in rule.resolve(document, found)]


def _unknown(file: str, path: str, expected: str, value: str, known: Collection[str]) -> Problem:
    nearest = get_close_matches(value, list(known), 1)
    return Problem(file, path, expected, value=repr(value), nearest=nearest[0] if nearest else "")


_MODELS: dict[str, type[MaskDocument | TenantDocument | ProtobufDocument]] = {
    "MaskDocument": MaskDocument,
    "TenantDocument": TenantDocument,
    "protobuf": ProtobufDocument,
}
_OF_MODELS = ("literal[", "MaskDocument", "TenantDocument", "ProtobufDocument", "function-", "list[", "constrained-str")


def _problems(error: ValidationError, file: str, where: str) -> list[Problem]:
    """The errors of one rule in the words of its author: places without the names of models, `what was expected`."""
    found: dict[str, Problem] = {}
    for item in error.errors(include_url=False):
        names = [part for part in item["loc"] if isinstance(part, int) or not part.startswith(_OF_MODELS)]
        path = where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in names)
        keys = list(
            next(
                (model for name, model in _MODELS.items() if any(name in str(part) for part in item["loc"])), FieldRuleDocument
            ).model_fields
        )
        nearest = ""
        value = repr(item["input"])[:80]
        match item["type"]:
            case "extra_forbidden":
                expected, value = f"one of the keys {', '.join(keys)}", ""
                nearest = next(iter(get_close_matches(str(names[-1]), keys, 1)), "")
            case "missing":
                expected, value = "a value, this key is required", ""
            case "literal_error" if "readers" in names:
                expected = "open or {mask: NAME} (or token, ciphertext, nothing)"
            case "literal_error" if "others" in names:
                expected = "ciphertext, remove or {mask: NAME} (or token, nothing)"
            case _:
                expected = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        if path not in found or item["type"] == "value_error":  # a union tells once for each of its kinds
            found[path] = Problem(file, path, expected, value=value, nearest=nearest)
    # what is inside a value says more than that the value is of none of its kinds
    return [problem for path, problem in found.items() if not any(other.startswith((f"{path}.", f"{path}[")) for other in found)]
