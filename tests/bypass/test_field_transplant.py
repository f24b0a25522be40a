"""Ciphertext in the wrong place, and ciphertext that was tampered with: it must not open, and must not tell why."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from meshguard.model.errors import RequestError
from meshguard.model.reasons import FIELD_NOT_OPENED
from tests.fields.parts import KEY, OTHER_KEY, RULE, apply, keyset, transform

BODY = b'{"payment":{"card":"4111111111111111"}}'
CONTEXT: dict[str, Any] = {**RULE, "audience": "orders", "tenant": "acme"}


def refusal(sealed: bytes, rule: dict[str, Any] = CONTEXT, **more: Any) -> str:
    with pytest.raises(RequestError) as caught:
        apply(transform(rule, **more), sealed, "billing")
    assert caught.value.reason is FIELD_NOT_OPENED
    return str(caught.value)


def test_no_context_but_its_own_opens_a_value() -> None:
    sealed = apply(transform(CONTEXT), BODY)
    assert apply(transform(CONTEXT), sealed, "billing") == BODY
    told = {
        refusal(sealed, {**CONTEXT, "id": "other"}),
        refusal(sealed, {**CONTEXT, "audience": "billing"}),
        refusal(sealed, {**CONTEXT, "tenant": "globex"}),
        refusal(sealed, {key: value for key, value in CONTEXT.items() if key != "tenant"}),
        refusal(sealed, {**CONTEXT, "seal": "second"}, keysets=(keyset("second", KEY),)),
        refusal(sealed, keysets=(keyset("orders-pii", OTHER_KEY),)),
        refusal(_flip(sealed)),
    }
    assert len(told) == 1  # one failure for all


def _flip(sealed: bytes) -> bytes:
    place = sealed.rindex(b".") + 3
    return sealed[:place] + (b"A" if sealed[place : place + 1] != b"A" else b"B") + sealed[place + 1 :]


def test_a_value_moved_to_another_field_of_the_same_document() -> None:
    rules = (RULE, {**RULE, "id": "note", "select": "$.note", "readers": {"support": "open"}})
    found = transform(*rules)
    sealed = apply(found, b'{"payment":{"card":"4111"},"note":"x"}')
    values = json.loads(sealed)
    values["note"] = values["payment"]["card"]
    with pytest.raises(RequestError) as caught:
        apply(found, json.dumps(values).encode(), "support")
    assert caught.value.reason is FIELD_NOT_OPENED


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none"}, {"alg": "dir", "enc": "A256GCM", "kid": "orders-pii:1", "f": "card-number", "x": 1},
        {"alg": "dir", "enc": "A256GCM", "kid": "orders-pii:2", "f": "card-number"},
        {"alg": "dir", "enc": "A256GCM", "kid": "../../etc/passwd", "f": "card-number"},
        {"alg": "dir", "enc": "A256GCM", "jwk": {"kty": "oct", "k": "AAAA"}, "kid": "orders-pii:1", "f": "card-number"},
        {"alg": "dir", "enc": "A256GCM", "jku": "https://evil.example/jwks", "kid": "orders-pii:1", "f": "card-number"},
    ],
)  # fmt: skip
def test_a_header_of_the_senders_choice(header: dict[str, Any]) -> None:
    sealed = json.loads(apply(transform(RULE), BODY))
    parts = sealed["payment"]["card"].split(".")
    parts[0] = base64.urlsafe_b64encode(json.dumps(header, separators=(",", ":")).encode()).rstrip(b"=").decode()
    sealed["payment"]["card"] = ".".join(parts)
    body = json.dumps(sealed).encode()
    try:
        result = apply(transform(RULE), body, "billing")
    except RequestError as exc:
        result = b""
        assert exc.reason is FIELD_NOT_OPENED  # noqa: PT017 - either outcome is safe, this one has one reason
    assert b"4111" not in result
    assert b"4111" not in apply(transform(RULE), body)


@pytest.mark.parametrize("cut", [1, 5, 22, 23, 24, 40])
def test_truncated_and_extended_values(cut: int) -> None:
    sealed = json.loads(apply(transform(RULE), BODY))["payment"]["card"]
    for changed in (sealed[:-cut], sealed + "A" * cut, sealed[:60] + sealed[60 + cut :], sealed + "." + sealed[-cut:]):
        body = json.dumps({"payment": {"card": changed}}).encode()
        try:
            result = apply(transform(RULE), body, "billing")
        except RequestError as exc:
            assert exc.reason is FIELD_NOT_OPENED  # noqa: PT017 - as above
        else:
            assert result == body  # no longer an envelope: a plain string like any other
