"""Several issuers, each with a header of its own: every token in a request counts, none hides behind a good one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from tests.harness.client import RawClient, get
from tests.harness.mesh import Mesh
from tests.harness.proxy import Proxy

ENGINES = ("default", "reference")
ISSUERS = {"users": "authorization", "devices": "x-device-token"}
KEYS = {name: ECKey.generate_key("P-256", {"kid": name, "use": "sig", "alg": "ES256"}) for name in (*ISSUERS, "forger")}


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("two-tokens")
    issuers: list[dict[str, Any]] = []
    for name, header in ISSUERS.items():
        (directory / f"{name}.json").write_bytes(orjson.dumps({"keys": [KEYS[name].as_dict(private=False)]}))
        issuers.append(
            {"issuer": f"https://{name}.example", "audiences": ["api"], "jwks": f"{name}.json", "algorithms": ["ES256"], "header": header}
        )
    policy = {
        "roles": {"staff": {"jwt": {"groups": ["staff"]}}},
        "rules": [
            {"id": "staff", "allow": ["staff"], "paths": ["/staff/**"]},
            {"id": "no-interns", "deny": "anyone", "paths": ["/open/**"], "claims": {"level": ["intern"]}},
            {"id": "open", "allow": "anyone", "paths": ["/open/**"]},
        ],
    }
    config = {
        "identity": mesh.identity(directory),
        "jwt": issuers,
        "listeners": {engine: {"tls": "mutual", "to": "app", "engine": engine} for engine in ENGINES},
        "clusters": {"app": mesh.endpoints()},
    }
    with Proxy(directory, config, policies={"p.yaml": policy}) as made:
        yield made
    assert "Traceback" not in made.stderr_text


def _token(issuer: str, *, signer: str = "", **claims: Any) -> str:
    now = int(time.time())
    body = {"iss": f"https://{issuer}.example", "aud": "api", "sub": issuer, "exp": now + 300, "iat": now, "groups": ["staff"], **claims}
    return f"Bearer {jwt.encode({'alg': 'ES256', 'kid': issuer}, body, KEYS[signer or issuer])}"


def _second(kind: str, good: str, other: str) -> list[str]:
    """Values of the other issuer's header beside a good token of `good`."""
    return {
        "forged": [_token(other, signer="forger")],
        "expired": [_token(other, exp=int(time.time()) - 600)],
        "garbage": ["Bearer x.y.z"],
        "not-bearer": ["Basic dXNlcjpwYXNz"],
        "empty": [""],
        "of-the-first": [_token(good)],
        "twice": [_token(other), _token(other)],
        "two-good": [_token(other, level="intern")],
    }[kind]


@pytest.mark.parametrize("kind", ["forged", "expired", "garbage", "not-bearer", "empty", "of-the-first", "twice", "two-good"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_bad_token_beside_a_good_one(kind: str, engine: str, proxy: Proxy, mesh: Mesh) -> None:
    """Whichever header the good one is in: 401, and nothing is forwarded."""
    for good, other in (("users", "devices"), ("devices", "users")):
        fields = [f"{ISSUERS[other]}: {value}" for value in _second(kind, good, other)]
        for order in (lambda a, b: a + b, lambda a, b: b + a):
            mark = mesh.upstream.mark()
            with RawClient(proxy.address(engine), mesh.client("billing")) as client:
                for path in ("/staff/x", "/open/x"):
                    answer = client.request(get(path, fields=order([f"{ISSUERS[good]}: {_token(good)}"], fields)))
                    assert (answer.status, answer.problem["code"]) == (401, "token_invalid"), (good, path)
            assert mesh.upstream.since(mark) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_each_header_on_its_own(engine: str, proxy: Proxy, mesh: Mesh) -> None:
    with RawClient(proxy.address(engine), mesh.client("billing")) as client:
        for name, header in ISSUERS.items():
            other = next(issuer for issuer in ISSUERS if issuer != name)
            assert client.request(get("/staff/x", fields=[f"{header}: {_token(name)}"])).status == 200
            assert client.request(get("/open/x", fields=[f"{header}: {_token(name, level='intern')}"])).status == 403
            assert client.request(get("/staff/x", fields=[f"{header}: {_token(other)}"])).status == 401
        assert client.request(get("/open/x")).status == 200
