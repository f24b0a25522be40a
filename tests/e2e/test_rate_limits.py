"""Rate limits of the real process: what is counted, what a client is told, and that workers, reloads and restarts share one count."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from meshguard.control.settings.load import load_configuration
from meshguard.model.errors import DocumentError
from tests.harness.client import RawClient, get
from tests.harness.http2 import H2Client
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import Proxy, eventually

POLICY = {
    "rules": [
        {"id": "no", "deny": "anyone", "paths": ["/denied/**"]},
        {"id": "all", "allow": "anyone", "paths": ["/**"]},
    ]
}
HOUR = 3600


def limit(id: str, key: list[str], requests: int, **more: Any) -> dict[str, Any]:
    return {"id": id, "key": key, "requests": requests, "per_s": HOUR, **more}


LIMITS: dict[str, list[dict[str, Any]]] = {
    "mutual": [limit("by-identity", ["identity"], 5)],
    "plain-late": [limit("late", ["client_address"], 4)],
    "plain-early": [limit("early", ["client_address"], 4, before="decision")],
    "plain-routes": [
        limit("wide", ["client_address", "route"], 6),
        limit("narrow", ["header:X-Tenant", "client_address"], 2, routes=["tight"], burst=1),
    ],
    "plain-shadow": [limit("try", ["client_address"], 2, shadow=True)],
    "plain-kept": [limit("kept", ["client_address"], 3)],
    "plain-fast": [{"id": "fast", "key": ["client_address"], "requests": 20, "per_s": 1, "burst": 1}],
}


def configuration(mesh: Mesh, directory: Path) -> dict[str, Any]:
    listeners: dict[str, Any] = {}
    for name, limits in LIMITS.items():
        listeners[name] = {"tls": "mutual" if name == "mutual" else "none", "to": "app", "rate_limits": limits}
    del listeners["plain-routes"]["to"]
    listeners["plain-routes"]["routes"] = [{"id": "tight", "paths": ["/tight/**"], "to": "app"}, {"id": "rest", "to": "app"}]
    listeners["plain-free"] = {"tls": "none", "to": "app"}
    return {
        "workers": 2,
        "identity": mesh.identity(directory),
        "listeners": listeners,
        "clusters": {"app": mesh.endpoints()},
        "drain_s": 3,
    }


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("limits")
    with Proxy(directory, configuration(mesh, directory), policies={"p.yaml": POLICY}) as made:
        yield made


def ask(proxy: Proxy, listener: str, path: str = "/x", *fields: str, client: RawClient | None = None) -> Any:
    with client or RawClient(proxy.address(listener)) as each:
        return each.request(get(path, fields=fields))


def statuses(proxy: Proxy, listener: str, path: str, count: int, *fields: str) -> Counter[int]:
    """Each on a connection of its own, so that both workers have some of them."""
    return Counter(ask(proxy, listener, path, *fields).status for _ in range(count))


def test_identities_have_buckets_of_their_own_across_workers(proxy: Proxy, mesh: Mesh) -> None:
    for who in ("billing", "support"):
        answers = []
        for _ in range(9):
            with RawClient(proxy.address("mutual"), mesh.client(who)) as client:
                answers.append(client.request(get("/x")))
        assert [answer.status for answer in answers] == [200] * 5 + [429] * 4
        for left, full_in, answer in zip((4, 3, 2, 1, 0), (720, 1440, 2160, 2880, 3600), answers, strict=False):
            told = re.fullmatch(r'"by-identity";r=(\d+);t=(\d+)', answer.get("ratelimit"))
            assert told, answer.get("ratelimit")
            assert int(told[1]) == left
            assert full_in - 20 < int(told[2]) <= full_in + 1
        refused = answers[-1]
        assert refused.get("ratelimit-policy") == '"by-identity";q=5;w=3600'
        assert 700 <= int(refused.get("retry-after")) <= 720
        assert refused.get("ratelimit") == f'"by-identity";r=0;t={refused.get("retry-after")}'
        assert refused.problem["code"] == "rate_limited"
        record = proxy.decision(refused.decision_id)
        assert record["why"]["reason"] == "rate_limited"
        assert record["why"]["detail"] == "limit by-identity"
        assert record["why"]["verdict"] == "refuse"
        assert record["who"]["principal"] == SHOP + who
        assert "upstream" not in record["outcome"]
    assert proxy.metric("meshguard_rate_limit_requests_total", limit="by-identity", outcome="refused") == 8
    assert proxy.metric("meshguard_rate_limit_requests_total", limit="by-identity", outcome="allowed") == 10


def test_a_denied_request_takes_nothing_after_the_decision_and_counts_before_it(proxy: Proxy) -> None:
    assert statuses(proxy, "plain-late", "/denied/x", 8) == {403: 8}
    assert statuses(proxy, "plain-late", "/x", 6) == {200: 4, 429: 2}
    assert statuses(proxy, "plain-early", "/denied/x", 3) == {403: 3}
    assert statuses(proxy, "plain-early", "/x", 3) == {200: 1, 429: 2}
    answer = ask(proxy, "plain-late", "/denied/x")
    assert (answer.status, answer.get("ratelimit")) == (403, ""), "who is denied is told nothing of limits"


def test_several_limits_the_strictest_answers_and_a_refusal_takes_nothing_from_the_others(proxy: Proxy) -> None:
    first = ask(proxy, "plain-routes", "/tight/x", "X-Tenant: a")
    assert first.status == 200
    assert first.get("ratelimit").startswith('"narrow";r=0;')
    assert first.get("ratelimit-policy") == '"wide";q=6;w=3600, "narrow";q=2;w=3600'
    assert statuses(proxy, "plain-routes", "/tight/x", 5, "X-Tenant: a") == {429: 5}
    second = ask(proxy, "plain-routes", "/tight/x", "X-Tenant: b")
    assert second.status == 200, "another key"
    assert statuses(proxy, "plain-routes", "/tight/x", 2, "X-Tenant: c") == {200: 1, 429: 1}
    rest = [ask(proxy, "plain-routes", "/other") for _ in range(7)]
    assert [answer.status for answer in rest] == [200] * 6 + [429], "a route of its own, and no narrow limit"
    assert rest[0].get("ratelimit").startswith('"wide";r=5;')


def test_http2_and_grpc_are_told_in_their_words(proxy: Proxy, mesh: Mesh) -> None:
    with H2Client(proxy.address("mutual"), mesh.client("shipping", ("h2",))) as client:
        answers = [client.get("/x") for _ in range(6)]
        assert [answer.status for answer in answers] == [200] * 5 + [429]
        assert answers[0].head is not None
        assert answers[0].head["ratelimit"].startswith('"by-identity";r=4;')
        assert answers[5].head is not None
        assert int(answers[5].head["retry-after"]) > 0
        fields = [("content-type", "application/grpc"), ("te", "trailers")]
        refused = client.answer(client.request("/orders.Orders/Get", "POST", fields))
        assert refused.head is not None
        assert (refused.status, refused.head["grpc-status"]) == (200, "8")


def test_a_limit_in_shadow_mode_refuses_nothing_and_is_reported(proxy: Proxy) -> None:
    mark = proxy.mark()
    answers = [ask(proxy, "plain-shadow", "/shadowed") for _ in range(5)]
    assert [answer.status for answer in answers] == [200] * 5
    assert {answer.get("ratelimit") for answer in answers} == {""}
    record = proxy.decision_where(lambda r: r["why"].get("detail") == "limit try (shadow)", "a record of it", mark)
    assert record["why"]["verdict"] == "allow"
    assert proxy.metric("meshguard_rate_limit_requests_total", limit="try", outcome="would_refuse") == 3


def test_who_waits_as_told_is_served(proxy: Proxy) -> None:
    with RawClient(proxy.address("plain-fast")) as client:
        codes = [client.request(get("/x")) for _ in range(3)]
        refused = next(answer for answer in codes if answer.status == 429)
        assert refused.get("retry-after") == "1"
        eventually(lambda: client.request(get("/x")).status == 200, "room again", 3)


def test_a_listener_without_limits_says_nothing(proxy: Proxy) -> None:
    answer = ask(proxy, "plain-free")
    assert (answer.status, answer.get("ratelimit"), answer.get("ratelimit-policy")) == (200, "", "")


def test_counts_outlive_a_reload_and_a_worker(proxy: Proxy) -> None:
    assert statuses(proxy, "plain-kept", "/x", 4) == {200: 3, 429: 1}
    since = len(proxy.stderr.items)
    proxy.signal(signal.SIGHUP)
    proxy.stderr.wait(lambda text: "reloaded by all workers" in text, "the reload", since=since)
    victim = orjson.loads(proxy.admin("/readyz")[1])["workers"]["each"][0]["pid"]
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: orjson.loads(proxy.admin("/readyz")[1])["workers"]["each"][0]["pid"] not in (0, victim), "the replacement")
    assert statuses(proxy, "plain-kept", "/x", 4) == {429: 4}


BAD = {
    "unknown-key": (limit("x", ["cookie"], 1), "identity, route, client_address"),
    "no-key": (limit("x", [], 1), "key"),
    "header-alone": (limit("x", ["header:X-A"], 1), "cannot choose"),
    "claim-without-issuer": (limit("x", ["claim:sub"], 1), "jwt"),
    "claim-before": (limit("x", ["claim:sub"], 1, before="decision"), "before the decision"),
    "identity-on-plain": (limit("x", ["identity"], 1), "client_address"),
    "unknown-route": (limit("x", ["client_address"], 1, routes=["nowhere"]), "route"),
    "nothing": (limit("x", ["client_address"], 0), "requests"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_limit_that_cannot_work_is_named_at_the_start(case: str, mesh: Mesh, tmp_path: Path) -> None:
    wrong, said = BAD[case]
    config = {
        "listeners": {"plain": {"address": "127.0.0.1:1", "tls": "none", "to": "app", "rate_limits": [wrong]}},
        "clusters": {"app": {"endpoints": ["127.0.0.1:2"]}},
        "policies": ["p.yaml"],
    }
    (tmp_path / "p.yaml").write_text("rules: []\n")
    path = tmp_path / "meshguard.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(DocumentError, match=said) as caught:
        load_configuration(path, now=0.0)
    assert all("rate_limits[0]" in problem.path for problem in caught.value.problems)


def test_two_limits_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = [limit("x", ["client_address"], 1)]
    config = {
        "listeners": {
            name: {"address": f"127.0.0.1:{port}", "tls": "none", "to": "app", "rate_limits": twice} for name, port in (("a", 1), ("b", 3))
        },
        "clusters": {"app": {"endpoints": ["127.0.0.1:2"]}},
        "policies": ["p.yaml"],
    }
    (tmp_path / "p.yaml").write_text("rules: []\n")
    path = tmp_path / "meshguard.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(DocumentError, match="no other limit"):
        load_configuration(path, now=0.0)
