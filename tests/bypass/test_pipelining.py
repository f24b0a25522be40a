"""Serial exchanges: each request on a connection is judged on its own, and the rest of a denied one is never taken for a request."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.cases import ALL_SEGMENTATIONS, Case, Either, Forwarded, Refused, attack, innocent, run
from tests.harness.client import RawClient, chunked, get, segments
from tests.harness.mesh import Mesh
from tests.harness.strict import Truncated
from tests.harness.upstream import Exchange, Seen

SMUGGLED = get("/smuggled")


@pytest.mark.parametrize("how", ALL_SEGMENTATIONS)
def test_second_request_is_judged_on_its_own(how: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    case = Case("denied-second", get("/first") + get("/admin/x"), Refused(frozenset({403}), closes=None, first=("/first",)))
    run(case, how, lambda: dial(engine), mesh.upstream)


@pytest.mark.parametrize("how", ["whole", "threes"])
def test_order_is_kept(how: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """More requests than one turn of the loop serves, some denied, some with bodies, some to a slow upstream: answers in order."""

    async def slow(exchange: Exchange) -> None:
        await exchange.read()
        for piece in (b"HTTP/1.1 200 OK\r\n", b"X-Seen-Target: /slow\r\nContent-Length: 2\r\n\r\n", b"ok"):
            await exchange.send(piece)

    data, expected = b"", []
    for i in range(90):
        if i % 9 == 4:
            data += get(f"/admin/{i}")
            expected.append((403, ""))
        elif i % 9 == 7:
            data += get(f"/p/{i}", method="POST", body=b"GET /smuggled HTTP/1.1\r\n\r\n")
            expected.append((200, f"/p/{i}"))
        elif i % 30 == 2:
            data += get("/slow")
            expected.append((200, "/slow"))
        else:
            data += get(f"/p/{i}")
            expected.append((200, f"/p/{i}"))
    with mesh.upstream.on("/slow", slow), dial(engine) as client:
        client.send(segments(data, how))
        got = []
        for _ in expected:
            answer = client.response()
            got.append((answer.status, answer.get("x-seen-target")))
    assert got == expected


BODIES = {
    "length": lambda body: get("/admin/x", method="POST", body=body),
    "chunked": lambda body: get("/admin/x", method="POST", fields=["Transfer-Encoding: chunked"]) + chunked(body),
    "chunks-of-requests": lambda body: get("/admin/x", method="POST", fields=["Transfer-Encoding: chunked"]) + chunked(body, body, body),
}


@pytest.mark.parametrize("how", ["whole", "halves", "bytes"])
@pytest.mark.parametrize("kind", BODIES)
def test_body_of_a_denied_request_is_not_a_request(kind: str, how: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """After the refusal either the connection ends or exactly the request behind the body is served."""
    mark = mesh.upstream.mark()
    with dial(engine) as client:
        client.send(segments(BODIES[kind](SMUGGLED) + get("/after"), how))
        first = client.response()
        assert first.status == 403, first
        try:
            rest = [client.response()]
        except Truncated:
            rest = []
    assert [a.get("x-seen-target") for a in rest] in ([], ["/after"])
    assert [s.target for s in mesh.upstream.since(mark)] in ([], ["/after"])


@pytest.mark.parametrize("size", [70_000, 5_000_000])
def test_large_body_of_a_denied_request_is_not_swallowed(size: int, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """Beyond the drain limit of 64 KiB the connection ends: the refusal is still readable and nothing goes upstream."""
    mark = mesh.upstream.mark()
    with dial(engine) as client:
        client.send(f"POST /admin/x HTTP/1.1\r\nHost: shop.example\r\nContent-Length: {size}\r\n\r\n".encode())
        answer = client.response()
        assert answer.status == 403
        assert answer.get("connection").lower() == "close"
        client.send([SMUGGLED] * 50)
        client.assert_closed()
    assert mesh.upstream.since(mark) == []


def test_denied_with_endless_chunked_body_closes(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    mark = mesh.upstream.mark()
    with dial(engine) as client:
        client.send(get("/admin/x", method="POST", fields=["Transfer-Encoding: chunked"]))
        answer = client.response()
        assert answer.status == 403
        piece = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
        client.send([piece] * 20)  # 320 KiB: more than is drained
        client.assert_closed()
    assert mesh.upstream.since(mark) == []


# ---- Expect


def _no_expect(seen: list[Seen]) -> None:
    assert seen[0].head.all("expect") == [], "Expect was forwarded"


EXPECT = [
    Case(
        "expect",
        get("/e", method="POST", fields=["Expect: 100-continue"], body=b"hello"),
        Forwarded(("/e",), bodies=(b"hello",), check=_no_expect),
    ),
    Case(
        "expect-case",
        get("/e", method="POST", fields=["expect: 100-Continue"], body=b"hello"),
        Forwarded(("/e",), bodies=(b"hello",), check=_no_expect),
    ),
    Case("expect-no-body", get("/e", fields=["Expect: 100-continue"]), Forwarded(("/e",), check=_no_expect)),
    Case("expect-unknown", get("/e", method="POST", fields=["Expect: 200-ok"], body=b"hello"), Refused(frozenset({417, 400}), closes=None)),
    Case(
        "expect-list",
        get("/e", method="POST", fields=["Expect: 100-continue, x"], body=b"hello"),
        Refused(frozenset({417, 400}), closes=None),
    ),
    Case(
        "expect-twice",
        get("/e", method="POST", fields=["Expect: 100-continue", "Expect: x"], body=b"hello"),
        Refused(frozenset({417, 400}), closes=None),
    ),
    Case(
        "expect-suffix",
        get("/e", method="POST", fields=["Expect: 100-continued"], body=b"hello"),
        Refused(frozenset({417, 400}), closes=None),
    ),
    Case(
        "expect-empty",
        get("/e", method="POST", fields=["Expect:"], body=b"hello"),
        Either(Refused(frozenset({417, 400}), closes=None), Forwarded(("/e",), check=_no_expect)),
    ),
    Case(
        "expect-vtab",
        get("/e", method="POST", fields=["Expect: \x0b100-continue"], body=b"hello"),
        Refused(frozenset({400, 417}), closes=None),
    ),
    Case(
        "expect-connection",
        get("/e", method="POST", fields=["Expect: 100-continue", "Connection: expect"], body=b"hello"),
        Forwarded(("/e",), bodies=(b"hello",), check=_no_expect),
    ),
]


@pytest.mark.parametrize("case", EXPECT, ids=lambda c: c.id)
def test_expect(case: Case, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    attack(case, engine, dial, mesh.upstream)


def test_expect_is_answered_before_the_body(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    with dial(engine) as client:
        client.send(b"POST /e HTTP/1.1\r\nHost: shop.example\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", expect="POST")
        assert client.head().status == 100
        client._pull()
        client.send(b"hello")
        answer = client.response()
        assert answer.json["body_bytes"] == 5
        assert answer.interim == [], "100 twice"


def test_denied_expectation_never_invites_the_body(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """No 100, the final answer at once, and the connection ends: whether the body still comes is in doubt."""
    mark = mesh.upstream.mark()
    with dial(engine) as client:
        client.send(b"POST /admin/e HTTP/1.1\r\nHost: shop.example\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED))
        answer = client.response()
        assert answer.status == 403
        assert answer.interim == []
        client.send(SMUGGLED)
        client.assert_closed()
    assert mesh.upstream.since(mark) == []


def test_expect_without_body_then_request(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """CVE class of `Expect` with Content-Length: 0 or GET: the next request is the next request."""
    for fields, body in ((["Expect: 100-continue"], b""), (["Expect: 100-continue"], None)):
        data = get("/e", fields=fields, body=body) + get("/next")
        run(Case("expect-next", data, Forwarded(("/e", "/next"), check=_no_expect)), "halves", lambda: dial(engine), mesh.upstream)


# ---- early answers


def test_early_answer_to_an_unfinished_upload(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """The upstream answers and closes before the body is over: the client gets the answer, the rest is not taken for a request."""

    async def early(exchange: Exchange) -> None:
        await exchange.answer(403, b"enough", "X-Early: 1")
        await exchange.gone()

    with mesh.upstream.on("/early", early):
        with dial(engine) as client:
            client.send(b"POST /early HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 1000\r\n\r\nabc")
            answer = client.response()
            assert (answer.status, answer.body) == (403, b"enough")
            # the rest of the body holds a request; a real one comes behind it
            client.send(SMUGGLED + b"x" * (997 - len(SMUGGLED)) + get("/after-early", fields=["Connection: close"]))
            assert [a.get("x-seen-target") for a in client.rest()] in ([], ["/after-early"])
        innocent(lambda: dial(f"plain-{engine}"), mesh.upstream)
    assert not [s for s in mesh.upstream.requests if s.target == "/smuggled"]
