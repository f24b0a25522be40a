"""Who sees what, in both directions; what is refused; what the record says."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings

from meshguard.fields.keyset import DataKey, Keyset, KeyState
from meshguard.fields.transforms import Transformed
from meshguard.model.errors import RequestError
from meshguard.model.reasons import BODY_INVALID, BODY_NOT_INSPECTABLE, FIELD_NOT_OPENED, KEY_UNAVAILABLE, RESPONSE_NOT_INSPECTABLE
from tests.fields.documents_of import documents
from tests.fields.parts import KEY, OTHER_KEY, RULE, Counter, apply, compiled, envelope_of, keyset, reader, transform

PLAIN = b'{ "id": 12345678901234567890, "payment": {"card" : "4111-1111-1111-1234", "x":1.0}, "k\\u0041":[] }\n'


def operations(result: Transformed) -> list[tuple[str, str, str, int, int]]:
    return [(item.operation, item.field, item.keyset, item.version, item.count) for item in result.operations]


def test_each_recipient_gets_its_view_of_a_plain_value() -> None:
    found = transform(RULE)
    result = found.apply(PLAIN, "application/json", reader(), Counter(), 0.0)
    assert operations(result) == [("seal", "card-number", "orders-pii", 1, 1)]
    sealed = envelope_of(result.body, "payment", "card")
    assert result.body == PLAIN.replace(b"4111-1111-1111-1234", sealed.encode())
    assert apply(found, PLAIN, "billing") == PLAIN
    assert apply(found, PLAIN, "support") == PLAIN.replace(b"4111-1111-1111-1234", b"****-****-****-1234")
    assert apply(found, PLAIN, "support", "billing") == PLAIN
    assert apply(found, PLAIN, "app") != PLAIN


def test_each_recipient_gets_its_view_of_a_sealed_value() -> None:
    found = transform(RULE)
    sealed = apply(found, PLAIN)
    result = found.apply(sealed, "application/json", reader("billing"), Counter(), 0.0)
    assert result.body == PLAIN
    assert operations(result) == [("open", "card-number", "orders-pii", 1, 1)]
    result = found.apply(sealed, "application/json", reader("support"), Counter(), 0.0)
    assert result.body == PLAIN.replace(b"4111-1111-1111-1234", b"****-****-****-1234")
    assert operations(result) == [("mask", "card-number", "orders-pii", 1, 1)]
    result = found.apply(sealed, "application/json", reader(), Counter(), 0.0)
    assert result.body == sealed  # never sealed twice
    assert operations(result) == [("pass", "card-number", "", 0, 1)]


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ("remove", b'{"payment": {"x":1}}'),
        ({"mask": "all"}, b'{"payment": {"card":"***","x":1}}'),
        ({"mask": "first4"}, b'{"payment": {"card":"4111****","x":1}}'),
    ],
)
def test_others(others: Any, expected: bytes) -> None:
    found = transform({**RULE, "others": others})
    body = b'{"payment": {"card":"41111234","x":1}}'
    assert apply(found, body) == expected
    sealed = apply(transform(RULE), body)
    assert apply(found, sealed) == expected


@pytest.mark.parametrize(
    "value",
    [b"null", b'""', b"0", b"-0", b"1.0", b"1e400", b"false", b"[]", b"{}", b'[1, {"a" : 2}]', b'"\\u00e9\\/"', '"é"'.encode(), b'"null"'],
)
@pytest.mark.parametrize("seal_null", [True, False])
def test_types_and_spellings_come_back(value: bytes, seal_null: bool) -> None:
    found = transform({**RULE, "seal_null": seal_null})
    body = b'{"payment":{"card": ' + value + b" }}"
    sealed = apply(found, body)
    assert (sealed == body) is (value == b"null" and not seal_null)
    assert apply(found, sealed, "billing") == body


def test_absent_stays_absent() -> None:
    for body in (b"{}", b'{"payment":{}}', b'{"payment":null}', b'{"payment":[{"card":1}]}', b"[]", b'"card"', b"3", b" null "):
        result = transform(RULE).apply(body, "application/json", reader(), Counter(), 0.0)
        assert (result.body, result.operations) == (body, [])


def test_an_empty_body_passes() -> None:
    assert apply(transform(RULE), b"") == b""


def test_the_request_is_judged_by_its_own_recipient() -> None:
    rule = {**RULE, "on": "both", "readers": {"app": "open", "billing": "open"}}
    found = compiled(rule).plan("POST", "/orders/7")
    assert found is not None
    assert found.request is not None
    assert found.response is not None
    assert found.request.direction == "request"
    sealed = apply(found.request, PLAIN, "someone-else")
    assert sealed != PLAIN
    assert apply(found.request, sealed, "app") == PLAIN


def test_several_rules_and_selectors() -> None:
    rules = [
        {**RULE, "id": "pan", "select": ["$.items[*].pan", "$.pan"]},
        {**RULE, "id": "mail", "select": "$..email", "readers": {"mail": "open"}, "others": {"mask": "email"}, "seal": "second"},
        {**RULE, "id": "note", "select": "$.items[0].note", "readers": {}, "others": "remove"},
    ]
    found = transform(*rules, keysets=(keyset(), keyset("second", OTHER_KEY)))
    body = b'{"items":[{"pan":1,"note":"n"},{"pan":2,"email":"joe@example.com","note":"m"}],"pan":3,"email":null}'
    nonces = Counter()
    result = found.apply(body, "application/json", reader("mail"), nonces, 0.0)
    assert nonces.count <= 8
    used = re.findall(rb"\.\.([A-Za-z0-9_-]{16})\.", result.body)
    assert len(used) == len(set(used)) == 3
    assert sorted(operations(result)) == [
        ("pass", "mail", "", 0, 2),
        ("remove", "note", "", 0, 1),
        ("seal", "pan", "orders-pii", 1, 3),
    ]
    assert b'"email":"joe@example.com","note":"m"}' in result.body
    opened = apply(found, result.body, "billing")
    assert opened == b'{"items":[{"pan":1},{"pan":2,"email":"j***@example.com","note":"m"}],"pan":3,"email":null}'


@pytest.mark.parametrize(
    "body",
    [b"{", b"nope", b'{"payment":{"card":1,"card":2}}', b'\xef\xbb\xbf{"payment":{"card":1}}', b'{"payment":{"card":NaN}}', b"{} {}"],
)
def test_an_invalid_body_is_refused_on_either_side(body: bytes) -> None:
    rule = {**RULE, "on": "both"}
    for direction, reason in (("request", BODY_INVALID), ("response", RESPONSE_NOT_INSPECTABLE)):
        with pytest.raises(RequestError) as caught:
            apply(transform(rule, direction=direction), body, "billing")
        assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("types", "codings"),
    [
        (["application/json"], []), (["Application/JSON ; charset=UTF-8"], ["identity"]), (['application/json;charset="utf-8"'], [""]),
        (["application/problem+json"], ["identity, identity"]), (["application/json; profile=x; q=\"a b\""], []),
        (["application/json;"], []), (["application/json"], ["gzip"]), (["application/json"], ["GZIP"]), (["application/json"], ["br"]),
    ],
)  # fmt: skip
def test_bodies_that_can_be_inspected(types: list[str], codings: list[str]) -> None:
    transform(RULE).check_headers(types, codings)


@pytest.mark.parametrize(
    ("types", "codings"),
    [
        ([], []), (["application/json", "application/json"], []), (["application/json, text/html"], []), (["text/json"], []),
        (["application/xml"], []),
        (["application/jsonx"], []), (["application/x-json"], []), (["json"], []), ([""], []), (["application/json; charset=utf-16"], []),
        (["application/json; charset=latin1; charset=utf-8"], []), (["application/json;charset=utf-8;CHARSET=utf-7"], []),
        (["application/json"], ["deflate"]), (["application/json"], ["gzip", "gzip"]), (["application/json"], ["gzip, br"]),
        (["application/json"], ["x-gzip"]),
        (["application/json"], ["identity", "br"]), (["application/json"], ["identity, gzip"]), (["application/json\x00"], []),
        (["application/json; x"], []),
        (["application/x-ndjson"], []), (["application/json; charset='utf-16'"], []),
    ],
)  # fmt: skip
def test_bodies_that_cannot_be_inspected(types: list[str], codings: list[str]) -> None:
    found = transform(RULE)
    with pytest.raises(RequestError) as caught:
        found.check_headers(types, codings)
    assert caught.value.reason is BODY_NOT_INSPECTABLE
    if not codings:
        with pytest.raises(RequestError):
            found.apply(PLAIN, ", ".join(types), reader(), Counter(), 0.0)


def test_declared_content_types_replace_the_default() -> None:
    found = transform({**RULE, "content_types": ["application/vnd.shop"]})
    found.check_headers(["application/vnd.shop"], [])
    with pytest.raises(RequestError):
        found.check_headers(["application/json"], [])


def test_a_value_that_does_not_open_is_refused_for_readers_and_passes_sealed_to_others() -> None:
    found = transform(RULE)
    sealed = apply(transform(RULE, keysets=(keyset("orders-pii", OTHER_KEY),)), PLAIN)
    assert apply(found, sealed) == sealed
    for role in ("billing", "support"):
        with pytest.raises(RequestError) as caught:
            apply(found, sealed, role)
        assert caught.value.reason is FIELD_NOT_OPENED
        assert "4111" not in str(caught.value)


def test_without_a_usable_key_nothing_leaves_in_the_clear() -> None:
    spent = Keyset("orders-pii", [DataKey(1, KeyState.PRIMARY, 0.0, KEY, uses=5, granted=5)])
    with pytest.raises(RequestError) as caught:
        apply(transform(RULE, keysets=(spent,)), PLAIN)
    assert caught.value.reason is KEY_UNAVAILABLE
    disabled = keyset("orders-pii", KEY, states=(KeyState.DISABLED,))
    with pytest.raises(RequestError) as caught:
        apply(transform(RULE, keysets=(disabled,)), PLAIN)
    assert caught.value.reason is KEY_UNAVAILABLE


def test_an_opened_object_does_not_bring_in_what_another_rule_protects() -> None:
    whole = {**RULE, "id": "whole", "select": "$.payment", "readers": {"billing": "open"}}
    sealed = apply(transform(whole), PLAIN)
    both = transform(whole, {**RULE, "id": "deep", "select": "$..card", "readers": {}})
    with pytest.raises(RequestError) as caught:
        apply(both, sealed, "billing")
    assert caught.value.reason is RESPONSE_NOT_INSPECTABLE


@settings(max_examples=200, deadline=None)
@given(documents)
def test_sealing_then_opening_gives_the_original_octets(body: bytes) -> None:
    found = transform({**RULE, "select": ["$..card", "$..ssn"], "seal_null": True})
    try:
        sealed = apply(found, body)
    except RequestError:
        return
    assert apply(found, sealed, "billing") == body
    assert apply(found, sealed) == sealed
    json.loads(sealed)


@pytest.mark.parametrize("path", ["/orders/7", "/Orders/7", "/ORDERS/7", "/orders/7/", "/Orders/x%20y/"])
def test_no_spelling_of_a_path_escapes(path: str) -> None:
    assert compiled(RULE).plan("GET", path) is not None


def test_any_reading_of_a_path_counts() -> None:
    found = compiled(RULE)
    assert found.plan("GET", "/%6frders/7", ("/%6frders/7", "/orders/7")) is not None
    assert found.plan("GET", "/other/7", ("/other/7",)) is None
    assert found.plan("GET", "/orders", ("/orders",)) is None
    assert found.plan("GET", "/orders/7/items", ("/orders/7/items",)) is None


@pytest.mark.parametrize(
    ("template", "fits", "misses"),
    [
        ("/a/**", ["/a", "/a/", "/a/b", "/A/b/c"], ["/ab", "/", "/b/a"]),
        ("/*/x", ["/q/x"], ["/x", "//x", "/q/r/x"]),
        ("/v{major}/f.{ext}", ["/v1/f.json"], ["/v/f.json", "/v1/f."]),
        ("/", ["/"], ["/a"]),
        ("/**", ["/", "/a/b"], []),
        ("/caf%C3%A9", ["/caf%c3%a9", "/café"], ["/cafe"]),
        ("/a.b", ["/a.b"], ["/axb"]),
    ],
)
def test_templates(template: str, fits: list[str], misses: list[str]) -> None:
    found = compiled({**RULE, "paths": [template]})
    for path in fits:
        assert found.plan("GET", path) is not None, path
    for path in misses:
        assert found.plan("GET", path) is None, path


def test_methods() -> None:
    found = compiled({**RULE, "methods": ["GET"]})
    assert found.plan("GET", "/orders/7") is not None
    assert found.plan("get", "/orders/7") is not None  # some servers take it for GET
    assert found.plan("POST", "/orders/7") is None


def test_equal_sets_of_rules_share_a_plan() -> None:
    found = compiled(RULE)
    assert found.plan("GET", "/orders/7") is found.plan("GET", "/orders/8")


def test_no_nonce_is_used_twice() -> None:
    found = transform({**RULE, "select": "$[*]"})
    body = b"[" + b",".join(b"%d" % number for number in range(1500)) + b"]"
    used = re.findall(rb"\.\.([A-Za-z0-9_-]{16})\.", apply(found, body))
    assert len(used) == len(set(used)) == 1500
