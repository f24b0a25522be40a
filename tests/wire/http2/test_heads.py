"""What a head of HTTP/2 means is what the same fields mean in HTTP/1.1; what is malformed; what is answered."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.model.errors import RequestError, UpstreamError
from meshguard.model.messages import CHUNKED, NO_BODY, UNTIL_CLOSE, RequestHead, ResponseHead
from meshguard.wire.grammar import PLAIN_REQUEST_HEAD, REQUEST_HEAD, RESPONSE_HEAD
from meshguard.wire.http2.engine import Http2Limits
from meshguard.wire.http2.field_book import request_book, response_book
from meshguard.wire.http2.heads import UNDECLARED, MalformedHead, request_of, response_of, trailers_of
from meshguard.wire.semantics import FieldRules, request_head, response_head
from tests.wire.drive import slots
from tests.wire.http2.peer import GET

LIMITS = Http2Limits()
RULES = (FieldRules(), FieldRules((b"x-foo-*", b"a", b"cookie"), "allow"), FieldRules(underscores="refuse"))
Fields = list[tuple[bytes, bytes]]


def request(*fields: tuple[bytes, bytes], ended: bool = True, limits: Http2Limits = LIMITS, rules: FieldRules = RULES[0]) -> RequestHead:
    book = request_book(rules)
    return request_of([book.entry(*pair) for pair in fields], ended, limits, book)[0]


def response(*fields: tuple[bytes, bytes], ended: bool = False, method: bytes = b"GET") -> tuple[ResponseHead, int]:
    book = response_book()
    return response_of([book.entry(*pair) for pair in fields], ended, method, LIMITS)


_NAMES = st.sampled_from([
    b"accept", b"x-request-id", b"a", b"x-foo-bar", b"traceparent", b"tracestate", b"te", b"forwarded", b"x-forwarded-for",
    b"x_forwarded_for", b"under_score", b"x-real-ip", b"cookie", b"content-length", b"expect", b"trailer", b"x-meshguard-id",
    b"authorization", b"http2-settings",
])  # fmt: skip
_VALUES = st.sampled_from([b"", b"x", b"trailers", b"Trailers", b"100-continue", b"5", b"0", b"b \tc", b"\xc3\xa9", b"a=b; c=d", b"12,3"])
_REGULAR = st.lists(st.tuples(_NAMES, _VALUES), max_size=8)


@given(_REGULAR, st.sampled_from([b"GET", b"POST", b"OPTIONS", b"TRACE", b"brew"]), st.booleans(), st.sampled_from(RULES))
@settings(max_examples=400, deadline=None)
def test_a_request_means_what_it_means_in_http1(fields: Fields, method: bytes, ended: bool, rules: FieldRules) -> None:
    """Intended differences: `minor`, `size`, `scheme` (HTTP/2 says it), `length` without content-length (no field says it in HTTP/2)."""
    pseudo = ((b":method", method), (b":scheme", b"https"), (b":authority", b"Shop.example:8443"), (b":path", b"/a?b"))
    crumbs = [value for name, value in fields if name == b"cookie"]
    written = [pair for pair in fields if pair[0] != b"cookie"] + ([(b"cookie", b"; ".join(crumbs).rstrip())] if crumbs else [])
    raw = b"%b /a?b HTTP/1.1\r\nhost: Shop.example:8443\r\n%b\r\n" % (method, b"".join(b"%b: %b\r\n" % pair for pair in written))
    try:
        head = request(*pseudo, *fields, ended=ended, rules=rules)
    except MalformedHead:
        bad_te = any(name == b"te" and value.lower() != b"trailers" for name, value in fields)
        bad_length = ended and any(name == b"content-length" and value.isdigit() and int(value) for name, value in fields)
        assert bad_te or bad_length
        return
    except RequestError as error:
        refused = error.reason
        with pytest.raises(RequestError) as expected:
            request_head(method, b"/a?b", 1, raw, rules, PLAIN_REQUEST_HEAD(raw) is not None)
        groups = {b"_" if b"_" in name else name for name, _ in fields} & {b"content-length", b"expect", b"_"}
        assert len(groups) > 1 or expected.value.reason is refused  # of several mistakes either may be named
        return
    assert REQUEST_HEAD(raw) is not None
    same = slots(request_head(method, b"/a?b", 1, raw, rules, PLAIN_REQUEST_HEAD(raw) is not None))
    got = slots(head)
    declared = any(name == b"content-length" for name, _ in fields)
    if not declared or not same["length"]:
        assert got.pop("length") == (NO_BODY if ended else CHUNKED)
        same.pop("length")
        if not ended:  # there may be a body where HTTP/1.1 would have none
            same["expect"] = got["expect"] = None
    assert (got.pop("minor"), got.pop("scheme"), got.pop("size") > 0) == (2, b"https", True)
    for name in ("minor", "scheme", "size"):
        same.pop(name)
    assert got == same


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"server", b"set-cookie", b"content-length", b"alt-svc", b"x-meshguard-y", b"x_y", b"trailer"]), _VALUES
        ),
        max_size=6,
    ),
    st.sampled_from([100, 103, 200, 204, 206, 304, 404, 599]),
    st.sampled_from([b"GET", b"HEAD"]),
)
@settings(max_examples=300, deadline=None)
def test_a_response_means_what_it_means_in_http1(fields: Fields, status: int, method: bytes) -> None:
    raw = b"HTTP/1.1 %d \r\n%b\r\n" % (status, b"".join(b"%b: %b\r\n" % pair for pair in fields))
    match = RESPONSE_HEAD(raw)
    assert match is not None
    try:
        head, declared = response((b":status", b"%d" % status), *fields, method=method)
    except MalformedHead:
        with pytest.raises(UpstreamError):
            response_head(status, 1, raw, method)
        return
    same = slots(response_head(status, 1, raw, method))
    got = slots(head)
    if same["length"] == UNTIL_CLOSE:
        same["length"] = CHUNKED
    assert declared == (UNDECLARED if got["length"] == CHUNKED or status < 200 else got["length"])
    for name in ("minor", "size"):
        got.pop(name)
        same.pop(name)
    assert got == same


# -- requests ---------------------------------------------------------------------------------------------------------------

MALFORMED: dict[str, Fields] = {
    "nothing": [],
    "no method": [*GET[1:]],
    "no scheme": [GET[0], *GET[2:]],
    "no path": [*GET[:3]],
    "method twice": [*GET, (b":method", b"GET")],
    "path twice": [*GET, (b":path", b"/a")],
    "authority twice": [*GET, (b":authority", b"shop.example")],
    "pseudo-header field behind another": [*GET[:3], (b"accept", b"x"), GET[3]],
    "pseudo-header field behind a special": [*GET[:3], (b"te", b"trailers"), GET[3]],
    "pseudo-header field behind a cookie": [*GET[:3], (b"cookie", b"x"), GET[3]],
    "status in a request": [*GET, (b":status", b"200")],
    "unknown pseudo-header field": [*GET, (b":foo", b"x")],
    "protocol without CONNECT": [*GET, (b":protocol", b"websocket")],
    "CONNECT with a path": [(b":method", b"CONNECT"), *GET[1:]],
    "CONNECT with a scheme": [(b":method", b"CONNECT"), GET[1], GET[2]],
    "CONNECT without authority": [(b":method", b"CONNECT")],
    "* for GET": [*GET[:3], (b":path", b"*")],
    "upper case": [*GET, (b"Accept", b"x")],
    "connection": [*GET, (b"connection", b"close")],
    "transfer-encoding": [*GET, (b"transfer-encoding", b"chunked")],
    "te": [*GET, (b"te", b"gzip")],
    "content-length above the body": [*GET, (b"content-length", b"1")],
    "line end in a value": [*GET, (b"a", b"b\r\nc: d")],
    "line end in a name": [*GET, (b"a\r\nb", b"c")],
    "empty name": [*GET, (b"", b"")],
    "absolute path": [*GET[:3], (b":path", b"https://shop.example/a")],
    "path with a space": [*GET[:3], (b":path", b"/a HTTP/1.1")],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests(name: str) -> None:
    with pytest.raises(MalformedHead):
        request(*MALFORMED[name], limits=Http2Limits(extended_connect=True))


ANSWERED: dict[str, tuple[Fields, str]] = {
    "no authority": ([*GET[:2], GET[3]], "ambiguous_authority"),
    "empty authority": ([*GET[:2], (b":authority", b""), GET[3]], "ambiguous_authority"),
    "Host disagrees": ([*GET, (b"host", b"other.example")], "ambiguous_authority"),
    "Host twice": ([*GET, (b"host", b"shop.example"), (b"host", b"shop.example")], "ambiguous_authority"),
    "content-length twice": ([*GET, (b"content-length", b"0"), (b"content-length", b"0")], "ambiguous_framing"),
    "content-length with a sign": ([*GET, (b"content-length", b"+0")], "ambiguous_framing"),
    "content-length as a list": ([*GET, (b"content-length", b"0, 0")], "ambiguous_framing"),
    "content-length empty": ([*GET, (b"content-length", b"")], "ambiguous_framing"),
    "content-length too long": ([*GET, (b"content-length", b"0" * 19)], "ambiguous_framing"),
    "TRACE": ([(b":method", b"TRACE"), *GET[1:]], "method_not_supported"),
    "CONNECT": ([(b":method", b"CONNECT"), GET[2]], "method_not_supported"),
    "expectation": ([*GET, (b"expect", b"200-ok")], "expectation_failed"),
    "fields": ([*GET, *[(b"a", b"b")] * 97], "head_too_large"),
    "cookie crumbs": ([*GET, *[(b"cookie", b"a=b")] * 97], "head_too_large"),
    "Host bomb": ([*GET, *[(b"host", b"shop.example")] * 97], "head_too_large"),
    "octets": ([*GET, (b"a", b"b" * 32768)], "head_too_large"),
    "octets that are dropped": ([*GET, *[(b"a_b", b"b" * 1000)] * 33], "head_too_large"),
    "path": ([*GET[:3], (b":path", b"/" + b"a" * 8190)], "target_too_long"),
}


@pytest.mark.parametrize("name", ANSWERED)
def test_answered_requests(name: str) -> None:
    fields, code = ANSWERED[name]
    with pytest.raises(RequestError) as error:
        request(*fields)
    assert error.value.reason.code == code


def test_thirty_two_octets_count_for_each_field() -> None:
    octets = sum(len(name) + len(value) + 32 for name, value in GET)
    request(*GET, limits=Http2Limits(head_bytes=octets, fields=4))
    for limits in (Http2Limits(head_bytes=octets - 1), Http2Limits(fields=3)):
        with pytest.raises(RequestError):
            request(*GET, limits=limits)


def test_an_underscore_is_refused_dropped_or_kept() -> None:
    assert request(*GET, (b"a_b", b"c")).block == b""
    assert request(*GET, (b"a_b", b"c"), rules=RULES[1]).block == b"a_b: c\r\n"
    with pytest.raises(RequestError) as error:
        request(*GET, (b"a_b", b"c"), rules=RULES[2])
    assert error.value.reason.code == "ambiguous_field"


@pytest.mark.parametrize("spelling", [b"x-forwarded-for", b"x_forwarded-for", b"x-real_ip", b"x-client-cert-chain", b"x-foo-1", b"x_foo_1"])
def test_what_an_upstream_may_take_for_identity_is_never_in_the_block(spelling: bytes) -> None:
    for rules in RULES[:2]:
        head = request(*GET, (spelling, b"spoofed"), (b"accept", b"x"), rules=rules)
        if rules is RULES[1] or not spelling.startswith((b"x-foo", b"x_foo")):
            assert head.block == b"accept: x\r\n"


def test_crumbs_of_a_cookie_are_joined() -> None:
    """RFC 9113 section 8.2.3."""
    head = request(*GET, (b"cookie", b"a=b"), (b"accept", b"x"), (b"cookie", b"c=d"), (b"cookie", b"e=f"))
    assert head.block == b"accept: x\r\ncookie: a=b; c=d; e=f\r\n"
    assert request(*GET, (b"cookie", b"a=b"), (b"cookie", b"c=d"), rules=RULES[1]).specials == [(b"cookie", b"a=b; c=d")]


def test_host_stands_in_for_the_authority() -> None:
    assert request(*GET[:2], GET[3], (b"host", b"shop.example")).authority == b"shop.example"
    head = request(*GET, (b"host", b"SHOP.example"))
    assert (head.authority, head.block) == (b"shop.example", b"")


@pytest.mark.parametrize(
    ("fields", "ended", "length", "expects"),
    [
        ([], True, NO_BODY, False),
        ([], False, CHUNKED, False),
        ([(b"content-length", b"0")], True, NO_BODY, False),
        ([(b"content-length", b"0")], False, CHUNKED, False),
        ([(b"content-length", b"7")], False, 7, False),
        ([(b"expect", b"100-Continue")], True, NO_BODY, False),
        ([(b"expect", b"100-continue")], False, CHUNKED, True),
    ],
)
def test_lengths(fields: Fields, ended: bool, length: int, expects: bool) -> None:
    head = request(*GET, *fields, ended=ended)
    assert (head.length, head.expect, head.keep_alive, head.minor) == (length, expects, True, 2)


def test_extended_connect() -> None:
    """RFC 8441 section 4."""
    fields = ((b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:], (b"sec-websocket-version", b"13"), (b"te", b"trailers"))
    offered = Http2Limits(extended_connect=True)
    for ended in (False, True):
        head = request(*fields, limits=offered, ended=ended)
        assert (head.method, head.target, head.length) == (b"CONNECT", b"/a", CHUNKED)
        assert head.specials == [(b":protocol", b"websocket"), (b"te", b"trailers")]
    for wrong, limits in (
        (fields, LIMITS),
        ([*fields, (b"content-length", b"0")], offered),
        ([pair for pair in fields if pair[0] != b":authority"], offered),
        ([pair for pair in fields if pair[0] != b":path"], offered),
        ([pair for pair in fields if pair[0] != b":scheme"], offered),
        ([pair if pair[0] != b":protocol" else (b":protocol", b"web socket") for pair in fields], offered),
    ):
        with pytest.raises(MalformedHead):
            request(*wrong, limits=limits, ended=False)


# -- responses and trailers -------------------------------------------------------------------------------------------------

OK = (b":status", b"200")


@pytest.mark.parametrize(
    ("fields", "ended"),
    [
        ([], False),
        ([OK, OK], False),
        ([(b"a", b"b"), OK], False),
        ([OK, (b":path", b"/")], False),
        ([(b":status", b"101")], False),
        ([(b":status", b"103")], True),
        ([(b":status", b"000")], False),
        ([OK, (b"content-length", b"1")], True),
        ([OK, (b"content-length", b"1"), (b"content-length", b"1")], False),
        ([OK, (b"content-length", b"-1")], False),
        ([OK, (b"connection", b"close")], False),
        ([OK, (b"transfer-encoding", b"chunked")], False),
        ([OK, (b"Server", b"x")], False),
        ([OK, (b"a", b"b\r\n\r\nc")], False),
        ([OK, *[(b"a", b"b")] * 100], False),
        ([OK, (b"a", b"b" * 40000)], False),
    ],
)
def test_malformed_responses(fields: Fields, ended: bool) -> None:
    with pytest.raises(MalformedHead):
        response(*fields, ended=ended)


def test_a_length_that_only_describes() -> None:
    for status, method in ((b"200", b"HEAD"), (b"304", b"GET")):
        for ended in (False, True):
            head, declared = response((b":status", status), (b"content-length", b"9"), ended=ended, method=method)
            assert (head.length, declared, head.specials) == (NO_BODY, 0, [(b"content-length", b"9")])


@pytest.mark.parametrize(
    ("fields", "block"),
    [
        ([], b""),
        ([(b"grpc-status", b"0"), (b"grpc-message", b"")], b"grpc-status: 0\r\ngrpc-message: \r\n"),
        ([(b"content-length", b"3"), (b"host", b"a"), (b"x", b"y"), (b"x-forwarded-for", b"1"), (b"cookie", b"a=b")], b"x: y\r\n"),
        ([(b"traceparent", b"x")], b"traceparent: x\r\n"),
    ],
)
def test_trailers(fields: Fields, block: bytes) -> None:
    for book in (request_book(RULES[0]), response_book()):
        assert trailers_of([book.entry(*pair) for pair in fields], LIMITS) == block


@pytest.mark.parametrize(
    "fields",
    [[(b":path", b"/")], [(b":status", b"200")], [(b"A", b"b")], [(b"a", b"\n")], [(b"connection", b"x")], [(b"a", b"b")] * 101],
)
def test_malformed_trailers(fields: Fields) -> None:
    for book in (request_book(RULES[0]), response_book()):
        with pytest.raises(MalformedHead):
            trailers_of([book.entry(*pair) for pair in fields], LIMITS)
