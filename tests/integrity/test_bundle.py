"""DSSE envelopes and bundles: the published vector, and every way in which one must not be taken."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from meshguard.integrity.bundle import MAX_BREAK_GLASS_S, PAYLOAD_TYPE, Bundle, BundleError, accept, encode, open_bundle
from meshguard.integrity.dsse import (
    Envelope,
    SignatureError,
    load_public_keys,
    parse_envelope,
    pre_authentication_encoding,
    public_key_of,
    sign,
    verify,
)

NOW = 1_900_000_000.0
DAY = 86400.0
ED = ed25519.Ed25519PrivateKey.generate()
P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
KEYS = [public_key_of(key) for key in (ED, P256, P384)]
STRANGER = ed25519.Ed25519PrivateKey.generate()
BUNDLE = Bundle("shop", 7, NOW, NOW + DAY, {"a.yaml": "rules: []\n", "b/c.yaml": "roles: {}\n"})
GLASS = replace(BUNDLE, reason="outage", until=NOW + 3600, version=1)


def signed(bundle: Bundle, *keys: Any) -> bytes:
    envelope = encode(bundle)
    for key in keys:
        envelope = sign(envelope, key)
    return envelope.encode()


def code(*arguments: Any) -> str:
    with pytest.raises(BundleError) as failed:
        open_bundle(*arguments)
    return failed.value.code


def test_the_pre_authentication_encoding_is_that_of_the_specification() -> None:
    assert pre_authentication_encoding("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


@pytest.mark.parametrize("key", [ED, P256, P384])
def test_each_kind_of_key_signs(key: Any) -> None:
    bundle = open_bundle(signed(BUNDLE, key), KEYS, 1)
    assert replace(bundle, digest="", signers=frozenset()) == BUNDLE
    assert bundle.signers == {public_key_of(key).id}
    assert bundle.digest.startswith("sha256:")


def test_a_threshold_counts_different_trusted_keys() -> None:
    assert open_bundle(signed(BUNDLE, ED, P256), KEYS, 2).signers == {KEYS[0].id, KEYS[1].id}
    assert code(signed(BUNDLE, ED), KEYS, 2) == "unsigned"
    assert code(signed(BUNDLE, ED, STRANGER), KEYS, 2) == "unsigned"
    assert code(signed(BUNDLE), KEYS, 1) == "unsigned"
    one = json.loads(signed(BUNDLE, ED))
    one["signatures"] = [{**one["signatures"][0], "keyid": name} for name in ("x", KEYS[1].id, KEYS[0].id)]
    assert code(json.dumps(one).encode(), KEYS, 2) == "unsigned", "one signature under three names is one"
    assert code(signed(BUNDLE, ED), [KEYS[0], KEYS[0]], 2) == "unsigned", "a key that is trusted twice is one"


def test_another_key_id_does_not_hide_a_signature() -> None:
    value = json.loads(signed(BUNDLE, ED))
    del value["signatures"][0]["keyid"]
    assert open_bundle(json.dumps(value).encode(), KEYS, 1).version == 7


@pytest.mark.parametrize("position", range(0, 400, 7))
def test_no_octet_of_the_payload_can_change(position: int) -> None:
    value = json.loads(signed(BUNDLE, ED))
    payload = bytearray(base64.b64decode(value["payload"]))
    payload[position % len(payload)] ^= 1
    value["payload"] = base64.b64encode(payload).decode()
    assert code(json.dumps(value).encode(), KEYS, 1) == "unsigned"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"[" * 100_000,
        b'{"payloadType":"application/vnd.meshguard.bundle+json","payload":"!","signatures":[]}',
        b'{"payloadType":"application/vnd.meshguard.bundle+json","payload":"e30=","payload":"e30=","signatures":[]}',
        b'{"payloadType":"text/plain","payload":"e30=","signatures":[]}',
        signed(BUNDLE, ED)[:-40],
    ],
)
def test_what_is_no_envelope_is_malformed(data: bytes) -> None:
    assert code(data, KEYS, 1) == "malformed"


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"version": 0},
        {"version": "7"},
        {"version": True},
        {"name": ""},
        {"documents": []},
        {"documents": [{"name": "a", "text": ""}, {"name": "a", "text": "x"}]},
        {"documents": [{"name": "../a", "text": ""}]},
        {"documents": [{"name": "/etc/a", "text": ""}]},
        {"documents": [{"name": "a", "text": 1}]},
        {"expires": "soon"},
        {"break_glass": {"reason": " ", "until": 5}},
        {"break_glass": {"reason": "x", "until": 0}},
    ],
)
def test_a_signed_payload_that_is_no_bundle_is_malformed(change: dict[str, Any]) -> None:
    payload = {**json.loads(encode(BUNDLE).payload), **change}
    envelope = Envelope(PAYLOAD_TYPE, json.dumps(payload).encode(), ())
    assert code(sign(sign(envelope, ED), P256).encode(), KEYS, 1) == "malformed"


def taken(bundle: Bundle, held: Bundle | None, now: float = NOW, **options: Any) -> str:
    try:
        accept(bundle, held, now, **options)
    except BundleError as exc:
        return exc.code
    return "taken"


def test_versions_only_go_forward_and_keep_their_content() -> None:
    held = replace(BUNDLE, digest="sha256:1")
    assert taken(replace(BUNDLE, version=8), held) == "taken"
    assert taken(held, held) == "taken"
    assert taken(replace(BUNDLE, version=6), held) == "rollback"
    assert taken(replace(held, digest="sha256:2"), held) == "changed"
    assert taken(BUNDLE, None, NOW + DAY) == "expired"
    assert taken(BUNDLE, None, name="other") == "name"


def test_break_glass_takes_two_signers_and_ends() -> None:
    assert code(signed(GLASS, ED), KEYS, 1) == "unsigned"
    assert open_bundle(signed(GLASS, ED, P256), KEYS, 1).is_break_glass
    assert taken(GLASS, BUNDLE) == "taken"
    assert taken(GLASS, BUNDLE, NOW + 3600) == "expired"
    assert taken(replace(GLASS, until=NOW + MAX_BREAK_GLASS_S + 1), BUNDLE) == "break_glass"
    late = NOW + 30 * DAY
    assert taken(replace(GLASS, until=late + 60), BUNDLE, late) == "break_glass", "signed long ago for a long time"


def test_keys_are_public_and_of_a_known_kind() -> None:
    spki = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    both = b"".join(key.public_key().public_bytes(*spki) for key in (ED, P384))
    assert [key.id for key in load_public_keys(both)] == [KEYS[0].id, KEYS[2].id]
    weak = rsa.generate_private_key(65537, 2048).public_key().public_bytes(*spki)
    private = ED.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for pem in (weak, private, b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"):
        with pytest.raises(SignatureError):
            load_public_keys(pem)


def test_too_many_signatures_are_not_looked_at() -> None:
    value = json.loads(signed(BUNDLE, ED))
    value["signatures"] *= 65
    with pytest.raises(SignatureError):
        parse_envelope(json.dumps(value).encode(), PAYLOAD_TYPE)
    with pytest.raises(SignatureError):
        verify(encode(BUNDLE), [], 0)


def test_files_travel_with_documents() -> None:
    files = {"sets/shop.pb": bytes(range(256)), "contract.yaml": b""}
    bundle = open_bundle(signed(replace(BUNDLE, files=files), ED), KEYS, 1)
    assert bundle.files == files
    assert bundle.digest != open_bundle(signed(BUNDLE, ED), KEYS, 1).digest
    assert json.loads(encode(BUNDLE).payload)["format"] == 1  # nodes that know nothing of files take it as before


@pytest.mark.parametrize(
    "files",
    [
        [{"name": "../up", "base64": ""}],
        [{"name": "/abs", "base64": ""}],
        [{"name": "a.yaml", "base64": ""}],  # a document has this name
        [{"name": "x", "base64": ""}, {"name": "x", "base64": "AAAA"}],
        [{"name": "x", "base64": "@@"}],
        [{"name": 1, "base64": ""}],
        [{"name": "x"}],
        "x",
    ],
)
def test_files_that_are_none_are_refused(files: Any) -> None:
    payload = json.loads(encode(BUNDLE).payload) | {"format": 2, "files": files}
    envelope = sign(Envelope(PAYLOAD_TYPE, json.dumps(payload).encode(), ()), ED)
    assert code(envelope.encode(), KEYS, 1) == "malformed"
