"""What a head means: framing, authority, connection options, and what is cut from the block. Tables beside tests/wire/corpus.py."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.model.messages import CHUNKED, NO_BODY, UNTIL_CLOSE
from meshguard.wire.fields import NOT_IN_TRAILERS, REQUEST_CONSUMED, RESPONSE_CONSUMED, SPOOFABLE, split_block
from meshguard.wire.semantics import FieldRules
from tests.wire.corpus import get
from tests.wire.drive import Run, requests_of, responses_of


def one(data: bytes, rules: FieldRules | None = None) -> dict[str, object]:
    run = requests_of([data], rules=rules or FieldRules())
    assert run.refusal == "", run.detail
    return run.messages[0].head


@pytest.mark.parametrize(
    ("target", "method", "expected"),
    [
        (b"http://a", b"GET", (b"/", b"a", b"http")),
        (b"HTTP://A/", b"GET", (b"/", b"A", b"http")),
        (b"https://a/x?y", b"GET", (b"/x?y", b"a", b"https")),
        (b"http://a?y", b"GET", (b"/?y", b"a", b"http")),
        (b"http://a", b"OPTIONS", (b"*", b"a", b"http")),
        (b"http://a/", b"OPTIONS", (b"/", b"a", b"http")),
        (b"http://a?", b"OPTIONS", (b"/?", b"a", b"http")),
        (b"*", b"OPTIONS", (b"*", b"a", b"")),
        (b"/http://b/", b"GET", (b"/http://b/", b"a", b"")),
        (b"//b/", b"GET", (b"//b/", b"a", b"")),
    ],
)
def test_targets(target: bytes, method: bytes, expected: tuple[bytes, bytes, bytes]) -> None:
    head = one(get(b"Host: a", target=target, method=method))
    assert (head["target"], head["authority"], head["scheme"]) == expected


@pytest.mark.parametrize(
    "target", [b"http:///x", b"http://a@b/", b"http://b/", b"http://a:80/", b"http://a#b/", b"http:/a", b"http:a", b"x", b"a:80"]
)
def test_targets_that_are_refused(target: bytes) -> None:
    run = requests_of([get(b"Host: a", target=target)])
    assert run.refusal in ("ambiguous_authority", "malformed_request") or (run.messages[0].head["authority"] == b"a" and b"#" in target)


def test_user_info_may_agree_and_is_still_no_authority() -> None:
    from meshguard.model.errors import RequestError
    from meshguard.wire.authority import parse_authority

    head = one(get(b"Host: u@a", target=b"http://u@a/"))
    assert head["authority"] == b"u@a"
    with pytest.raises(RequestError):
        parse_authority(b"u@a")


@pytest.mark.parametrize("name", [*REQUEST_CONSUMED, *(name.replace(b"*", b"q") for name in SPOOFABLE), b"traceparent", b"keep-alive"])
def test_the_block_never_holds_what_is_consumed(name: bytes) -> None:
    value = {b"content-length": b"0", b"transfer-encoding": b"chunked", b"expect": b"100-continue"}.get(name, b"z")
    lines = [b"A: 1", name.title() + b": " + value, b"B: 2"]
    head = one(get(*([] if name == b"host" else [b"Host: a"]), *lines))
    assert head["block"] == b"A: 1\r\nB: 2\r\n"


@pytest.mark.parametrize(
    ("connection", "left"),
    [
        (b"x-a", [b"X-B", b"Cookie"]),
        (b"X-A , x-b", [b"Cookie"]),
        (b"close,x-b,", [b"X-A", b"Cookie"]),
        (b"cookie, authorization, host", [b"X-A", b"X-B", b"Cookie"]),
        (b"", [b"X-A", b"X-B", b"Cookie"]),
        (b'"x-a"', [b"X-A", b"X-B", b"Cookie"]),
        (b"x-a;q=1", [b"X-A", b"X-B", b"Cookie"]),
    ],
)
def test_connection_options(connection: bytes, left: list[bytes]) -> None:
    """Every field that is named goes, but those that this hop answers for."""
    head = one(get(b"Host: a", b"X-A: 1", b"Connection: " + connection, b"X-B: 2", b"Cookie: c"))
    assert [name for name, _ in split_block(head["block"])] == left  # type: ignore[arg-type]


def test_connection_lines_add_up() -> None:
    head = one(get(b"Host: a", b"Connection: x-a", b"X-A: 1", b"X-B: 2", b"connection: close, x-b", b"x-a: 3"))
    assert head["block"] == b""
    assert head["keep_alive"] is False


@pytest.mark.parametrize(
    ("version", "connection", "keep_alive"),
    [(b"HTTP/1.1", b"", True), (b"HTTP/1.1", b"close", False), (b"HTTP/1.1", b"CLOSE", False), (b"HTTP/1.1", b"closed", True),
     (b"HTTP/1.1", b"keep-alive, close", False), (b"HTTP/1.0", b"", False), (b"HTTP/1.0", b"keep-alive", False)],
)  # fmt: skip
def test_keep_alive(version: bytes, connection: bytes, keep_alive: bool) -> None:
    assert one(get(b"Host: a", b"Connection: " + connection, version=version))["keep_alive"] is keep_alive


@pytest.mark.parametrize(
    ("lines", "length", "expect"),
    [
        ((), NO_BODY, False),
        ((b"Content-Length: 0",), NO_BODY, False),
        ((b"Content-Length: 000",), NO_BODY, False),
        ((b"Content-Length: 999999999999999999",), 10**18 - 1, False),
        ((b"Transfer-Encoding: ChunkeD",), CHUNKED, False),
        ((b"Content-Length: 1", b"Expect: 100-Continue"), 1, True),
        ((b"Expect: 100-continue",), NO_BODY, False),
        ((b"Transfer-Encoding: chunked", b"Expect: 100-continue"), CHUNKED, True),
    ],
)
def test_framing(lines: tuple[bytes, ...], length: int, expect: bool) -> None:
    head = one(get(b"Host: a", *lines))
    assert (head["length"], head["expect"]) == (length, expect)


def test_an_expectation_of_http_1_0_is_ignored() -> None:
    assert one(get(b"Host: a", b"Content-Length: 1", b"Expect: 100-continue", version=b"HTTP/1.0"))["expect"] is False


@pytest.mark.parametrize("underscores", ["drop", "allow", "refuse"])
@pytest.mark.parametrize("name", [b"X_Forwarded_For", b"x_meshguard_x", b"SSL_CLIENT_CERT", b"X_User"])
def test_underscores(underscores: str, name: bytes) -> None:
    run = requests_of([get(b"Host: a", b"A: 1", name + b": 2", b"B: 3")], rules=FieldRules(underscores=underscores))
    if underscores == "refuse":
        assert run.refusal == "ambiguous_field"
    else:
        kept = b"X_User: 2\r\n" if underscores == "allow" and name == b"X_User" else b""
        assert run.messages[0].head["block"] == b"A: 1\r\n" + kept + b"B: 3\r\n"


@pytest.mark.parametrize("where", [b"_X", b"X_", b"_", b"__", b"a_b_c"])
def test_underscores_anywhere(where: bytes) -> None:
    """The first field, the last one, one after the other, and values that hold `_` stay."""
    data = b"GET / HTTP/1.1\r\n%b: 1\r\nHost: a\r\n%b:\r\n%b: x_y: z\r\nA: b_c: d\r\n%b: 2\r\n\r\n" % (where, where, where, where)
    assert one(data)["block"] == b"A: b_c: d\r\n"


# ---- trailers


trailer_names = st.sampled_from(
    [b"X-Sum", b"Grpc-Status", b"x_y", b"Host", b"X-Forwarded-For", b"X_Forwarded_For", b"Content-Length", b"Te", b"Tea", b"X-User-Id",
    b"x-user",
     *NOT_IN_TRAILERS, *REQUEST_CONSUMED]
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(trailer_names, st.sampled_from([b"", b"1", b"a b", b"x_y: z"]))))
def test_trailers_that_may_go_on(pairs: list[tuple[bytes, bytes]]) -> None:
    rules = FieldRules((b"x-user-*",))
    block = b"".join(b"%b: %b\r\n" % pair for pair in pairs)
    spoofable = (*SPOOFABLE, b"x-user-*")

    def good(name: bytes) -> bool:
        name = name.lower()
        if b"_" in name or name in NOT_IN_TRAILERS or name in REQUEST_CONSUMED:
            return False
        return not any(name == other or (other.endswith(b"*") and name.startswith(other[:-1])) for other in spoofable)

    assert split_block(rules.trailers(block)) == [pair for pair in pairs if good(pair[0])]


# ---- responses


def answer(data: bytes, method: bytes = b"GET") -> Run:
    return responses_of([data], methods=[method])


@pytest.mark.parametrize("name", [*RESPONSE_CONSUMED, b"x-meshguard-decision"])
def test_the_block_of_a_response_never_holds_what_is_consumed(name: bytes) -> None:
    value = {b"content-length": b"0", b"transfer-encoding": b"chunked"}.get(name, b"z")
    for start in (b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 204 x\r\n"):
        run = answer(start + b"A: 1\r\n" + name.upper() + b":" + value + b"\r\nB: 2\r\n\r\n")
        assert run.messages[0].head["block"] == b"A: 1\r\nB: 2\r\n"


@pytest.mark.parametrize(
    ("head", "method", "length"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"GET", UNTIL_CLOSE),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"HEAD", NO_BODY),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n", b"GET", 7),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n", b"HEAD", NO_BODY),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"GET", CHUNKED),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"HEAD", NO_BODY),
        (b"HTTP/1.1 204 x\r\ncontent-length: 7\r\n\r\n", b"GET", NO_BODY),
        (b"HTTP/1.1 304 x\r\ntransfer-encoding: chunked\r\n\r\n", b"GET", NO_BODY),
        (b"HTTP/1.1 103 x\r\ncontent-length: 7\r\n\r\n", b"GET", NO_BODY),
        (b"HTTP/1.1 205 x\r\ncontent-length: 0\r\n\r\n", b"GET", NO_BODY),
        (b"HTTP/1.0 200 x\r\n\r\n", b"GET", UNTIL_CLOSE),
    ],
)
def test_framing_of_responses(head: bytes, method: bytes, length: int) -> None:
    assert answer(head, method).messages[0].head["length"] == length


@pytest.mark.parametrize(("lines", "keep"), [(b"", True), (b"Connection: close\r\n", False), (b"connection: x, Close\r\n", False)])
def test_keep_alive_of_responses(lines: bytes, keep: bool) -> None:
    assert answer(b"HTTP/1.1 200 OK\r\n%bcontent-length: 1\r\n\r\na" % lines).messages[0].head["keep_alive"] is keep
    assert answer(b"HTTP/1.0 200 OK\r\n%bcontent-length: 1\r\n\r\na" % lines).messages[0].head["keep_alive"] is False


def test_a_described_length_is_kept_for_head_and_304_only() -> None:
    for status, method, specials in (
        (200, b"HEAD", [(b"content-length", b"7")]),
        (304, b"GET", [(b"content-length", b"7")]),
        (204, b"GET", []),
    ):
        assert answer(b"HTTP/1.1 %d x\r\ncontent-length: 7\r\n\r\n" % status, method).messages[0].head["specials"] == specials
