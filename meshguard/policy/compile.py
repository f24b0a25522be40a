"""Documents to a compiled policy: resolves what they name in each other, reports every problem at once, builds the indexes.

Errors: a role or rule id given twice, an unknown role, more conditional rules in one place than may be evaluated.
Warnings (`CompiledPolicy.warnings`): an unused role, an allow rule that a deny rule for everyone makes unreachable, a deny rule that a
caller escapes by not sending a token, one on bodies that also denies requests without any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from meshguard.model.errors import DocumentError, Problem
from meshguard.policy.bodies import JSON, BodyCondition, Messages, Reading
from meshguard.policy.compiled import CompiledPolicy
from meshguard.policy.conditions import USER, ChainCondition, ClaimCondition, Condition, HeaderCondition, TimeCondition
from meshguard.policy.digest import policy_digest
from meshguard.policy.documents import RESERVED_ROLES, PolicyDocument, RoleDocument, RuleDocument
from meshguard.policy.expression import ExpressionCondition
from meshguard.policy.index import MAX_CONDITIONAL, Crowd, Leaf, RuleIndex
from meshguard.policy.paths import Template, folded, parse_template
from meshguard.policy.principals import PrincipalIndex, PrincipalPattern, parse_principal
from meshguard.policy.rules import ANYONE, AUTHENTICATED, Role, Rule
from meshguard.policy.unreachable import unreachable

if TYPE_CHECKING:
    from meshguard.policy.body_documents import BodyDocument

__all__ = ["Descriptors", "compile"]

T = TypeVar("T")

_EVERYWHERE = parse_template("/**")
_WITH_BODY = frozenset(("POST", "PUT", "PATCH"))


Descriptors = Callable[[str, str, str | None], Messages]
"""The messages of a descriptor set, by (file of the policy document, name in it, name of the message or None: those of gRPC methods).
Raises ValueError, worded as an expectation."""


def _no_breath() -> None:
    pass


def compile(
    documents: Sequence[PolicyDocument],
    files: Sequence[str] = (),
    descriptors: Descriptors | None = None,
    breathe: Callable[[], None] = _no_breath,
) -> CompiledPolicy:
    """Compile the documents of one policy; raises DocumentError with every problem.

    `files` name the documents in problems, in the same order; the order of documents and of rules in them decides which of several
    matching rules is reported, never the verdict. `breathe` is called between any two small pieces of the work."""
    return _Compiler(documents, files, descriptors, breathe).compile()


class _Compiler:
    """One run: collects problems while it resolves, then builds."""

    def __init__(
        self, documents: Sequence[PolicyDocument], files: Sequence[str], descriptors: Descriptors | None, breathe: Callable[[], None]
    ) -> None:
        self._breathe = breathe
        self._documents = documents
        self._descriptors = descriptors
        self._expressions: dict[tuple[str, tuple[Reading, ...]], ExpressionCondition] = {}  # one of each: compiling takes 0.1 ms
        self._messages: dict[tuple[str, str, str | None], Messages] = {}
        self._files = [files[index] if index < len(files) else f"document {index + 1}" for index in range(len(documents))]
        self._problems: list[Problem] = []
        self._warnings: list[Problem] = []
        self._roles: dict[str, Role] = {}
        self._subjects: dict[str, int] = {"anyone": ANYONE, "authenticated": AUTHENTICATED}
        self._patterns: list[tuple[PrincipalPattern, int]] = []
        self._used: set[str] = set()
        # equal sets and tuples are one object: less memory, and the few there are stay in the CPU's cache
        self._values: dict[Any, Any] = {}
        self._templates: list[list[Template]] = []  # by rule order
        self._where: list[tuple[str, str]] = []  # file and path in it, by rule order

    def compile(self) -> CompiledPolicy:
        self._read_roles()
        rules = self._read_rules()
        self._read_tests()
        if self._problems:
            raise DocumentError(self._problems)
        indexes = [self._index(rules, allow=allow, shadow=shadow) for allow in (True, False) for shadow in (False, True)]
        if self._problems:
            raise DocumentError(self._problems)
        self._warn(rules, indexes[2])
        allows, shadow_allows, denies, shadow_denies = indexes
        return CompiledPolicy(
            digest=policy_digest(self._documents, frozenset(messages.digest for messages in self._messages.values()), self._breathe),
            roles=list(self._roles.values()),
            rules=rules,
            principals=PrincipalIndex(self._one_by_one(self._patterns)),
            allows=allows or RuleIndex(),
            denies=denies,
            shadow_allows=shadow_allows,
            shadow_denies=shadow_denies,
            warnings=self._warnings,
        )

    def _read_roles(self) -> None:
        first: dict[str, str] = {}
        for document, file in zip(self._documents, self._files, strict=True):
            for name, role in document.roles.items():
                if name in first:
                    expected = f"a role name that is not taken: {name!r} is also in {first[name]}"
                    self._problems.append(Problem(file, _role_path(name), expected))
                    continue
                first[name] = file
                self._roles[name] = self._role(name, role)

    def _role(self, name: str, document: RoleDocument) -> Role:
        subject = self._subjects[name] = len(self._subjects)
        patterns = tuple(map(parse_principal, document.principals))
        self._patterns += [(pattern, subject) for pattern in patterns]
        claims = [ClaimCondition(path, values) for path, values in document.jwt.items()]
        if document.users:
            claims.append(ClaimCondition(USER, document.users))
        return Role(name, subject, patterns, tuple(claims), both=document.match == "all" and bool(patterns and claims))

    def _read_rules(self) -> list[Rule]:
        rules: list[Rule] = []
        first: dict[str, str] = {}
        for document, file in zip(self._documents, self._files, strict=True):
            for number, rule in enumerate(document.rules):
                self._breathe()
                path = f"rules[{number}]"
                if rule.id in first:
                    self._problems.append(Problem(file, f"{path}.id", f"an id that is not taken: {first[rule.id]} has it", value=rule.id))
                    continue
                first[rule.id] = f"{file}: {path}"
                effect = "allow" if rule.allow is not None else "deny"
                for place, caller in enumerate(rule.allow or rule.deny or ()):
                    self._known_role(caller, file, f"{path}.{effect}[{place}]")
                if not self._problems:
                    rules.append(self._rule(rule, len(rules), (file, path)))
                    self._where.append((file, path))
        return rules

    def _read_tests(self) -> None:
        ids = {rule.id for document in self._documents for rule in document.rules}
        for document, file in zip(self._documents, self._files, strict=True):
            for number, test in enumerate(document.tests):
                self._known_role(test.caller, file, f"tests[{number}].as")
                if test.rule is not None and test.rule not in ids:
                    near = _nearest(test.rule, ids)
                    expected = "the id of a rule of this policy"
                    problem = Problem(file, f"tests[{number}].rule", expected, value=test.rule, nearest=near[0] if near else "")
                    self._problems.append(problem)

    def _known_role(self, caller: str, file: str, path: str) -> None:
        if caller.startswith(("spiffe:", "jwt:")) or caller in RESERVED_ROLES:
            return
        self._used.add(caller)
        if caller not in self._roles:
            near = _nearest(caller, [*self._roles, *RESERVED_ROLES])
            expected = "a role of this policy, a SPIFFE ID, anyone or authenticated"
            self._problems.append(Problem(file, path, expected, value=caller, nearest=near[0] if near else ""))

    def _rule(self, document: RuleDocument, order: int, where: tuple[str, str]) -> Rule:
        allow = document.allow is not None
        callers = document.allow or document.deny or []
        templates = [parse_template(path) for path in document.paths] if document.paths else [_EVERYWHERE]
        conditions: list[Condition] = [HeaderCondition(name, header) for name, header in (document.headers or {}).items()]
        conditions += [ClaimCondition(path, values) for path, values in (document.claims or {}).items()]
        if document.times is not None:
            conditions.append(TimeCondition(document.times))
        if document.chain is not None:
            chain = document.chain
            conditions.append(ChainCondition(chain.through or (), chain.never_through or (), chain.on_behalf_of or ()))
        if document.when is not None or document.body is not None:
            conditions += self._on_body(document, where)
        self._templates.append(templates)
        methods = None if document.methods is None else frozenset(document.methods)
        if methods is not None and "GET" in methods:
            methods |= {"HEAD"}  # HEAD is GET without the body (RFC 9110 section 9.3.2): whoever may read may ask for the head of it
        return Rule(
            order=order,
            id=document.id,
            allow=allow,
            shadow=document.shadow,
            callers=self._shared(tuple(callers)),
            subjects=self._shared(tuple(map(self._subject, callers))),
            methods=self._shared(methods),
            paths=self._shared(tuple([template.text for template in templates])),
            ports=self._shared(None if document.ports is None else frozenset(document.ports)),
            hosts=self._shared(None if document.hosts is None else frozenset(document.hosts)),
            conditions=tuple(conditions),
        )

    def _on_body(self, document: RuleDocument, where: tuple[str, str]) -> list[Condition]:
        """The expression and the conditions on the body, those that can do without it first."""
        body: list[Condition] = []
        readings: Sequence[Reading] = (JSON,)
        if document.body is not None:
            condition = BodyCondition(document.body, self._messages_of(document.body, where))
            body, readings = [condition], condition.readings
        expression: list[Condition] = []
        if document.when is not None:
            try:
                key = (document.when, tuple(readings))
                expression = [self._expressions.get(key) or self._expressions.setdefault(key, ExpressionCondition(*key))]
            except ValueError as exc:
                self._problems.append(Problem(where[0], f"{where[1]}.when", str(exc), value=document.when[:80]))
        return sorted((*expression, *body), key=lambda each: each.needs_body)

    def _messages_of(self, document: BodyDocument, where: tuple[str, str]) -> Messages | None:
        """The messages of the descriptor set that a rule names."""
        protobuf = document.protobuf
        if protobuf is None:
            return None
        file, path = where[0], f"{where[1]}.body.protobuf"
        key = (file, protobuf.descriptor, protobuf.request)
        messages = self._messages.get(key)
        if messages is None:
            try:
                if self._descriptors is None:
                    raise ValueError("a policy that is loaded from files: descriptor sets are")
                messages = self._messages[key] = self._descriptors(*key)
            except ValueError as exc:
                self._problems.append(Problem(file, f"{path}.descriptor", str(exc), value=repr(protobuf.descriptor)))
                return None
        for field in protobuf.fields_:
            expected = messages.problem(field)
            if expected:
                self._problems.append(Problem(file, f"{path}.fields", expected, value=repr(field)))
        return messages

    def _one_by_one(self, values: Iterable[T]) -> Iterator[T]:
        for value in values:
            self._breathe()
            yield value

    def _shared(self, value: T) -> T:
        shared: T = self._values.setdefault(value, value)
        return shared

    def _subject(self, caller: str) -> int:
        subject = self._subjects.get(caller)
        if subject is None:
            subject = self._subjects[caller] = len(self._subjects)
            if caller.startswith("jwt:"):  # a role that only this user's token gives
                self._roles[caller] = Role(caller, subject, (), (ClaimCondition(USER, [caller]),), both=False)
            else:
                self._patterns.append((parse_principal(caller), subject))
        return subject

    def _index(self, rules: Sequence[Rule], *, allow: bool, shadow: bool) -> RuleIndex | None:
        """The index of the rules of one kind; None when there are none."""
        by_subject = {role.subject: role for role in self._roles.values()}
        index: RuleIndex | None = None
        for rule in rules:
            if rule.allow is not allow or rule.shadow is not shadow:
                continue
            index = index or RuleIndex()
            self._breathe()
            by_identity = [subject for subject in rule.subjects if subject not in by_subject or _by_identity(by_subject[subject])]
            by_token = [subject for subject in rule.subjects if subject in by_subject and by_subject[subject].claims]
            for template in self._templates[rule.order]:
                for variant in (template,) if allow else folded(template):
                    index.add(rule, variant, by_identity, by_token)
        if index is not None:
            for leaf in index.freeze():
                self._breathe()
                self._bounded(leaf)
        return index

    def _bounded(self, leaf: Leaf) -> None:
        by_token = sum(map(_length, leaf.tokens.values())) if leaf.tokens else 0
        for cell in leaf.subjects.values():
            conditional = cell.widest() if isinstance(cell, Crowd) else sum(not rule.plain for rule in cell)
            if conditional + by_token > MAX_CONDITIONAL:
                file, path = self._where[(cell.some(1) if isinstance(cell, Crowd) else cell)[0].order]
                expected = f"at most {MAX_CONDITIONAL} rules with conditions for one caller, path, method and host (join their values)"
                self._problems.append(Problem(file, path, expected, value=f"{conditional + by_token} rules for {leaf.text}"))
                return

    def _warn(self, rules: Sequence[Rule], denies: RuleIndex | None) -> None:
        for document in self._documents:
            for field in document.fields:
                self._used |= _words(field)
        for document, file in zip(self._documents, self._files, strict=True):
            for name in document.roles:
                if name not in self._used:
                    self._warnings.append(Problem(file, _role_path(name), "a role that some rule, field or test names"))
        for rule in rules:
            self._breathe()
            file, path = self._where[rule.order]
            if rule.allow and not rule.shadow and denies is not None:
                by = unreachable(rule, self._templates[rule.order], denies)
                if by is not None:
                    self._warnings.append(Problem(file, path, f"an allow rule that can match: {by.id!r} denies all of it"))
            if not rule.allow and not rule.shadow:
                roles = [self._roles[caller] for caller in rule.callers if caller in self._roles]
                if rule.needs_claims or any(role.claims for role in roles):
                    expected = "a deny rule that does not rest on a token (a caller escapes it by sending none; allow by claims instead)"
                    self._warnings.append(Problem(file, path, expected))
                if rule.needs_body and (rule.methods is None or not rule.methods <= _WITH_BODY):
                    expected = "a deny rule on bodies that names methods with a body (it denies every request that has none)"
                    self._warnings.append(Problem(file, path, expected))


def _by_identity(role: Role) -> bool:
    return bool(role.patterns) and not role.both


def _length(cell: list[Rule] | Crowd) -> int:
    return cell.widest() if isinstance(cell, Crowd) else len(cell)


def _words(value: object) -> set[str]:
    """Every string in a field rule: which of them are roles is for `fields` to know."""
    if isinstance(value, dict):
        return {str(key) for key in value}.union(*map(_words, value.values()))
    if isinstance(value, list | tuple):
        return set().union(*map(_words, value))
    return {value} if isinstance(value, str) else set()


def _role_path(name: str) -> str:
    """The path of a role in its document, as `sources.documents.path_text` writes it."""
    return f'roles["{name}"]' if "." in name else f"roles.{name}"


def _nearest(word: str, known: Iterable[str]) -> list[str]:
    from difflib import get_close_matches  # for complaints only

    return get_close_matches(word, list(known), 1)
