"""Callers that a listed proxy speaks for by X-Forwarded-Client-Cert (`caller: xfcc`): nobody else may, and not for everybody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from meshguard.cli.main import main
from tests.harness.client import RawClient, get
from tests.harness.http2 import H2Client
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import Proxy
from tests.harness.upstream import Exchange

EDGE, BILLING, OTHER = f"{SHOP}edge", f"{SHOP}billing", f"{SHOP}other"
PARTNER = "spiffe://partner.example/ns/prod/sa/"
FIELD = "x-forwarded-client-cert"
POLICY = {
    "rules": [
        {"id": "billing", "allow": [BILLING, OTHER, f"{PARTNER}shop"], "paths": ["/**"]},
        {"id": "edge-itself", "allow": [EDGE, f"{PARTNER}edge"], "paths": ["/edge/**"]},
        {"id": "no-other", "deny": [OTHER], "paths": ["/secret/**"]},
    ]
}


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("callers")
    listener = {"tls": "mutual", "to": "app", "trusted_proxies": [EDGE, f"{PARTNER}edge"], "caller": "xfcc"}
    config: dict[str, Any] = {
        "identity": mesh.identity(directory),
        "listeners": {"default": listener, "reference": {**listener, "engine": "reference"}},
        "clusters": {"app": mesh.endpoints()},
        "drain_s": 1,
    }
    running = Proxy(directory, config, policies={"p.yaml": POLICY})
    config["admin"]["token_file"] = "admin.token"
    running.write_config()
    with running.start():
        yield running


@pytest.fixture(params=["default", "reference"])
def dial(request: pytest.FixtureRequest, proxy: Proxy, mesh: Mesh) -> Callable[[str], RawClient]:
    return lambda who: RawClient(proxy.address(request.param), mesh.client(who))


def code(client: RawClient, path: str, *values: str) -> str:
    """`200`, or the code of the refusal."""
    answer = client.request(get(path, fields=[f"X-Forwarded-Client-Cert: {value}" for value in values]))
    return "200" if answer.status == 200 else str(answer.problem["code"])


def test_a_request_is_judged_as_the_caller_that_the_nearest_hop_names(dial: Callable[[str], RawClient], proxy: Proxy, mesh: Mesh) -> None:
    mark, seen = proxy.mark(), mesh.upstream.mark()
    with dial("edge") as edge:
        assert code(edge, "/orders", f"By={EDGE};Hash=ab;URI={BILLING}") == "200"
        assert code(edge, "/edge/x", f"By={EDGE};URI={BILLING}") == "200"
        assert code(edge, "/secret/x", f"URI={BILLING}") == "200"
        assert code(edge, "/secret/x", f"URI={OTHER}") == "policy_denied"
        assert code(edge, "/secret/x", f"URI={BILLING},By={EDGE};URI={OTHER}") == "policy_denied", "the last element counts"
        assert code(edge, "/secret/x", f"URI={BILLING}", f'Subject="a,b;URI={BILLING}";URI="{OTHER}"') == "policy_denied"
        assert code(edge, "/orders", f"URI={SHOP}unknown") == "no_rule"
        assert code(edge, "/orders", f"URI={PARTNER}shop") == "200"
    record = proxy.decision_where(lambda r: r["what"]["path"] == "/orders", "the record", mark)
    assert record["who"]["principal"] == BILLING
    assert record["who"]["proxy"] == EDGE
    assert "svid" not in record["who"]
    first = mesh.upstream.since(seen)[0].head.get(FIELD)
    assert first.startswith(f"By={EDGE};Hash=ab;URI={BILLING},By=")
    assert first.endswith(f"URI={EDGE}")


@pytest.mark.parametrize(
    "value",
    [
        "", "Hash=ab", f"URI={BILLING},Hash=ab", f"URI={BILLING};URI={OTHER}", f"URI={BILLING};URI={BILLING}", "URI=", "URI=spiffe://shop.example",
        f"URI={BILLING}/", f"URI={BILLING.upper()}", f"URI={BILLING}%41", f"URI={BILLING}?a", f"By={OTHER};URI={BILLING}", f"URI=https://{BILLING}",
        f"URI={BILLING},", f",URI={BILLING}x,,", f'Subject="open;URI={BILLING}', f"URI={BILLING} x", f"URI= {BILLING}",
        f"X=1;URI={BILLING}",
        "URI=spiffe://stranger.example/ns/prod/sa/billing", f"URI={BILLING}\\",
    ],
)  # fmt: skip
def test_what_names_nobody_is_refused_and_is_not_the_proxy_itself(value: str, dial: Callable[[str], RawClient], mesh: Mesh) -> None:
    mark = mesh.upstream.mark()
    with dial("edge") as edge:
        assert code(edge, "/edge/x", value) == "caller_unknown"
    with dial("edge") as edge:
        assert code(edge, "/edge/x") == "caller_unknown"
    assert mesh.upstream.since(mark) == []


def test_only_a_listed_proxy_speaks_for_others(dial: Callable[[str], RawClient]) -> None:
    with dial("other") as other:
        assert code(other, "/secret/x", f"By={OTHER};URI={BILLING}") == "policy_denied"
        assert code(other, "/orders", f"URI={BILLING}") == "200"
    with dial("unknown") as unknown:
        assert code(unknown, "/orders", f"URI={BILLING}") == "no_rule"


@pytest.mark.parametrize("engine", ["default", "reference"])
def test_a_foreign_proxy_speaks_for_its_own_trust_domain_only(engine: str, proxy: Proxy, mesh: Mesh) -> None:
    context = mesh.context(mesh.partner.service("edge"), name="partner-edge")
    with RawClient(proxy.address(engine), context) as client:
        assert code(client, "/orders", f"URI={BILLING}") == "caller_unknown"
        assert code(client, "/orders", f"URI={PARTNER}shop") == "200"


@pytest.mark.parametrize("engine", ["default", "reference"])
def test_quarantine_of_a_caller_cuts_its_streams_and_no_others(engine: str, proxy: Proxy, mesh: Mesh) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\nbegun")
        await exchange.gone()

    at = ["--config", str(proxy.config_path)]
    with mesh.upstream.on("/stream", endless), H2Client(proxy.address(engine), mesh.client("edge", ("h2",))) as edge:
        streams = {who: edge.request("/stream", fields=[(FIELD, f"By={EDGE};URI={who}")]) for who in (BILLING, OTHER)}
        for number in streams.values():
            edge.until(lambda number=number: bytes(edge.streams[number].body) == b"begun", "the beginning of both")
        assert main(["quarantine", "add", OTHER, "--ttl", "1h", *at]) == 0
        edge.until(lambda: edge.streams[streams[OTHER]].reset is not None, "the end of its stream")
        answer = edge.answer(edge.request("/orders", fields=[(FIELD, f"URI={OTHER}")]))
        assert (answer.status, answer.json["code"]) == (403, "quarantined")
        assert edge.answer(edge.request("/orders", fields=[(FIELD, f"URI={BILLING}")])).status == 200
        assert not edge.streams[streams[BILLING]].over
        assert main(["quarantine", "remove", OTHER, *at]) == 0
        assert edge.answer(edge.request("/orders", fields=[(FIELD, f"URI={OTHER}")])).status == 200
