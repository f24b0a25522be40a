"""AWS KMS: the signature by published examples, the credential chain, and what is told of throttling and refusals."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from meshguard.keys.aws_credentials import CredentialChain
from meshguard.keys.aws_signature import Credentials, signed_fields
from meshguard.keys.http import HttpClient
from meshguard.keys.provider import Binding, Kek, KekError
from meshguard.keys.registry import kek_of

MOMENT = datetime(2015, 8, 30, 12, 36, tzinfo=UTC).timestamp()
EXAMPLE = Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")


@pytest.mark.parametrize(
    ("method", "url", "fields", "body", "signature"),
    [
        # the signing test suite of AWS: get-vanilla, post-vanilla, get-vanilla-query-order-key-case, get-header-value-trim,
        # post-x-www-form-urlencoded
        ("GET", "https://example.amazonaws.com/", {}, b"", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
        ("POST", "https://example.amazonaws.com/", {}, b"", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        (
            "GET",
            "https://example.amazonaws.com/?Param2=value2&Param1=value1",
            {},
            b"",
            "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
        ),
        (
            "GET",
            "https://example.amazonaws.com/",
            {"my-header1": " value1", "my-header2": ' "a   b   c"'},
            b"",
            "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
        ),
        (
            "POST",
            "https://example.amazonaws.com/",
            {"content-type": "application/x-www-form-urlencoded"},
            b"Param1=value1",
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        ),
    ],
)
def test_the_signature(method: str, url: str, fields: dict[str, str], body: bytes, signature: str) -> None:
    added = signed_fields(method, url, fields, body, EXAMPLE, "us-east-1", "service", MOMENT)
    assert added["x-amz-date"] == "20150830T123600Z"
    assert added["authorization"].endswith(f"Signature={signature}")
    assert EXAMPLE.secret_key not in repr(EXAMPLE) + str(added)


class Answers:
    """A small server: `answers[path]` is (status, body) or a function of (method, fields, body)."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.answers: dict[str, Any] = {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                fields = {name.lower(): value for name, value in self.headers.items()}
                outer.asked.append((self.command, self.path, fields, body))
                answer = outer.answers.get(self.path, (404, b""))
                status, data = answer(self.command, fields, body) if callable(answer) else answer
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_PUT = do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def service() -> Iterator[Answers]:
    made = Answers()
    yield made
    made.server.shutdown()
    made.server.server_close()


def later(seconds: float = 3600) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def get(environment: dict[str, str], times: int = 1) -> Credentials:
    async def go() -> Credentials:
        chain = CredentialChain(HttpClient(5.0), "eu-central-1", environment)
        for _ in range(times):
            found = await chain.get()
        return found

    return asyncio.run(go())


def test_the_environment_comes_first(service: Answers) -> None:
    found = get({"AWS_ACCESS_KEY_ID": "A", "AWS_SECRET_ACCESS_KEY": "S", "AWS_SESSION_TOKEN": "T", "AWS_ROLE_ARN": "x"})
    assert (found.access_key, found.secret_key, found.session_token) == ("A", "S", "T")


def test_web_identity(service: Answers, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("the.web.token\n")
    body = f"""<AssumeRoleWithWebIdentityResponse><Credentials><SessionToken>T+/&amp;=</SessionToken><SecretAccessKey>S/+</SecretAccessKey>
    <Expiration>{later()}</Expiration><AccessKeyId>A</AccessKeyId></Credentials></AssumeRoleWithWebIdentityResponse>"""
    service.answers["/"] = (200, body.encode())
    environment = {"AWS_WEB_IDENTITY_TOKEN_FILE": str(token), "AWS_ROLE_ARN": "arn:aws:iam::1:role/r", "AWS_ENDPOINT_URL_STS": service.url}
    found = get(environment, 3)
    assert (found.access_key, found.secret_key, found.session_token) == ("A", "S/+", "T+/&=")
    assert len(service.asked) == 1
    assert b"WebIdentityToken=the.web.token" in service.asked[0][3]
    assert "authorization" not in service.asked[0][2]


def test_container(service: Answers, tmp_path: Path) -> None:
    service.answers["/creds"] = (
        200,
        json.dumps({"AccessKeyId": "A", "SecretAccessKey": "S", "Token": "T", "Expiration": later()}).encode(),
    )
    (tmp_path / "auth").write_text("pod-token")
    environment = {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{service.url}/creds",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(tmp_path / "auth"),
    }
    assert get(environment).session_token == "T"
    assert service.asked[0][2]["authorization"] == "pod-token"
    with pytest.raises(KekError):
        get({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://192.0.2.1/creds"})


def test_instance_metadata_takes_its_session_token(service: Answers) -> None:
    base = "/latest/meta-data/iam/security-credentials/"
    service.answers["/latest/api/token"] = lambda method, fields, body: (200, b"session") if method == "PUT" else (405, b"")

    def guarded(data: bytes) -> Callable[..., tuple[int, bytes]]:
        return lambda method, fields, body: (200, data) if fields.get("x-aws-ec2-metadata-token") == "session" else (401, b"")

    service.answers[base] = guarded(b"my-role\n")
    service.answers[base + "my-role"] = guarded(
        json.dumps({"AccessKeyId": "A", "SecretAccessKey": "S", "Token": "T", "Expiration": later()}).encode()
    )
    assert get({"AWS_EC2_METADATA_SERVICE_ENDPOINT": service.url}).access_key == "A"
    service.answers[base] = guarded(b"../../../etc")
    with pytest.raises(KekError, match="no role"):
        get({"AWS_EC2_METADATA_SERVICE_ENDPOINT": service.url})
    with pytest.raises(KekError, match="switched off"):
        get({"AWS_EC2_METADATA_DISABLED": "true"})


def test_credentials_are_replaced_before_they_expire(service: Answers) -> None:
    numbers = iter(range(100))

    def fresh(*_: object) -> tuple[int, bytes]:
        number = next(numbers)
        seconds = 100 if number == 0 else 3600
        return 200, json.dumps({"AccessKeyId": f"A{number}", "SecretAccessKey": "S", "Token": "T", "Expiration": later(seconds)}).encode()

    service.answers["/creds"] = fresh
    environment = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{service.url}/creds"}
    assert get(environment, 3).access_key == "A1"


@pytest.mark.parametrize(
    ("status", "kind", "away"),
    [
        (400, "ThrottlingException", True),
        (400, "LimitExceededException", True),
        (500, "KMSInternalException", True),
        (503, "", True),
        (400, "DisabledException", False),
        (400, "KMSInvalidStateException", False),
        (400, "InvalidCiphertextException", False),
        (400, "AccessDeniedException", False),
        (400, "<script>", False),
    ],
)
def test_what_is_told_of_a_refusal(service: Answers, monkeypatch: pytest.MonkeyPatch, status: int, kind: str, away: bool) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "A")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRET-KEY")
    service.answers["/"] = (status, json.dumps({"__type": f"com.amazonaws.kms#{kind}", "message": "SECRET-KEY"}).encode())
    with pytest.raises(KekError) as caught:
        asyncio.run(_kek(service).unwrap("AAAA", Binding("k", 1)))
    assert caught.value.away is away
    assert "SECRET-KEY" not in str(caught.value)
    assert "<" not in str(caught.value)


def test_refused_credentials_are_had_anew_once(service: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{service.url}/creds")
    numbers = iter(range(100))

    def fresh(*_: object) -> tuple[int, bytes]:
        return 200, json.dumps({"AccessKeyId": f"A{next(numbers)}", "SecretAccessKey": "S", "Token": "T", "Expiration": later()}).encode()

    def kms(method: str, fields: dict[str, str], body: bytes) -> tuple[int, bytes]:
        if "Credential=A1/" not in fields["authorization"]:
            return 400, b'{"__type": "ExpiredTokenException"}'
        assert json.loads(body)["EncryptionContext"] == {"meshguard": "meshguard/keyset/k/1", "team": "orders"}
        return 200, json.dumps({"Plaintext": b64encode(bytes(32)).decode()}).encode()

    service.answers["/creds"] = fresh
    service.answers["/"] = kms
    assert asyncio.run(_kek(service).unwrap("AAAA", Binding("k", 1))) == bytes(32)


def _kek(service: Answers) -> Kek:
    values = {"provider": "awskms", "key": "alias/k", "region": "eu-central-1", "endpoint": service.url, "timeout_s": 5.0}
    return kek_of(values | {"context": {"team": "orders"}})
