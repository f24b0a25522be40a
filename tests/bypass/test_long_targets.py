"""Targets and authorities of a client's choice: however many and however long, what is remembered of them is bounded."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.harness.client import RawClient, get
from tests.harness.mesh import Mesh
from tests.harness.proxy import Proxy
from tests.harness.upstream import Exchange, Upstream

ENGINES = ("default", "reference")
engines = pytest.mark.parametrize("engine", ENGINES)
MIB = 1 << 20
COUNT, BATCH = 1200, 20
LONG = "a" * 7000


class Forgetful(Upstream):
    """Answers shortly and keeps nothing of what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.default = self._short

    async def _short(self, exchange: Exchange) -> None:
        await exchange.read()
        await exchange.answer(200, exchange.request.target[-12:].encode())
        self.requests.clear()
        exchange.connection.raw.clear()


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("long-targets")
    with Forgetful() as upstream:
        config = {
            "identity": mesh.identity(directory),
            "listeners": {engine: {"tls": "none", "to": "app", "engine": engine} for engine in ENGINES},
            "clusters": {"app": mesh.endpoints(upstream)},
        }
        policies = {
            "p.yaml": {
                "rules": [
                    {"id": "no-admin", "deny": "anyone", "paths": ["/admin/**"]},
                    {"id": "all", "allow": "anyone", "paths": ["/**"]},
                ]
            }
        }
        with Proxy(directory, config, policies=policies) as made:
            for engine in ENGINES:
                with RawClient(made.address(engine)) as client:
                    for path in ("/warm", "/admin/warm", "/" + LONG):
                        client.request(get(path))
            yield made
        assert "Traceback" not in made.stderr_text


@pytest.fixture(scope="module")
def base(proxy: Proxy) -> int:
    return proxy.rss_bytes()


FORMS = {
    "allowed": lambda n: (get(f"/{LONG}/{n:012}"), 200),
    "denied": lambda n: (get(f"/admin/{LONG}/{n:012}"), 403),
    "hosts": lambda n: (get("/short", host=f"{'a' * 60}.{'b' * 60}.{'c' * 60}.{n:012}.example"), 200),
}


@pytest.mark.parametrize("form", FORMS)
def test_unique_targets_are_not_gathered(form: str, proxy: Proxy, base: int) -> None:
    make = FORMS[form]
    top = 0
    with RawClient(proxy.address("default"), deadline_s=20) as client:
        for start in range(0, COUNT, BATCH):
            made = [make(n) for n in range(start, start + BATCH)]
            client.send(b"".join(data for data, _ in made), expect=["GET"] * BATCH)
            for _, status in made:
                assert client.response().status == status
            top = max(top, proxy.rss_bytes())
    assert top - base < 20 * MIB, f"{(top - base) / MIB:.0f} MiB after {COUNT} targets"


AUTHORITIES = {
    "colons": "[" + ":" * 20_000 + "]",
    "colons-open": "[" + ":" * 20_000,
    "groups": "[" + "a:" * 9000 + "a]",
    "digits": "[" + "1" * 20_000 + "]",
    "dots": "[::" + "1." * 9000 + "1]",
    "colons-port": "[" + ":" * 20_000 + "]:80",
    "short": "[::::]",
    "nine": "[1:2:3:4:5:6:7:8:9]",
    "zone": "[fe80::1%25eth0]",
    "not-closed": "[::1",
    "empty": "[]",
    "mapped-bad": "[::ffff:1.2.3.256]",
}


@engines
def test_what_is_no_address_is_no_authority(engine: str, proxy: Proxy) -> None:
    """400 and at once: nobody works on twenty thousand colons for long."""
    for name, host in AUTHORITIES.items():
        started = time.monotonic()
        for data in (get("/x", host=host), f"GET http://{host}/x HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()):
            with RawClient(proxy.address(engine)) as client:
                answer = client.request(data, "GET")
            assert answer.status in ((400,) if data.startswith(b"GET /") else (400, 414)), name
        assert time.monotonic() - started < 1, name
    for host in ("[::1]", "[2001:DB8::1]:8443", "[::ffff:1.2.3.4]"):
        with RawClient(proxy.address(engine)) as client:
            assert client.request(get("/x", host=host)).status == 200, host
