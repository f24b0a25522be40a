"""Hop-by-hop fields, fields named in Connection, upgrades and methods that open tunnels (RFC 9110 7.6.1, security.md 1)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.cases import Case, Either, Forwarded, Refused, attack, run
from tests.harness.client import RawClient, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.upstream import Seen, raw

SPOOF = "URI=" + SHOP + "admin"


def _check(absent: tuple[str, ...] = (), present: dict[str, str] | None = None) -> Callable[[list[Seen]], None]:
    def check(seen: list[Seen]) -> None:
        head = seen[0].head
        for name in absent:
            assert head.all(name) == [], f"{name} was forwarded: {head.raw!r}"
        for name, value in (present or {}).items():
            assert head.get(name) == value, f"{name}: {head.raw!r}"
        named = [v.strip().lower() for value in head.all("connection") for v in value.split(",")]
        assert set(named) <= {"keep-alive", "close"}, f"Connection names other fields: {head.raw!r}"

    return check


def _case(
    name: str, fields: list[str], *, absent: tuple[str, ...] = (), present: dict[str, str] | None = None, closes: bool | None = False
) -> Case:
    return Case(name, get("/c", fields=fields), Forwarded(("/c",), check=_check(absent, present), closes=closes))


CASES = [
    _case("named", ["Connection: x-a", "X-A: 1", "X-B: 2"], absent=("x-a",), present={"x-b": "2"}),
    _case("named-case", ["CONNECTION: X-A", "x-a: 1"], absent=("x-a",)),
    _case("named-list", ["Connection: keep-alive,x-a ,\tx-b", "X-A: 1", "X-B: 1"], absent=("x-a", "x-b")),
    _case("named-empty-members", ["Connection: ,, x-a,,", "X-A: 1"], absent=("x-a",)),
    _case("named-lines", ["Connection: x-a", "X-A: 1", "Connection: x-b", "X-B: 1"], absent=("x-a", "x-b")),
    _case("named-before", ["X-A: 1", "Connection: x-a"], absent=("x-a",)),
    _case("named-repeated-field", ["X-A: 1", "Connection: x-a", "X-A: 2", "x-a: 3"], absent=("x-a",)),
    _case("close-and-named", ["Connection: close, x-a", "X-A: 1"], absent=("x-a",), closes=True),
    _case("close-upper", ["Connection: CLOSE"], closes=True),
    _case("host", ["Connection: host"], present={"host": "shop.example"}),
    _case("xfcc", ["Connection: x-forwarded-client-cert", f"X-Forwarded-Client-Cert: {SPOOF}"]),
    _case("forwarded-for", ["Connection: x-forwarded-for", "X-Forwarded-For: 1.2.3.4"]),
    _case("via", ["Connection: via", "Via: 1.1 someone"]),
    _case("traceparent", ["Connection: traceparent"]),
    _case("own", ["Connection: x-forwarded-client-cert, x-forwarded-for, x-forwarded-proto, forwarded, via, traceparent, x-request-id"]),
    _case("keep-alive", ["Connection: keep-alive", "Keep-Alive: timeout=5"], absent=("keep-alive",)),
    _case("keep-alive-not-named", ["Keep-Alive: timeout=5"], absent=("keep-alive",)),
    _case("proxy-connection", ["Proxy-Connection: keep-alive"], absent=("proxy-connection",)),
    _case("proxy-authorization", ["Proxy-Authorization: Basic eA=="], absent=("proxy-authorization",)),
    _case("te-gzip", ["TE: gzip, deflate"], absent=("te",)),
    _case("te-named", ["TE: gzip", "Connection: te"], absent=("te",)),
    _case("trailer", ["Trailer: x"], absent=("trailer",)),
    _case("max-forwards-get", ["Max-Forwards: 3"]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_connection_fields(case: Case, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    attack(case, engine, dial, mesh.upstream)


@pytest.mark.parametrize("name", ["x-forwarded-client-cert", "x-forwarded-for", "via"])
def test_own_fields_survive_being_named(name: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """What meshguard adds is added after the stripping: a client cannot name it away."""
    mark = mesh.upstream.mark()
    with dial(engine) as client:
        assert client.request(get("/own")).status == 200
        assert client.request(get("/own", fields=[f"Connection: {name}"])).status == 200
    plain, named = mesh.upstream.since(mark)
    assert bool(plain.head.all(name)) == bool(named.head.all(name))
    assert named.head.all("x-forwarded-client-cert"), "no XFCC towards the upstream"


@pytest.mark.parametrize(("sent", "arrives"), [("7", "6"), ("1", "0"), ("  10\t", "9"), ("0003", "2")])
def test_max_forwards_of_options_counts_down(sent: str, arrives: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    mark = mesh.upstream.mark()
    with dial(engine) as client:
        assert client.request(get("/c", fields=[f"Max-Forwards: {sent}"], method="OPTIONS")).status == 200
        assert client.request(get("/c", fields=["Max-Forwards: 0"])).status == 200  # means nothing on other methods
    counted, other = mesh.upstream.since(mark)
    assert counted.head.all("max-forwards") == [arrives]
    assert other.head.all("max-forwards") == ["0"]


def test_max_forwards_ends_here(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """RFC 9110 section 7.6.2: at zero the request goes no further, and we answer it (after the decision, like any other)."""
    mark = mesh.upstream.mark()
    with dial(engine) as client:
        answer = client.request(get("/c", fields=["Max-Forwards: 0"], method="OPTIONS"))
        assert (answer.status, answer.body) == (200, b"")
        assert "GET" in answer.get("allow")
        assert client.request(get("/admin/c", fields=["Max-Forwards: 0"], method="OPTIONS")).status == 403
    for bad in ["-1", "+1", "1, 2", "", "1" * 11, "0x1", "1_0"]:
        run(
            Case("bad", get("/c", fields=[f"Max-Forwards: {bad}"], method="OPTIONS"), Refused(frozenset({400}))),
            "whole",
            lambda: dial(engine),
            mesh.upstream,
        )
    run(
        Case("two", get("/c", fields=["Max-Forwards: 1", "Max-Forwards: 1"], method="OPTIONS"), Refused(frozenset({400}))),
        "whole",
        lambda: dial(engine),
        mesh.upstream,
    )
    assert not [seen for seen in mesh.upstream.since(mark) if seen.method == "OPTIONS"]


@pytest.mark.parametrize(
    "value",
    ["x-a\x01", "x-a\x0b", '"x-a"', "x-a;q=1", "x a", "(x)", "x-a:", "\xe9"],
)
def test_malformed_connection_values(value: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """Not tokens: refused, or taken as naming nothing; never a way to strip or keep what another server would not."""
    case = Case(
        "malformed",
        get("/c", fields=[f"Connection: {value}", "X-A: 1"]),
        Either(Refused(frozenset({400})), Forwarded(("/c",), closes=None, check=_check())),
    )
    run(case, "whole", lambda: dial(engine), mesh.upstream)


def test_a_debug_field_is_judged_or_gone(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """Rule `no-debug` denies `x-debug: on`: on any line, however it is written; naming it in Connection must not carry it through."""
    denied = Refused(frozenset({403}), closes=None)
    for fields in (["X-Debug: on"], ["x-debug:on"], ["X-Debug: off", "X-Debug: on"], ["X-DEBUG: on", "x-debug: off"], ["X-Debug:   on\t"]):
        run(Case("debug", get("/d", fields=fields), denied), "halves", lambda: dial(engine), mesh.upstream)
    gone = Forwarded(("/d",), check=_check(absent=("x-debug",)))
    run(
        Case("debug-named", get("/d", fields=["X-Debug: on", "Connection: x-debug"]), Either(denied, gone)),
        "whole",
        lambda: dial(engine),
        mesh.upstream,
    )


UPGRADES = {
    "h2c": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"],
    "h2c-lower": ["connection: upgrade", "upgrade: h2c"],
    "h2c-not-named": ["Upgrade: h2c"],
    "h2": ["Connection: Upgrade", "Upgrade: h2"],
    "h2c-list": ["Connection: Upgrade", "Upgrade: foo, h2c"],
    "h2c-lines": ["Connection: Upgrade", "Upgrade: foo", "Upgrade: h2c"],
    "h2c-case": ["Connection: Upgrade", "Upgrade: H2C"],
    "tls": ["Connection: Upgrade", "Upgrade: TLS/1.0"],
    "http2": ["Connection: Upgrade", "Upgrade: HTTP/2.0"],
    "any": ["Connection: Upgrade", "Upgrade: anything/9"],
    "settings-alone": ["HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"],
    "settings-named": ["Connection: HTTP2-Settings", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"],
    "websocket": ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13"],
    "websocket-bad-version": ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 777"],
}


@pytest.mark.parametrize("kind", [kind for kind in UPGRADES if kind != "websocket"])
def test_upgrades_never_reach_the_upstream(kind: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """Refused, or served as an ordinary request with the upgrade stripped; bytes behind it are judged as requests."""
    stripped = Forwarded(("/u",), closes=None, check=_check(absent=("upgrade", "http2-settings")))
    refused = Refused(frozenset({400, 403, 426, 501}), closes=None)
    run(Case(kind, get("/u", fields=UPGRADES[kind]), Either(refused, stripped)), "halves", lambda: dial(engine), mesh.upstream)


@pytest.mark.parametrize("kind", ["h2c", "websocket", "any"])
def test_requests_behind_an_upgrade_are_judged(kind: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    mark = mesh.upstream.mark()
    with dial(engine) as client:
        client.send(get("/u", fields=UPGRADES[kind]) + get("/admin/tunnel"))
        statuses = [client.response().status]
        statuses += [a.status for a in client.rest()] if client.eof else [client.response().status] if statuses[0] == 200 else []
    assert 101 not in statuses
    assert "/admin/tunnel" not in [s.target for s in mesh.upstream.since(mark)]


@pytest.mark.parametrize("kind", ["h2c", "websocket", "any"])
def test_an_upstream_that_says_101_opens_no_tunnel(kind: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """An unasked 101 is a broken answer: 502, and its connection is not used again."""
    with (
        mesh.upstream.on(
            "/u",
            raw(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
                + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nSTOLEN"
            ),
        ),
        dial(engine) as client,
    ):
        answer = client.request(get("/u", fields=UPGRADES[kind]))
        assert answer.status in (400, 403, 426, 501, 502), answer
        assert b"STOLEN" not in answer.body
    with dial(engine) as client:
        assert client.request(get("/plain")).get("x-seen-target") == "/plain"


METHODS = [
    Case("connect-authority", b"CONNECT shop.example:443 HTTP/1.1\r\nHost: shop.example:443\r\n\r\n", Refused(frozenset({400, 405, 501}))),
    Case("connect-path", b"CONNECT /x HTTP/1.1\r\nHost: shop.example\r\n\r\n", Refused(frozenset({400, 405, 501}))),
    Case(
        "connect-behind",
        b"CONNECT shop.example:443 HTTP/1.1\r\nHost: shop.example:443\r\n\r\n" + get("/tunnelled"),
        Refused(frozenset({400, 405, 501})),
    ),
    Case(
        "connect-length",
        b"CONNECT shop.example:443 HTTP/1.1\r\nHost: shop.example:443\r\nContent-Length: 5\r\n\r\nhello",
        Refused(frozenset({400, 405, 501})),
    ),
    Case("trace", b"TRACE /t HTTP/1.1\r\nHost: shop.example\r\nAuthorization: x\r\n\r\n", Refused(frozenset({403, 405, 501}), closes=None)),
    Case(
        "trace-max-forwards",
        b"TRACE /t HTTP/1.1\r\nHost: shop.example\r\nMax-Forwards: 0\r\n\r\n",
        Refused(frozenset({403, 405, 501}), closes=None),
    ),
    Case(
        "trace-body",
        b"TRACE /t HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 5\r\n\r\nhello",
        Refused(frozenset({400, 403, 405, 501}), closes=None),
    ),
]


@pytest.mark.parametrize("case", METHODS, ids=lambda c: c.id)
def test_tunnel_methods(case: Case, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    attack(case, engine, dial, mesh.upstream)


def test_response_side_is_stripped_too(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    data = (
        b"HTTP/1.1 200 OK\r\nConnection: x-a, keep-alive\r\nX-A: 1\r\nX-B: 2\r\nKeep-Alive: timeout=9\r\n"
        b"Proxy-Connection: x\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nok"
    )
    with mesh.upstream.on("/r", raw(data)), dial(engine) as client:
        answer = client.request(get("/r"))
        assert (answer.status, answer.body, answer.get("x-b")) == (200, b"ok", "2")
        for name in ("x-a", "keep-alive", "proxy-connection", "upgrade"):
            assert answer.head.all(name) == [], (name, answer.head.raw)
        assert client.request(get("/again")).status == 200
