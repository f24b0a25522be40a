"""Which field rules concern a request, and what they do together: one plan for each direction, shared by equal sets of rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from meshguard.fields.documents import FieldRuleDocument, ProtobufDocument
from meshguard.fields.heads import HeadTransform
from meshguard.fields.json_body import JsonRules
from meshguard.fields.paths import PathTemplate, parse_path
from meshguard.fields.selectors import Selector, parse_selector
from meshguard.fields.transforms import BodyRules, Transform
from meshguard.fields.treatment import Work
from meshguard.fields.views import FieldPlan

if TYPE_CHECKING:
    from meshguard.fields.protobuf_body import ProtobufRules
    from meshguard.fields.protobuf_descriptor import DescriptorSet, FieldNode, Message

__all__ = ["CompiledFields", "RoutePlan", "Rule"]


class RoutePlan:
    """What happens to the messages of one method and path. `request` and `response` treat bodies, `request_head` and `response_head`
    header fields and the query; None: not looked at. `shadow` are the rules that only tell what they would do."""

    __slots__ = ("request", "request_head", "response", "response_head", "shadow")

    def __init__(
        self,
        request: Transform | None,
        response: Transform | None,
        request_head: HeadTransform | None = None,
        response_head: HeadTransform | None = None,
        shadow: RoutePlan | None = None,
    ) -> None:
        self.request = request
        self.response = response
        self.request_head = request_head
        self.response_head = response_head
        self.shadow = shadow

    @property
    def reads_response(self) -> bool:
        """Something of the response is treated."""
        return self.response is not None or self.response_head is not None


class Rule:
    """A rule that is resolved. `messages` are its protobuf fields by direction and, for gRPC, by path."""

    __slots__ = (
        "_hosts", "_suffixes", "content_types", "document", "field", "messages", "methods", "on", "outbound", "paths", "record",
        "selectors",
    )  # fmt: skip

    def __init__(self, document: FieldRuleDocument, field: FieldPlan) -> None:
        self.document = document
        self.field = field
        self.paths: tuple[PathTemplate, ...] = tuple(map(parse_path, document.paths))
        self.methods = frozenset(document.methods) if document.methods is not None else None
        self.on = ("request", "response") if document.on == "both" else (document.on,)
        self.outbound = {"any": None, "inbound": False, "outbound": True}[document.side]
        self.content_types = document.body_types
        self.selectors: tuple[Selector, ...] = tuple(map(parse_selector, document.select))
        self.record = parse_selector(document.record) if document.record is not None else None
        self.messages: dict[tuple[str, str], FieldNode] = {}
        hosts = document.hosts
        self._hosts = frozenset(host for host in hosts if not host.startswith("*")) if hosts is not None else None
        self._suffixes = tuple(host[1:] for host in hosts or () if host.startswith("*"))

    def covers(self, method: str, path: str, readings: Sequence[str], host: str, outbound: bool) -> bool:
        if self.methods is not None and method.upper() not in self.methods:
            return False
        if self.outbound is not None and self.outbound is not outbound:
            return False
        if self._hosts is not None and host not in self._hosts and not (self._suffixes and host.endswith(self._suffixes)):
            return False
        return any(template.fits(path, readings) for template in self.paths)

    def resolve(self, document: ProtobufDocument, found: DescriptorSet) -> Iterable[tuple[str, str, str]]:
        """Finds messages and fields; yields (key of the document, what was expected, value) for each that is not there."""
        for direction in self.on:
            named = document.request if direction == "request" else document.response
            wanted: list[tuple[str, Message]] = []
            if named is not None:
                message = found.message(named)
                if message is None:
                    yield direction, "a message of the descriptor set", repr(named)
                else:
                    wanted.append(("", message))
            else:
                for number, path in enumerate(self.document.paths):
                    method = found.method(path)
                    if method is None:
                        yield "descriptor", f"a set with the gRPC method paths[{number}], or {direction}: the name of a message", repr(path)
                        continue
                    wanted.append((path.casefold(), method.request if direction == "request" else method.response))
            for path, message in wanted:
                for number, text in enumerate(document.fields):
                    node = message.find(text)
                    if isinstance(node, str):
                        yield f"fields[{number}]", node, repr(text)
                    else:
                        self.messages[direction, path] = self.messages.get((direction, path), node.empty()).merged(node)


class CompiledFields:
    """All field rules. `digest` is `sha256:<hex>` over what they say (never over keys); `ids` are the rules in order."""

    __slots__ = ("_plans", "_rules", "digest", "ids")

    def __init__(self, rules: Sequence[Rule], digest: str) -> None:
        self._rules = tuple(rules)
        self._plans: dict[tuple[tuple[int, ...], str], RoutePlan] = {}
        self.digest = digest
        self.ids = tuple(rule.field.id for rule in rules)

    def plan(self, method: str, path: str, readings: Sequence[str] = (), host: str = "", outbound: bool = False) -> RoutePlan | None:
        """The rules for a method, a canonical path or any of its `readings`, and a host; None when nothing has to be read.

        Costs one expression per template: the caller remembers the answer. Equal sets of rules share one plan.
        """
        numbers = tuple(number for number, rule in enumerate(self._rules) if rule.covers(method, path, readings, host, outbound))
        if not numbers:
            return None
        # the message of a gRPC method depends on the path itself
        key = (numbers, path.casefold() if any(self._rules[number].messages for number in numbers) else "")
        plan = self._plans.get(key)
        if plan is None:
            rules = [self._rules[number] for number in numbers]
            tried = [rule for rule in rules if rule.document.mode == "shadow"]
            plan = _route_plan([rule for rule in rules if rule.document.mode != "shadow"], key[1], Work)
            if tried:
                from meshguard.fields.shadow import ShadowWork

                plan.shadow = _route_plan(tried, key[1], ShadowWork)
            if len(self._plans) >= 4096:  # paths are the clients' choice
                self._plans.clear()
            self._plans[key] = plan
        return plan


def _route_plan(rules: Sequence[Rule], path: str, work: type[Work]) -> RoutePlan:
    return RoutePlan(
        _transform("request", rules, path, work),
        _transform("response", rules, path, work),
        _head_transform("request", rules, work),
        _head_transform("response", rules, work),
    )


def _transform(direction: str, rules: Sequence[Rule], path: str, work: type[Work]) -> Transform | None:
    chosen = [rule for rule in rules if direction in rule.on and rule.document.has_body]
    if not chosen:
        return None
    # every rule has to be able to read the body, so only what all of them name is accepted
    types = [name for name in chosen[0].content_types if all(name in rule.content_types for rule in chosen)]
    selectors = [(selector, number) for number, rule in enumerate(chosen) for selector in rule.selectors]
    json = JsonRules(selectors, [rule.record for rule in chosen]) if selectors else None
    form = {name: number for number, rule in enumerate(chosen) for name in rule.document.form or ()}
    rules_of = BodyRules(json, form or None, _protobuf(direction, chosen, path))
    return Transform(direction, [rule.field for rule in chosen], rules_of, types, work)


def _protobuf(direction: str, chosen: Sequence[Rule], path: str) -> ProtobufRules | None:
    if not any(rule.messages for rule in chosen):
        return None
    from meshguard.fields.protobuf_body import ProtobufRules

    nodes = [(number, node) for number, rule in enumerate(chosen) for node in (_node(rule, direction, path),) if node is not None]
    if len(nodes) != sum(1 for rule in chosen if rule.document.protobuf is not None):
        return None  # some rule does not know the message of this path: none of it passes
    return ProtobufRules(nodes)


def _node(rule: Rule, direction: str, path: str) -> FieldNode | None:
    return rule.messages.get((direction, path)) or rule.messages.get((direction, path.rstrip("/"))) or rule.messages.get((direction, ""))


def _head_transform(direction: str, rules: Sequence[Rule], work: type[Work]) -> HeadTransform | None:
    chosen = [
        rule for rule in rules if direction in rule.on and (rule.document.headers or (direction == "request" and rule.document.query))
    ]
    if not chosen:
        return None
    headers = {name: number for number, rule in enumerate(chosen) for name in rule.document.headers or ()}
    query = {name: number for number, rule in enumerate(chosen) for name in rule.document.query or ()} if direction == "request" else {}
    return HeadTransform(direction, [rule.field for rule in chosen], headers, query, work)
