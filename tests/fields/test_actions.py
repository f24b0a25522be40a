"""Actions and views: every value is protected once, opened for readers, and the same for nobody else; contexts are kept apart."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.fields.compile import CompiledFields
from meshguard.fields.keyset import Keyset, KeyState
from meshguard.fields.transforms import WIRE, Transform
from meshguard.model.errors import DocumentError, RequestError
from meshguard.model.reasons import FIELD_NOT_OPENED, KEY_UNAVAILABLE, RESPONSE_NOT_INSPECTABLE, TENANT_UNKNOWN
from tests.fields.documents_of import documents
from tests.fields.parts import KEY, OTHER_KEY, RULE, Counter, apply, compiled, keyset, outcome, reader, transform

BASE = {name: value for name, value in RULE.items() if name != "seal"}
BODY = b'{"payment": {"card": "4111-1111-1111-1234", "n": 1.0}}'
KEYED = ("encrypt", "seal", "deterministic", "tokenise", "hash")
VALUES = [b'""', b"0", b"1.0", b"-1e400", b"true", b"false", b"[]", b'{"a" : [1, 2]}', b'"\xc3\xa9 x"', b"12345678901234567890"]


def card(body: bytes) -> Any:
    return json.loads(body)["payment"]["card"]


def rule(action: str, **more: Any) -> dict[str, Any]:
    return {**BASE, action: "orders-pii", **more}


@pytest.mark.parametrize("action", KEYED)
def test_a_value_is_protected_once_and_nothing_else_changes(action: str) -> None:
    found = transform(rule(action))
    once = apply(found, BODY)
    assert b"4111" not in once
    assert once == BODY.replace(b"4111-1111-1111-1234", card(once).encode())
    assert apply(found, once) == once
    assert apply(found, once, nonces=Counter()) == once


@pytest.mark.parametrize("action", ["encrypt", "deterministic"])
@pytest.mark.parametrize("value", VALUES)
def test_readers_get_every_kind_of_value_back(action: str, value: bytes) -> None:
    found = transform(rule(action))
    body = b'{"payment":{"card": ' + value + b"}}"
    assert apply(found, apply(found, body), "billing") == body


@pytest.mark.parametrize("value", VALUES)
def test_a_reversible_token_gives_the_value_back(value: bytes) -> None:
    found = transform(rule("tokenise", detokenise=True))
    body = b'{"payment":{"card": ' + value + b"}}"
    token = apply(found, body)
    assert re.fullmatch(r"tkr_1_[A-Za-z0-9_-]+", card(token))
    assert apply(found, token, "billing") == body


def test_equal_values_are_equal_in_deterministic_forms_only() -> None:
    spelled = BODY.replace(b"4111-", b"\\u00341\\u00311-")
    for action in KEYED:
        found = transform(rule(action))
        nonces = Counter()
        first, second = card(apply(found, BODY, nonces=nonces)), card(apply(found, spelled, nonces=nonces))
        assert (first == second) is (action not in ("encrypt", "seal")), action
        other = card(apply(found, BODY.replace(b"1234", b"1235")))
        assert first != other


@pytest.mark.parametrize("action", ["deterministic", "tokenise", "hash"])
def test_equality_ends_at_field_audience_tenant_and_key(action: str) -> None:
    seen = {
        card(apply(transform(rule(action, **more), keysets=(keyset("orders-pii", key),)), BODY))
        for key in (KEY, OTHER_KEY)
        for more in ({}, {"id": "other"}, {"audience": "a"}, {"tenant": "a"}, {"tenant": "b"}, {"audience": "b", "tenant": "a"})
    }
    assert len(seen) == 12


def test_one_way_tokens_stay_for_readers_too() -> None:
    for action in ("tokenise", "hash"):
        found = transform(rule(action, readers={"billing": "open", "support": {"mask": "last4"}}))
        token = apply(found, BODY)
        assert apply(found, token, "billing") == token
        assert card(apply(found, token, "support")) == "***"
        assert apply(found, BODY, "billing") == BODY


@pytest.mark.parametrize("text", ["tok_1_" + "A" * 32, "hmac_1_" + "A" * 54, "tkr_1_" + "A" * 40, "tok_9_" + "A" * 32, "tok_x"])
def test_what_only_looks_like_a_token_is_a_plain_value(text: str) -> None:
    """Nobody passes a value off as protected: tokens carry a check under a key."""
    body = json.dumps({"payment": {"card": text}}).encode()
    for action in ("encrypt", "tokenise", "hash"):
        assert text not in apply(transform(rule(action)), body).decode()


@pytest.mark.parametrize(
    ("view", "plain"),
    [("open", "4111-1111-1111-1234"), ("token", r"tok_1_\S{32}"), ("ciphertext", r"eyJ\S+"), ({"mask": "last4"}, r"[*-]{15}1234")],
)
@pytest.mark.parametrize("action", ["encrypt", "deterministic"])
def test_every_view_of_plain_and_sealed_values(action: str, view: Any, plain: str) -> None:
    found = transform(rule(action, readers={"support": view}))
    for body in (BODY, apply(found, BODY)):
        assert re.fullmatch(plain, card(apply(found, body, "support")))


def test_nothing_is_a_view_and_the_best_view_wins() -> None:
    found = transform(rule("encrypt", readers={"app": "nothing", "support": "token", "mail": {"mask": "all"}, "billing": "open"}))
    assert json.loads(apply(found, BODY, "app")) == {"payment": {"n": 1.0}}
    assert card(apply(found, BODY, "app", "support")).startswith("tok_")
    assert card(apply(found, BODY, "app", "support", "mail")) == "***"
    assert apply(found, BODY, "app", "support", "mail", "billing") == BODY


def test_mask_and_remove_keep_nothing() -> None:
    masked = transform({**BASE, "mask": "last4"}, keysets=(keyset(),))
    once = apply(masked, BODY)
    assert card(once) == "****-****-****-1234"
    assert apply(masked, once) == once, "the second proxy of a pair masks the mask"
    assert apply(masked, BODY, "billing") == BODY
    removed = transform({**BASE, "remove": True})
    assert apply(removed, BODY) == b'{"payment": {"n": 1.0}}'
    assert apply(removed, BODY, "billing") == BODY


def test_on_the_way_to_another_proxy_views_do_not_count() -> None:
    for others in ("nothing", "token", "ciphertext"):
        found = transform(rule("encrypt", on="request", others=others), direction="request")
        sealed = found.apply(BODY, "application/json", WIRE, Counter(), 0.0).body
        assert card(sealed).startswith("eyJ")
        assert apply(found, sealed, "billing") == BODY
    hashed = transform(rule("hash", on="request"), direction="request").apply(BODY, "application/json", WIRE, Counter(), 0.0).body
    assert card(hashed).startswith("hmac_")


def test_a_rule_that_changes_its_action_still_reads_what_was_stored() -> None:
    makers = [rule("encrypt"), rule("deterministic"), rule("tokenise", detokenise=True)]
    for stored in (apply(transform(maker), BODY) for maker in makers):
        for later in makers:
            assert apply(transform(later), stored, "billing") == BODY
            assert apply(transform(later), stored) == stored


def test_an_independent_implementation_opens_a_deterministic_value() -> None:
    header, _, nonce, text, tag = card(apply(transform(rule("deterministic", tenant="acme")), BODY)).split(".")
    decoded = [_unbase64(part) for part in (header, text, tag)]
    assert json.loads(decoded[0]) == {
        "alg": "dir", "enc": "AEAD_AES_SIV_CMAC_512", "kid": "orders-pii:1", "f": "card-number", "t": "acme",
    }
    assert nonce == ""
    key = HKDF(SHA256(), 64, b"", b"meshguard/deterministic/1\0").derive(KEY)
    assert AESSIV(key).decrypt(decoded[2] + decoded[1], [header.encode()]) == b'"4111-1111-1111-1234"'


def _unbase64(text: str) -> bytes:
    from base64 import urlsafe_b64decode

    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


FORMS = [rule("encrypt"), rule("deterministic"), rule("tokenise", detokenise=True)]


@pytest.mark.parametrize("maker", FORMS, ids=["encrypt", "deterministic", "token"])
@pytest.mark.parametrize("change", [{"id": "other"}, {"audience": "b"}, {"tenant": "b"}, {}])
def test_a_value_moved_elsewhere_does_not_open(maker: dict[str, Any], change: dict[str, Any]) -> None:
    """To another field, audience, tenant or key; reversible tokens of another context are plain text there and stay unread."""
    moved = apply(transform({**maker, "audience": "a", "tenant": "a"}), BODY)
    keys = (keyset("orders-pii", KEY if change else OTHER_KEY),)
    target = transform({**maker, "audience": "a", "tenant": "a", **change}, keysets=keys)
    assert outcome(target, moved, "billing") == (moved if maker.get("detokenise") else FIELD_NOT_OPENED)


@pytest.mark.parametrize("maker", FORMS, ids=["encrypt", "deterministic", "token"])
def test_any_change_of_a_protected_value_keeps_it_shut(maker: dict[str, Any]) -> None:
    found = transform(maker)
    sealed = apply(found, BODY)
    text = card(sealed)
    for place in range(len(text)):
        if text[place] in "._":
            continue
        changed = text[:place] + ("B" if text[place] == "A" else "A") + text[place + 1 :]
        tampered = sealed.replace(text.encode(), changed.encode())
        assert outcome(found, tampered, "billing") in (FIELD_NOT_OPENED, tampered)


def test_disabled_and_destroyed_versions_do_not_open_and_old_ones_do() -> None:
    for maker in FORMS:
        stored = apply(transform(maker), BODY)
        rotated = keyset("orders-pii", KEY, OTHER_KEY)
        assert apply(transform(maker, keysets=(rotated,)), stored, "billing") == BODY
        for state in (KeyState.DISABLED, KeyState.DESTROYED):
            gone = keyset("orders-pii", KEY, OTHER_KEY, states=(state, KeyState.PRIMARY))
            assert outcome(transform(maker, keysets=(gone,)), stored, "billing") in (FIELD_NOT_OPENED, KEY_UNAVAILABLE, stored)


def test_without_a_key_nothing_passes() -> None:
    for action in KEYED:
        with pytest.raises(RequestError) as caught:
            apply(transform(rule(action), keysets=(Keyset("orders-pii", ()),)), BODY)
        assert caught.value.reason is KEY_UNAVAILABLE


def test_padding_hides_lengths() -> None:
    for action in ("encrypt", "deterministic"):
        found = transform(rule(action, padding=64))
        lengths = set()
        for size in range(0, 60, 7):
            body = b'{"payment":{"card":"%b"}}' % (b"x" * size)
            sealed = apply(found, body)
            lengths.add(len(sealed))
            assert apply(found, sealed, "billing") == body
        assert len(lengths) == 1


class Who:
    def __init__(self, principal: str | None = None, claims: dict[str, object] | None = None) -> None:
        self.principal = principal
        self.claims = claims


def _for(found: Transform, body: bytes, who: Who, *roles: str) -> bytes:
    return found.apply(body, "application/json", reader(*roles), Counter(), 0.0, caller=who).body


def test_the_tenant_comes_from_a_verified_attribute() -> None:
    for selector, one, other in (
        ({"claim": "org.id"}, Who(claims={"org": {"id": "acme"}}), Who(claims={"org": {"id": "globex"}})),
        ({"claim": "https://x/tenant"}, Who(claims={"https://x/tenant": "acme"}), Who(claims={"https://x/tenant": "globex"})),
        ({"spiffe": "ns"}, Who("spiffe://m/ns/acme/sa/a"), Who("spiffe://m/ns/globex/sa/a")),
    ):
        found = transform(rule("encrypt", tenant=selector))
        sealed = _for(found, BODY, one)
        header = json.loads(_unbase64(card(sealed).split(".")[0]))
        assert header["t"] == "acme"
        assert _for(found, sealed, one, "billing") == BODY
        with pytest.raises(RequestError) as caught:
            _for(found, sealed, other, "billing")
        assert caught.value.reason is FIELD_NOT_OPENED


@pytest.mark.parametrize("selector", [{"claim": "org"}, {"spiffe": "ns"}])
@pytest.mark.parametrize(
    "who",
    [
        Who(),
        Who("spiffe://m/sa/a", {}),
        Who("spiffe://m/ns", {"org": 7}),
        Who("spiffe://m/ns/a/ns/b", {"org": ""}),
        Who("spiffe://ns/x", {"org": "x" * 300}),
        Who(None, {"org": 'a"b'}),
        Who(None, {"org": ["a"]}),
    ],
)
def test_without_its_tenant_a_value_goes_nowhere(selector: dict[str, str], who: Who) -> None:
    found = transform(rule("encrypt", tenant=selector))
    with pytest.raises(RequestError) as caught:
        _for(found, BODY, who)
    assert caught.value.reason is TENANT_UNKNOWN
    assert _for(found, b"{}", who) == b"{}"


RECORDS = b'{"orders":[{"id":"a","card":"1111"},{"card":"2222","id":2},{"x":0}]}'
RECORD_RULE = rule("encrypt", select="$.orders[*].card", record="$.orders[*].id")


def test_a_value_belongs_to_its_record() -> None:
    found = transform(RECORD_RULE)
    sealed = apply(found, RECORDS)
    assert apply(found, sealed, "billing") == RECORDS
    orders = json.loads(sealed)["orders"]
    orders[0]["card"], orders[1]["card"] = orders[1]["card"], orders[0]["card"]
    with pytest.raises(RequestError) as caught:
        apply(found, json.dumps({"orders": orders}).encode(), "billing")
    assert caught.value.reason is FIELD_NOT_OPENED
    orders[0]["card"], orders[1]["card"] = orders[1]["card"], orders[0]["card"]
    orders[1]["id"] = "2"  # a text is not the number
    with pytest.raises(RequestError):
        apply(found, json.dumps({"orders": orders}).encode(), "billing")


def test_the_record_key_of_a_document() -> None:
    found = transform(rule("encrypt", record="$.id"))
    body = b'{"payment":{"card":"1"},"id":"\\u0061"}'
    sealed = apply(found, body)
    assert apply(found, sealed, "billing") == body
    assert apply(found, sealed.replace(b"\\u0061", b"a"), "billing") == body.replace(b"\\u0061", b"a")
    with pytest.raises(RequestError):
        apply(found, sealed.replace(b"\\u0061", b"b"), "billing")


@pytest.mark.parametrize(
    "body",
    [
        b'{"orders":[{"card":1}]}', b'{"orders":[{"card":1,"id":null}]}', b'{"orders":[{"card":1,"id":[2]}]}',
        b'{"orders":[{"card":1,"id":1,"id":2}]}', b'{"orders":[{"id":1},{"card":1}]}', b'{"id":1,"orders":[{"card":1}]}',
    ],
)  # fmt: skip
def test_a_value_without_one_certain_record_key_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        apply(transform(RECORD_RULE), body)
    assert caught.value.reason is RESPONSE_NOT_INSPECTABLE


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        ({"encrypt": "orders-pii", "hash": "orders-pii"}, "fields[0]", "exactly one action"),
        ({}, "fields[0]", "exactly one action"),
        ({"mask": "last4", "tenant": "a"}, "fields[0]", "only where something is sealed"),
        ({"mask": "last5"}, "fields[0].mask", "last4"),
        ({"remove": True, "others": "ciphertext"}, "fields[0]", "no others"),
        ({"remove": False}, "fields[0].remove", "True"),
        ({"encrypt": "orders-pii", "detokenise": True}, "fields[0]", "together with tokenise"),
        ({"tokenise": "orders-pi"}, "fields[0].tokenise", "did you mean 'orders-pii'"),
        ({"encrypt": "orders-pii", "tenant": {}}, "fields[0].tenant", "exactly one of claim and spiffe"),
        ({"encrypt": "orders-pii", "tenant": {"claim": "a", "spiffe": "b"}}, "fields[0].tenant", "exactly one of claim and spiffe"),
        ({"encrypt": "orders-pii", "tenant": {"clam": "a"}}, "fields[0].tenant.clam", "did you mean 'claim'"),
        ({"hash": "orders-pii", "record": "$.id"}, "fields[0]", "could not be compared"),
        ({"encrypt": "orders-pii", "record": "$..id"}, "fields[0].record", "without '..'"),
        ({"encrypt": "orders-pii", "record": "$.payment.card"}, "fields[0].record", "not protected itself"),
        ({"encrypt": "orders-pii", "record": "$.orders[*].id"}, "fields[0].select[0]", "begins like the record key"),
        ({"encrypt": "orders-pii", "padding": 1}, "fields[0].padding", "2"),
        ({"encrypt": "orders-pii", "headers": ["Host"]}, "fields[0].headers[0]", "framing"),
        ({"encrypt": "orders-pii", "query": ["a"]}, "fields[0]", "on: request"),
        ({"encrypt": "orders-pii", "select": None, "content_types": "text/html"}, "fields[0].select", "list"),
        ({"encrypt": "orders-pii", "content_types": ["application/grpc"]}, "fields[0]", "protobuf, for the content types"),
        ({"encrypt": "orders-pii", "content_types": ["multipart/form-data"]}, "fields[0]", "form, for the content types"),
        ({"encrypt": "orders-pii", "readers": {"spiffe": "open"}}, "fields[0].readers.spiffe", "a role"),
        ({"encrypt": "orders-pii", "readers": {"a b": "open"}}, "fields[0].readers", "a role, or a SPIFFE ID"),
        ({"encrypt": "orders-pii", "hosts": ["A.b"]}, "fields[0].hosts[0]", "lower-case"),
    ],
)
def test_an_error_names_its_place(change: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(DocumentError) as caught:
        compiled({**BASE, **change})
    texts = {problem.path: str(problem) for problem in caught.value.problems}
    assert any(place.startswith(path) and words in text for place, text in texts.items()), texts


def test_a_rule_needs_a_place() -> None:
    with pytest.raises(DocumentError, match="at least one place"):
        compiled({name: value for name, value in RULE.items() if name != "select"})


@pytest.mark.parametrize("place", [{"form": "card"}, {"headers": "x-card"}, {"query": "card"}])
def test_two_rules_for_one_name_are_found(place: dict[str, str]) -> None:
    bare = {name: value for name, value in RULE.items() if name != "select"} | {"on": "request"}
    with pytest.raises(DocumentError, match="apart from"):
        compiled({**bare, **place}, {**bare, **place, "id": "other"})
    compiled({**bare, **place, "side": "inbound"}, {**bare, **place, "id": "other", "side": "outbound"})
    compiled({**bare, **place, "hosts": ["a"]}, {**bare, **place, "id": "other", "hosts": ["b"]})


def _plans(found: CompiledFields, host: str = "", outbound: bool = False) -> bool:
    return found.plan("GET", "/orders/7", (), host, outbound) is not None


def test_hosts_and_sides() -> None:
    found = compiled({**RULE, "hosts": ["orders.shop", "*.internal"]})
    hosts = ("orders.shop", "a.internal", "internal", "xorders.shop", "")
    assert [_plans(found, host) for host in hosts] == [True, True, False, False, False]
    for side, expected in (("any", (True, True)), ("inbound", (True, False)), ("outbound", (False, True))):
        found = compiled({**RULE, "side": side})
        assert (_plans(found, outbound=False), _plans(found, outbound=True)) == expected


@settings(max_examples=60, deadline=None)
@given(documents, st.sampled_from(["encrypt", "deterministic"]), st.sampled_from([None, 16]))
def test_protecting_then_opening_gives_the_original_octets(body: bytes, action: str, padding: int | None) -> None:
    found = transform(rule(action, select=["$..card", "$..ssn"], seal_null=True, padding=padding))
    try:
        sealed = apply(found, body)
    except RequestError:
        return
    opened = apply(found, sealed, "billing")
    assert apply(found, sealed) == sealed
    if action == "encrypt":
        assert opened == body
    else:  # strings come back in their one spelling
        assert json.loads(opened) == json.loads(body)
