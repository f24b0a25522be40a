"""Vault and OpenBao: the ways in, the life of a token, and a service that is slow, sealed, throttled or says no. With a real OpenBao."""

from __future__ import annotations

import asyncio
import http.server
import json
import socket
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Iterator
from math import inf
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey

from meshguard.keys.http import HttpClient
from meshguard.keys.provider import Binding, Kek, KekError
from meshguard.keys.registry import kek_of
from meshguard.keys.vault import VaultKek
from meshguard.keys.vault_login import GivenToken, Token
from tests.harness.mesh import Mesh
from tests.harness.openbao import ROOT_TOKEN, OpenBao, needs_openbao

BINDING = Binding("orders-pii", 1)


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with OpenBao(tmp_path_factory.mktemp("bao")) as server:
        server.policy("fields")
        yield server


def values(vault: OpenBao, **changes: Any) -> dict[str, Any]:
    return {"provider": "vault", "address": vault.address, "key": "orders", "mount": "transit", "timeout_s": 5.0, **changes}


def run(section: dict[str, Any], work: Callable[[Kek], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        kek = kek_of(section)
        try:
            return await work(kek)
        finally:
            await kek.close()

    return asyncio.run(go())


async def there_and_back(kek: Kek) -> str:
    key, wrapped = await kek.new_key(BINDING)
    assert await kek.unwrap(wrapped, BINDING) == key
    return wrapped


@needs_openbao
def test_a_token_from_the_environment(vault: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", vault.token("1h"))
    wrapped = run(values(vault, login={"token_env": "MY_TOKEN"}), there_and_back)
    assert len(vault.decrypt(wrapped, BINDING.text)) == 32
    monkeypatch.delenv("MY_TOKEN")
    with pytest.raises(KekError, match="MY_TOKEN"):
        run(values(vault, login={"token_env": "MY_TOKEN"}), there_and_back)


@needs_openbao
def test_jwt_login_with_an_svid(vault: OpenBao, tmp_path: Path) -> None:
    key = RSAKey.generate_key(2048)
    vault.call("POST", "sys/auth/jwt", {"type": "jwt"})
    vault.call("POST", "auth/jwt/config", {"jwt_validation_pubkeys": [key.as_pem(private=False).decode()]})
    role = {"role_type": "jwt", "user_claim": "sub", "bound_audiences": ["vault"], "token_policies": ["fields"], "token_ttl": "60s"}
    vault.call("POST", "auth/jwt/role/meshguard", role | {"bound_subject": "spiffe://shop.example/orders"})
    svid = tmp_path / "svid.jwt"
    section = values(vault, login={"jwt": {"mount": "jwt", "role": "meshguard", "jwt_file": svid}})
    claims = {"sub": "spiffe://shop.example/orders", "aud": "vault", "exp": int(time.time()) + 60, "iat": int(time.time())}
    svid.write_text(jwt.encode({"alg": "RS256"}, claims, key))
    run(section, there_and_back)
    svid.write_text(jwt.encode({"alg": "RS256"}, claims | {"sub": "spiffe://shop.example/other"}, key))
    with pytest.raises(KekError) as caught:
        run(section, there_and_back)
    assert not caught.value.away
    svid.unlink()
    with pytest.raises(KekError) as caught:
        run(section, there_and_back)
    assert caught.value.away


@needs_openbao
def test_kubernetes_login(vault: OpenBao, mesh: Mesh, tmp_path: Path) -> None:
    """The token review is answered by a small server in the place of the Kubernetes API."""

    class Api(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["content-length"])))
            known = review["spec"]["token"].endswith("good")
            user = {"username": "system:serviceaccount:prod:orders", "uid": "u1", "groups": []}
            status = {"authenticated": known, **({"user": user} if known else {})}
            data = json.dumps({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status}).encode()
            self.send_response(201)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    def service_account(signature: str) -> str:
        account = {"namespace": "prod", "serviceaccount": {"name": "orders", "uid": "u1"}}
        parts = (
            {"alg": "RS256"},
            {"iss": "kubernetes/serviceaccount", "kubernetes.io": account, "sub": "system:serviceaccount:prod:orders"},
        )
        return ".".join([*(urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts), signature])

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        vault.call("POST", "sys/auth/kubernetes", {"type": "kubernetes"})
        api = f"http://127.0.0.1:{server.server_address[1]}"
        config = {"kubernetes_host": api, "disable_local_ca_jwt": True, "token_reviewer_jwt": "x.y.z"}
        vault.call("POST", "auth/kubernetes/config", config | {"kubernetes_ca_cert": mesh.ca.pem.decode()})
        role = {"bound_service_account_names": ["orders"], "bound_service_account_namespaces": ["prod"], "token_policies": ["fields"]}
        vault.call("POST", "auth/kubernetes/role/meshguard", role)
        token = tmp_path / "token"
        section = values(vault, login={"kubernetes": {"mount": "kubernetes", "role": "meshguard", "jwt_file": token}})
        token.write_text(service_account("good"))
        run(section, there_and_back)
        token.write_text(service_account("baad"))
        with pytest.raises(KekError) as caught:
            run(section, there_and_back)
        assert not caught.value.away
    finally:
        server.shutdown()
        server.server_close()


@needs_openbao
def test_a_token_is_renewed_at_two_thirds_and_a_revoked_one_replaced(vault: OpenBao, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(vault.token("3s"))
    http_client = HttpClient(5.0)

    async def work() -> None:
        kek = VaultKek(http_client, vault.address, "orders", GivenToken(path=path))
        assert await kek.tend() == inf  # nothing to renew before the first call
        _, wrapped = await kek.new_key(BINDING)
        due_s = await kek.tend()
        assert 0 < due_s <= 2
        await asyncio.sleep(due_s)
        assert 1 <= await kek.tend() <= 2
        assert "last_renewal_time" in vault.request("GET", "auth/token/lookup-self", token=path.read_text())[1]["data"]
        vault.call("POST", "auth/token/revoke", {"token": path.read_text()})
        with pytest.raises(KekError) as caught:
            await kek.unwrap(wrapped, BINDING)
        assert not caught.value.away
        path.write_text(vault.token("1h"))
        assert len(await kek.unwrap(wrapped, BINDING)) == 32
        await kek.close()

    asyncio.run(work())


@needs_openbao
def test_many_calls_make_one_login(vault: OpenBao) -> None:
    class Counting(GivenToken):
        logins = 0

        async def enter(self, post: Any) -> Token | None:
            self.logins += 1
            return Token(ROOT_TOKEN, inf, False, time.monotonic())

    async def work() -> None:
        login = Counting()
        kek = VaultKek(HttpClient(5.0), vault.address, "orders", login)
        await asyncio.gather(*(kek.new_key(Binding("k", number)) for number in range(1, 9)))
        assert login.logins == 1

    asyncio.run(work())


@needs_openbao
@pytest.mark.parametrize("derived", [False, True])
def test_the_binding_holds_for_derived_keys_too(vault: OpenBao, monkeypatch: pytest.MonkeyPatch, derived: bool) -> None:
    monkeypatch.setenv("VAULT_TOKEN", ROOT_TOKEN)
    name = f"key-{derived}".lower()
    vault.call("POST", f"transit/keys/{name}", {"derived": derived})

    async def work(kek: Kek) -> None:
        _, wrapped = await kek.new_key(BINDING)
        with pytest.raises(KekError):
            await kek.unwrap(wrapped, Binding("orders-pii", 2))

    run(values(vault, key=name), work)


@needs_openbao
def test_a_rotated_kek_opens_what_it_wrapped_and_a_deleted_one_does_not(vault: OpenBao, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT_TOKEN", ROOT_TOKEN)
    vault.call("POST", "transit/keys/short", {})

    async def work(kek: Kek) -> None:
        key, wrapped = await kek.new_key(BINDING)
        vault.call("POST", "transit/keys/short/rotate", {})
        assert await kek.unwrap(wrapped, BINDING) == key
        again = await kek.wrap(key, BINDING)
        assert again.startswith("vault:v2:")
        vault.call("POST", "transit/keys/short/config", {"min_decryption_version": 2, "deletion_allowed": True})
        with pytest.raises(KekError) as caught:
            await kek.unwrap(wrapped, BINDING)
        assert not caught.value.away
        assert await kek.unwrap(again, BINDING) == key
        vault.call("DELETE", "transit/keys/short")
        with pytest.raises(KekError):
            await kek.unwrap(again, BINDING)

    run(values(vault, key="short"), work)


# -- a service that misbehaves ------------------------------------------------------------------------------------------------


class Raw:
    """A socket that answers each connection with `answer`, as slowly as `drip_s` says, or never."""

    def __init__(self, answer: bytes, drip_s: float = 0.0) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self._answer = answer
        self._drip_s = drip_s
        self._stop = threading.Event()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(65536)
                    for start in range(0, len(self._answer), 1 if self._drip_s else max(1, len(self._answer))):
                        connection.sendall(self._answer[start:][: 1 if self._drip_s else None])
                        if self._stop.wait(self._drip_s):
                            return
                    if not self._answer:
                        self._stop.wait(5)
                except OSError:
                    pass

    def close(self) -> None:
        self._stop.set()
        self.socket.close()


def answer(status: int, body: bytes, *fields: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 %d X" % status, b"content-length: %d" % len(body), *fields, b"", body])


@pytest.mark.parametrize(
    ("data", "drip_s", "away"),
    [
        (b"", 0.0, True),  # silence
        (answer(200, b"{}"), 0.05, True),  # a drop at a time: the deadline is for all of it
        (answer(503, b'{"errors":["Vault is sealed"]}'), 0.0, True),
        (answer(429, b"{}"), 0.0, True),
        (answer(400, b'{"errors":["no"]}'), 0.0, False),
        (answer(404, b"{}"), 0.0, False),
        (answer(307, b"", b"location: http://127.0.0.1:1/"), 0.0, False),  # a token follows no redirect
        (answer(200, b"not json"), 0.0, True),
        (answer(200, b'{"data":{"plaintext":"AAAA","ciphertext":"vault:v1:x"}}'), 0.0, False),
        (answer(200, b'{"data":{"plaintext":7}}'), 0.0, False),
        (b"HTTP/1.1 200 X\r\ncontent-length: 10\r\n\r\n{", 0.0, True),
        (b"HTTP/1.1 200 X\r\ncontent-length: 5000000\r\n\r\n" + b" " * 3_000_000, 0.0, True),
        (b"garbage\r\n\r\n", 0.0, True),
    ],
    ids=[
        "silence",
        "drip",
        "sealed",
        "throttled",
        "no",
        "unknown",
        "redirect",
        "not-json",
        "short-key",
        "no-text",
        "cut",
        "huge",
        "garbage",
    ],
)
def test_trouble_is_told_as_what_it_is(monkeypatch: pytest.MonkeyPatch, data: bytes, drip_s: float, away: bool) -> None:
    class Known(GivenToken):
        async def enter(self, post: Any) -> Token | None:
            return Token("the-token", inf, False, time.monotonic())

    server = Raw(data, drip_s)
    try:
        kek = VaultKek(HttpClient(0.5), server.address, "orders", Known())
        with pytest.raises(KekError) as caught:
            asyncio.run(kek.unwrap("vault:v1:AAAA", BINDING))
        assert caught.value.away is away
        assert "the-token" not in str(caught.value)
    finally:
        server.close()


def test_plain_http_goes_to_this_machine_only() -> None:
    for url in ("http://192.0.2.1/", "http://vault.example/", "ftp://127.0.0.1/"):
        with pytest.raises(KekError, match="https"):
            asyncio.run(HttpClient(0.5).exchange("GET", url, {}))
