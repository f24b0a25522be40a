"""The signed quarantine set of a fleet: every way in which one must not be taken."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given
from hypothesis import strategies as st

from meshguard.integrity.containment import (
    MAX_MEMBERS,
    PAYLOAD_TYPE,
    ContainmentError,
    ContainmentSet,
    Member,
    accept,
    encode,
    next_sequence,
    open_set,
)
from meshguard.integrity.dsse import Envelope, public_key_of, sign

ONE, TWO, STRANGER = (ed25519.Ed25519PrivateKey.generate() for _ in range(3))
KEYS = [public_key_of(ONE), public_key_of(TWO)]
SET = ContainmentSet("prod", 7, 1000.0, (Member("spiffe://shop.example/bad", "leaked", "ann", 1000.0, 5000.0),))


def signed(contained: ContainmentSet, *keys: ed25519.Ed25519PrivateKey) -> bytes:
    envelope = encode(contained)
    for key in keys:
        envelope = sign(envelope, key)
    return envelope.encode()


def code(data: bytes, keys: Any = KEYS, threshold: int = 1) -> str:
    with pytest.raises(ContainmentError) as caught:
        open_set(data, keys, threshold)
    return caught.value.code


def test_a_set_comes_back_as_it_was_signed() -> None:
    found = open_set(signed(SET, ONE), KEYS, 1)
    assert replace(found, digest="", signers=frozenset()) == SET
    assert found.signers == {KEYS[0].id}
    assert open_set(signed(SET, ONE, TWO), KEYS, 2).signers == {key.id for key in KEYS}


def test_who_has_not_signed_as_is_asked_for_is_refused() -> None:
    assert code(signed(SET)) == "unsigned"
    assert code(signed(SET, STRANGER)) == "unsigned"
    assert code(signed(SET, ONE), threshold=2) == "unsigned"
    assert open_set(signed(SET), (), 1).digest, "without signers nobody has to"


def payload(**change: Any) -> bytes:
    value = json.loads(encode(SET).payload) | change
    return sign(Envelope(PAYLOAD_TYPE, json.dumps(value).encode(), ()), ONE).encode()


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"fleet": 1},
        {"sequence": 0},
        {"sequence": True},
        {"sequence": "8"},
        {"made": "soon"},
        {"quarantine": {}},
        {"quarantine": [{"target": "x"}]},
        {"quarantine": [{"target": 1, "reason": "", "by": "", "since": 1, "until": 0}]},
        {"quarantine": [{"target": "x", "reason": "", "by": "", "since": 1, "until": -1}]},
        {"quarantine": [{"target": "x", "reason": "", "by": "", "since": True, "until": 0}]},
        {"quarantine": [{"target": "x", "reason": "", "by": "", "since": 1, "until": 0}] * 2},
        {"quarantine": [{"target": f"x{n}", "reason": "", "by": "", "since": 1, "until": 0} for n in range(MAX_MEMBERS + 1)]},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_signed_payload_of_another_form_is_malformed(change: dict[str, Any]) -> None:
    assert code(payload(**change)) == "malformed"


def test_a_bundle_is_no_quarantine_set() -> None:
    envelope = sign(Envelope("application/vnd.meshguard.bundle+json", encode(SET).payload, ()), ONE)
    assert code(envelope.encode()) == "malformed"
    assert code(b"[" * 10000) == "malformed"


@given(st.data())
def test_no_changed_octet_of_the_payload_is_accepted(data: st.DataObject) -> None:
    value = json.loads(signed(SET, ONE))
    octets = bytearray(base64.b64decode(value["payload"]))
    at = data.draw(st.integers(0, len(octets) - 1))
    octets[at] ^= data.draw(st.integers(1, 255))
    value["payload"] = base64.b64encode(bytes(octets)).decode()
    assert code(json.dumps(value).encode()) in ("unsigned", "malformed")


def test_numbers_only_go_forward() -> None:
    held = open_set(signed(SET, ONE), KEYS, 1)
    accept(held, None, "prod")
    accept(held, held, "prod")
    accept(replace(held, sequence=8, digest="other"), held, "prod")
    for found, why in (
        (replace(held, sequence=6), "rollback"),
        (replace(held, digest="other"), "changed"),
        (replace(held, fleet="test", sequence=9), "fleet"),
    ):
        with pytest.raises(ContainmentError) as caught:
            accept(found, held, "prod")
        assert caught.value.code == why


def test_the_next_number_is_above_all_others_even_when_the_clock_is_not() -> None:
    assert next_sequence([], 1700000000.5) == 1700000000500
    assert next_sequence([5, 1700000009999], 1700000000.5) == 1700000010000
