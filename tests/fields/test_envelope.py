"""Envelopes: opened by an independent JOSE library and the other way round, bound to their context, one failure for all."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from joserfc import jwe
from joserfc.jwk import OctKey

from meshguard.fields.envelope import Envelope, NotOpenedError, header_of, looks_sealed
from meshguard.fields.keyset import MAX_USES, ROTATE_AT, DataKey, Keyset, KeyState
from meshguard.model.errors import KeysetError
from tests.fields.documents_of import documents
from tests.fields.parts import KEY, OTHER_KEY, keyset

NONCE = bytes(range(12))
# RFC 7516 section 4: parameters that are not understood are ignored, so `f`, `a` and `t` are no obstacle; joserfc refuses them by default.
REGISTRY = jwe.JWERegistry(algorithms=["dir", "A256GCM"], strict_check_header=False)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def compact(header: bytes, plaintext: bytes, key: bytes = KEY, nonce: bytes = NONCE) -> str:
    """A JWE made with nothing of ours (RFC 7516 section 5.1)."""
    aad = b64(header)
    sealed = AESGCM(key).encrypt(nonce, plaintext, aad.encode())
    return f"{aad}..{b64(nonce)}.{b64(sealed[:-16])}.{b64(sealed[-16:])}"


def test_the_header_is_constant_and_readable() -> None:
    header = header_of("orders-pii", 3, "card-number", "spiffe://shop.example", "acme")
    assert header == b'{"alg":"dir","enc":"A256GCM","kid":"orders-pii:3","f":"card-number","a":"spiffe://shop.example","t":"acme"}'
    assert header_of("k", 1, "f") == b'{"alg":"dir","enc":"A256GCM","kid":"k:1","f":"f"}'


@pytest.mark.parametrize(
    "raw", [b'"4111"', b"1.0", b"123456789012345678901234567890", b"null", b"true", b'{"b":1, "a":[1e400]}', b'""', '"é\\u00e9"'.encode()]
)
def test_an_independent_library_opens_it(raw: bytes) -> None:
    sealed = Envelope(keyset(), "card-number", "aud", "acme").seal(raw, NONCE)
    assert looks_sealed(sealed)
    found = jwe.decrypt_compact(json.loads(sealed), OctKey.import_key(KEY), registry=REGISTRY)
    assert found.plaintext == raw
    assert found.headers()["kid"] == "orders-pii:1"
    assert json.loads(sealed) == compact(header_of("orders-pii", 1, "card-number", "aud", "acme"), raw)


@pytest.mark.parametrize("raw", [b'"4111"', b"1.0", b"null", b'{"a":[1]}'])
def test_it_opens_what_an_independent_library_sealed(raw: bytes) -> None:
    header = {"alg": "dir", "enc": "A256GCM", "kid": "orders-pii:1", "f": "card-number"}
    token = jwe.encrypt_compact(header, raw, OctKey.import_key(KEY), registry=REGISTRY)
    assert Envelope(keyset(), "card-number").open(json.dumps(token).encode()) == (raw, 1)


@settings(max_examples=150, deadline=None)
@given(documents)
def test_seal_then_open_gives_the_same_octets(raw: bytes) -> None:
    envelope = Envelope(keyset(), "f")
    assert envelope.open(envelope.seal(raw, NONCE)) == (raw, 1)


def test_the_cipher_is_aes_256_gcm() -> None:
    """Test cases 13 to 15 of the GCM specification (McGrew and Viega), 256-bit keys, through the data key of a keyset."""
    zero = DataKey(1, KeyState.PRIMARY, 0.0, bytes(32), granted=10)
    assert zero.encrypt(bytes(12), b"", b"").hex() == "530f8afbc74536b9a963b4f1c4cb738b"
    assert zero.encrypt(bytes(12), bytes(16), b"").hex() == "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308")
    text = bytes.fromhex(
        "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b391aafd255"
    )
    sealed = DataKey(1, KeyState.PRIMARY, 0.0, key, granted=10).encrypt(bytes.fromhex("cafebabefacedbaddecaf888"), text, b"")
    assert sealed[-16:].hex() == "b094dac5d93471bdec1a502270e3cc6c"
    assert sealed[:8].hex() == "522dc1f099567d07"


SEALED = Envelope(keyset(), "card-number", "aud", "acme").seal(b'"4111"', NONCE)


@pytest.mark.parametrize(
    "other",
    [
        Envelope(keyset(), "other-field", "aud", "acme"),
        Envelope(keyset(), "card-number", "elsewhere", "acme"),
        Envelope(keyset(), "card-number", "", "acme"),
        Envelope(keyset(), "card-number", "aud", "globex"),
        Envelope(keyset(), "card-number", "aud"),
        Envelope(keyset(), "card-number", "audacme"),
        Envelope(keyset("billing-pii"), "card-number", "aud", "acme"),
        Envelope(keyset("orders-pii", OTHER_KEY), "card-number", "aud", "acme"),
        Envelope(keyset("orders-pii", KEY, KEY, states=(KeyState.DISABLED, KeyState.PRIMARY)), "card-number", "aud", "acme"),
        Envelope(keyset("orders-pii", KEY, KEY, states=(KeyState.DESTROYED, KeyState.PRIMARY)), "card-number", "aud", "acme"),
        Envelope(Keyset("orders-pii", [DataKey(2, KeyState.PRIMARY, 0.0, KEY)]), "card-number", "aud", "acme"),
    ],
    ids=["field", "audience", "no-audience", "tenant", "no-tenant", "joined", "keyset", "key", "disabled", "destroyed", "version"],
)
def test_a_transplant_does_not_open(other: Envelope) -> None:
    assert Envelope(keyset(), "card-number", "aud", "acme").open(SEALED) == (b'"4111"', 1)
    with pytest.raises(NotOpenedError) as caught:
        other.open(SEALED)
    assert str(caught.value) == str(NotOpenedError())
    assert caught.value.__cause__ is None


HEADER = header_of("orders-pii", 1, "card-number")
FORGED = {
    "alg none": compact(HEADER.replace(b"dir", b"none"), b'"x"'),
    "enc changed": compact(HEADER.replace(b"A256GCM", b"A256GCM "), b'"x"'),
    "extra member": compact(HEADER[:-1] + b',"x":1}', b'"x"'),
    "zip": compact(HEADER[:-1] + b',"zip":"DEF"}', b'"x"'),
    "crit": compact(HEADER[:-1] + b',"crit":["f"]}', b'"x"'),
    "space": compact(HEADER.replace(b":", b": "), b'"x"'),
    "order": compact(b'{"alg":"dir","enc":"A256GCM","f":"card-number","kid":"orders-pii:1"}', b'"x"'),
    "member twice": compact(HEADER[:-1] + b',"f":"card-number"}', b'"x"'),
    "version 0": compact(HEADER.replace(b"pii:1", b"pii:0"), b'"x"'),
    "version 01": compact(HEADER.replace(b"pii:1", b"pii:01"), b'"x"'),
    "unknown header under the zero key": compact(HEADER.replace(b"pii:1", b"pii:9"), b'"x"', key=bytes(32)),
    "not a value": compact(HEADER, b"4111"[:0] + b"x"),
    "two values": compact(HEADER, b"1,2"),
    "breaks out": compact(HEADER, b'1,"admin":true'),
    "empty value": compact(HEADER, b" "),
    "not UTF-8": compact(HEADER, b'"\xff"'),
    "lone surrogate": compact(HEADER, b'"\\ud800"'),
    "byte order mark": compact(HEADER, b"\xef\xbb\xbf1"),
    "nested too deep": compact(HEADER, b"[" * 65 + b"]" * 65),
    "value of another nonce": compact(HEADER, b'"x"').replace(b64(NONCE), b64(bytes(12))),
}


@pytest.mark.parametrize("token", FORGED.values(), ids=FORGED.keys())
def test_a_forged_envelope_does_not_open(token: str) -> None:
    envelope = Envelope(keyset(), "card-number")
    with pytest.raises(NotOpenedError) as caught:
        envelope.open(b'"' + token.encode() + b'"')
    assert str(caught.value) == str(NotOpenedError())


def test_every_changed_character_is_noticed() -> None:
    envelope = Envelope(keyset(), "card-number")
    sealed = envelope.seal(b'"4111"', NONCE)
    for place in range(len(sealed)):
        for octet in b'A_b".=+ \\':
            changed = sealed[:place] + bytes((octet,)) + sealed[place + 1 :]
            if changed != sealed:
                with pytest.raises(NotOpenedError):
                    envelope.open(changed)
    for changed in (
        sealed[:-2] + b'"',
        sealed[:-1] + b'A"',
        sealed[:-1],
        sealed[1:],
        b" " + sealed,
        sealed + b" ",
        b'""',
        b'"...."',
        sealed.replace(b"..", b".AA."),
    ):
        with pytest.raises(NotOpenedError):
            envelope.open(changed)


def test_only_our_form_looks_sealed() -> None:
    sealed = Envelope(keyset(), "card-number").seal(b"1", NONCE)
    assert looks_sealed(sealed)
    other = {"alg": "dir", "enc": "A128GCM"}
    foreign = jwe.encrypt_compact(other, b"1", OctKey.import_key(KEY[:16]), algorithms=["dir", "A128GCM"])
    for raw in (
        b'"eyJ"',
        b"1",
        b'"x"',
        json.dumps(foreign).encode(),
        sealed[1:],
        sealed[:-1],
        sealed.replace(b"..", b"."),
        b'"a.b.c.d.e"',
        b"",
    ):
        assert not looks_sealed(raw)


def test_older_versions_open_and_the_primary_one_seals() -> None:
    old = Envelope(keyset("k", KEY), "f").seal(b"1", NONCE)
    both = Envelope(keyset("k", KEY, OTHER_KEY), "f")
    assert both.open(old) == (b"1", 1)
    assert both.open(both.seal(b"2", NONCE)) == (b"2", 2)
    assert both.version == 2


def test_the_budget_of_nonces() -> None:
    key = DataKey(1, KeyState.PRIMARY, 0.0, KEY, uses=ROTATE_AT - 1, granted=MAX_USES + 7)
    assert not DataKey(1, KeyState.PRIMARY, 0.0, KEY, uses=ROTATE_AT - 1).needs_rotation
    assert key.granted == MAX_USES
    key.encrypt(NONCE, b"1", b"")
    assert key.uses == ROTATE_AT
    assert key.needs_rotation
    key = DataKey(1, KeyState.PRIMARY, 0.0, KEY, uses=MAX_USES - 1, granted=MAX_USES)
    key.encrypt(NONCE, b"1", b"")
    with pytest.raises(KeysetError, match="rotate"):
        key.encrypt(NONCE, b"1", b"")
    assert key.uses == MAX_USES


def test_no_more_uses_than_were_granted() -> None:
    asked: list[int] = []
    key = DataKey(1, KeyState.PRIMARY, 0.0, KEY, uses=10, granted=14, on_low=lambda key: asked.append(key.uses))
    for _ in range(4):
        key.encrypt(NONCE, b"1", b"")
    assert asked == [12]  # once, at half
    with pytest.raises(KeysetError, match="set aside"):
        key.encrypt(NONCE, b"1", b"")
    key.grant(16)
    key.encrypt(NONCE, b"1", b"")
    assert key.uses == 15


@pytest.mark.parametrize("state", [KeyState.ENABLED, KeyState.DISABLED])
def test_only_a_primary_version_seals(state: KeyState) -> None:
    with pytest.raises(KeysetError):
        DataKey(1, state, 0.0, KEY, granted=5).encrypt(NONCE, b"1", b"")


def test_nothing_shows_a_key() -> None:
    import copy
    import pickle

    shown = keyset()
    key = shown.versions[0]
    for text in (repr(shown), str(shown), repr(key), f"{key}", repr(Envelope(shown, "f")), repr([key])):
        assert KEY.hex() not in text
        assert repr(KEY)[2:12] not in text
        assert b64(KEY)[:8] not in text
    for act in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            act(key)


@pytest.mark.parametrize(
    "states", [(KeyState.PRIMARY, KeyState.PRIMARY), (KeyState.ENABLED, KeyState.ENABLED), (KeyState.ENABLED, KeyState.DISABLED)]
)
def test_exactly_one_version_is_primary(states: tuple[KeyState, ...]) -> None:
    with pytest.raises(KeysetError, match="primary"):
        keyset("k", KEY, OTHER_KEY, states=states)


def test_a_keyset_without_a_primary_version_does_not_seal() -> None:
    envelope = Envelope(keyset("k", KEY, states=(KeyState.DISABLED,)), "f")
    with pytest.raises(KeysetError):
        envelope.seal(b"1", NONCE)
