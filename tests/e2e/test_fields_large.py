"""Large documents with thousands of protected values: treated in slices, while others are served and the client may go away."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import orjson
import pytest

from tests.harness.client import RawClient, Response, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import ROOT, Proxy
from tests.harness.upstream import Exchange

ORDERS = 3000
BODY = orjson.dumps(
    {"orders": [{"id": n, "payment": {"card": f"4111{n:012}", "name": "caf\u00e9"}, "note": "x" * 60} for n in range(ORDERS)]},
)
POLICY = {
    "p.yaml": {
        "rules": [{"id": "all", "allow": "authenticated", "paths": ["/**"]}],
        "fields": [
            {
                "id": "card",
                "paths": ["/orders/{id}"],
                "on": "both",
                "select": "$.orders[*].payment.card",
                "seal": "pii",
                "readers": {SHOP + "billing": "open"},
            }
        ],
    }
}
Ask = Callable[..., Response]


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("large")
    (directory / "keys").mkdir(mode=0o700)
    keyset = directory / "keys" / "pii.json"
    subprocess.run([sys.executable, "-m", "meshguard", "keys", "create", str(keyset), "--name", "pii"], check=True, cwd=ROOT, timeout=30)
    config = {
        "identity": mesh.identity(directory),
        "listeners": {e: {"tls": "mutual", "to": "app", "engine": e} for e in ("default", "reference")},
        "clusters": {"app": mesh.endpoints()},
        "keys": {"pii": {"provider": "file", "path": "keys/pii.json"}},
    }
    with Proxy(directory, config, policies=POLICY) as made:
        yield made


class Keep:
    """Keeps what it is sent, answers with it."""

    def __init__(self) -> None:
        self.body = b""

    async def serve(self, exchange: Exchange) -> None:
        body = await exchange.read()
        if exchange.request.method == "PUT":
            self.body = body
            await exchange.send(b"HTTP/1.1 204 No Content\r\n\r\n")
        else:
            await exchange.answer(200, self.body if "orders" in exchange.request.path else b"{}", "Content-Type: application/json")


@pytest.fixture
def keep(mesh: Mesh) -> Iterator[Keep]:
    made = Keep()
    before, mesh.upstream.default = mesh.upstream.default, made.serve
    yield made
    mesh.upstream.default = before


def put(body: bytes) -> bytes:
    return get("/orders/1", method="PUT", fields=["Content-Type: application/json"], body=body)


def test_a_large_document_comes_back_as_it_was(proxy: Proxy, mesh: Mesh, keep: Keep, engine: str) -> None:
    assert len(BODY) > 300_000
    with RawClient(proxy.address(engine), mesh.client("billing")) as client:
        assert client.request(put(BODY)).status == 204
        stored = keep.body
        assert b"4111" not in stored
        assert stored.count(b'"eyJ') == ORDERS
        answer = client.request(get("/orders/1"))
        assert (answer.status, answer.body) == (200, BODY)
        assert client.request(get("/other")).status == 200, "the connection goes on"
    with RawClient(proxy.address(engine), mesh.client("audit")) as client:
        assert client.request(get("/orders/1")).body == stored


def test_what_is_wrong_at_the_end_of_a_large_document_is_refused(proxy: Proxy, mesh: Mesh, keep: Keep, engine: str) -> None:
    mark = mesh.upstream.mark()
    for wrong in (
        BODY[:-1],
        BODY[:-2] + b',{"payment":{"card":1,"card":2}}]}',
        BODY.replace(b'"card":"41110', b'"c\\u0061rd":0,"card":"41110', 1),
    ):
        with RawClient(proxy.address(engine), mesh.client("billing")) as client:
            answer = client.request(put(wrong))
            assert answer.status == 400
            assert b"4111" not in answer.body
    assert mesh.upstream.since(mark) == []
    keep.body = BODY[:-1]
    with RawClient(proxy.address(engine), mesh.client("billing")) as client:
        assert client.request(get("/orders/1")).status == 502
        keep.body = b"{}"
        assert client.request(get("/orders/1")).status == 200


def test_a_client_that_leaves_in_the_middle_takes_its_work_along(proxy: Proxy, mesh: Mesh, keep: Keep, engine: str) -> None:
    for _ in range(5):
        with RawClient(proxy.address(engine), mesh.client("billing")) as client:
            client.send(put(BODY))
    with RawClient(proxy.address(engine), mesh.client("billing")) as client:
        assert client.request(put(BODY)).status == 204
        assert client.request(get("/orders/1")).body == BODY
    assert "exception" not in proxy.log_bytes.decode()
