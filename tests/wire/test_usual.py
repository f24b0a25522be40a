"""The one-pass expressions for usual heads decide nothing: what they take apart, the long way takes apart in the same way."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshguard.model.errors import RequestError
from meshguard.model.messages import RequestHead, ResponseHead
from meshguard.wire.fields import REQUEST_CONSUMED, RESPONSE_CONSUMED, SPOOFABLE
from meshguard.wire.grammar import PLAIN_REQUEST_HEAD, REQUEST_HEAD, RESPONSE_HEAD
from meshguard.wire.semantics import USUAL_RESPONSE, FieldRules, request_head, response_head, usual_request_head, usual_response_head
from tests.wire.drive import slots

STRIP = (b"x-foo-*", b"X-User-Id", b"te-*", b"hosts-file", b"x-meshguard", b"q", b"qq*")
RULES = {
    "drop": FieldRules(),
    "allow": FieldRules(underscores="allow"),
    "refuse": FieldRules(underscores="refuse"),
    "strip": FieldRules(STRIP),
    "strip, allow": FieldRules(STRIP, "allow"),
}
_SPECIAL = [name.rstrip(b"*") for name in (*REQUEST_CONSUMED, *RESPONSE_CONSUMED, *SPOOFABLE, *STRIP)]
_NEAR = [b"Tea", b"T", b"Hosts", b"Hos", b"Connection-Id", b"Expect-CT", b"Content-Lengths", b"Content-Length-X", b"Content", b"Upgrades",
         b"Traceparents", b"X-Forwarded", b"X-Forward", b"Forwarded-X", b"Trailers", b"Accept", b"Keep-Alives", b"X-Foo", b"-",
         b"~"]  # fmt: skip


@st.composite
def names(draw: st.DrawFn) -> bytes:
    name = draw(st.sampled_from(_SPECIAL) | st.sampled_from(_NEAR) | st.from_regex(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,6}", fullmatch=True))
    match draw(st.integers(0, 9)):
        case 0:
            name = name.replace(b"-", b"_")
        case 1:
            name = name.upper()
        case 2:
            name = name.title()
        case 3:
            name += draw(st.sampled_from([b"s", b"-x", b"_x", b"x", b"-", b"_", b"*"]))
        case 4:
            name = draw(st.sampled_from([b"x-", b"x", b"_", b"-"])) + name
        case 5:
            name = name[: draw(st.integers(1, len(name)))] if name else b"x"
        case 6:
            name = bytes(draw(st.sampled_from([char, char ^ 32])) if chr(char).isalpha() else char for char in name)
    return name or b"x"


white = st.sampled_from([b"", b" ", b" ", b"  ", b"\t", b" \t "])
values = st.sampled_from(
    [b"", b"a", b"5", b"0", b"05", b"5 5", b"5,5", b"+5", b"00-aa-bb-01", b"close", b"x-foo-a, accept", b"100-continue", b"chunked", b"a:b",
     b"\xe9", b"a b", b"x\ty", b"123456789012345678", b"1234567890123456789"]
)  # fmt: skip
lines = st.builds(lambda name, front, value, back: name + b":" + front + value + back + b"\r\n", names(), white, values, white)
common = st.sampled_from(
    [b"traceparent: 00-aa-bb-01\r\n", b"content-length: 5\r\n", b"Host: b\r\n", b"Accept: */*\r\n", b"TraceParent:x\r\n"]
)


@st.composite
def blocks(draw: st.DrawFn) -> bytes:
    return b"".join(draw(st.lists(lines | common, max_size=4)))


@st.composite
def request_heads(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from([b"GET", b"POST", b"HEAD", b"TRACE", b"CONNECT", b"OPTIONS", b"x", b"get"]))
    target = draw(st.sampled_from([b"/", b"/a?b", b"*", b"http://a/", b"a:1", b"//", b"/#"]))
    version = draw(st.sampled_from([b"1", b"1", b"1", b"0"]))
    host = draw(st.sampled_from([b"Host: a\r\n", b"hOST:\ta\r\n", b"Host:a \r\n", b"Host: a b\r\n", b"Host:\r\n", b"Host: \xe9\r\n", b""]))
    return b"%b %b HTTP/1.%b\r\n%b%b%b\r\n" % (method, target, version, draw(blocks()), host, draw(blocks()))


def the_long_way(data: bytes, rules: FieldRules) -> RequestHead:
    plain = True
    match = PLAIN_REQUEST_HEAD(data)
    if match is None:
        plain = False
        match = REQUEST_HEAD(data)
    assert match is not None, "the usual expression takes what the grammar does not"
    method, target, minor = match.groups()
    return request_head(method, target, int(minor), data[: match.end()], rules, plain)


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())
@settings(max_examples=250, deadline=None)
@given(data=request_heads(), behind=st.sampled_from([b"", b"x", b"GET / HTTP/1.1\r\nHost: z\r\n\r\n", b"\r\n"]))
@example(data=b"GET / HTTP/1.1\r\nTea: 1\r\nHosts: 2\r\nHost: a\r\nConnection-Id: 3\r\nExpect-CT: 4\r\n\r\n", behind=b"")
@example(data=b"GET / HTTP/1.1\r\nHost: a\r\ntraceparent: x\r\nA: b\r\ntraceparent: y\r\n\r\n", behind=b"")
def test_requests(rules: FieldRules, data: bytes, behind: bytes) -> None:
    match = rules.usual(data + behind)
    usual = usual_request_head(match) if match is not None else None
    if usual is not None:
        assert slots(usual) == slots(the_long_way(data + behind, rules))


@pytest.mark.parametrize(
    ("data", "taken"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nAccept: x\r\nHost: a\r\nCookie: b\r\n\r\n", True),
        (b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nX: y\r\ntraceparent: z\r\nA:\r\n\r\n", True),
        (b"POST /x HTTP/1.1\r\nHost: a\r\ntraceparent: z\r\nContent-Length: 5\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTea: 1\r\nExpect-CT: 2\r\nHosts: 3\r\nConnection-Id: 4\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX_Y: 1\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTE: 1\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nHost: a\r\n\r\n", False),
        (b"CONNECT /a HTTP/1.1\r\nHost: a\r\n\r\n", False),
    ],
)
def test_which_requests_are_usual(data: bytes, taken: bool) -> None:
    """Else the property could hold because nothing is ever usual."""
    match = RULES["drop"].usual(data)
    assert (match is not None and usual_request_head(match) is not None) is taken


@pytest.mark.parametrize("name", [*REQUEST_CONSUMED, *SPOOFABLE, *STRIP])
@pytest.mark.parametrize("place", [0, 1], ids=["before Host", "behind Host"])
def test_every_name_that_is_cut_is_cut_on_both_ways(name: bytes, place: int) -> None:
    rules = RULES["strip, allow"]
    bare = name.lower().rstrip(b"*")
    prefix = name.endswith(b"*")
    spoofable = name not in REQUEST_CONSUMED
    for spelling in {
        bare,
        bare.upper(),
        bare.title(),
        *([bare.replace(b"-", b"_")] if spoofable else []),
        *([bare + b"x", bare + b"-1.~"] if prefix else []),
    }:
        if spelling.lower() in (b"host", b"content-length", b"transfer-encoding", b"expect", b"traceparent"):
            continue
        line = spelling + b": evil\r\n"
        parts = [b"Host: a\r\n"]
        parts.insert(place, line)
        data = b"GET / HTTP/1.1\r\n" + b"".join(parts) + b"Accept: b\r\n\r\n"
        assert rules.usual(data) is None
        head = the_long_way(data, rules)
        assert head.block == b"Accept: b\r\n", spelling
        if spelling.lower() != b"connection":
            assert head.specials == [(spelling.lower(), b"evil")]


@st.composite
def response_heads(draw: st.DrawFn) -> bytes:
    start = draw(
        st.sampled_from(
            [b"HTTP/1.1 200 OK", b"HTTP/1.1 204 x", b"HTTP/1.1 304", b"HTTP/1.1 500 \xe9", b"HTTP/1.0 200 OK", b"HTTP/1.1 100 "]
        )
    )
    return b"%b\r\n%b\r\n" % (start, draw(blocks()))


@settings(max_examples=350, deadline=None)
@given(data=response_heads(), method=st.sampled_from([b"GET", b"HEAD", b"POST"]), behind=st.sampled_from([b"", b"hello", b"\r\n"]))
def test_responses(data: bytes, method: bytes, behind: bytes) -> None:
    match = USUAL_RESPONSE(data + behind)
    usual = usual_response_head(match, method) if match is not None else None
    if usual is not None:
        full = RESPONSE_HEAD(data + behind)
        assert full is not None
        other: ResponseHead = response_head(int(full[2]), int(full[1]), data[: full.end()], method)
        assert slots(usual) == slots(other)


def test_some_responses_are_usual() -> None:
    match = USUAL_RESPONSE(b"HTTP/1.1 404 Not Found\r\nDate: x\r\nX_Y: z\r\nContent-Length: 7\r\nServer: y\r\n\r\n")
    assert match is not None
    head = usual_response_head(match, b"GET")
    assert head is not None
    assert (head.status, head.length, head.block) == (404, 7, b"Date: x\r\nX_Y: z\r\nServer: y\r\n")


def test_a_name_with_an_underscore_is_cut_in_both_spellings() -> None:
    """`strip_headers: [x_user_id]` means the field, not one of its spellings."""
    rules = FieldRules((b"x_user_id",), "allow")
    for name in (b"x_user_id", b"X-User-Id", b"x-user_id"):
        assert the_long_way(b"GET / HTTP/1.1\r\nHost: a\r\n%b: 1\r\nA: b\r\n\r\n" % name, rules).block == b"A: b\r\n"


@pytest.mark.parametrize("strip", [(b"x-a*", b"x-a"), (b"x-a", b"x-a*", b"x-a#b"), (b"x-a*", b"x-a!", b"x-a"), (b"x-*", b"x-a-b", b"x-ab")])
def test_a_prefix_takes_all_that_begins_with_it(strip: tuple[bytes, ...]) -> None:
    rules = FieldRules(strip, "allow")
    for name in (b"x-a", b"x-a-b", b"x-ab", b"x-a#bc", b"x-a!x", b"x-a-bc", b"X-A_B"):
        assert the_long_way(b"GET / HTTP/1.1\r\nHost: a\r\n%b: 1\r\nA: b\r\n\r\n" % name, rules).block == b"A: b\r\n", name


@pytest.mark.parametrize("name", [b"", b"*", b"x-*-id", b"x y", b"x:", "é".encode()])
def test_names_that_cannot_be_stripped(name: bytes) -> None:
    """A pattern that would never match, or take everything, is refused when rules are made."""
    with pytest.raises(ValueError, match="strip"):
        FieldRules((name,))


def test_a_refusal_of_underscores() -> None:
    with pytest.raises(RequestError) as caught:
        the_long_way(b"GET / HTTP/1.1\r\nHost: a\r\nX_Y: 1\r\n\r\n", RULES["refuse"])
    assert caught.value.reason.code == "ambiguous_field"
