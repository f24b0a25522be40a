"""A second opinion: decides by looking at every rule in turn, with regular expressions, straight from the plain document.

Written apart from the engine on purpose: it shares no code with it but the reasons' names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote


class Asked:
    """A request in plain values."""

    def __init__(
        self,
        who: str | None,
        method: str,
        path: str,
        readings: tuple[str, ...],
        host: str,
        port: int,
        headers: Mapping[str, list[str]],
        claims: Mapping[str, Any] | None,
    ) -> None:
        self.who = who
        self.method = method
        self.path = path
        self.readings = readings
        self.host = host
        self.port = port
        self.headers = headers
        self.claims = claims


def verdict(values: dict[str, Any], asked: Asked) -> tuple[str, str | None, set[tuple[str, str]]]:
    """("allow" or "deny", the rule, shadow results). Of several plain and conditional rules, plain ones are reported first."""
    matching = [rule for rule in values["rules"] if _matches(values, rule, asked)]
    real = [rule for rule in matching if not rule.get("shadow")]
    denies = [rule for rule in real if "deny" in rule]
    allows = [rule for rule in real if "allow" in rule]
    shadows = [rule for rule in matching if rule.get("shadow")]
    if denies:
        return "deny", _reported(values, denies, asked), set()
    if allows:
        return "allow", _reported(values, allows, asked), {(rule["id"], "would_deny") for rule in shadows if "deny" in rule}
    return "deny", None, {(rule["id"], "would_allow") for rule in shadows if "allow" in rule}


def _reported(values: dict[str, Any], rules: list[dict[str, Any]], asked: Asked) -> str:
    plain = [rule for rule in rules if _plain(values, rule, asked)]
    chosen: str = (plain or rules)[0]["id"]
    return chosen


def _plain(values: dict[str, Any], rule: dict[str, Any], asked: Asked) -> bool:
    """Whether it matches without a look at headers, claims and token roles."""
    if "headers" in rule or "claims" in rule:
        return False
    return any(_is(values, who, asked, with_token=False) for who in rule.get("allow", rule.get("deny")))


def _matches(values: dict[str, Any], rule: dict[str, Any], asked: Asked) -> bool:
    deny = "deny" in rule
    if not any(_is(values, who, asked, with_token=True) for who in rule["deny" if deny else "allow"]):
        return False
    methods = rule.get("methods")
    if methods is not None:
        method = asked.method.upper() if deny else asked.method
        if method not in methods and not (method == "HEAD" and "GET" in methods):
            return False
    if "ports" in rule and asked.port not in rule["ports"]:
        return False
    if "hosts" in rule and not any(_host(pattern, asked.host) for pattern in rule["hosts"]):
        return False
    if "paths" in rule:
        if deny:
            readings = {asked.path.casefold(), *asked.readings}
            if not any(_denied(template, reading) for template in rule["paths"] for reading in readings):
                return False
        elif not any(re.fullmatch(_expression(template), asked.path) for template in rule["paths"]):
            return False
    for name, wanted in rule.get("headers", {}).items():
        lines = asked.headers.get(name, [])
        if deny:
            members = [member.strip() for line in lines for member in line.split(",")]
            if wanted not in lines and wanted not in members:
                return False
        elif not lines or any(line != wanted for line in lines):
            return False
    return all(_claim(asked.claims, name, wanted) for name, wanted in rule.get("claims", {}).items())


def _expression(template: str) -> str:
    rest = template.endswith("/**")
    body = template[: -len("/**")] if rest else template
    parts = re.split(r"(\{[^}]*\}|\*)", body)
    text = "".join("[^/]+" if number % 2 else re.escape(part) for number, part in enumerate(parts))
    return text + "(/.*)?" if rest else text


def _denied(template: str, reading: str) -> bool:
    for spelled in {template, unquote(template)}:
        expression = _expression(spelled.casefold() if len(spelled) < 2 else spelled.casefold().rstrip("/"))
        if re.fullmatch(expression + "/?", re.sub("/+", "/", reading)):
            return True
    return False


def _host(pattern: str, host: str) -> bool:
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def _is(values: dict[str, Any], who: str, asked: Asked, *, with_token: bool) -> bool:
    if who == "anyone":
        return True
    if who == "authenticated":
        return asked.who is not None
    if who.startswith("spiffe:"):
        return _principal(who, asked.who)
    role = values["roles"][who]
    by_identity = any(_principal(pattern, asked.who) for pattern in role.get("principals", []))
    by_token = with_token and bool(role.get("jwt")) and all(_claim(asked.claims, name, wanted) for name, wanted in role["jwt"].items())
    if role.get("match") == "all" and role.get("principals") and role.get("jwt"):
        return by_identity and by_token
    return by_identity or by_token


def _principal(pattern: str, spiffe_id: str | None) -> bool:
    if spiffe_id is None:
        return False
    rest = pattern.endswith("/**")
    text = re.escape(pattern[: -len("/**")] if rest else pattern).replace(r"\*", "[^/]+")
    return re.fullmatch(text + ("(/.*)?" if rest else ""), spiffe_id) is not None


def _claim(claims: Mapping[str, Any] | None, name: str, wanted: list[str]) -> bool:
    if claims is None or name not in claims:
        return False
    value = claims[name]
    return any(member in wanted for member in (value if isinstance(value, list) else [value]))
