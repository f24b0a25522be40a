"""Protected fields through the process: two identities, one endpoint, an upstream that holds ciphertext (F1, F2, F5, F6, F9, F13)."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from joserfc import jwe
from joserfc.jwe import JWERegistry
from joserfc.jwk import OctKey

from tests.harness.client import RawClient, Response, chunked, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import ROOT, Proxy
from tests.harness.upstream import Exchange

CARD = "4111111111111111"
ORDER = (
    b'{ "id":7, "amount": 12.50, "big":12345678901234567890,\t"payment": {"card":"' + CARD.encode() + b'","holder":"caf\xc3\xa9 \\u00e9"},'
    b'"empty":{}, "none":null, "list":[1.0,2e3] }'
)
JWE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
POLICY = {
    "p.yaml": {
        "roles": {"billing": {"principals": [SHOP + "billing"]}, "support": {"principals": [SHOP + "support-*"]}},
        "rules": [{"id": "all", "allow": "authenticated", "paths": ["/**"]}],
        "fields": [
            {
                "id": "card",
                "paths": ["/orders/{id}"],
                "on": "both",
                "select": "$.payment.card",
                "seal": "orders-pii",
                "readers": {"billing": "open", "support": {"mask": "last4"}},
            },
            {
                "id": "live",
                "paths": ["/live/{id}"],
                "on": "response",
                "select": "$.payment.card",
                "seal": "orders-pii",
                "readers": {"billing": "open"},
            },
            {
                "id": "gone",
                "paths": ["/gone/{id}"],
                "on": "response",
                "select": "$.payment.card",
                "seal": "orders-pii",
                "readers": {"billing": "open"},
                "others": "remove",
            },
        ],
    }
}


class Vault:
    """The application behind the proxy: keeps what it is sent, answers with what it keeps."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}
        self.type = "application/json"
        self.more: tuple[str, ...] = ()

    async def serve(self, exchange: Exchange) -> None:
        body = await exchange.read()
        path = exchange.request.path
        if exchange.request.method in ("PUT", "POST"):
            self.kept[path] = body
            await exchange.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        else:
            await exchange.answer(200, self.kept.get(path, b"{}"), f"Content-Type: {self.type}", *self.more)


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("fields")
    (directory / "keys").mkdir(mode=0o700)
    keyset = directory / "keys" / "orders-pii.json"
    subprocess.run(
        [sys.executable, "-m", "meshguard", "keys", "create", str(keyset), "--name", "orders-pii"], check=True, cwd=ROOT, timeout=30
    )
    config = {
        "identity": mesh.identity(directory),
        "listeners": {e: {"tls": "mutual", "to": "app", "engine": e} for e in ("default", "reference")},
        "clusters": {"app": mesh.endpoints()},
        "keys": {"orders-pii": {"provider": "file", "path": "keys/orders-pii.json"}},
        "limits": {"inspect_body_bytes": 100_000},
    }
    with Proxy(directory, config, policies=POLICY) as made:
        yield made


@pytest.fixture
def vault(mesh: Mesh) -> Iterator[Vault]:
    made = Vault()
    before, mesh.upstream.default = mesh.upstream.default, made.serve
    yield made
    mesh.upstream.default = before


Ask = Callable[..., Response]


@pytest.fixture
def ask(proxy: Proxy, mesh: Mesh, engine: str) -> Ask:
    def send(who: str, data: bytes) -> Response:
        with RawClient(proxy.address(engine), mesh.client(who)) as client:
            return client.request(data)

    return send


def _put(body: bytes, path: str = "/orders/7", *fields: str) -> bytes:
    return get(path, method="PUT", fields=fields or ["Content-Type: application/json"], body=body)


def _swap(body: bytes, value: str) -> bytes:
    return body.replace(CARD.encode(), value.encode())


def _card(body: bytes) -> str:
    value = orjson.loads(body)["payment"]["card"]
    assert isinstance(value, str)
    return value


def test_the_upstream_holds_ciphertext_and_each_reader_sees_its_own(ask: Ask, vault: Vault, proxy: Proxy) -> None:
    assert ask("billing", _put(ORDER)).status == 204
    stored = vault.kept["/orders/7"]
    assert CARD.encode() not in stored
    sealed = _card(stored)
    assert JWE.fullmatch(sealed)
    assert stored == _swap(ORDER, sealed), "something else than the field changed"
    whole = ask("billing", get("/orders/7"))
    assert (whole.status, whole.body) == (200, ORDER), "the reader does not get the original bytes back"
    masked = ask("support-1", get("/orders/7"))
    assert masked.status == 200
    assert re.fullmatch(r"\W*1111", _card(masked.body))
    assert masked.body == _swap(ORDER, _card(masked.body))
    for stranger in ("audit", "support", "Billing"):
        other = ask(stranger, get("/orders/7"))
        assert (other.status, other.body) == (200, stored)


def test_an_independent_library_opens_the_value(ask: Ask, vault: Vault, proxy: Proxy) -> None:
    ask("billing", _put(ORDER))
    sealed = _card(vault.kept["/orders/7"])
    keys = orjson.loads((proxy.directory / "keys" / "orders-pii.json").read_bytes())["keys"]
    # private header parameters (RFC 7516 4.3) carry the context; nothing else of the library is loosened
    registry = JWERegistry(algorithms=["dir", "A256GCM"], strict_check_header=False)
    opened = jwe.decrypt_compact(sealed, OctKey.import_key({"kty": "oct", "k": keys[0]["k"]}), registry=registry)
    assert opened.plaintext is not None
    assert orjson.loads(opened.plaintext) == CARD
    assert opened.protected["alg"] == "dir"
    assert opened.protected["enc"] == "A256GCM"
    assert keys[0]["kid"] == opened.protected["kid"]


def test_two_seals_differ(ask: Ask, vault: Vault) -> None:
    ask("billing", _put(ORDER))
    first = _card(vault.kept["/orders/7"])
    ask("billing", _put(ORDER))
    assert _card(vault.kept["/orders/7"]) != first, "equal values are visible as equal"


@pytest.mark.parametrize("body", [ORDER, ORDER.replace(b'"card"', b'"c\\u0061rd"'), ORDER.replace(b'"payment"', b'"\\u0070ayment"')])
def test_every_spelling_of_the_member_is_found(body: bytes, ask: Ask, vault: Vault) -> None:
    assert ask("billing", _put(body)).status == 204
    assert CARD.encode() not in vault.kept["/orders/7"]
    assert ask("billing", get("/orders/7")).body == body


def test_chunked_uploads_are_protected_too(ask: Ask, vault: Vault) -> None:
    head = get("/orders/8", method="PUT", fields=["Content-Type: application/json; charset=utf-8", "Transfer-Encoding: chunked"])
    assert ask("billing", head + chunked(ORDER[:60], ORDER[60:61], ORDER[61:])).status == 204
    assert CARD.encode() not in vault.kept["/orders/8"]


def test_values_of_every_kind_come_back(ask: Ask, vault: Vault) -> None:
    for value in (b'""', b'"\\u0000\\"\\\\"', b"0", b"-1.50e+3", b"12345678901234567890.12", b"true", b'{"a":[1, 2]}', b"[]"):
        body = b'{"payment":{"card":' + value + b"}}"
        assert ask("billing", _put(body)).status == 204, value
        assert vault.kept["/orders/7"] != body, value
        assert ask("billing", get("/orders/7")).body == body, value
    for same in (b"{}", b"[]", b'{"payment":{}}', b'{"payment":5}'):
        assert ask("billing", _put(same)).status == 204
        assert vault.kept["/orders/7"] == same


REFUSED_BODIES = {
    "duplicate": b'{"payment":{"card":"' + CARD.encode() + b'","card":"x"}}',
    "duplicate-escaped": b'{"payment":{"card":"x","c\\u0061rd":"' + CARD.encode() + b'"}}',
    "not-json": b"card=" + CARD.encode(),
    "cut": ORDER[:-5],
    "trailing": ORDER + b"{}",
    "nan": b'{"payment":{"card":NaN}}',
    "bom": b"\xef\xbb\xbf" + ORDER,
    "utf16": ORDER.decode().encode("utf-16"),
    "lone-surrogate": b'{"payment":{"card":"\\ud800"}}',
    "bad-utf8": b'{"payment":{"card":"\xff"}}',
    "deep": b"[" * 200 + b"]" * 200,
    "comment": b'{"payment":/*x*/{"card":"' + CARD.encode() + b'"}}',
    "single-quotes": b"{'payment':{'card':'" + CARD.encode() + b"'}}",
}


@pytest.mark.parametrize("kind", REFUSED_BODIES)
def test_bodies_that_two_parsers_read_differently_are_refused(kind: str, ask: Ask, vault: Vault, mesh: Mesh) -> None:
    mark = mesh.upstream.mark()
    answer = ask("billing", _put(REFUSED_BODIES[kind], "/orders/bad"))
    assert answer.status in (400, 413, 415), answer
    assert CARD.encode() not in answer.body
    assert mesh.upstream.since(mark) == []


@pytest.mark.parametrize(
    "fields",
    [
        ["Content-Type: text/plain"],
        ["Content-Type: application/octet-stream"],
        [],
        ["Content-Type: application/json", "Content-Type: text/plain"],
        ["Content-Type: application/json", "Content-Encoding: gzip, gzip"],
        ["Content-Type: application/json", "Content-Encoding: deflate"],
        ["Content-Type: application/json", "Content-Encoding: br"],
        ["Content-Type: application/json", "Content-Encoding: identity", "Content-Encoding: gzip"],
        ["Content-Type: multipart/form-data; boundary=x"],
        ["Content-Type: application/json; charset=utf-16"],
    ],
)
def test_bodies_that_cannot_be_inspected_are_refused(fields: list[str], ask: Ask, vault: Vault, mesh: Mesh) -> None:
    mark = mesh.upstream.mark()
    body = gzip.compress(ORDER) if any("gzip" in f for f in fields) else ORDER
    answer = ask("billing", get("/orders/bad", method="PUT", fields=fields, body=body))
    assert answer.status in (400, 415), answer
    assert mesh.upstream.since(mark) == []


def test_a_body_over_the_limit_is_refused(ask: Ask, vault: Vault, mesh: Mesh) -> None:
    mark = mesh.upstream.mark()
    large = b'{"payment":{"card":"' + CARD.encode() + b'"},"pad":"' + b"x" * 100_000 + b'"}'
    assert ask("billing", _put(large, "/orders/large")).status == 413
    head = get("/orders/large", method="PUT", fields=["Content-Type: application/json", "Transfer-Encoding: chunked"])
    assert ask("billing", head + chunked(large)).status == 413
    assert mesh.upstream.since(mark) == []


def test_plain_answers_are_sealed_for_those_who_may_not_read(ask: Ask, vault: Vault) -> None:
    vault.kept["/live/1"] = vault.kept["/gone/1"] = ORDER
    assert ask("billing", get("/live/1")).body == ORDER
    other = ask("audit", get("/live/1"))
    assert other.status == 200
    assert JWE.fullmatch(_card(other.body))
    assert other.body == _swap(ORDER, _card(other.body))
    removed = ask("audit", get("/gone/1"))
    assert removed.status == 200
    assert "card" not in orjson.loads(removed.body)["payment"]
    assert ask("billing", get("/gone/1")).body == ORDER


@pytest.mark.parametrize("path", ["/live/1", "/LIVE/1", "/live/1/", "/live//1", "/x/../live/1", "/%6cive/1"])
def test_no_spelling_of_the_path_escapes_the_rule(path: str, ask: Ask, vault: Vault, mesh: Mesh) -> None:
    async def any_path(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.answer(200, ORDER, "Content-Type: application/json")

    mesh.upstream.default = any_path
    answer = ask("audit", get(path))
    assert CARD.encode() not in answer.body, answer


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("text/plain", ()),
        ("application/json", ("Content-Encoding: gzip",)),
        ("text/html", ()),
        ("application/json", ("Content-Type: text/plain",)),
        ("application/json", ("Content-Encoding: br",)),
    ],
)
def test_answers_that_cannot_be_inspected_do_not_pass(kind: str, more: tuple[str, ...], ask: Ask, vault: Vault) -> None:
    vault.type, vault.more = kind, more
    vault.kept["/live/2"] = gzip.compress(ORDER) if "gzip" in str(more) else ORDER
    answer = ask("audit", get("/live/2"))
    assert CARD.encode() not in answer.body
    if answer.status == 200:
        assert "gzip" in str(more)
        plain = gzip.decompress(answer.body) if answer.get("content-encoding") == "gzip" else answer.body
        assert CARD.encode() not in plain
    else:
        assert answer.problem["status"] == 502


def test_the_upstream_is_not_offered_codings_it_could_hide_behind(ask: Ask, vault: Vault, mesh: Mesh) -> None:
    mark = mesh.upstream.mark()
    ask("audit", get("/live/3", fields=["Accept-Encoding: br, zstd", "Range: bytes=0-10"]))
    head = mesh.upstream.since(mark)[0].head
    assert not {"br", "zstd"} & {c.strip().split(";")[0] for v in head.all("accept-encoding") for c in v.split(",")}
    assert head.all("range") == [], "a range of a sealed body would be a range of other bytes"


def _tampered(sealed: str) -> dict[str, str]:
    head, _, iv, text, tag = sealed.split(".")
    return {
        "tag": f"{head}..{iv}.{text}.{'A' * 22}",
        "text": f"{head}..{iv}.{('C' if text[0] == 'B' else 'B') + text[1:]}.{tag}",
        "iv": f"{head}..{'A' * 16}.{text}.{tag}",
        "head": f"{'e' + head[1:-1] + 'A'}..{iv}.{text}.{tag}",
    }


@pytest.mark.parametrize("part", ["tag", "text", "iv", "head"])
def test_damaged_ciphertext_never_opens(part: str, ask: Ask, vault: Vault) -> None:
    ask("billing", _put(ORDER))
    stored = vault.kept["/orders/7"]
    vault.kept["/orders/9"] = stored.replace(_card(stored).encode(), _tampered(_card(stored))[part].encode())
    answer = ask("billing", get("/orders/9"))
    assert CARD.encode() not in answer.body
    assert answer.status != 200 or _card(answer.body) == _card(vault.kept["/orders/9"])


def test_a_ciphertext_of_another_field_does_not_open(ask: Ask, vault: Vault) -> None:
    """`live` is another field rule with the same keyset: its envelopes are not `card` envelopes (F7)."""
    vault.kept["/live/4"] = ORDER
    foreign = _card(ask("audit", get("/live/4")).body)
    vault.kept["/orders/10"] = _swap(ORDER, foreign)
    answer = ask("billing", get("/orders/10"))
    assert CARD.encode() not in answer.body


def test_every_operation_is_on_record_and_the_value_is_not(ask: Ask, vault: Vault, proxy: Proxy) -> None:
    mark = proxy.mark()
    ask("billing", _put(ORDER, "/orders/11"))
    ask("billing", get("/orders/11"))
    ask("support-1", get("/orders/11"))
    seen = {}
    for method, operation in (("PUT", "seal"), ("GET", "open"), ("GET", "mask")):

        def told(record: dict[str, Any], method: str = method, operation: str = operation) -> bool:
            what = record["what"]
            acts = [act["operation"] for act in record.get("fields", [])]
            return (what["path"], what["method"]) == ("/orders/11", method) and operation in acts

        seen[operation] = proxy.decision_where(told, f"a record of {operation}", mark)["fields"][0]
    assert {o: (f["field"], f["keyset"], f["count"]) for o, f in seen.items()} == dict.fromkeys(seen, ("card", "orders-pii", 1))
    secrets = orjson.loads((proxy.directory / "keys" / "orders-pii.json").read_bytes())["keys"]
    for needle in (CARD, *(key["k"] for key in secrets)):
        assert needle.encode() not in proxy.log_bytes
        assert needle.encode() not in proxy.metrics().encode()


def test_routes_without_a_rule_pass_untouched(ask: Ask, vault: Vault) -> None:
    body = b"\x00not json at all" + CARD.encode()
    assert (
        ask("billing", get("/other/1", method="PUT", fields=["Content-Type: text/plain", "Content-Encoding: gzip"], body=body)).status
        == 204
    )
    assert vault.kept["/other/1"] == body
    vault.type = "text/plain"
    assert ask("audit", get("/other/1")).body == body
