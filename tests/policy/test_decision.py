"""Decisions: what wins, what is conditional, which reason a denial has, what shadow rules report, and attacks on the matching."""

from __future__ import annotations

from typing import Any

import pytest

from meshguard.model.errors import RequestError
from meshguard.model.reasons import TOKEN_INVALID
from meshguard.model.verdicts import Denial, Permit
from meshguard.policy import compiled as compiled_module
from meshguard.policy.decision import Conditional
from meshguard.policy.near_miss import MAX_RULES
from tests.policy.build import BILLING, OTHER, SUPPORT, caller, decide, outcome, policy

ROLES = {
    "billing": {"principals": [BILLING]},
    "support": {"principals": ["spiffe://shop.example/ns/prod/sa/support-*"], "jwt": {"groups": ["support", "helpdesk"]}},
    "admin": {"principals": [BILLING], "jwt": {"groups": ["admin"], "tier": [1]}, "match": "all"},
    "user": {"jwt": {"iss": ["https://id.example"]}},
}


def test_the_sketch() -> None:
    compiled = policy(
        {"id": "read-orders", "allow": ["billing", "support"], "methods": ["GET"], "paths": ["/orders/{id}"]},
        {"id": "no-admin", "deny": "anyone", "paths": ["/admin/**"]},
        roles=ROLES,
    )
    assert outcome(decide(compiled, BILLING, "GET /orders/7")) == ("allow", "read-orders")
    assert outcome(decide(compiled, BILLING, "HEAD /orders/7")) == ("allow", "read-orders")
    assert outcome(decide(compiled, SUPPORT, "GET /orders/7")) == ("allow", "read-orders")
    assert outcome(decide(compiled, BILLING, "POST /orders/7")) == ("no_rule", None)
    assert outcome(decide(compiled, BILLING, "GET /Admin/users")) == ("policy_denied", "no-admin")


def test_the_default_is_deny() -> None:
    assert outcome(decide(policy(), BILLING, "GET /")) == ("no_rule", None)
    assert outcome(decide(policy({"deny": "anyone", "paths": ["/x"]}), BILLING, "GET /")) == ("no_rule", None)


@pytest.mark.parametrize("order", [1, -1])
def test_deny_wins_whatever_the_order(order: int) -> None:
    rules = [{"id": "yes", "allow": "anyone"}, {"id": "no", "deny": [BILLING], "paths": ["/x"]}][::order]
    compiled = policy(*rules)
    assert outcome(decide(compiled, BILLING, "GET /x")) == ("policy_denied", "no")
    assert outcome(decide(compiled, BILLING, "GET /y")) == ("allow", "yes")
    assert outcome(decide(compiled, OTHER, "GET /x")) == ("allow", "yes")


def test_the_first_matching_rule_of_an_effect_is_reported() -> None:
    compiled = policy(
        {"id": "a2", "allow": "anyone", "paths": ["/x"]},
        {"id": "a1", "allow": "anyone"},
        {"id": "d2", "deny": "anyone", "paths": ["/no/**"]},
        {"id": "d1", "deny": "anyone", "paths": ["/no/x"]},
    )
    assert outcome(decide(compiled, None, "GET /x")) == ("allow", "a2")
    assert outcome(decide(compiled, None, "GET /no/x")) == ("policy_denied", "d2")


@pytest.mark.parametrize(
    ("who", "anyone", "authenticated", "named"), [(None, True, False, False), (OTHER, True, True, False), (BILLING, True, True, True)]
)
def test_callers(who: str | None, anyone: bool, authenticated: bool, named: bool) -> None:
    compiled = policy(
        {"allow": "anyone", "paths": ["/anyone"]}, {"allow": "authenticated", "paths": ["/auth"]}, {"allow": BILLING, "paths": ["/named"]}
    )
    for path, expected in (("/anyone", anyone), ("/auth", authenticated), ("/named", named)):
        assert isinstance(decide(compiled, who, f"GET {path}"), Permit) is expected


# --- methods, ports, hosts


@pytest.mark.parametrize(
    ("method", "allowed"),
    [("GET", True), ("HEAD", True), ("get", False), ("Get", False), ("POST", False), ("DELETE", True), ("delete", False)],
)
def test_allow_compares_methods_exactly_and_get_implies_head(method: str, allowed: bool) -> None:
    compiled = policy({"allow": "anyone", "methods": ["GET", "DELETE"]})
    assert isinstance(decide(compiled, None, f"{method} /"), Permit) is allowed


@pytest.mark.parametrize(
    ("method", "denied"),
    [("GET", True), ("HEAD", True), ("get", True), ("hEaD", True), ("DELETE", True), ("delete", True), ("POST", False)],
)
def test_deny_ignores_the_case_of_methods(method: str, denied: bool) -> None:
    compiled = policy({"allow": "anyone"}, {"deny": "anyone", "methods": ["GET", "DELETE"]})
    assert isinstance(decide(compiled, None, f"{method} /"), Denial) is denied


def test_head_does_not_imply_get() -> None:
    compiled = policy({"allow": "anyone", "methods": ["HEAD"]})
    assert outcome(decide(compiled, None, "GET /"))[0] == "no_rule"


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("shop.example", True),
        ("api.shop.example", False),
        ("a.eu.example", True),
        ("a.b.eu.example", True),
        ("eu.example", False),
        ("xeu.example", False),
        ("", False),
        ("[::1]", True),
        (".eu.example", True),
    ],
)
def test_hosts(host: str, allowed: bool) -> None:
    compiled = policy({"allow": "anyone", "hosts": ["shop.example", "*.eu.example", "[::1]"]})
    assert isinstance(decide(compiled, None, "GET /", host=host), Permit) is allowed


def test_exact_hosts_alone() -> None:
    compiled = policy({"allow": "anyone", "hosts": ["shop.example"]})
    assert isinstance(decide(compiled, None, "GET /", host="shop.example"), Permit)
    assert isinstance(decide(compiled, None, "GET /", host="other.example"), Denial)


def test_ports() -> None:
    compiled = policy({"allow": "anyone", "ports": [8443, 9000]}, {"deny": "anyone", "ports": [9000]})
    assert isinstance(decide(compiled, None, "GET /", port=8443), Permit)
    assert outcome(decide(compiled, None, "GET /", port=9000)) == ("policy_denied", "r1")
    assert outcome(decide(compiled, None, "GET /", port=1)) == ("no_rule", None)


def test_many_rules_in_one_place_are_narrowed_and_still_right() -> None:
    """More than a handful of rules for one caller and path: found by method and host, ports asked one by one."""
    rules = [
        {"allow": "anyone", "paths": ["/x"], "methods": ["PUT"], "hosts": [f"h{number}.example"], "ports": [number + 1]}
        for number in range(50)
    ]
    rules += [{"allow": "anyone", "paths": ["/x"], "hosts": ["*.any.example"]}]
    compiled = policy(*rules)
    for number in (0, 7, 49):
        assert outcome(decide(compiled, None, "PUT /x", host=f"h{number}.example", port=number + 1)) == ("allow", f"r{number}")
        assert outcome(decide(compiled, None, "PUT /x", host=f"h{number}.example", port=number + 2)) == ("no_rule", None)
    assert outcome(decide(compiled, None, "PATCH /x", host="q.any.example", port=5)) == ("allow", "r50")


# --- the path and its readings


def test_deny_sees_every_reading_and_allow_only_the_canonical_path() -> None:
    compiled = policy({"allow": "anyone", "paths": ["/files/**", "/admin"]}, {"deny": "anyone", "paths": ["/admin/**"]})
    assert outcome(decide(compiled, None, "GET /files/x", readings=("/files/x", "/admin")))[0] == "policy_denied"
    compiled = policy({"allow": "anyone", "paths": ["/admin"]})
    assert outcome(decide(compiled, None, "GET /files", readings=("/admin",)))[0] == "no_rule"


@pytest.mark.parametrize("path", ["/admin", "/admin/", "/ADMIN", "/Admin/Users", "/admin/a/b"])
@pytest.mark.parametrize("readings", [(), ("/other",), None])
def test_deny_sees_the_path_itself_whatever_readings_are_listed(path: str, readings: tuple[str, ...] | None) -> None:
    compiled = policy({"allow": "anyone"}, {"deny": "anyone", "paths": ["/admin/**"]})
    assert outcome(decide(compiled, None, f"GET {path}", readings=readings))[0] == "policy_denied"


def test_the_asterisk_form_is_covered_by_rules_for_every_path_only() -> None:
    assert outcome(decide(policy({"allow": "anyone", "paths": ["/*", "/{x}"]}), None, "OPTIONS *", readings=("*",)))[0] == "no_rule"
    assert outcome(decide(policy({"allow": "anyone"}), None, "OPTIONS *", readings=("*",)))[0] == "allow"
    assert (
        outcome(decide(policy({"allow": "anyone"}, {"deny": "anyone", "paths": ["/**"]}), None, "OPTIONS *", readings=("*",)))[0]
        == "policy_denied"
    )


# --- headers


@pytest.mark.parametrize(
    ("matcher", "lines", "allow", "deny"),
    [
        ("a", [], False, False),
        ("a", ["a"], True, True),
        ("a", ["A"], False, False),
        ("a", ["a", "a"], True, True),
        ("a", ["a", "b"], False, True),
        ("a", ["b", "a"], False, True),
        ("a", ["a, b"], False, True),
        ("a", ["b,a"], False, True),
        ("a", ["b ,\ta "], False, True),
        ("a", ["ba"], False, False),
        (["a", "b"], ["a", "b"], True, True),
        ({"exact": "a", "ignore_case": True}, ["A"], True, True),
        ({"prefix": "ab"}, ["abc"], True, True),
        ({"prefix": "ab"}, ["xabc"], False, False),
        ({"prefix": "ab"}, ["x, abc"], False, True),
        ({"suffix": ["yz", "z!"]}, ["xyz", "z!"], True, True),
        ({"contains": "b"}, ["abc"], True, True),
        ({"contains": "b"}, ["abc", "x"], False, True),
        ({"prefix": "a", "suffix": "z"}, ["a-z"], True, True),
        ({"prefix": "a", "suffix": "z"}, ["a-y", "b-z"], False, False),
        ({"present": True}, [], False, False),
        ({"present": True}, [""], True, True),
        ({"absent": True}, [], True, True),
        ({"absent": True}, [""], False, False),
    ],
)
def test_header_matchers(matcher: Any, lines: list[str], allow: bool, deny: bool) -> None:
    allowing = policy({"allow": "anyone", "headers": {"X-Role": matcher}})
    assert isinstance(decide(allowing, None, "GET /", headers={"x-role": lines}), Permit) is allow
    denying = policy({"allow": "anyone"}, {"deny": "anyone", "headers": {"X-Role": matcher}})
    assert isinstance(decide(denying, None, "GET /", headers={"x-role": lines}), Denial) is deny


class Broken:
    """Facts whose header look-up fails."""

    claims = None
    now = 0.0

    def __init__(self, error: Exception) -> None:
        self._error = error

    def header(self, name: str) -> list[str]:
        raise self._error


def conditional(compiled: Any, who: str | None, path: str = "/") -> Conditional:
    outlook = compiled.bind(caller(who)).outlook("GET", path, (path,), "localhost", 8443)
    assert isinstance(outlook, Conditional)
    return outlook


def test_a_condition_that_cannot_be_evaluated_counts_against_the_request() -> None:
    compiled = policy({"allow": "anyone", "paths": ["/a"]}, {"id": "no", "deny": "anyone", "paths": ["/a"], "headers": {"x": "1"}})
    assert outcome(conditional(compiled, None, "/a").decide(Broken(KeyError("x")))) == ("policy_denied", "no")
    compiled = policy({"allow": "anyone", "headers": {"x": {"absent": True}}})
    assert outcome(conditional(compiled, None).decide(Broken(ValueError("x")))) == ("no_rule", None)


def test_an_error_of_the_request_itself_is_passed_on() -> None:
    compiled = policy({"allow": "anyone", "headers": {"x": "1"}})
    with pytest.raises(RequestError):
        conditional(compiled, None).decide(Broken(RequestError(TOKEN_INVALID)))


# --- claims and roles by token


@pytest.mark.parametrize(
    ("path", "values", "claims", "matches"),
    [
        ("tier", ["gold"], {"tier": "gold"}, True),
        ("tier", ["gold"], {"tier": "Gold"}, False),
        ("tier", ["gold"], {"tier": ["silver", "gold"]}, True),
        ("tier", ["gold"], {"tier": [["gold"]]}, False),
        ("tier", ["gold"], {"tier": {"gold": 1}}, False),
        ("tier", ["gold"], {}, False),
        ("tier", ["gold"], None, False),
        ("tier", [1], {"tier": 1}, True),
        ("tier", [1], {"tier": 1.0}, True),
        ("tier", [1], {"tier": True}, False),
        ("tier", [1], {"tier": "1"}, False),
        ("tier", ["1"], {"tier": 1}, False),
        ("tier", [True], {"tier": True}, True),
        ("tier", [True], {"tier": 1}, False),
        ("tier", [False], {"tier": None}, False),
        ("a.b", ["x"], {"a": {"b": "x"}}, True),
        ("a.b", ["x"], {"a.b": "x"}, False),
        ("a.b", ["x"], {"a": [{"b": "x"}]}, False),
        ("https://x.example/groups", ["x"], {"https://x.example/groups": ["x"]}, True),
        ("scope", ["write"], {"scope": "read write"}, True),
        ("scope", ["write"], {"scope": "read writer"}, False),
        ("scope", ["write"], {"scope": ["write"]}, True),
        ("role", ["write"], {"role": "read write"}, False),
    ],
)
def test_claims(path: str, values: list[Any], claims: dict[str, Any] | None, matches: bool) -> None:
    by_rule = policy({"allow": "anyone", "claims": {path: values}})
    assert isinstance(decide(by_rule, None, "GET /", claims=claims), Permit) is matches
    by_role = policy({"allow": "holder"}, roles={"holder": {"jwt": {path: values}}})
    assert isinstance(decide(by_role, None, "GET /", claims=claims), Permit) is matches


@pytest.mark.parametrize(
    ("who", "claims", "roles"),
    [
        (None, None, set()),
        (None, {"groups": ["support"]}, {"support"}),
        (None, {"groups": "helpdesk", "iss": "https://id.example"}, {"support", "user"}),
        (None, {"groups": ["admin"], "tier": 1}, set()),
        (BILLING, None, {"billing"}),
        (BILLING, {"groups": ["admin"]}, {"billing"}),
        (BILLING, {"groups": ["admin"], "tier": 1}, {"billing", "admin"}),
        (SUPPORT, None, {"support"}),
        (SUPPORT, {"groups": ["admin"], "tier": 1}, {"support"}),
    ],
)
def test_roles_by_identity_and_token(who: str | None, claims: dict[str, Any] | None, roles: set[str]) -> None:
    compiled = policy({"allow": "anyone"}, roles=ROLES)
    binding = compiled.bind(caller(who))
    assert binding.roles_with(claims) == roles
    assert binding.roles <= roles
    for role in ROLES:
        held = policy({"allow": role}, roles=ROLES)
        assert isinstance(decide(held, who, "GET /", claims=claims), Permit) is (role in roles)
        refused = policy({"allow": "anyone"}, {"deny": role}, roles=ROLES)
        assert isinstance(decide(refused, who, "GET /", claims=claims), Denial) is (role in roles)


def test_a_permit_carries_the_roles_of_the_token_where_it_was_looked_at() -> None:
    compiled = policy({"allow": "support"}, roles=ROLES)
    verdict = decide(compiled, None, "GET /", claims={"groups": ["support"], "iss": "https://id.example"})
    assert isinstance(verdict, Permit)
    assert verdict.roles == {"support", "user"}


# --- what is final at once


def outlook(compiled: Any, who: str | None, path: str = "/") -> Permit | Denial | Conditional:
    result: Permit | Denial | Conditional = compiled.bind(caller(who)).outlook("GET", path, (path,), "localhost", 8443)
    return result


def test_what_is_final_without_facts() -> None:
    header = {"headers": {"x": "1"}}
    plain, conditional_allow = {"allow": "anyone"}, {"allow": "anyone", **header}
    conditional_deny = {"deny": "anyone", **header}
    assert isinstance(outlook(policy(plain, conditional_allow), None), Permit)
    assert isinstance(outlook(policy(plain, conditional_deny), None), Conditional)
    assert isinstance(outlook(policy(plain, {**conditional_deny, "paths": ["/other"]}), None), Permit)
    assert isinstance(outlook(policy(plain, {**conditional_deny, "methods": ["POST"]}), None), Permit)
    assert isinstance(outlook(policy(plain, {**conditional_deny, "ports": [1]}), None), Permit)
    assert isinstance(outlook(policy(plain, {**conditional_deny, "deny": BILLING}), None), Permit)
    assert isinstance(outlook(policy(conditional_allow), None), Conditional)
    assert isinstance(outlook(policy(conditional_allow, {"deny": "anyone"}, conditional_deny), None), Denial)
    assert isinstance(outlook(policy(conditional_deny), None), Conditional)
    assert isinstance(outlook(policy({"allow": "user"}, roles=ROLES), None), Conditional)
    assert isinstance(outlook(policy({"allow": "admin"}, roles=ROLES), OTHER), Denial)


def test_which_conditionals_need_the_token() -> None:
    assert not conditional(policy({"allow": "anyone", "headers": {"x": "1"}}), None).needs_claims
    assert conditional(policy({"allow": "anyone", "claims": {"a": "1"}}), None).needs_claims
    assert conditional(policy({"allow": "user"}, roles=ROLES), None).needs_claims
    assert conditional(policy({"allow": "anyone"}, {"deny": "user"}, roles=ROLES), None).needs_claims
    # the allow rules cannot matter any more, so their token is not asked for
    entry = conditional(policy({"allow": "anyone"}, {"allow": "user"}, {"deny": "anyone", "headers": {"x": "1"}}, roles=ROLES), None)
    assert not entry.needs_claims
    # a shadow rule must not make the request depend on a token
    entry = conditional(policy({"allow": "anyone"}, {"deny": "user", "shadow": True}, roles=ROLES), None)
    assert not entry.needs_claims
    assert entry.shadow_claims


# --- reasons


def test_a_token_is_asked_for_only_when_it_alone_is_missing() -> None:
    compiled = policy(
        {"allow": "user", "paths": ["/role"]},
        {"allow": "anyone", "paths": ["/claim"], "claims": {"tier": "gold"}, "headers": {"x": "1"}},
        {"allow": BILLING, "paths": ["/both"], "claims": {"tier": "gold"}},
        roles=ROLES,
    )
    assert outcome(decide(compiled, None, "GET /role")) == ("token_required", None)
    assert outcome(decide(compiled, None, "GET /role", claims={})) == ("no_rule", None)
    assert outcome(decide(compiled, None, "GET /claim")) == ("no_rule", None)
    assert outcome(decide(compiled, None, "GET /claim", headers={"x": ["1"]})) == ("token_required", None)
    assert outcome(decide(compiled, OTHER, "GET /both")) == ("no_rule", None)
    assert outcome(decide(compiled, BILLING, "GET /both")) == ("token_required", None)


def test_identity_is_asked_for_only_when_it_alone_is_missing() -> None:
    compiled = policy(
        {"allow": BILLING, "paths": ["/a"], "methods": ["GET"]},
        {"allow": "authenticated", "paths": ["/b"]},
        {"allow": BILLING, "paths": ["/c"], "headers": {"x": "1"}},
        {"deny": "anyone", "paths": ["/d"]},
        {"allow": BILLING, "paths": ["/d"]},
    )
    assert outcome(decide(compiled, None, "GET /a")) == ("identity_required", None)
    assert outcome(decide(compiled, None, "GET /b")) == ("identity_required", None)
    assert outcome(decide(compiled, None, "POST /a")) == ("no_rule", None)
    assert outcome(decide(compiled, OTHER, "GET /a")) == ("no_rule", None)
    assert outcome(decide(compiled, None, "GET /c")) == ("no_rule", None)
    assert outcome(decide(compiled, None, "GET /d")) == ("policy_denied", "r3")
    assert outcome(decide(compiled, None, "GET /nowhere")) == ("no_rule", None)


@pytest.mark.parametrize(
    ("call", "who", "values", "expected"),
    [
        ("POST /orders/7", BILLING, {}, ("read", "method")),
        ("GET /orders/7", OTHER, {}, ("read", "principal")),
        ("GET /order/7", BILLING, {}, ("read", "path")),
        ("GET /orders/7/items", BILLING, {}, ("read", "path")),
        ("GET /ported", BILLING, {}, ("ported", "port")),
        ("GET /hosted", BILLING, {}, ("hosted", "host")),
        ("GET /headed", BILLING, {}, ("headed", "header")),
        ("GET /timed", BILLING, {}, ("timed", "time")),
        ("GET /claimed", BILLING, {"claims": {}}, ("claimed", "claim")),
        ("GET /user", BILLING, {"claims": {}}, ("user", "claim")),
        ("GET /two", BILLING, {"headers": {"a": ["1"]}}, ("two", "header")),
    ],
)
def test_the_nearest_miss(call: str, who: str, values: dict[str, Any], expected: tuple[str, str]) -> None:
    compiled = policy(
        {"id": "read", "allow": ["billing"], "methods": ["GET"], "paths": ["/orders/{id}"]},
        {"id": "ported", "allow": ["billing"], "paths": ["/ported"], "ports": [1]},
        {"id": "hosted", "allow": ["billing"], "paths": ["/hosted"], "hosts": ["h"]},
        {"id": "headed", "allow": ["billing"], "paths": ["/headed"], "headers": {"x": "1"}},
        {"id": "timed", "allow": ["billing"], "paths": ["/timed"], "times": [{"before": "2020-01-01"}]},
        {"id": "claimed", "allow": ["billing"], "paths": ["/claimed"], "claims": {"a": "1"}},
        {"id": "user", "allow": ["user"], "paths": ["/user"]},
        {"id": "worse", "allow": ["billing"], "paths": ["/two"], "headers": {"a": "2", "b": "2"}},
        {"id": "two", "allow": ["billing"], "paths": ["/two"], "headers": {"a": "1", "b": "1"}},
        roles=ROLES,
    )
    verdict = decide(compiled, who, call, **values)
    assert isinstance(verdict, Denial)
    assert verdict.near_miss is not None
    assert (verdict.near_miss.rule_id, verdict.near_miss.condition) == expected


def test_the_nearest_miss_holds_nothing_of_the_request() -> None:
    compiled = policy({"allow": "anyone", "headers": {"x-key": "right"}})
    verdict = decide(compiled, None, "GET /secret-path", headers={"x-key": ["s3cret"]})
    assert isinstance(verdict, Denial)
    assert verdict.near_miss is not None
    assert "s3cret" not in verdict.near_miss.detail
    assert "secret-path" not in verdict.near_miss.detail


def test_a_denial_looks_at_a_bounded_number_of_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the policy: an attacker must not make a denial dear."""
    from meshguard.policy import near_miss

    looked = 0
    original = near_miss.failures

    def counting(*arguments: Any) -> list[str]:
        nonlocal looked
        looked += 1
        return original(*arguments)

    monkeypatch.setattr(near_miss, "failures", counting)
    crowds = [
        [{"allow": f"spiffe://a.example/s{number}", "paths": ["/x"]} for number in range(3000)],
        [{"allow": BILLING, "paths": [f"/x/{number}"]} for number in range(3000)],
        [{"allow": BILLING, "paths": ["/x"], "methods": ["PUT"], "hosts": [f"h{number}"]} for number in range(3000)],
        [{"allow": BILLING, "paths": [f"/a{number}/{{x}}/**"], "methods": ["PUT"]} for number in range(3000)],
    ]
    for rules in crowds:
        compiled = policy(*rules)
        for path in ("/x", "/x/", "/y/z", "/" + "a/" * 500):
            looked = 0
            assert isinstance(outlook(compiled, BILLING, path), Denial)
            assert looked <= 2 * MAX_RULES


# --- shadow rules


def test_shadow_rules_change_nothing_and_are_reported() -> None:
    compiled = policy(
        {"id": "yes", "allow": BILLING, "paths": ["/a", "/c"]},
        {"id": "would-deny", "deny": "anyone", "paths": ["/a", "/A/b"], "shadow": True},
        {"id": "would-deny-2", "deny": "anyone", "paths": ["/{x}"], "methods": ["GET"], "shadow": True},
        {"id": "would-allow", "allow": "anyone", "paths": ["/b"], "shadow": True},
        {"id": "no", "deny": "anyone", "paths": ["/d"]},
        {"id": "too-late", "allow": "anyone", "paths": ["/d"], "shadow": True},
    )

    def report(who: str | None, call: str) -> tuple[str, list[tuple[str, str]]]:
        verdict = decide(compiled, who, call)
        return outcome(verdict)[0], [(entry.rule_id, entry.effect) for entry in verdict.shadow]

    assert report(BILLING, "GET /a") == ("allow", [("would-deny", "would_deny"), ("would-deny-2", "would_deny")])
    assert report(BILLING, "POST /a") == ("allow", [("would-deny", "would_deny")])
    assert report(None, "GET /b") == ("no_rule", [("would-allow", "would_allow")])
    assert report(None, "GET /a") == ("identity_required", [])
    assert report(None, "GET /d") == ("policy_denied", [])


def test_conditional_shadow_rules_report_when_their_conditions_hold() -> None:
    compiled = policy(
        {"allow": "anyone", "paths": ["/a"]},
        {"id": "sd", "deny": "anyone", "headers": {"x": "1"}, "shadow": True},
        {"id": "sc", "deny": "user", "paths": ["/a"], "shadow": True},
        {"id": "sa", "allow": "anyone", "paths": ["/b"], "claims": {"tier": "gold"}, "shadow": True},
        roles=ROLES,
    )

    def report(path: str, **values: Any) -> tuple[str, set[tuple[str, str]]]:
        verdict = decide(compiled, None, f"GET {path}", **values)
        return outcome(verdict)[0], {(entry.rule_id, entry.effect) for entry in verdict.shadow}

    assert report("/a") == ("allow", set())
    assert report("/a", headers={"x": ["1"]}) == ("allow", {("sd", "would_deny")})
    assert report("/a", claims={"iss": "https://id.example"}) == ("allow", {("sc", "would_deny")})
    assert report("/b", claims={"tier": "gold"}) == ("no_rule", {("sa", "would_allow")})
    assert report("/b", headers={"x": ["1"]}) == ("no_rule", set())


class BadToken:
    """Facts of a request whose token is not valid."""

    now = 0.0

    def header(self, name: str) -> list[str]:
        return []

    @property
    def claims(self) -> dict[str, object] | None:
        raise RequestError(TOKEN_INVALID)


def test_an_invalid_token_refuses_the_request_only_when_the_verdict_needs_it() -> None:
    shadow = policy({"allow": "anyone"}, {"deny": "user", "shadow": True}, roles=ROLES)
    assert isinstance(conditional(shadow, None).decide(BadToken()), Permit)
    real = policy({"allow": "anyone"}, {"deny": "user"}, roles=ROLES)
    with pytest.raises(RequestError):
        conditional(real, None).decide(BadToken())


# --- bindings


def test_bindings_are_shared_by_identity_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_module, "MAX_BINDINGS", 3)
    compiled = policy({"allow": BILLING})
    first = compiled.bind(caller(BILLING))
    assert compiled.bind(caller(BILLING)) is first
    assert compiled.bind(None) is compiled.bind(None)
    for number in range(10):
        compiled.bind(caller(f"{OTHER}-{number}"))
    assert len(compiled._bindings) == 3
    again = compiled.bind(caller(BILLING))
    assert again is not first
    assert isinstance(again.outlook("GET", "/", ("/",), "h", 1), Permit)


def test_a_permit_names_the_template_for_the_route() -> None:
    compiled = policy({"allow": "anyone", "paths": ["/orders/{id}"]}, {"allow": "anyone", "paths": ["/h/{id}"], "headers": {"x": "1"}})
    verdict = decide(compiled, None, "GET /orders/7")
    assert isinstance(verdict, Permit)
    assert verdict.template == "/orders/{id}"
    assert conditional(compiled, None, "/h/1").template == "/h/{id}"
