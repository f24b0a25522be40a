"""pydantic's errors in plain words: where in the document, what was expected, and the nearest known name.

pydantic tells a place as a path mixed with names of union members and validators, and one error for every member of a union
that did not fit. Here a complaint has the path of the document only, members of a union are told as one ("a name or a list"),
and an unknown key is told with the keys that are known there.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

__all__ = ["Complaint", "Told", "complaints_of", "is_secret", "nearest", "shown"]

Path = tuple[str | int, ...]


class Told(str):
    """A `value` of a complaint that is our own words, not the document's."""

    __slots__ = ()


_SECRET = re.compile(r"passw|secret|token|private|credential|authorization|cookie|api[-_]?key", re.IGNORECASE)
_USERINFO = re.compile(r"//[^/@\s]+@")
MAX_COMPLAINTS = 200
"""A document with more errors is wrong as a whole: another kind, another version."""

_WORDS = {
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "model_attributes_type": "a mapping (key: value)",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "none_required": "nothing",
    "path_type": "a path",
}


class Complaint:
    """One error at `path` of a document: what was `expected` there, the `value` found (None: not worth showing), the `nearest` name."""

    __slots__ = ("expected", "nearest", "path", "value")

    def __init__(self, path: Path, expected: str, value: object = None, nearest: str = "") -> None:
        self.path = path
        self.expected = expected
        self.value = value
        self.nearest = nearest


def is_secret(path: Path) -> bool:
    """The names at the end of the path say that the value must not be shown."""
    return any(isinstance(part, str) and _SECRET.search(part) for part in path[-2:])


def shown(value: object, path: Path = ()) -> str:
    """A value for people: shortened, never a secret (by the name of its key, a PEM block, user info in a URL)."""
    if isinstance(value, Mapping):
        return f"a mapping of {len(value)}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if is_secret(path):
        return "(hidden)"
    text = value if isinstance(value, str) else "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    if "-----BEGIN" in text:
        return "(hidden)"
    text = _USERINFO.sub("//(hidden)@", text)
    if len(text) > 60:
        text = text[:57] + "..."
    return repr(text) if isinstance(value, str) else text


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name with the fewest edits (insert, delete, replace, swap of neighbours) to `name`, "" when none is near: a third of
    its length, at least one edit."""
    best, best_edits = "", max(1, len(name) // 3) + 1
    for candidate in known:
        edits = _edits(name.lower(), candidate.lower(), best_edits)
        if edits < best_edits:
            best, best_edits = candidate, edits
    return best


def _edits(left: str, right: str, limit: int) -> int:
    """Optimal string alignment distance (Damerau-Levenshtein without repeated edits of a substring), or `limit` when not below it."""
    if abs(len(left) - len(right)) >= limit:
        return limit
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, char in enumerate(left, 1):
        now = [i]
        for j, other in enumerate(right, 1):
            cost = min(row[j] + 1, now[j - 1] + 1, row[j - 1] + (char != other))
            if i > 1 and j > 1 and char == right[j - 2] and left[i - 2] == other:
                cost = min(cost, before[j - 2] + 1)
            now.append(cost)
        before, row = row, now
    return row[-1]


def complaints_of(error: ValidationError, model: type[BaseModel], values: object) -> list[Complaint]:
    """Every error of `values` under `model`, in the order of pydantic, at most MAX_COMPLAINTS and then one that says how many more."""
    grouped: dict[Path, list[tuple[tuple[str, ...], Complaint]]] = {}
    members: dict[Path, dict[str, list[Complaint]]] = {}
    for item in error.errors(include_url=False):
        complaint, tag_at, tag = _complaint(item, model, values)
        if tag is None:
            grouped.setdefault(complaint.path, []).append(((), complaint))
        else:
            members.setdefault(tag_at, {}).setdefault(tag, []).append(complaint)
            grouped.setdefault(tag_at, [])
    out: list[Complaint] = []
    for path, plain in grouped.items():
        out.extend(complaint for _, complaint in plain)
        if path in members:
            out.extend(_best_member(path, members[path]))
    if len(out) > MAX_COMPLAINTS:
        more = len(out) - MAX_COMPLAINTS
        out[MAX_COMPLAINTS:] = [Complaint(out[MAX_COMPLAINTS].path, f"a document of another form: {more} more errors follow")]
    return out


def _best_member(path: Path, members: dict[str, list[Complaint]]) -> list[Complaint]:
    """Of the errors of each member of a union at `path`: those of the member whose shape fits, or one for all that says so."""
    deeper = {tag: items for tag, items in members.items() if all(len(item.path) > len(path) for item in items)}
    if deeper:
        return min(deeper.values(), key=len)
    flat = [item for items in members.values() for item in items if len(item.path) == len(path)]
    expected = list(dict.fromkeys(item.expected for item in flat))
    return [Complaint(path, " or ".join(expected), flat[0].value, next((item.nearest for item in flat if item.nearest), ""))]


def _complaint(item: Any, model: type[BaseModel], values: object) -> tuple[Complaint, Path, str | None]:
    kind: str = item["type"]
    location: tuple[Any, ...] = item["loc"]
    path: list[str | int] = []
    here: object = values
    tag_at: Path = ()
    tag: str | None = None
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if (isinstance(here, Mapping) and isinstance(part, str) and part in here) or (
            isinstance(here, list) and isinstance(part, int) and part < len(here)
        ):
            path.append(part)
            here = here[part]  # type: ignore[index]  # the line above tells the kinds apart
        elif kind == "missing" and last:
            path.append(part)
            here = None
        elif tag is None and part != "[key]" and not _is_discriminator(item, part):
            tag_at, tag = tuple(path), str(part)
    where = tuple(path)
    context = item.get("ctx") or {}
    if kind == "missing":
        return Complaint(where, "a value: this key is required"), tag_at, tag
    if kind == "extra_forbidden":
        return _unknown_key(where, location, model), tag_at, tag
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        known = [text.strip("' ") for text in str(context.get("expected_tags", "")).split(",") if text.strip("' ")]
        key = str(context.get("discriminator", "")).strip("'")
        found = here.get(key) if isinstance(here, Mapping) else None
        if kind == "union_tag_not_found" or not isinstance(found, str):
            return Complaint((*where, key), "a value: this key is required"), tag_at, None
        return Complaint((*where, key), _choice(known), found, nearest(found, known)), tag_at, None
    if kind in ("literal_error", "enum"):
        known = re.findall(r"'((?:[^'\\]|\\.)*)'", str(context.get("expected", "")))
        near = nearest(here, known) if isinstance(here, str) else ""
        return Complaint(where, _choice(known) or str(context.get("expected")), _value(here), near), tag_at, tag
    return Complaint(where, _expected(kind, context, item, here), _value(here)), tag_at, tag


def _value(here: object) -> object:
    return "null" if here is None else here


def _is_discriminator(item: Any, part: Any) -> bool:
    """Names of validators (`function-after[...]`) are noise and no member of a union."""
    return isinstance(part, str) and part.startswith(("function-", "lax-or-strict", "chain[", "json-or-python"))


def _unknown_key(where: Path, location: Sequence[Any], model: type[BaseModel]) -> Complaint:
    name = str(where[-1]) if where else ""
    known = sorted(_known_keys(model, location[:-1]))
    if not known:
        return Complaint(where, "no such key")
    told = ", ".join(known) if len(known) <= 16 else ", ".join(known[:16]) + ", ..."
    return Complaint(where, f"one of the keys {told}", nearest=nearest(name, known))


def _known_keys(model: type[BaseModel], location: Sequence[Any]) -> set[str]:
    """The keys that `model` knows at `location`: a walk over the annotations, through lists, mappings and unions."""
    kinds: list[Any] = [model]
    for part in location:
        following: list[Any] = []
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                field = kind.model_fields.get(str(part)) or next((f for f in kind.model_fields.values() if f.alias == part), None)
                if field is not None:
                    following.extend(_unwrap(field.annotation))
            elif get_origin(kind) in (dict, Mapping, typing.get_origin(Mapping[str, int])) and isinstance(part, str):
                following.extend(_unwrap(get_args(kind)[1]))
            elif get_origin(kind) in (list, tuple, set, frozenset, Sequence) and isinstance(part, int):
                following.extend(_unwrap(get_args(kind)[0]))
        if following:
            kinds = following
        elif isinstance(part, str):  # the name of a member of a union: narrows to it when it is a model's
            kinds = [kind for kind in kinds if getattr(kind, "__name__", "") == part or _has_tag(kind, part)] or kinds
    models = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return {field.alias or name for kind in models for name, field in kind.model_fields.items()}


def _has_tag(kind: Any, tag: str) -> bool:
    """A model of a discriminated union whose discriminator is `tag`."""
    if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return False
    return any(get_origin(field.annotation) is typing.Literal and tag in get_args(field.annotation) for field in kind.model_fields.values())


def _unwrap(annotation: Any) -> list[Any]:
    if hasattr(annotation, "__value__"):  # a `type` alias
        return _unwrap(annotation.__value__)
    origin = get_origin(annotation)
    if origin is typing.Annotated:
        return _unwrap(get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [kind for member in get_args(annotation) for kind in _unwrap(member)]
    return [annotation]


def _choice(known: Sequence[str]) -> str:
    return known[0] if len(known) == 1 else ", ".join(known[:-1]) + " or " + known[-1] if known else ""


def _expected(kind: str, context: Mapping[str, Any], item: Any, here: object) -> str:
    if kind in ("value_error", "assertion_error") and "error" in context:
        return str(context["error"])
    if kind in _WORDS:
        words = _WORDS[kind]
        return words + " (put it in quotes)" if words == "text" and isinstance(here, int | float) else words
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        words = kind.replace("greater_than_equal", "at least").replace("less_than_equal", "at most")
        bound = next(iter(context.values()))
        words = words.replace("greater_than", "above").replace("less_than", "below")
        return f"a number {words} {int(bound) if bound == int(bound) else bound}"
    if kind == "too_short":
        return f"at least {context['min_length']} entries" if context["min_length"] != 1 else "at least one entry"
    if kind == "too_long":
        return f"at most {context['max_length']} entries"
    if kind == "string_too_long":
        return f"text of at most {context['max_length']} characters"
    if kind == "string_pattern_mismatch":
        return f"text of the form {context['pattern']}"
    if kind.startswith(("date", "time", "timezone")):
        return "a date such as 2027-01-31, or a time such as 2027-01-31T18:00:00Z"
    message = str(item["msg"])
    return message.removeprefix("Input should be ").removeprefix("Value error, ")
