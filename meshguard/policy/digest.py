"""The digest of a policy: one name for what it means, the same on every instance that enforces it.

SHA-256 over canonical JSON (sorted keys, no spaces, UTF-8) of what the documents say. Descriptions and tests decide nothing and are
left out; defaults are written out; roles are keyed by name, rules and field rules sorted by id, and lists whose order
means nothing are sorted. So the order of files and keys, comments and spelling variants make no difference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any

from meshguard.policy.documents import HeaderDocument, PolicyDocument, RoleDocument, RuleDocument, WindowDocument
from meshguard.policy.times import DAYS

__all__ = ["policy_digest"]


def _no_breath() -> None:
    pass


def policy_digest(documents: Sequence[PolicyDocument], descriptors: Collection[str] = (), breathe: Callable[[], None] = _no_breath) -> str:
    """`sha256:` and 64 hex digits. `descriptors` are the digests of the descriptor sets by which rules read bodies.

    The text is hashed rule by rule, `breathe` called between them: encoding ten thousand in one call would let no other thread run."""
    roles = {name: _role(role) for document in documents for name, role in document.roles.items()}
    fields = sorted(_canonical(rule) for document in documents for rule in document.fields)
    content: dict[str, Any] = {"format": 1, "roles": roles, "fields": fields}
    if descriptors:
        content["descriptors"] = sorted(descriptors)
    # "rules" is the last of the sorted keys, so the list goes in front of the closing brace
    digest = hashlib.sha256(_canonical(content).encode()[:-1] + b',"rules":[')
    separator = b""
    for rule in sorted((rule for document in documents for rule in document.rules), key=lambda rule: rule.id):
        breathe()
        digest.update(separator + _canonical(_rule(rule)).encode())
        separator = b","
    digest.update(b"]}")
    return "sha256:" + digest.hexdigest()


def _role(role: RoleDocument) -> dict[str, Any]:
    match = role.match if role.principals and (role.jwt or role.users) else "any"
    content = {"principals": sorted(set(role.principals)), "jwt": _claims(role.jwt), "match": match}
    return {**content, "users": sorted(set(role.users))} if role.users else content


def _rule(rule: RuleDocument) -> dict[str, Any]:
    content: dict[str, Any] = {"id": rule.id, "shadow": rule.shadow}
    content["allow" if rule.allow is not None else "deny"] = sorted(rule.allow or rule.deny or ())
    for key in ("methods", "paths", "ports", "hosts"):
        values = getattr(rule, key)
        if values is not None:
            content[key] = sorted(values)
    if rule.headers is not None:
        content["headers"] = {name: _header(header) for name, header in rule.headers.items()}
    if rule.claims is not None:
        content["claims"] = _claims(rule.claims)
    if rule.chain is not None:
        content["chain"] = {
            name: sorted(values) for name in ("through", "never_through", "on_behalf_of") if (values := getattr(rule.chain, name))
        }
    if rule.when is not None:
        content["when"] = rule.when
    if rule.body is not None:
        content["body"] = _sorted(rule.body.model_dump(exclude_none=True))
    if rule.times is not None:
        content["times"] = sorted((_window(window) for window in rule.times), key=_canonical)
    return content


def _claims(claims: dict[str, list[bool | int | str]]) -> dict[str, list[Any]]:
    return {path: sorted(values, key=lambda value: (type(value).__name__, value)) for path, values in claims.items()}


def _header(header: HeaderDocument) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key in ("exact", "prefix", "suffix", "contains"):
        values = getattr(header, key)
        if values is not None:
            content[key] = sorted(values)
    for flag in ("ignore_case", "present", "absent"):
        if getattr(header, flag):
            content[flag] = True
    return content


def _window(window: WindowDocument) -> dict[str, Any]:
    content: dict[str, Any] = {"timezone": window.timezone}
    if window.days is not None:
        content["days"] = sorted(window.days, key=DAYS.index)
    if window.opens is not None and window.closes is not None:
        content |= {"from": int(window.opens), "to": int(window.closes)}
    if window.after is not None:
        content["after"] = window.after.seconds(window.timezone)
    if window.before is not None:
        content["before"] = window.before.seconds(window.timezone)
    return content


def _sorted(value: Any) -> Any:
    """Lists in a body's conditions are alternatives: their order means nothing."""
    if isinstance(value, dict):
        return {key: _sorted(each) for key, each in value.items()}
    return sorted(value, key=lambda each: (type(each).__name__, repr(each))) if isinstance(value, list) else value


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
