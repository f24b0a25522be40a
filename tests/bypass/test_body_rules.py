"""Rules on bodies: no spelling, framing or size of a body gets it past a deny rule, or in by an allow rule that would not hold."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from itertools import count
from typing import Any

import httpx
import pytest

from tests.harness.client import RawClient, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import Proxy, eventually

ENGINES = ("default", "reference")
engines = pytest.mark.parametrize("engine", ENGINES)
JSON = "Content-Type: application/json"
FORM = "Content-Type: application/x-www-form-urlencoded"
LIMIT = 4096
_BIG = "body.amount > 5000 || body.role == 'admin'"
SECRET = "planted-9911-value"


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    limits = {"inspect_body_bytes": LIMIT, "body_idle_s": 1}
    config = {
        "identity": mesh.identity(directory := tmp_path_factory.mktemp("body-rules")),
        "listeners": {engine: {"tls": "mutual", "to": "app", "engine": engine, "limits": limits} for engine in ENGINES},
        "clusters": {"app": mesh.endpoints()},
    }
    caller = [SHOP + "billing"]
    policy = {
        "rules": [
            {"id": "not-admin", "deny": "anyone", "methods": ["POST"], "paths": ["/users"], "body": {"json": {"$.role": "admin"}}},
            {"id": "users", "allow": caller, "methods": ["POST"], "paths": ["/users", "/open"]},
            {"id": "small", "allow": caller, "methods": ["POST"], "paths": ["/transfers"], "body": {"json": {"$.amount": {"max": 5000}}}},
            {"id": "small-form", "allow": caller, "methods": ["POST"], "paths": ["/forms"], "body": {"form": {"amount": {"max": 5000}}}},
            {"id": "no-big", "deny": "anyone", "methods": ["POST"], "paths": ["/cel"], "when": _BIG},
            {"id": "cel", "allow": caller, "methods": ["POST"], "paths": ["/cel"]},
            {"id": "own", "allow": caller, "methods": ["POST"], "paths": ["/own"], "when": "body.owner == identity.spiffe_id"},
            {
                "id": "shadow",
                "deny": "anyone",
                "methods": ["POST"],
                "paths": ["/shadowed"],
                "body": {"json": {"$.level": {"above": 5}}},
                "shadow": True,
            },
            {"id": "shadowed", "allow": caller, "methods": ["POST"], "paths": ["/shadowed"]},
            {"id": "closed", "deny": "anyone", "paths": ["/users/closed"]},
            {
                "id": "mixed",
                "allow": caller,
                "methods": ["POST"],
                "paths": ["/mixed"],
                "headers": {"x-key": "k"},
                "body": {"json": {"$.a": 1}},
            },
            {"id": "mixed-plain", "allow": caller, "methods": ["POST"], "paths": ["/mixed"], "headers": {"x-plain": "1"}},
        ]
    }
    with Proxy(directory, config, policies={"p.yaml": policy}) as made:
        yield made
    assert "Traceback" not in made.stderr_text
    assert SECRET.encode() not in made.log_bytes


def send(
    proxy: Proxy, mesh: Mesh, engine: str, path: str, body: bytes, *fields: str, framed: bytes | None = None, who: str = "billing"
) -> tuple[int, str, bool]:
    """(status, code of the refusal, whether the upstream has seen anything)."""
    mark = mesh.upstream.mark()
    listed = list(fields) or [JSON]
    with RawClient(proxy.address(engine), mesh.client(who)) as client:
        if framed is None:
            answer = client.request(get(path, method="POST", fields=listed, body=body))
        else:
            answer = client.request(get(path, method="POST", fields=[*listed, "Transfer-Encoding: chunked"]) + framed)
    code = json.loads(answer.body)["code"] if answer.status >= 400 else ""
    return answer.status, code, bool(mesh.upstream.since(mark))


_MARKED = count(1)


def recorded(proxy: Proxy, mesh: Mesh, engine: str, path: str, body: bytes, *fields: str, framed: bytes | None = None) -> dict[str, Any]:
    """The record of a request, known by the length of its query."""
    mark = next(_MARKED)
    send(proxy, mesh, engine, f"{path}?{'q' * mark}", body, *fields, framed=framed)
    return proxy.decision_where(lambda each: each["what"].get("query_bytes") == mark, "the record")


GOOD: dict[str, list[bytes]] = {
    "/users": [
        b'{"role":"user"}',
        b'{"name":"x"}',
        b'{"role":null}',
        b'{"a":{"role":"admin"}}',
        b'{"roleName":"admin"}',
        b'{"x":"\\u0061"}',
        b'{"role":"+AGEAZABtAGkAbg-"}',
    ],
    "/transfers": [b'{"amount":5000}', b'{"amount":5e3}', b'{"amount":5000.0}', b'{"amount":-1}', b' {"amount" : 4999.99 } '],
    "/cel": [b'{"amount":5,"role":"user"}', b'{"amount":5000.0,"role":""}'],
}
DUPLICATE = b'{"role":"user","role":"admin"}'
BAD: dict[str, list[tuple[bytes, str]]] = {
    "/users": [
        (b'{"role":"admin"}', "policy_denied"),
        (b'{"r\\u006fle":"adm\\u0069n"}', "policy_denied"),  # escapes
        (DUPLICATE, "body_invalid"),
        (b'{"role":"admin","role":"user"}', "body_invalid"),
        (b'{"x":{"a":1,"a":1}}', "body_invalid"),  # duplicates anywhere: whoever reads it may read it in another way
        (b'{"role":"user","Role":"admin"}', "policy_denied"),  # readers that ignore case take the last one
        (b'{"ROLE":"admin"}', "policy_denied"),
        (b'{"r\xc5\xbfole":1,"ro\xe2\x80\x8ble":1,"role[]":"admin"}', "policy_denied"),
        (b'{"role":["admin"]}', "policy_denied"),  # readers that unwrap
        (b'{"role":{"$eq":"admin"}}', "policy_denied"),
        (b'{"role":1}', "policy_denied"),
        (b'[{"role":"admin"}]', "policy_denied"),
        (b'"admin"', "policy_denied"),
        (b"", "policy_denied"),
        (b'{"role":"admin"', "body_invalid"),
        (b'{"role":"user"}{"role":"admin"}', "body_invalid"),
        (b'\xef\xbb\xbf{"role":"admin"}', "body_invalid"),
        ('{"role":"admin"}'.encode("utf-16"), "body_invalid"),
        (b"{'role':'admin'}", "body_invalid"),
        (b'{"role":"user"/**/,"x":NaN}', "body_invalid"),
        (b'{"role":"\xff"}', "body_invalid"),
        (b'{"role":"\\ud800"}', "body_invalid"),
        (b'{"x":' + b"[" * 80 + b"]" * 80 + b"}", "body_invalid"),
        (b'{"role":"user","x":"' + b"a" * LIMIT + b'"}', "body_over_limit"),
    ],
    "/transfers": [
        (b'{"amount":5001}', "no_rule"),
        (b'{"amount":5.001e3}', "no_rule"),
        (b'{"amount":50010e-1}', "no_rule"),
        (b'{"amount":"1"}', "no_rule"),
        (b'{"amount":true}', "no_rule"),
        (b'{"amount":[1]}', "no_rule"),
        (b'{"amount":null}', "no_rule"),
        (b"{}", "no_rule"),
        (b'{"amount":5000.0000000000000001}', "body_invalid"),  # on one side as a decimal, on the other as a double
        (b'{"amount":1e-400}', "body_invalid"),
        (b'{"amount":1e400}', "body_invalid"),
        (b'{"amount":0x10}', "body_invalid"),
        (b'{"amount":+1}', "body_invalid"),
        (b'{"amount":01}', "body_invalid"),
        (b'{"amount":1_0}', "body_invalid"),
        (b'{"amount":1.}', "body_invalid"),
        (b'{"amount":-Infinity}', "body_invalid"),
        (b'{"amount":' + b"9" * 500 + b"}", "body_invalid"),
        (b'{"amount":1,"amount":9999}', "body_invalid"),
        (b'{"amount":1,"Amount":9999}', "no_rule"),
        (b"", "no_rule"),
    ],
    "/cel": [
        (b'{"amount":5001,"role":""}', "policy_denied"),
        (b'{"amount":5001.5,"role":""}', "policy_denied"),
        (b'{"amount":"9999","role":""}', "policy_denied"),
        (b'{"role":"x"}', "policy_denied"),
        (b'{"amount":1,"role":"user","Role":"admin"}', "policy_denied"),
        (b'{"amount":1,"role":"user","role":"admin"}', "body_invalid"),
        (b'{"amount":99999999999999999999,"role":""}', "policy_denied"),
        (b"[]", "policy_denied"),
        (b"", "policy_denied"),
    ],
}


@engines
def test_what_a_body_says_decides(engine: str, proxy: Proxy, mesh: Mesh) -> None:
    for path, bodies in GOOD.items():
        for body in bodies:
            assert send(proxy, mesh, engine, path, body) == (200, "", True), (path, body)
            assert mesh.upstream.requests[-1].body == body  # octet for octet
    for path, cases in BAD.items():
        for body, code in cases:
            status, told, seen = send(proxy, mesh, engine, path, body)
            assert (told, seen) == (code, False), (path, body[:60], status, told)


@engines
def test_types_and_codings(engine: str, proxy: Proxy, mesh: Mesh) -> None:
    """The rule names the format: another one is refused whatever is in it, because not every upstream looks at the Content-Type."""
    admin, user = b'{"role":"admin"}', b'{"role":"user"}'
    for kind in (
        "text/plain",
        "application/x-www-form-urlencoded",
        "application/octet-stream",
        "text/json",
        "application/jsonx",
        "multipart/form-data",
        "application/json; charset=utf-16",
        "application/json, text/plain",
        "",
        "json",
        "application /json",
        "application/x-ndjson",
    ):
        assert send(proxy, mesh, engine, "/users", admin, f"Content-Type: {kind}")[1:] == ("body_not_inspectable", False), kind
    for fields in ([JSON, JSON], [JSON, FORM], ["X-Nothing: 1"]):
        assert send(proxy, mesh, engine, "/users", user, *fields)[1:] == ("body_not_inspectable", False), fields
    for kind in ("application/json;charset=UTF-8", "APPLICATION/JSON", "application/vnd.shop+json", 'application/json; charset="utf-8"'):
        assert send(proxy, mesh, engine, "/users", admin, f"Content-Type: {kind}")[1:] == ("policy_denied", False), kind
        assert send(proxy, mesh, engine, "/users", user, f"Content-Type: {kind}")[0] == 200, kind
    coded = [JSON, "Content-Encoding: gzip"]
    assert send(proxy, mesh, engine, "/users", gzip.compress(user), *coded) == (200, "", True)
    assert mesh.upstream.requests[-1].body == gzip.compress(user) or gzip.decompress(mesh.upstream.requests[-1].body) == user
    assert send(proxy, mesh, engine, "/users", gzip.compress(admin), *coded)[1:] == ("policy_denied", False)
    for body, fields, code in (
        (gzip.compress(user) + gzip.compress(admin), coded, "body_invalid"),  # readers of members after the first
        (gzip.compress(user) + admin, coded, "body_invalid"),
        (gzip.compress(user)[:-4], coded, "body_invalid"),
        (user, coded, "body_invalid"),
        (gzip.compress(gzip.compress(admin)), [JSON, "Content-Encoding: gzip, gzip"], "body_not_inspectable"),
        (zlib.compress(admin), [JSON, "Content-Encoding: deflate"], "body_not_inspectable"),
        (admin, [JSON, "Content-Encoding: x-unknown"], "body_not_inspectable"),
        (gzip.compress(user[:-1] + b" " * 2 * LIMIT + b"}"), coded, "body_over_limit"),  # a small bomb
    ):
        assert send(proxy, mesh, engine, "/users", body, *fields)[1:] == (code, False), (body[:20], fields)
    # no type in the request line or in the path changes what is read, and a body rule of one path does not read others
    assert send(proxy, mesh, engine, "/open", admin, "Content-Type: text/plain") == (200, "", True)


@engines
def test_however_it_is_cut(engine: str, proxy: Proxy, mesh: Mesh) -> None:
    for body, status in ((b'{"role":"user"}', 200), (b'{"role":"admin"}', 403)):
        chunks = b"".join(b"1\r\n%c\r\n" % octet for octet in body) + b"0\r\n\r\n"
        assert send(proxy, mesh, engine, "/users", b"", framed=chunks)[0] == status
        with RawClient(proxy.address(engine), mesh.client("billing")) as client:
            client.send(get("/users", method="POST", fields=[JSON, f"Content-Length: {len(body)}"]), expect="POST")
            for octet in body:
                client.send(bytes((octet,)))
            assert client.response().status == status
        if status == 200:
            assert mesh.upstream.requests[-1].body == body
    status, code, seen = send(proxy, mesh, engine, "/users", b"", framed=b"%x\r\n" % (LIMIT + 1) + b" " * (LIMIT + 1) + b"\r\n0\r\n\r\n")
    assert (status, code, seen) == (413, "body_over_limit", False)
    trailed = b'10\r\n{"role":"admin"}\r\n0\r\nX-Role: user\r\n\r\n'
    assert send(proxy, mesh, engine, "/users", b"", framed=trailed)[1:] == ("policy_denied", False)
    eventually(lambda: proxy.metric("meshguard_inspection_held_bytes") == 0, "an empty inspection budget")


@engines
def test_forms(engine: str, proxy: Proxy, mesh: Mesh) -> None:
    for body in (b"amount=5000", b"amount=%35&x=1", b"x=1&amount=-3.5", b"amount=1&amount=2"):
        assert send(proxy, mesh, engine, "/forms", body, FORM) == (200, "", True), body
    for body in (
        b"amount=5001",
        b"amount=1&amount=9999",
        b"amount=1&Amount=9999",
        b"amount=1&amount[]=9999",
        b"amount=1e9",
        b"amount=",
        b"amount",
        b"x=1",
        b"amount=1;amount=9999",
        b"amount=%zz",
        b"amount=%ff",
        b"amount=1&amount%00=9999",
        b"amount=0x1",
        b"amount=5000.0000000000000001",
    ):
        status, code, seen = send(proxy, mesh, engine, "/forms", body, FORM)
        assert (status in (400, 403), seen) == (True, False), (body, status, code)
    assert send(proxy, mesh, engine, "/forms", b'{"amount":1}', JSON)[1:] == ("body_not_inspectable", False)
    assert send(proxy, mesh, engine, "/forms", b"amount=1", FORM, "Content-Type: text/plain")[1:] == ("body_not_inspectable", False)


@engines
def test_nothing_is_gathered_for_an_answer_that_stands(engine: str, proxy: Proxy, mesh: Mesh) -> None:
    """Who is not allowed whatever the body says is told at once: before the body, and without `100 Continue`."""
    announced = [JSON, "Content-Length: 1000", "Expect: 100-continue"]
    for who, path, code in (
        ("support-eu", "/transfers", "no_rule"),
        ("billing", "/users/closed", "policy_denied"),
        ("billing", "/nothing", "no_rule"),
    ):
        with RawClient(proxy.address(engine), mesh.client(who)) as client:
            client.send(get(path, method="POST", fields=announced), expect="POST")
            answer = client.response()
            assert (json.loads(answer.body)["code"], answer.interim) == (code, []), path
    with RawClient(proxy.address(engine), mesh.client("billing")) as client:  # too long, in a type that nobody reads: known from the head
        client.send(get("/users", method="POST", fields=[JSON, f"Content-Length: {LIMIT + 1}", "Expect: 100-continue"]), expect="POST")
        answer = client.response()
        assert (answer.status, answer.interim) == (413, [])
    # a rule that does not need the body settles it: what is too large for the others passes
    big = b'{"a":2,"x":"' + b"a" * LIMIT + b'"}'
    assert send(proxy, mesh, engine, "/mixed", big, JSON, "X-Plain: 1") == (200, "", True)
    assert send(proxy, mesh, engine, "/mixed", big, JSON, "X-Key: k")[1:] == ("body_over_limit", False)
    assert send(proxy, mesh, engine, "/mixed", b'{"a":2}', JSON, "X-Key: k")[1:] == ("no_rule", False)
    assert send(proxy, mesh, engine, "/mixed", b'{"a":1.0}', JSON, "X-Key: k")[0] == 200


@engines
def test_expect_is_answered_once_where_the_body_decides(engine: str, proxy: Proxy, mesh: Mesh) -> None:
    for body, status in ((b'{"amount":1}', 200), (b'{"amount":9999}', 403)):
        mark = mesh.upstream.mark()
        with RawClient(proxy.address(engine), mesh.client("billing")) as client:
            client.send(
                get("/transfers", method="POST", fields=[JSON, f"Content-Length: {len(body)}", "Expect: 100-continue"]), expect="POST"
            )
            assert client.head().status == 100
            assert mesh.upstream.since(mark) == []
            client.send(body)
            client._pull()
            answer = client.response()
            assert (answer.status, answer.interim) == (status, [])


@engines
def test_the_record_says_that_the_body_was_judged_and_not_what_it_says(engine: str, proxy: Proxy, mesh: Mesh) -> None:
    for body, rule, verdict in (
        (json.dumps({"role": "user", "x": SECRET}).encode(), "users", "allow"),
        (json.dumps({"role": "admin", "x": SECRET}).encode(), "not-admin", "deny"),
        (json.dumps({"role": [SECRET]}).encode(), "not-admin", "deny"),
    ):
        record = recorded(proxy, mesh, engine, "/users", body)
        assert (record["why"]["verdict"], record["why"]["rule"], record["why"]["body"]) == (verdict, rule, "judged")
    record = recorded(proxy, mesh, engine, "/transfers", json.dumps({"amount": 5001, "x": SECRET}).encode())
    assert record["why"]["near_miss"] == {"rule": "small", "condition": "body", "detail": "body json $.amount max 5000"}
    assert "body" not in recorded(proxy, mesh, engine, "/open", b"{}")["why"]


@engines
def test_shadow_rules_change_nothing(engine: str, proxy: Proxy, mesh: Mesh) -> None:
    """A shadow rule reads the body only where reading it cannot fail; then it tells, and in any case the request passes."""
    told = [{"rule": "shadow", "effect": "would_deny"}]
    big = b'{"level":9,"x":"' + b"a" * LIMIT + b'"}'
    for body, framed, fields, shadow in (
        (b'{"level":9}', None, [JSON], told),
        (b'{"level":1}', None, [JSON], None),
        (b"{", None, [JSON], told),  # what it could not read it would deny
        (b'{"level":1}', None, ["Content-Type: text/plain"], told),
        (b"", None, [JSON], told),
        (big, None, [JSON], None),
        (b"", b"b\r\n" + b'{"level":9}' + b"\r\n0\r\n\r\n", [JSON], None),
    ):
        record = recorded(proxy, mesh, engine, "/shadowed", body, *fields, framed=framed)
        assert record["why"]["verdict"] == "allow", body[:20]
        assert record["why"].get("shadow") == shadow, body[:20]
        assert mesh.upstream.requests[-1].body == (b'{"level":9}' if framed else body)


@engines
def test_a_body_that_does_not_come_ends_in_time(engine: str, proxy: Proxy, mesh: Mesh) -> None:
    mark = mesh.upstream.mark()
    with RawClient(proxy.address(engine), mesh.client("billing")) as client:
        client.send(get("/transfers", method="POST", fields=[JSON, "Content-Length: 14"]) + b'{"amount"', expect="POST")
        eventually(lambda: proxy.metric("meshguard_inspection_held_bytes") == 9, "the octets that came")
        assert client.response().status == 408
        client.assert_closed()
    eventually(lambda: proxy.metric("meshguard_inspection_held_bytes") == 0, "an empty inspection budget")
    with RawClient(proxy.address(engine), mesh.client("billing")) as client:  # and who leaves gives it back too
        client.send(get("/transfers", method="POST", fields=[JSON, "Content-Length: 14"]) + b'{"amount"', expect="POST")
        eventually(lambda: proxy.metric("meshguard_inspection_held_bytes") == 9, "the octets that came")
    eventually(lambda: proxy.metric("meshguard_inspection_held_bytes") == 0, "an empty inspection budget")
    assert mesh.upstream.since(mark) == []


def test_http2(proxy: Proxy, mesh: Mesh) -> None:
    host, port = proxy.address("default")
    mark = mesh.upstream.mark()
    with httpx.Client(http2=True, verify=mesh.client("billing", ("h2",))) as client:
        url = f"https://{host}:{port}"

        def post(path: str, content: Any) -> tuple[int, str]:
            answer = client.post(url + path, content=content, headers={"content-type": "application/json"})
            assert answer.http_version == "HTTP/2"
            return answer.status_code, answer.json()["code"] if answer.status_code >= 400 else ""

        assert post("/users", b'{"role":"admin"}') == (403, "policy_denied")
        assert post("/users", iter([b'{"role":', b'"adm', b'in"}'])) == (403, "policy_denied")
        assert post("/users", iter([b'{"role":"user","x":"', b"a" * LIMIT, b'"}'])) == (413, "body_over_limit")
        assert post("/users", DUPLICATE) == (400, "body_invalid")
        assert post("/own", json.dumps({"owner": SHOP + "other"}).encode()) == (403, "no_rule")
        assert mesh.upstream.since(mark) == []
        assert post("/users", iter([b'{"role":', b'"us', b'er"}'])) == (200, "")
        assert mesh.upstream.requests[-1].body == b'{"role":"user"}'
        assert post("/own", json.dumps({"owner": SHOP + "billing"}).encode()) == (200, "")
