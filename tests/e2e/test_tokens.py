"""JWT rules through the process: verified claims decide, nothing else; tokens of every broken kind are refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from tests.harness.client import RawClient, Response, get
from tests.harness.mesh import Mesh
from tests.harness.proxy import Proxy

LEEWAY_S = 30  # of the clocks of issuer and proxy
ISSUER, AUDIENCE = "https://issuer.example", "orders-api"


@pytest.fixture(scope="module")
def keys() -> dict[str, ECKey]:
    return {
        "good": ECKey.generate_key("P-256", {"kid": "k1", "use": "sig", "alg": "ES256"}),
        "second": ECKey.generate_key("P-256", {"kid": "k2"}),
        "foreign": ECKey.generate_key("P-256", {"kid": "k1"}),
    }


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, keys: dict[str, ECKey], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("tokens")
    (directory / "jwks.json").write_bytes(orjson.dumps({"keys": [keys[k].as_dict(private=False) for k in ("good", "second")]}))
    config = {
        "identity": mesh.identity(directory),
        "jwt": [{"issuer": ISSUER, "audiences": [AUDIENCE], "jwks": "jwks.json", "algorithms": ["ES256"]}],
        "listeners": {e: {"tls": "mutual", "to": "app", "engine": e} for e in ("default", "reference")},
        "clusters": {"app": mesh.endpoints()},
    }
    policies = {
        "p.yaml": {
            "roles": {"staff": {"jwt": {"groups": ["staff"]}}},
            "rules": [
                {"id": "staff", "allow": ["staff"], "paths": ["/staff/**"]},
                {"id": "tenant", "allow": "authenticated", "paths": ["/tenant/**"], "claims": {"tenant": ["acme"]}},
                {"id": "open", "allow": "anyone", "paths": ["/open/**", "/innocent/**"]},
                {"id": "no-interns", "deny": "anyone", "paths": ["/staff/vault/**"], "claims": {"level": ["intern"]}},
            ],
        }
    }
    with Proxy(directory, config, policies=policies) as made:
        yield made


def _token(key: ECKey, *, header: dict[str, Any] | None = None, drop: tuple[str, ...] = (), **claims: Any) -> str:
    body = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "alice",
        "exp": int(time.time()) + 300,
        "iat": int(time.time()),
        "groups": ["staff"],
        **claims,
    }
    for name in drop:
        body.pop(name)
    return jwt.encode({"alg": "ES256", "kid": "k1", **(header or {})}, body, key)


def _ask(proxy: Proxy, mesh: Mesh, engine: str, path: str, *fields: str) -> Response:
    with RawClient(proxy.address(engine), mesh.client("billing")) as client:
        return client.request(get(path, fields=fields))


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_verified_claims_decide(engine: str, proxy: Proxy, mesh: Mesh, keys: dict[str, ECKey]) -> None:
    mark = proxy.mark()
    bearer = "Authorization: Bearer "
    assert _ask(proxy, mesh, engine, "/staff/x", bearer + _token(keys["good"])).status == 200
    assert _ask(proxy, mesh, engine, "/staff/x", bearer + _token(keys["second"], header={"kid": "k2"})).status == 200
    assert _ask(proxy, mesh, engine, "/staff/x", "authorization: bearer " + _token(keys["good"])).status == 200
    assert _ask(proxy, mesh, engine, "/staff/x", bearer + _token(keys["good"], groups=["guests"])).status == 403
    assert _ask(proxy, mesh, engine, "/staff/x", bearer + _token(keys["good"], groups="staff")).status == 200
    assert _ask(proxy, mesh, engine, "/tenant/x", bearer + _token(keys["good"], tenant="acme")).status == 200
    assert _ask(proxy, mesh, engine, "/tenant/x", bearer + _token(keys["good"], tenant="other")).status == 403
    assert _ask(proxy, mesh, engine, "/tenant/x", bearer + _token(keys["good"], tenant=["acme", "x"])).status == 200
    assert _ask(proxy, mesh, engine, "/staff/vault/x", bearer + _token(keys["good"], level="intern")).status == 403
    assert _ask(proxy, mesh, engine, "/staff/vault/x", bearer + _token(keys["good"], level="senior")).status == 200
    # lines of earlier requests without a token may still have been on their way at the mark
    record = proxy.decision_where(lambda r: r["what"]["path"] == "/staff/x" and r["why"]["verdict"] == "allow", "the record", mark)
    assert record["who"]["subject"] == "alice"


def test_without_a_token(engine: str, proxy: Proxy, mesh: Mesh) -> None:
    answer = _ask(proxy, mesh, engine, "/staff/x")
    assert (answer.status, answer.problem["code"]) == (401, "token_required")
    assert answer.get("www-authenticate").startswith("Bearer")
    assert _ask(proxy, mesh, engine, "/open/x").status == 200


BAD = [
    "expired",
    "no-exp",
    "not-yet",
    "other-issuer",
    "no-issuer",
    "other-audience",
    "no-audience",
    "foreign-key",
    "unknown-kid",
    "alg-none",
    "alg-none-case",
    "hs256-with-public-key",
    "tampered",
    "no-signature",
    "garbage",
    "empty",
    "two-dots",
    "five-parts",
    "exp-string",
    "exp-bool",
    "embedded-jwk",
    "jku",
    "crit",
    "audience-number",
    "duplicate-header",
    "basic",
    "trailing",
    "padding",
]


@pytest.mark.parametrize("kind", BAD)
def test_broken_tokens(kind: str, engine: str, proxy: Proxy, mesh: Mesh, keys: dict[str, ECKey]) -> None:
    good = keys["good"]
    whole = _token(good)
    head, body, signature = whole.split(".")
    forged = _b64(orjson.dumps({**orjson.loads(base64.urlsafe_b64decode(body + "==")), "groups": ["staff", "root"]}))
    none_head, odd_head = _b64(b'{"alg":"none","kid":"k1"}'), _b64(b'{"alg":"NoNe","kid":"k1"}')
    fields = {
        "expired": [_token(good, exp=int(time.time()) - 120)],
        "no-exp": [_token(good, drop=("exp",))],
        "not-yet": [_token(good, nbf=int(time.time()) + 600)],
        "other-issuer": [_token(good, iss="https://evil.example")],
        "no-issuer": [_token(good, drop=("iss",))],
        "other-audience": [_token(good, aud="else")],
        "no-audience": [_token(good, drop=("aud",))],
        "foreign-key": [_token(keys["foreign"])],
        "unknown-kid": [_token(good, header={"kid": "k9"})],
        "alg-none": [f"{none_head}.{body}."],
        "alg-none-case": [f"{odd_head}.{body}."],
        "hs256-with-public-key": [_hs256(good, body)],
        "tampered": [f"{head}.{forged}.{signature}"],
        "no-signature": [f"{head}.{body}."],
        "garbage": ["x"],
        "empty": [""],
        "two-dots": [".."],
        "five-parts": [f"{whole}.a.b"],
        "exp-string": [_token_raw(good, exp="9999999999")],
        "exp-bool": [_token_raw(good, exp=True)],
        "embedded-jwk": [_token(keys["foreign"], header={"jwk": keys["foreign"].as_dict(private=False)})],
        "jku": [_token(keys["foreign"], header={"jku": "https://evil.example/jwks"})],
        "crit": [_token_raw(good, header={"crit": ["x"], "x": 1})],
        "audience-number": [_token_raw(good, aud=[1])],
        "duplicate-header": [whole, _token(good, groups=["guests"])],
        "basic": [],
        "trailing": [whole + " x"],
        "padding": [whole + "=="],
    }[kind]
    lines = [f"Authorization: Bearer {value}" for value in fields] or [f"Authorization: Basic {whole}"]
    mark = mesh.upstream.mark()
    answer = _ask(proxy, mesh, engine, "/staff/x", *lines)
    assert answer.status in (401, 400), (kind, answer)
    assert whole.encode() not in answer.body
    assert mesh.upstream.since(mark) == []


def _hs256(key: ECKey, body: str) -> str:
    """The public key as the secret of a symmetric algorithm (key confusion)."""
    signed = _b64(b'{"alg":"HS256","kid":"k1"}') + "." + body
    return signed + "." + _b64(hmac.new(key.as_pem(private=False), signed.encode(), hashlib.sha256).digest())


def _token_raw(key: ECKey, *, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """Signed without the checks of the library that makes it."""
    from joserfc import jws
    from joserfc.jws import JWSRegistry

    body = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": int(time.time()) + 300, "groups": ["staff"], **claims}
    head = {"alg": "ES256", "kid": "k1", **(header or {})}
    registry = JWSRegistry(strict_check_header=False)
    registry.check_header = lambda header: None  # type: ignore[method-assign]
    return jws.serialize_compact(head, orjson.dumps(body), key, algorithms=["ES256"], registry=registry)


def test_a_token_that_expires_between_two_requests(engine: str, proxy: Proxy, mesh: Mesh, keys: dict[str, ECKey]) -> None:
    from tests.harness.proxy import eventually

    bearer = "Authorization: Bearer " + _token(keys["good"], iat=int(time.time()) - 300, exp=int(time.time()) - LEEWAY_S + 3)
    with RawClient(proxy.address(engine), mesh.client("billing")) as client:
        assert client.request(get("/staff/x", fields=[bearer])).status == 200
        eventually(lambda: client.request(get("/staff/x", fields=[bearer])).status == 401, "the end of the token", 8)
