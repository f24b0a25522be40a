"""The upstream as attacker: splitting, conflicting framing, floods, early ends, garbage. The client is never handed another's bytes.

A `bad` answer gives 502 problem details; one that breaks after its head was passed on gives an answer that the client can tell is
cut. After each, the same client connection (where it lives) and new ones get their own answers, and the broken upstream
connection is not used again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.harness.cases import innocent
from tests.harness.client import RawClient, get, segments
from tests.harness.mesh import Mesh
from tests.harness.proxy import Proxy
from tests.harness.strict import Truncated, Violation
from tests.harness.upstream import Exchange, raw

STOLEN = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nX-Seen-Target: /stolen\r\n\r\nSTOLEN"


@dataclass(frozen=True)
class Bad:
    """502 (504 for silence); `cut` instead of it also right (nothing but a visible cut)."""

    statuses: tuple[int, ...] = (502,)


@dataclass(frozen=True)
class Good:
    """Passed on: status and body; `close` the upstream closes by nature of the answer."""

    status: int = 200
    body: bytes = b"ok"


@dataclass(frozen=True)
class Cut:
    """The head was good, the body breaks: 502 or an answer whose cut is visible."""


@dataclass(frozen=True)
class Either:
    good: Good


Expectation = Bad | Good | Cut | Either


@dataclass(frozen=True)
class Answer:
    id: str
    data: bytes
    expect: Expectation
    method: str = "GET"
    close: bool = False


def ok(*fields: bytes, line: bytes = b"HTTP/1.1 200 OK", body: bytes = b"ok", length: bool = True) -> bytes:
    lines = [line, *fields] + ([b"Content-Length: %d" % len(body)] if length else [])
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked_ok(body: bytes, *fields: bytes) -> bytes:
    return ok(b"Transfer-Encoding: chunked", *fields, body=body, length=False)


BAD_FIELDS = {
    "lf": b"X: a\nY: b",
    "cr": b"X: a\rY: b",
    "split": b"Location: /x\rSet-Cookie: a=b",
    "nul": b"X: a\0b",
    "control": b"X: \x01",
    "del": b"X: \x7f",
    "fold": b"X: a\r\n b",
    "fold-tab": b"X: a\r\n\tb",
    "space-colon": b"X : y",
    "no-colon": b"XY",
    "empty-name": b": y",
    "leading-space": b" X: y",
    "inner-space": b"X Y: z",
    "nul-name": b"X\0: y",
    "high-name": b"X\xe9: y",
    "crcrlf": b"X: y\r",
    "vtab": b"X: a\x0b",
}
BAD_FRAMING = {
    "cl-te": (b"Content-Length: 2", b"Transfer-Encoding: chunked"),
    "te-cl": (b"Transfer-Encoding: chunked", b"Content-Length: 2"),
    "cl-twice": (b"Content-Length: 2", b"Content-Length: 3"),
    "cl-list": (b"Content-Length: 2, 2",),
    "cl-plus": (b"Content-Length: +2",),
    "cl-minus": (b"Content-Length: -2",),
    "cl-hex": (b"Content-Length: 0x2",),
    "cl-empty": (b"Content-Length:",),
    "cl-space": (b"Content-Length: 2 2",),
    "cl-huge": (b"Content-Length: 99999999999999999999",),
    "cl-underscore": (b"Content-Length: 0_2",),
    "cl-arabic": ("Content-Length: \u0662".encode(),),
    "cl-vtab": (b"Content-Length: \x0b2",),
    "te-x": (b"Transfer-Encoding: xchunked",),
    "te-gzip": (b"Transfer-Encoding: gzip",),
    "te-gzip-chunked": (b"Transfer-Encoding: gzip, chunked",),
    "te-chunked-gzip": (b"Transfer-Encoding: chunked, gzip",),
    "te-empty": (b"Transfer-Encoding:",),
    "te-identity": (b"Transfer-Encoding: identity",),
    "te-twice": (b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    "te-vtab": (b"Transfer-Encoding: \x0bchunked",),
    "te-kelvin": ("Transfer-Encoding: chun\u212aed".encode(),),
    "te-space-colon": (b"Transfer-Encoding : chunked",),
    "te-nul": (b"Transfer-Encoding: chunked\0",),
    "te-fold": (b"Transfer-Encoding:\r\n chunked",),
    "cl-fold": (b"Content-Length:\r\n 2",),
    "cl-space-colon": (b"Content-Length : 2",),
}
BAD_STATUS = {
    "four-digits": b"HTTP/1.1 2000 OK",
    "two-digits": b"HTTP/1.1 20 OK",
    "zero": b"HTTP/1.1 000 OK",
    "ninety-nine": b"HTTP/1.1 099 OK",
    "plus": b"HTTP/1.1 +20 OK",
    "word": b"HTTP/1.1 OK",
    "none": b"HTTP/1.1",
    "two-spaces": b"HTTP/1.1  200 OK",
    "tab": b"HTTP/1.1\t200\tOK",
    "icy": b"ICY 200 OK",
    "http2": b"HTTP/2 200 OK",
    "http20": b"HTTP/2.0 200 OK",
    "http12": b"HTTP/1.2 200 OK",
    "http09": b"HTTP/0.9 200 OK",
    "lower": b"http/1.1 200 OK",
    "leading-space": b" HTTP/1.1 200 OK",
    "garbage": b"xHTTP/1.1 200 OK",
    "nul": b"HTTP/1.1 200 O\0K",
    "cr": b"HTTP/1.1 200 O\rK",
    "arabic": "HTTP/1.1 \u0662\u0660\u0660 OK".encode(),
    "request": b"GET / HTTP/1.1",
    "comma": b"HTTP/1,1 200 OK",
    "decimal": b"HTTP/1.1 200.5 OK",
    "lf": b"HTTP/1.1 200 OK\nX: y",
    "unasked-101": b"HTTP/1.1 101 Switching Protocols",
    "unasked-101-no-length": b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: websocket",
}
BAD_CHUNKS = {
    "0x": b"0x2\r\nok\r\n0\r\n\r\n",
    "plus": b"+2\r\nok\r\n0\r\n\r\n",
    "minus": b"-2\r\nok\r\n0\r\n\r\n",
    "underscore": b"0_2\r\nok\r\n0\r\n\r\n",
    "letter": b"z\r\nok\r\n0\r\n\r\n",
    "empty": b"\r\nok\r\n0\r\n\r\n",
    "overflow": b"ffffffffffffffff2\r\nok\r\n0\r\n\r\n",
    "longer": b"2\r\nokX\r\n0\r\n\r\n",
    "lf": b"2\nok\n0\n\n",
    "space": b" 2\r\nok\r\n0\r\n\r\n",
    "trailing-space": b"2 \r\nok\r\n0\r\n\r\n",
    "second": b"2\r\nok\r\nz\r\n",
    "no-crlf": b"2\r\nok0\r\n\r\n",
    "ext-lf": b"2;a\nb\r\nok\r\n0\r\n\r\n",
    "ext-nul": b"2;\0\r\nok\r\n0\r\n\r\n",
    "ext-long": b"2;" + b"x" * 70000 + b"\r\nok\r\n0\r\n\r\n",
    "trailer-lf": b"2\r\nok\r\n0\r\nX: y\nZ: w\r\n\r\n",
    "trailer-no-colon": b"2\r\nok\r\n0\r\nXY\r\n\r\n",
    "trailer-fold": b"2\r\nok\r\n0\r\nX: y\r\n z\r\n\r\n",
    "trailer-many": b"2\r\nok\r\n0\r\n" + b"".join(b"X%d: y\r\n" % i for i in range(300)) + b"\r\n",
}


def answers() -> list[Answer]:
    out = [Answer("plain", ok(), Good())]
    for k, v in BAD_FIELDS.items():
        out += [Answer(f"field-{k}", ok(v), Bad()), Answer(f"field-{k}-middle", ok(b"A: 1", v, b"B: 2"), Bad())]
    out += [
        Answer(f"framing-{k}", ok(*v, body=b"ok" if b"chunked" not in v[0] else b"2\r\nok\r\n0\r\n\r\n", length=False) + STOLEN, Bad())
        for k, v in BAD_FRAMING.items()
    ]
    out += [Answer(f"framing-{k}-with-cl", ok(*v) + STOLEN, Bad()) for k, v in BAD_FRAMING.items() if k.startswith("te-") and k != "te-cl"]
    out += [Answer(f"status-{k}", ok(line=v), Bad()) for k, v in BAD_STATUS.items()]
    out += [Answer(f"chunk-{k}", chunked_ok(v) + STOLEN, Cut(), close=True) for k, v in BAD_CHUNKS.items()]
    out += [
        Answer("cl-equal-twice", ok(b"Content-Length: 2"), Bad()),
        Answer(
            "te-http10",
            ok(b"Transfer-Encoding: chunked", line=b"HTTP/1.0 200 OK", body=b"2\r\nok\r\n0\r\n\r\n", length=False),
            Bad(),
            close=True,
        ),
        Answer("lf-only", ok().replace(b"\r\n", b"\n"), Bad()),
        Answer("end-lf", ok().replace(b"\r\n\r\n", b"\r\n\n"), Bad()),
        Answer("many-fields", ok(*[b"X%d: y" % i for i in range(150)]), Bad()),
        Answer("big-field", ok(b"X: " + b"y" * 70_000), Bad()),
        Answer("big-reason", ok(line=b"HTTP/1.1 200 " + b"O" * 70_000), Bad()),
        Answer("endless-head", b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 40_000, Bad()),
        Answer("endless-line", b"H" * 200_000, Bad()),
        Answer("nothing", b"", Bad(), close=True),
        Answer("half-head", b"HTTP/1.1 200 OK\r\nConte", Bad(), close=True),
        Answer("half-line", b"HTTP/1.", Bad(), close=True),
        Answer("ssh", b"SSH-2.0-OpenSSH_9\r\n", Bad(), close=True),
        Answer("tls-alert", b"\x15\x03\x03\x00\x02\x02\x28", Bad(), close=True),
        Answer("just-body", b"hello world\r\n\r\n", Bad()),
        Answer("crlf-first", b"\r\n" + ok(), Either(Good())),
        Answer("no-reason", ok(line=b"HTTP/1.1 200 "), Good()),
        Answer("no-reason-no-space", ok(line=b"HTTP/1.1 200"), Either(Good())),
        Answer("long-reason", ok(line=b"HTTP/1.1 200 All is well, says nobody"), Good()),
        Answer("obs-text", ok(b"X: caf\xe9"), Either(Good())),
        Answer("status-599", ok(line=b"HTTP/1.1 599 Odd"), Good(599)),
        Answer("status-999", ok(line=b"HTTP/1.1 999 Odd"), Either(Good(999))),
        Answer("underscore", ok(b"x_a: 1"), Good()),
        Answer("1xx-flood", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 500 + ok(), Bad()),
        Answer("100-flood", b"HTTP/1.1 100 Continue\r\n\r\n" * 500 + ok(), Bad()),
        Answer("1xx-big", b"HTTP/1.1 103 X\r\nLink: " + b"x" * 40_000 + b"\r\n\r\n" + ok(), Bad()),
        Answer("1xx-body", b"HTTP/1.1 103 X\r\nContent-Length: 5\r\n\r\n" + ok(), Either(Good())),
        Answer("1xx-te", b"HTTP/1.1 103 X\r\nTransfer-Encoding: chunked\r\n\r\n" + ok(), Either(Good())),
        Answer("1xx-bad-field", b"HTTP/1.1 103 X\r\nX : y\r\n\r\n" + ok(), Bad()),
        Answer("1xx-then-nothing", b"HTTP/1.1 100 Continue\r\n\r\n", Bad(), close=True),
        Answer("100-unasked", b"HTTP/1.1 100 Continue\r\n\r\n" + ok(), Good()),
        Answer("103-few", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" * 3 + ok(), Good()),
        Answer("102", b"HTTP/1.1 102 Processing\r\n\r\n" + ok(), Good()),
        Answer("short-body", ok(b"Content-Length: 10", length=False), Cut(), close=True),
        Answer("no-body", ok(b"Content-Length: 10", body=b"", length=False), Cut(), close=True),
        Answer("chunked-no-end", chunked_ok(b"2\r\nok\r\n"), Cut(), close=True),
        Answer("chunked-half-end", chunked_ok(b"2\r\nok\r\n0\r\n"), Cut(), close=True),
        Answer("chunked-half-data", chunked_ok(b"9\r\nok"), Cut(), close=True),
        Answer("chunked-nothing", chunked_ok(b""), Cut(), close=True),
        Answer("garbage-after", ok() + STOLEN, Good()),
        Answer("garbage-after-chunked", chunked_ok(b"2\r\nok\r\n0\r\n\r\n") + STOLEN, Good()),
        Answer("crlf-after", ok() + b"\r\n", Good()),
        Answer("body-longer", ok(b"Content-Length: 2", body=b"ok, and more", length=False), Good()),
        Answer("chunked", chunked_ok(b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n"), Good()),
        Answer("chunk-ext", chunked_ok(b"2;a=b\r\nok\r\n0;c\r\n\r\n"), Good()),
        Answer("chunk-trailer", chunked_ok(b"2\r\nok\r\n0\r\nX: y\r\n\r\n"), Good()),
        Answer("chunk-case", ok(b"Transfer-Encoding: Chunked", body=b"2\r\nok\r\n0\r\n\r\n", length=False), Either(Good())),
        Answer("until-close", ok(length=False), Good(), close=True),
        Answer("http10", ok(line=b"HTTP/1.0 200 OK"), Good(), close=True),
        Answer("http10-no-close", ok(line=b"HTTP/1.0 200 OK"), Good()),
        Answer("http10-until-close", ok(line=b"HTTP/1.0 200 OK", length=False), Good(), close=True),
        Answer("http10-keep-alive", ok(b"Connection: keep-alive", line=b"HTTP/1.0 200 OK"), Good()),
        Answer("close", ok(b"Connection: close"), Good(), close=True),
        Answer("close-not-closed", ok(b"Connection: close"), Good()),
        Answer("empty-until-close", ok(body=b"", length=False), Good(body=b""), close=True),
        Answer("204", b"HTTP/1.1 204 No Content\r\n\r\n", Good(204, b"")),
        Answer("204-cl-0", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", Either(Good(204, b""))),
        Answer("204-body", b"HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\nSTOLEN", Either(Good(204, b""))),
        Answer("204-te", b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nSTOLEN\r\n0\r\n\r\n", Either(Good(204, b""))),
        Answer("204-garbage", b"HTTP/1.1 204 No Content\r\n\r\n" + STOLEN, Good(204, b"")),
        Answer("304", b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", Good(304, b"")),
        Answer("304-cl", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\n", Good(304, b"")),
        Answer("304-body", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 6\r\n\r\nSTOLEN", Either(Good(304, b""))),
        Answer("304-te", b"HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n", Either(Good(304, b""))),
        Answer("head", ok(b"Content-Length: 6", body=b"", length=False), Good(body=b""), method="HEAD"),
        Answer("head-no-length", ok(body=b"", length=False), Good(body=b""), method="HEAD"),
        Answer("head-body", ok(b"Content-Length: 6", body=b"STOLEN", length=False), Good(body=b""), method="HEAD"),
        Answer("head-te", ok(b"Transfer-Encoding: chunked", body=b"", length=False), Good(body=b""), method="HEAD"),
        Answer("head-garbage", ok(b"Content-Length: 0", body=b"", length=False) + STOLEN, Good(body=b""), method="HEAD"),
        Answer("head-cl-te", ok(b"Content-Length: 6", b"Transfer-Encoding: chunked", body=b"", length=False), Bad(), method="HEAD"),
        Answer("205", b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", Good(205, b"")),
    ]
    return out


ANSWERS = answers()


def _exchange(client: RawClient, answer: Answer, path: str) -> None:
    expect = answer.expect
    client.send(get(path, method=answer.method), expect=answer.method)
    try:
        got = client.response()
    except (Truncated, Violation):
        if not isinstance(expect, Cut):
            raise
        return
    assert b"STOLEN" not in got.body, got
    if got.status in (502, 504) and isinstance(expect, Bad | Cut | Either):
        if answer.method != "HEAD":
            assert got.problem["status"] == got.status
        return
    assert isinstance(expect, Good | Either), f"a bad answer was passed on: {got} {got.head.raw!r}"
    good = expect if isinstance(expect, Good) else expect.good
    assert (got.status, got.body) == (good.status, good.body), got


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda a: a.id)
def test_answer(answer: Answer, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    upstream, path = mesh.upstream, f"/answer/{answer.id}"
    for how in ("whole", "halves", "crlf") if len(answer.data) < 5000 else ("whole",):
        with upstream.on(path, raw(segments(answer.data, how) if answer.data else [], close=answer.close)):
            mark = upstream.mark()
            with dial(engine, deadline_s=4.0) as client:
                _exchange(client, answer, path)
                if not client.eof and not isinstance(answer.expect, Cut):
                    _serves_on(client)
            used = [s.connection for s in upstream.since(mark) if s.path == path]
            innocent(lambda: dial(f"plain-{engine}"), upstream)
            if isinstance(answer.expect, Bad | Cut) or b"STOLEN" in answer.data or "close" in answer.id:
                later = [s.connection for s in upstream.since(mark) if s.path != path]
                assert not set(used) & set(later), "a doubtful upstream connection was used again"


def _serves_on(client: RawClient) -> None:
    try:
        answer = client.request(get("/same-connection"))
    except Truncated:
        return  # closing is right as well
    assert answer.status == 200, answer
    assert answer.get("x-seen-target") == "/same-connection", answer


def test_late_garbage_is_nobodys_answer(engine: str, arena: Proxy, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """Garbage on an idle pooled connection: once it has arrived (a turn of the proxy's loop later) the connection is not used again."""
    for _ in range(10):
        sent = threading.Event()

        async def late(exchange: Exchange) -> None:
            await exchange.read()
            await exchange.answer(200, b"ok")
            await exchange.send(STOLEN)
            sent.set()  # noqa: B023

        with mesh.upstream.on("/late", late), dial(engine) as client:
            assert client.request(get("/late")).body == b"ok"
            assert sent.wait(5)
            arena.admin("/readyz")
            for path in ("/x", "/y"):
                assert client.request(get(path)).get("x-seen-target") == path
            innocent(lambda: dial(f"plain-{engine}"), mesh.upstream)


def test_unasked_answer_before_any_request(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """An answer that arrives together with the end of the one before must not be taken for the next (response queue poisoning)."""
    with mesh.upstream.on("/two", raw(ok() + STOLEN)), dial(engine) as client:
        client.send(get("/two") + get("/own"), expect=("GET", "GET"))
        assert client.response().body == b"ok"
        assert client.response().get("x-seen-target") == "/own"


@pytest.mark.parametrize("kind", ["reset-at-once", "reset-mid-head", "reset-mid-body", "reset-mid-chunk"])
def test_resets(kind: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    data = {
        "reset-at-once": [],
        "reset-mid-head": [b"HTTP/1.1 200 O"],
        "reset-mid-body": [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"],
        "reset-mid-chunk": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc"],
    }[kind]
    with mesh.upstream.on("/reset", raw(data, reset=True)):
        with dial(engine) as client:
            client.send(get("/reset", method="POST", body=b"x"), expect="POST")
            try:
                assert client.response().status == 502
            except Truncated:
                assert "body" in kind or "chunk" in kind
        innocent(lambda: dial(f"plain-{engine}"), mesh.upstream)


def test_a_silent_upstream_gives_504(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    async def silent(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.gone()

    with mesh.upstream.on("/silent", silent), dial(engine) as client:
        assert client.request(get("/silent")).problem["status"] == 504


def test_trailers_of_answers_are_dropped_or_clean(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    data = chunked_ok(b"2\r\nok\r\n0\r\nX-Sum: 7\r\nSet-Cookie: a=b\r\nContent-Length: 9\r\n\r\n")
    with mesh.upstream.on("/t", raw(data)), dial(engine) as client:
        answer = client.request(get("/t"))
        assert (answer.body, answer.trailers) == (b"ok", [])
        assert answer.head.all("x-sum") == answer.head.all("set-cookie") == []


def test_http10_client_gets_no_chunks(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    for data in (chunked_ok(b"2\r\nok\r\n0\r\n\r\n"), ok(length=False)):
        with mesh.upstream.on("/old", raw(data, close=b"chunked" not in data)), dial(engine) as client:
            answer = client.request(b"GET /old HTTP/1.0\r\nHost: shop.example\r\n\r\n")
            assert answer.body == b"ok"
            assert answer.head.all("transfer-encoding") == []
            client.assert_closed()
