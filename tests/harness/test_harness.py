"""The harness against itself: without these, a silent flaw here would pass as a sound proxy."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tests.harness.cases import Case, Forwarded, Refused, run
from tests.harness.client import NoAnswer, RawClient, chunked, get, segments
from tests.harness.pki import Authority, client_context, server_context
from tests.harness.strict import Data, End, Head, Parser, Truncated, Violation
from tests.harness.upstream import Exchange, Upstream, raw


@pytest.mark.parametrize("how", ["whole", "bytes", "halves", "crlf", "lines", "threes"])
def test_segmentations_lose_nothing(how: str) -> None:
    data = get("/a", body=b"x\r\n\r\ny")
    assert b"".join(segments(data, how)) == data


@pytest.mark.parametrize("how", ["whole", "bytes", "threes"])
def test_parser_is_independent_of_segmentation(how: str) -> None:
    parser = Parser("request")
    events: list[Head | Data | End] = []
    for part in segments(
        get("/a", body=b"abc")
        + b"POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunked(b"hello", b"xy", trailers=b"t: 1\r\n"),
        how,
    ):
        events += parser.feed(part)
    assert [e.target for e in events if isinstance(e, Head)] == ["/a", "/b"]
    assert b"".join(e.data for e in events if isinstance(e, Data)) == b"abchelloxy"
    assert [e.trailers for e in events if isinstance(e, End)] == [[], [("t", "1")]]
    assert parser.between_messages


@pytest.mark.parametrize(
    "bad",
    [
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nx : 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n x: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nx: \0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a=b\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked, x\r\n\r\n",
    ],
)
def test_parser_refuses(bad: bytes) -> None:
    with pytest.raises(Violation):
        Parser("request").feed(bad)


def test_client_and_upstream_talk() -> None:
    with Upstream() as upstream, RawClient(("127.0.0.1", upstream.port)) as client:
        mark = upstream.mark()
        answer = client.request(get("/a?b=1", body=b"hello", method="POST"))
        assert (answer.status, answer.json["target"], answer.json["body_bytes"]) == (200, "/a?b=1", 5)
        client.send(get("/c") + get("/d"))
        assert [client.response().get("x-seen-target") for _ in "cd"] == ["/c", "/d"]
        assert client.request(get("/h", method="HEAD")).body == b""
        assert [s.target for s in upstream.since(mark)] == ["/a?b=1", "/c", "/d", "/h"]
        assert upstream.bytes_since(mark) == sum(len(s.head.raw) + s.body_bytes for s in upstream.since(mark))


def test_upstream_reports_violations_and_truncation() -> None:
    with Upstream() as upstream:
        with RawClient(("127.0.0.1", upstream.port)) as client:
            client.send(b"GET /x HTTP/1.1\nHost: a\n\n" + b"\r\n\r\n")
            client.assert_closed()
        assert len(upstream.violations) == 1
        with RawClient(("127.0.0.1", upstream.port)) as client:
            client.send(b"POST /cut HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc")
            upstream.wait(lambda: upstream.requests and upstream.requests[-1].body_bytes == 3, "three bytes")
        seen = upstream.wait(lambda: [s for s in upstream.requests if s.aborted], "the abort")[0]
        assert not seen.complete


def test_scripts_and_truncated_answers() -> None:
    async def early(exchange: Exchange) -> None:
        await exchange.answer(200, b"early")
        await exchange.read()

    with Upstream() as upstream:
        with upstream.on("/early", early), RawClient(("127.0.0.1", upstream.port)) as client:
            client.send(b"POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n", expect="POST")
            assert client.response().body == b"early"
            client.send(b"abc")
            assert client.request(get("/next")).get("x-seen-target") == "/next"
        with (
            upstream.on("/cut", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", close=True)),
            RawClient(("127.0.0.1", upstream.port)) as client,
        ):
            client.send(get("/cut"))
            with pytest.raises(Truncated):
                client.response()
        with upstream.on("/bad", raw(b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n")), RawClient(("127.0.0.1", upstream.port)) as client:
            client.send(get("/bad"))
            with pytest.raises(Violation):
                client.response()
        with (
            upstream.on("/interim", raw(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")),
            RawClient(("127.0.0.1", upstream.port)) as client,
        ):
            answer = client.request(get("/interim"))
            assert ([h.status for h in answer.interim], answer.status) == ([103], 204)


def test_silence_has_a_deadline() -> None:
    with Upstream() as upstream, RawClient(("127.0.0.1", upstream.port), deadline_s=0.05) as client:
        client.send(b"GET")
        with pytest.raises(NoAnswer):
            client.response()


def test_case_runner_finds_a_forwarded_attack() -> None:
    """Against the bare upstream (a proxy that forwards everything) a case that must be refused fails, a good one passes."""
    with Upstream() as upstream:

        def direct() -> RawClient:
            return RawClient(("127.0.0.1", upstream.port))

        run(Case("good", get("/a") + get("/b"), Forwarded(("/a", "/b"))), "halves", direct, upstream)
        with pytest.raises(AssertionError):
            run(Case("bad", get("/a"), Refused()), "whole", direct, upstream)
        with pytest.raises(AssertionError):
            run(Case("smuggled", get("/a") + get("/b"), Forwarded(("/a",))), "whole", direct, upstream)


def test_pki_makes_a_mutual_handshake(tmp_path: Path) -> None:
    ca, other = Authority("ca"), Authority("other")
    server = server_context(ca.service("server"), ca, tmp_path)
    with Upstream(server) as upstream:
        with RawClient(("127.0.0.1", upstream.port), client_context(ca, ca.service("billing"), tmp_path)) as client:
            assert client.request(get("/tls")).status == 200
        with RawClient(("127.0.0.1", upstream.port), client_context(ca, other.service("billing"), tmp_path)) as client:
            client.send(get("/tls"))
            client.assert_closed()
        with pytest.raises(ssl.SSLCertVerificationError):
            RawClient(("127.0.0.1", upstream.port), client_context(other, ca.service("billing"), tmp_path))


def test_intermediate_chain(tmp_path: Path) -> None:
    root = Authority("root")
    leaf = Authority("mid", parent=root, path_length=0).service("billing")
    assert len(leaf.chain) == 2
    with (
        Upstream(server_context(root.service("server"), root, tmp_path)) as upstream,
        RawClient(("127.0.0.1", upstream.port), client_context(root, leaf, tmp_path)) as client,
    ):
        assert client.request(get("/tls")).status == 200
