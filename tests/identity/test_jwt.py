"""Bearer tokens: an independent implementation signs, and every known trick is refused with its code."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jws, jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet, OKPKey, RSAKey

from meshguard.identity.jose import decode_base64url, parse_object
from meshguard.identity.jwk import ALGORITHMS, parse_jwks
from meshguard.identity.jwt import MAX_CACHED, MAX_TOKEN, JwtIssuer
from meshguard.model.errors import IdentityError

# the oracle warns of the old name EdDSA (RFC 9864), which issuers still use
pytestmark = pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")

NOW = 1_900_000_000.0
ISSUER = "https://id.example"
CLAIMS: dict[str, Any] = {"iss": ISSUER, "aud": "shop", "sub": "alice", "exp": int(NOW) + 300, "iat": int(NOW), "groups": ["support"]}

KEYS: dict[str, Any] = {
    "rsa": RSAKey.generate_key(2048, {"kid": "rsa"}, private=True),
    "p256": ECKey.generate_key("P-256", {"kid": "p256"}, private=True),
    "p384": ECKey.generate_key("P-384", {"kid": "p384"}, private=True),
    "p521": ECKey.generate_key("P-521", {"kid": "p521"}, private=True),
    "ed": OKPKey.generate_key("Ed25519", {"kid": "ed"}, private=True),
}
KEY_OF = {"RS": "rsa", "PS": "rsa", "ES256": "p256", "ES384": "p384", "ES512": "p521", "EdDSA": "ed", "Ed25519": "ed"}


def key_of(algorithm: str) -> Any:
    return KEYS[KEY_OF.get(algorithm) or KEY_OF[algorithm[:2]]]


def key_set(*names: str) -> bytes:
    return json.dumps({"keys": [KEYS[name].as_dict(private=False) for name in names or KEYS]}).encode()


def issuer(**values: Any) -> JwtIssuer:
    settings: dict[str, Any] = {"keys": parse_jwks(key_set()), **values}
    return JwtIssuer(
        settings.pop("issuer", ISSUER), settings.pop("audiences", ["shop"]), settings.pop("algorithms", sorted(ALGORITHMS)), **settings
    )


def signed(claims: Mapping[str, Any] | bytes = CLAIMS, algorithm: str = "ES256", header: Mapping[str, Any] | None = None) -> str:
    """A token as an independent library signs it."""
    key = key_of(algorithm)
    full = {"alg": algorithm, "kid": key.kid, **(header or {})}
    full = {name: value for name, value in full.items() if value is not None}
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    return jws.serialize_compact(full, payload, key, algorithms=[algorithm])


def encoded(value: object) -> str:
    octets = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def code(token: str, now: float = NOW, **values: Any) -> str:
    with pytest.raises(IdentityError) as caught:
        issuer(**values).verify(token, now)
    return caught.value.code


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
def test_what_an_independent_library_signs_is_accepted(algorithm: str) -> None:
    token = signed(algorithm=algorithm)
    assert dict(issuer(algorithms=[algorithm]).verify(token, NOW)) == CLAIMS
    oracle = KeySet([key_of(algorithm)])
    assert jwt.decode(token, oracle, algorithms=[algorithm]).claims == CLAIMS


@pytest.mark.parametrize("algorithm", sorted(ALGORITHMS))
@pytest.mark.parametrize(
    "mangle",
    [
        lambda octets: octets[:-1],
        lambda octets: octets[1:],
        lambda octets: b"",
        lambda octets: bytes(len(octets)),
        lambda octets: octets + b"\0",
    ],
)
def test_truncated_extended_and_zero_signatures(algorithm: str, mangle: Callable[[bytes], bytes]) -> None:
    """All zeros is the psychic signature of CVE-2022-21449 for ECDSA."""
    head, _, signature = signed(algorithm=algorithm).rpartition(".")
    assert code(f"{head}.{encoded(mangle(decode_base64url(signature)))}") == "bad_signature"


def test_ecdsa_values_out_of_range_and_der_signatures() -> None:
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    head, _, signature = signed().rpartition(".")
    r, s = decode_base64url(signature)[:32], decode_base64url(signature)[32:]
    for pair in (order.to_bytes(32, "big") + s, r + order.to_bytes(32, "big"), bytes(32) + s, r + bytes(32)):
        assert code(f"{head}.{encoded(pair)}") == "bad_signature"
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    der = encode_dss_signature(int.from_bytes(r, "big"), int.from_bytes(s, "big"))
    assert code(f"{head}.{encoded(der)}") == "bad_signature"


def test_every_other_token_of_the_same_text_is_refused() -> None:
    """Changing any one character of a valid token must not leave it valid."""
    token = signed()
    checker = issuer()
    for place in range(len(token)):
        other = "A" if token[place] != "A" else "B"
        with pytest.raises(IdentityError):
            checker.verify(token[:place] + other + token[place + 1 :], NOW)


# --- the algorithm


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "nOnE", "", "HS256", "HS512", "ES256K", "RSA-OAEP", "dir", "A128KW", "rs256", 5, None, ["ES256"]]
)
def test_algorithms_that_are_not_pinned(algorithm: object) -> None:
    for signature in ("", encoded(b"x" * 64)):
        assert code(f"{encoded({'alg': algorithm, 'kid': 'p256'})}.{encoded(CLAIMS)}.{signature}") == "algorithm_not_allowed"


def test_a_public_key_is_never_an_hmac_secret() -> None:
    """CVE-2015-9235 and its many children: HS256 with the RSA public key as the secret."""
    public = KEYS["rsa"].raw_value.public_key()
    secrets = [
        public.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
        for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER)
    ]
    head = f"{encoded({'alg': 'HS256', 'kid': 'rsa'})}.{encoded(CLAIMS)}"
    for secret in [*secrets, b""]:
        mac = hmac.new(secret, head.encode(), hashlib.sha256).digest()
        assert code(f"{head}.{encoded(mac)}") == "algorithm_not_allowed"
    with pytest.raises(ValueError, match="algorithms of"):
        issuer(algorithms=["HS256"])
    with pytest.raises(ValueError, match="algorithms of"):
        issuer(algorithms=["none"])


def test_an_algorithm_that_the_issuer_does_not_use() -> None:
    assert code(signed(algorithm="RS256"), algorithms=["ES256"]) == "algorithm_not_allowed"
    assert code(signed(algorithm="PS256"), algorithms=["RS256"]) == "algorithm_not_allowed"


def test_a_key_verifies_only_its_own_algorithms() -> None:
    token = signed(algorithm="RS256")
    _, payload, signature = token.split(".")
    assert code(f"{encoded({'alg': 'ES256', 'kid': 'rsa'})}.{payload}.{signature}") == "unknown_key"
    assert code(f"{encoded({'alg': 'ES256', 'kid': 'p384'})}.{payload}.{signature}") == "unknown_key"
    pinned = {**KEYS["rsa"].as_dict(private=False), "alg": "PS256"}
    assert code(token, keys=parse_jwks(json.dumps({"keys": [pinned]}).encode())) == "unknown_key"
    assert issuer(keys=parse_jwks(json.dumps({"keys": [pinned]}).encode())).verify(signed(algorithm="PS256"), NOW)["sub"] == "alice"


# --- the header


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"crit": ["exp"]}, "critical_header"),
        ({"crit": []}, "critical_header"),
        ({"crit": ["b64"], "b64": False}, "critical_header"),
        ({"b64": True}, "critical_header"),
        ({"typ": "dpop+jwt"}, "wrong_type"),
        ({"typ": "application/logout+jwt"}, "wrong_type"),
        ({"typ": "secevent+jwt"}, "wrong_type"),
        ({"typ": 7}, "wrong_type"),
        ({"kid": "nobody"}, "unknown_key"),
        ({"kid": "../../dev/null"}, "unknown_key"),
        ({"kid": "' OR 1=1 --"}, "unknown_key"),
        ({"kid": "p384"}, "unknown_key"),
        ({"kid": ""}, "malformed_token"),
        ({"kid": 7}, "malformed_token"),
        ({"kid": ["p256"]}, "malformed_token"),
    ],
)
def test_headers_that_are_refused(header: dict[str, Any], expected: str) -> None:
    payload = encoded(CLAIMS)
    head = encoded({"alg": "ES256", "kid": "p256", **header})
    assert code(f"{head}.{payload}.{encoded(b'x' * 64)}") == expected


@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "application/at+jwt", "JOSE"])
def test_types_that_are_taken(kind: str) -> None:
    assert issuer().verify(signed(header={"typ": kind}), NOW)["sub"] == "alice"


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c"])
def test_keys_that_a_token_brings_are_never_read(name: str) -> None:
    """CVE-2018-0114 and the like: an attacker signs with a key of their own and sends it along."""
    evil = ECKey.generate_key("P-256", {"kid": "p256"}, private=True)
    value: Any = {"jwk": evil.as_dict(private=False), "jku": "https://evil.example/jwks", "x5u": "https://evil.example/x", "x5c": ["AAAA"]}[
        name
    ]
    head = encoded({"alg": "ES256", "kid": "p256", name: value})
    signature = jws.serialize_compact({"alg": "ES256"}, b"x", evil, algorithms=["ES256"]).rpartition(".")[2]
    assert code(f"{head}.{encoded(CLAIMS)}.{signature}") == "bad_signature"
    honest = f"{head}.{encoded(CLAIMS)}"
    raw = KEYS["p256"].raw_value
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

    r, s = decode_dss_signature(raw.sign(honest.encode(), ec.ECDSA(hashes.SHA256())))
    assert issuer().verify(f"{honest}.{encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}", NOW)["sub"] == "alice"


def test_a_token_without_kid_needs_a_single_fitting_key() -> None:
    token = signed(header={"kid": None})
    assert issuer().verify(token, NOW)["sub"] == "alice"
    second = ECKey.generate_key("P-256", {"kid": "other"}, private=False).as_dict(private=False)
    both = json.dumps({"keys": [KEYS["p256"].as_dict(private=False), second]}).encode()
    assert code(token, keys=parse_jwks(both)) == "ambiguous_key"


# --- the text


def test_text_that_is_no_token() -> None:
    head, payload, signature = signed().split(".")
    for token in (
        "",
        "a",
        "a.b",
        "..",
        f"{head}.{payload}",
        f"{head}.{payload}.{signature}.",
        f"{head}.{payload}.{signature}.x",
        f"{head}=.{payload}.{signature}",
        f"{head}.{payload}.{signature}=",
        f"{head}.{payload}.{signature}\n",
        f" {head}.{payload}.{signature}",
        f"{head}.{payload}.{signature}\u00e9",
        f"{head}.{payload.replace(payload[5], '+', 1)}.{signature}",
        f"{encoded([1])}.{payload}.{signature}",
        f"{encoded(b'x')}.{payload}.{signature}",
        f"{head}.{encoded('text')}.{signature}",
        f"{head}..{signature}",
    ):
        assert code(token) == "malformed_token", token
    assert code("a" * (MAX_TOKEN + 1)) == "token_too_large"
    deep = encoded(b"[" * 4000)
    assert code(f"{head}.{deep}.{signature}") == "malformed_token"


@pytest.mark.parametrize(
    "payload",
    [
        b'{"iss":"https://id.example","aud":"shop","exp":1900000300,"exp":1900000400}',
        b'{"iss":"https://evil.example","iss":"https://id.example","aud":"shop","exp":1900000300}',
        b'{"iss":"https://id.example","aud":"shop","exp":1900000300,"a":{"b":1,"b":2}}',
        b'{"iss":"https://id.example","aud":"shop","exp":1900000300,"\\u0073ub":"a","sub":"b"}',
        b'{"iss":"https://id.example","aud":"shop","exp":NaN}',
        b'{"iss":"https://id.example","aud":"shop","exp":Infinity}',
        b'{"iss":"https://id.example","aud":"shop","exp":1e999}',
        b'{"iss":"https://id.example","aud":"shop","exp":' + b"9" * 5000 + b"}",
        b'{"iss":"https://id.example","aud":"shop","exp":1900000300,"sub":"\\ud800"}',
        b'{"iss":"https://id.example","aud":"shop","exp":1900000300,"sub":"\xff"}',
        b'\xef\xbb\xbf{"iss":"https://id.example","aud":"shop","exp":1900000300}',
        b'{"iss":"https://id.example","aud":"shop","exp":1900000300} x',
        b'{"iss":"https://id.example","aud":"shop","exp":1900000300,}',
        b"{'iss':'https://id.example'}",
    ],
)
def test_json_that_readers_could_take_differently(payload: bytes) -> None:
    assert code(signed(payload)) == "malformed_token"


def test_stray_bits_of_base64url() -> None:
    assert decode_base64url("QQ") == b"A"
    for text in ("QR", "QQ==", "QQ=", "Q", "Q Q", "Q\n", "Q/", "\u00e9\u00e9"):
        with pytest.raises(ValueError, match="base64url"):
            decode_base64url(text)


@given(st.binary(max_size=64))
def test_base64url_has_one_spelling(octets: bytes) -> None:
    assert decode_base64url(encoded(octets)) == octets


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
        lambda inner: st.dictionaries(st.text(max_size=4), inner, max_size=3),
    )
)
def test_ordinary_objects_are_read_as_they_are(value: Any) -> None:
    assert parse_object(json.dumps({"v": value}).encode()) == {"v": value}


# --- the claims


def changed(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in {**CLAIMS, **values}.items() if value is not ...}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"exp": ...}, "missing_claim"),
        ({"exp": str(int(NOW) + 300)}, "bad_claim"),
        ({"exp": None}, "bad_claim"),
        ({"exp": True}, "bad_claim"),
        ({"exp": [int(NOW) + 300]}, "bad_claim"),
        ({"exp": 2**60}, "bad_claim"),
        ({"exp": 1e300}, "bad_claim"),
        ({"exp": -1}, "bad_claim"),
        ({"exp": int(NOW) - 30, "iat": 0}, "expired"),
        ({"exp": 0, "iat": 0}, "expired"),
        ({"nbf": int(NOW) + 31}, "not_yet_valid"),
        ({"nbf": "0"}, "bad_claim"),
        ({"iat": int(NOW) + 31}, "issued_in_future"),
        ({"iat": int(NOW) + 20, "exp": int(NOW) + 10}, "bad_claim"),
        ({"iat": "now"}, "bad_claim"),
        ({"iss": ...}, "missing_claim"),
        ({"iss": "https://id.example/"}, "wrong_issuer"),
        ({"iss": "https://ID.example"}, "wrong_issuer"),
        ({"iss": ["https://id.example"]}, "wrong_issuer"),
        ({"iss": None}, "wrong_issuer"),
        ({"aud": ...}, "missing_claim"),
        ({"aud": "Shop"}, "wrong_audience"),
        ({"aud": "shop "}, "wrong_audience"),
        ({"aud": []}, "wrong_audience"),
        ({"aud": ["other"]}, "wrong_audience"),
        ({"aud": ["shop", 7]}, "bad_claim"),
        ({"aud": {"shop": 1}}, "bad_claim"),
        ({"aud": None}, "bad_claim"),
        ({"sub": 7}, "bad_claim"),
    ],
)
def test_claims_that_are_refused(values: dict[str, Any], expected: str) -> None:
    assert code(signed(changed(**values))) == expected


@pytest.mark.parametrize(
    "values",
    [
        {"aud": ["other", "shop"]},
        {"exp": NOW + 0.5},
        {"exp": int(NOW) - 29, "iat": 0},
        {"nbf": int(NOW) + 30},
        {"iat": ...},
        {"sub": ...},
        {"exp": 1.9000003e9},
    ],
)
def test_claims_that_are_taken(values: dict[str, Any]) -> None:
    assert dict(issuer().verify(signed(changed(**values)), NOW)) == changed(**values)


def test_leeway_is_configurable() -> None:
    assert code(signed(changed(exp=int(NOW), iat=0)), leeway_s=0) == "expired"
    assert issuer(leeway_s=60).verify(signed(changed(exp=int(NOW) - 59, iat=0)), NOW)


# --- the cache and the keys


def test_a_cached_token_still_expires_and_ends_with_its_key() -> None:
    checker = issuer()
    token = signed()
    first = checker.verify(token, NOW)
    assert checker.verify(token, NOW + 1) is first
    for now, expected in ((NOW + 330, "expired"), (NOW - 31, "issued_in_future")):
        with pytest.raises(IdentityError) as caught:
            checker.verify(token, now)
        assert caught.value.code == expected
    checker.replace_keys(parse_jwks(key_set("p384")))
    with pytest.raises(IdentityError) as caught:
        checker.verify(token, NOW)
    assert caught.value.code == "unknown_key"


def test_the_claims_of_a_cached_token_cannot_be_changed() -> None:
    claims = issuer().verify(signed(), NOW)
    with pytest.raises(TypeError):
        claims["sub"] = "mallory"  # type: ignore[index]


def test_the_cache_is_bounded_and_holds_no_refused_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshguard.identity.jwt.MAX_CACHED", 4)
    checker = issuer()
    for number in range(10):
        checker.verify(signed(changed(sub=str(number)), algorithm="EdDSA"), NOW)
    assert len(checker._verified) == 4
    head, _, _ = signed().rpartition(".")
    with pytest.raises(IdentityError):
        checker.verify(f"{head}.{encoded(b'x' * 64)}", NOW)
    assert len(checker._verified) == 4
    assert MAX_CACHED == 1024


def test_an_unknown_kid_of_this_issuer_asks_for_new_keys_and_nothing_else_does() -> None:
    asked: list[int] = []
    checker = issuer(on_unknown_key=lambda: asked.append(1))
    for token in (signed(changed(iss="https://other.example"), header={"kid": "p256"}), signed(changed(exp=1, iat=0)), "a.b.c"):
        with pytest.raises(IdentityError):
            checker.verify(token, NOW)
    assert asked == []
    _, payload, signature = signed().split(".")
    with pytest.raises(IdentityError):
        checker.verify(f"{encoded({'alg': 'ES256', 'kid': 'new'})}.{payload}.{signature}", NOW)
    assert asked == [1]
    assert code(signed(), keys=None) == "no_keys"


def test_errors_hold_nothing_of_the_token() -> None:
    token = signed(changed(sub="s3cret-subject", aud="other"))
    with pytest.raises(IdentityError) as caught:
        issuer().verify(token, NOW)
    assert "s3cret" not in str(caught.value)


# --- key sets


def member(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in {**KEYS["p256"].as_dict(private=False), **values}.items() if value is not ...}


def rsa_member(bits: int, exponent: int = 65537) -> dict[str, Any]:
    return {
        "kty": "RSA",
        "n": encoded((1 << (bits - 1) | 1).to_bytes(bits // 8, "big")),
        "e": encoded(exponent.to_bytes(5, "big").lstrip(b"\0")),
    }


@pytest.mark.parametrize(
    "entry",
    [
        "text",
        {},
        {"kty": "oct", "k": "c2VjcmV0"},
        member(kty="XX"),
        member(crv="secp256k1"),
        member(crv="P-384"),
        member(x=...),
        member(x=7),
        member(x="AA"),
        member(y=encoded(bytes(32))),
        member(x=member()["x"] + "="),
        member(use="enc"),
        member(key_ops=["sign"]),
        member(key_ops="verify"),
        member(alg="RS256"),
        member(alg="HS256"),
        member(alg=7),
        member(kid=7),
        member(kid="x" * 300),
        member(d="AA"),
        rsa_member(1024),
        rsa_member(16384),
        rsa_member(2048, 1),
        rsa_member(2048, 4),
        rsa_member(2048, 2**33 + 1),
        {"kty": "OKP", "crv": "X25519", "x": encoded(bytes(32))},
        {"kty": "OKP", "crv": "Ed25519", "x": encoded(bytes(31))},
        {"kty": ["EC"]},
    ],
)
def test_keys_that_are_not_taken(entry: object) -> None:
    with pytest.raises(IdentityError) as caught:
        parse_jwks(json.dumps({"keys": [entry]}).encode())
    assert caught.value.code == "bad_key_set"
    mixed = parse_jwks(json.dumps({"keys": [entry, KEYS["ed"].as_dict(private=False)]}).encode())
    assert len(mixed) == 1
    assert len(mixed.skipped) == 1


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b"{}", b'{"keys":{}}', b'{"keys":[]}', b'{"keys":[],"keys":[]}', b"\xff", json.dumps({"keys": [{}] * 200}).encode()],
)
def test_documents_that_are_no_key_set(document: bytes) -> None:
    with pytest.raises(IdentityError) as caught:
        parse_jwks(document)
    assert caught.value.code == "bad_key_set"


@given(
    st.sampled_from(sorted(ALGORITHMS)),
    st.dictionaries(
        st.sampled_from(["exp", "nbf", "iat", "aud", "iss", "sub"]),
        st.none() | st.booleans() | st.text(max_size=3) | st.integers(0, 2**40) | st.just("shop") | st.just(ISSUER),
    ),
)
def test_whatever_is_accepted_the_oracle_accepts_with_the_same_claims(algorithm: str, values: dict[str, Any]) -> None:
    token = signed({**CLAIMS, **values}, algorithm="EdDSA" if algorithm.startswith("RS") else algorithm)
    used = "EdDSA" if algorithm.startswith("RS") else algorithm
    try:
        claims = dict(issuer().verify(token, NOW))
    except IdentityError:
        return
    decoded = jwt.decode(token, KeySet([key_of(used)]), algorithms=[used])
    assert decoded.claims == claims
    try:
        jwt.JWTClaimsRegistry(now=int(NOW), leeway=31, exp={"essential": True}, iss={"value": ISSUER}, aud={"value": "shop"}).validate(
            decoded.claims
        )
    except JoseError as exc:
        raise AssertionError(f"accepted what the oracle refuses: {exc}") from exc
