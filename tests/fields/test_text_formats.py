"""Forms, multipart, NDJSON, server-sent events, headers and queries: found by name, treated, everything else octet for octet."""

from __future__ import annotations

import json
from collections.abc import Callable
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import HTTP
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshguard.fields.plans import RoutePlan
from meshguard.fields.transforms import WIRE, Reader, Transform
from meshguard.model.errors import RequestError
from meshguard.model.reasons import BODY_INVALID, BODY_NOT_INSPECTABLE, BODY_OVER_LIMIT, FIELD_NOT_OPENED
from tests.fields.documents_of import documents
from tests.fields.parts import RULE, Counter, compiled, reader

BASE: dict[str, Any] = {name: value for name, value in RULE.items() if name != "select"} | {"on": "both"}
FORM = {**BASE, "form": ["card", "name"]}
URLENCODED = "application/x-www-form-urlencoded"
LINES = {**RULE, "on": "both", "content_types": ["application/x-ndjson"], "select": ["$.card", "$..ssn"], "seal_null": True}
EVENTS = {**LINES, "content_types": ["text/event-stream"]}


def plan(*rules: dict[str, Any]) -> RoutePlan:
    found = compiled(*rules).plan("POST", "/orders/7")
    assert found is not None
    return found


def requests(*rules: dict[str, Any]) -> Transform:
    found = plan(*rules).request
    assert found is not None
    return found


def treat(found: Transform, body: bytes, content_type: str, *roles: str, nonces: Counter | None = None) -> bytes:
    return found.apply(body, content_type, reader(*roles), nonces or Counter(), 0.0).body


# -- forms ------------------------------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(codec="utf-8"), max_size=12)
pairs = st.lists(st.tuples(st.sampled_from(["card", "name", "x", "a b", "é"]), texts), max_size=6)
ENCODERS: list[Callable[[str], str]] = [
    lambda text: quote(text, safe="*-._ ").replace(" ", "+").replace("~", "%7E"),
    lambda text: quote(text, safe=""),
    lambda text: quote(text, safe="-_.!~*'()"),
]


@settings(max_examples=100, deadline=None)
@given(pairs, st.sampled_from(ENCODERS))
@example([("card", "a b+c%"), ("x", "")], ENCODERS[0])
def test_a_form_comes_back_octet_for_octet(values: list[tuple[str, str]], encode: Callable[[str], str]) -> None:
    body = "&".join(f"{encode(name)}={encode(value)}" for name, value in values).encode()
    found = requests(FORM)
    sealed = treat(found, body, URLENCODED)
    for (name, value), (was, kept) in zip(parse_qsl(sealed.decode(), keep_blank_values=True), values, strict=True):
        assert name == was
        assert value.startswith("eyJ") if name in ("card", "name") else value == kept
    assert treat(found, sealed, URLENCODED) == sealed
    assert treat(found, sealed, URLENCODED, "billing") == body


@pytest.mark.parametrize("body", [b"x=1&&y&=&card", b"&", b"=", b"card=", b"x=%F0%9F%98%80&card=%2b%2B", b"y=a;b"])
def test_odd_forms_keep_their_meaning(body: bytes) -> None:
    found = requests(FORM)
    opened = treat(found, treat(found, body, URLENCODED), URLENCODED, "billing")
    assert parse_qsl(opened.decode(), keep_blank_values=True) == parse_qsl(body.decode(), keep_blank_values=True)


@pytest.mark.parametrize(
    "body",
    [
        *(b"Card=1", b"CARD=1", b"card[]=1", b"card[0]=1", b"card%5B%5D=1", b"%20card=1", b"card%00x=1", b"card.=1", b"x=1;card=2"),
        *(b"x;card=1", b"card=1;name=2", b"card=%", b"card=%zz", b"card=%FF", b"%FF=1"),
    ],
)
def test_forms_that_two_readers_take_differently_are_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        treat(requests(FORM), body, URLENCODED, "billing")
    assert caught.value.reason is BODY_INVALID


def test_views_of_forms() -> None:
    found = requests({**FORM, "readers": {"billing": "open", "support": {"mask": "last4"}, "app": "nothing"}})
    body = b"a=1&card=4111-1111-1111-1234&name=&b=2"
    for given_body in (body, treat(found, body, URLENCODED)):
        assert treat(found, given_body, URLENCODED, "support") == b"a=1&card=****-****-****-1234&name=***&b=2"
        assert treat(found, given_body, URLENCODED, "app") == b"a=1&b=2"


def test_a_value_sealed_in_json_opens_in_a_form() -> None:
    both = {**FORM, "select": "$.card"}
    found = requests(both)
    for raw, text in ((b'"a b"', b"a+b"), (b"12.50", b"12.50"), (b"true", b"true")):
        sealed = json.loads(treat(found, b'{"card":%b}' % raw, "application/json"))["card"]
        assert treat(found, b"card=" + sealed.encode(), URLENCODED, "billing") == b"card=" + text
    sealed = dict(parse_qsl(treat(found, b"card=a%20b", URLENCODED).decode()))["card"]
    assert treat(found, json.dumps({"card": sealed}).encode(), "application/json", "billing") == b'{"card": "a b"}'


# -- multipart --------------------------------------------------------------------------------------------------------------------------

MULTIPART = "multipart/form-data; boundary=XX"


def part(name: str, content: bytes, *more: str) -> bytes:
    head = "\r\n".join([f'Content-Disposition: form-data; name="{name}"', *more])
    return b"--XX\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"


FILE = part("file", b'\x00\xff--X"card"\r\n\r\n', "Content-Type: application/octet-stream").replace(b'"file"', b'"file"; filename="a.bin"')


def fields_of(body: bytes) -> dict[str, bytes]:
    message = BytesParser(_class=EmailMessage, policy=HTTP).parsebytes(b"Content-Type: " + MULTIPART.encode() + b"\r\n\r\n" + body)
    return {
        str(item.get_param("name", header="content-disposition")): bytes(item.get_payload(decode=True)) for item in message.iter_parts()
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["card", "name", "x"]), texts), min_size=1, max_size=5))
def test_a_multipart_form_comes_back_octet_for_octet(values: list[tuple[str, str]]) -> None:
    body = b"".join(part(name, value.encode()) for name, value in values) + FILE + b"--XX--\r\n"
    found = requests(FORM)
    sealed = treat(found, body, MULTIPART)
    assert FILE in sealed
    for name, content in fields_of(sealed).items():
        assert name not in ("card", "name") or content.startswith(b"eyJ")
    assert treat(found, sealed, MULTIPART) == sealed
    assert treat(found, sealed, MULTIPART, "billing") == body


CARD = part("card", b"4111")
END = b"--XX--\r\n"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", CARD + END), ("multipart/form-data; boundary=", CARD + END),
        ("multipart/form-data; boundary=XX; boundary=YY", CARD + END), ("multipart/form-data; boundary=XX; BOUNDARY*0=YY", CARD + END),
        (MULTIPART, CARD), (MULTIPART, END), (MULTIPART, b"preamble\r\n" + CARD + END), (MULTIPART, CARD + END + b"epilogue" + CARD),
        (MULTIPART, CARD.replace(b"\r\n", b"\n") + END),
        (MULTIPART, part("x", b"1\n--XX\nContent-Disposition: form-data; name=card") + END),
        (MULTIPART, part("Card", b"1") + END), (MULTIPART, part("card[]", b"1") + END), (MULTIPART, CARD.replace(b'"card"', b"card") + END),
        (MULTIPART, CARD.replace(b'"card"', b'"c\\ard"') + END), (MULTIPART, CARD.replace(b'"card"', b'"c%61rd"') + END),
        (MULTIPART, CARD.replace(b'"card"', b'"x"; name="card"') + END),
        (MULTIPART, CARD.replace(b'"card"', b'"x"; name*=utf-8\'\'card') + END),
        (MULTIPART, CARD.replace(b"Content-Disposition", b"X-Y: z\r\nContent-Disposition: form-data\r\nContent-Disposition") + END),
        (MULTIPART, part("card", b"1", "Content-Transfer-Encoding: base64") + END),
        (MULTIPART, part("card", b"1", "Content-Type: text/html") + END),
        (MULTIPART, part("card", b"1", "Content-Type: text/plain; charset=utf-16") + END), (MULTIPART, part("card", b"\xff") + END),
        (MULTIPART, CARD.replace(b'"card"', b'"card"; filename="x"') + END), (MULTIPART, b"--XX \r\n" + CARD[6:] + END),
        (MULTIPART, CARD.replace(b"Disposition:", b"Disposition :") + END), (MULTIPART, CARD.replace(b"; name", b";\r\n name") + END),
        (MULTIPART, b"--XX\r\n\r\nno head\r\n" + CARD + END), (MULTIPART, CARD * 1001 + END),
    ],
)  # fmt: skip
def test_multipart_bodies_that_two_readers_take_differently_are_refused(content_type: str, body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        treat(requests(FORM), body, content_type, "billing")
    assert caught.value.reason in (BODY_INVALID, BODY_NOT_INSPECTABLE)


# -- streams of documents -----------------------------------------------------------------------------------------------------------------


def streamed(found: Transform, content_type: str, pieces: list[bytes], who: Reader, limit: int = 1 << 16) -> bytes:
    stream = found.stream(found.check_headers([content_type], []), who, Counter(), limit)
    return b"".join([*(stream.feed(piece) for piece in pieces), stream.finish()])


def cut(body: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(body), *(place % (len(body) + 1) for place in cuts)})
    return [body[start:end] for start, end in pairwise(places)]


one_line = documents.map(lambda body: body.replace(b"\n", b" ").replace(b"\r", b" "))
cuts = st.lists(st.integers(0, 10_000), max_size=6)


@settings(max_examples=80, deadline=None)
@given(st.lists(one_line, max_size=4), st.sampled_from([b"\n", b"\r\n", b"\n\n"]), st.booleans(), cuts)
def test_lines_come_back_however_they_are_cut(lines: list[bytes], end: bytes, last: bool, places: list[int]) -> None:
    body = end.join(lines) + (end if last else b"")
    found = requests(LINES)
    try:
        whole = streamed(found, "application/x-ndjson", [body], reader())
    except RequestError:
        with pytest.raises(RequestError):
            streamed(found, "application/x-ndjson", cut(body, places), reader())
        return
    assert streamed(found, "application/x-ndjson", cut(body, places), reader()) == whole
    assert streamed(found, "application/x-ndjson", cut(whole, places), reader("billing")) == body
    for line in whole.split(b"\n"):
        if line.strip():
            json.loads(line)


def test_each_line_goes_on_as_soon_as_it_is_whole() -> None:
    found = requests(LINES)
    stream = found.stream(found.check_headers(["application/x-ndjson"], []), reader(), Counter(), 64)
    assert stream.feed(b'{"card":') == b""
    assert stream.held == 8
    assert stream.feed(b'1}\n{"x"').startswith(b'{"card":"eyJ')
    assert stream.held == 4
    assert stream.feed(b":1}\n") == b'{"x":1}\n'
    with pytest.raises(RequestError) as caught:
        stream.feed(b"1" * 65)
    assert caught.value.reason is BODY_OVER_LIMIT


def test_a_line_that_is_no_document_is_refused_and_nothing_of_it_goes_on() -> None:
    found = requests(LINES)
    for body in (b'{"card":1}{"card":2}\n', b"x\n", b'{"card":"1234"', b"[\n]\n", b'{"card":1,"card":2}\n'):
        with pytest.raises(RequestError) as caught:
            streamed(found, "application/x-ndjson", [body], reader())
        assert caught.value.reason is BODY_INVALID


SSE = b': hello\r\n\r\nevent: order\nid: 7\ndata: {"card":"4111"}\n\nretry: 5\n\ndata:{"ssn":[1,\ndata:2]}\ndata\n\ndata: [DONE]\n\n'


def test_events_are_treated_one_by_one() -> None:
    found = requests(EVENTS)
    sealed = streamed(found, "text/event-stream", [SSE], reader())
    assert b"4111" not in sealed
    assert b"[1," not in sealed
    assert sealed.startswith(b': hello\r\n\r\nevent: order\nid: 7\ndata: {"card":"eyJ')
    assert sealed.endswith(b"data: [DONE]\n\n")
    opened = streamed(found, "text/event-stream", [sealed], reader("billing"))
    assert opened == SSE.replace(b"data\n\n", b"data:\n\n")


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(documents, st.sampled_from([b"", b": c\n", b"id: 1\n", b"event: x\r\n"])), max_size=4),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
    cuts,
)
def test_events_come_back_however_they_are_cut(events: list[tuple[bytes, bytes]], end: bytes, places: list[int]) -> None:
    body = b"".join(
        before.replace(b"\r\n", end).replace(b"\n", end)
        + b"".join(b"data: " + line + end for line in document.replace(b"\r", b"").split(b"\n"))
        + end
        for document, before in events
    )
    found = requests(EVENTS)
    try:
        whole = streamed(found, "text/event-stream", [body], reader())
    except RequestError:
        with pytest.raises(RequestError):
            streamed(found, "text/event-stream", cut(body, places), reader())
        return
    assert streamed(found, "text/event-stream", cut(body, places), reader()) == whole
    assert streamed(found, "text/event-stream", cut(whole, places), reader("billing")) == body


@pytest.mark.parametrize(
    "body",
    [
        b"data: x\n\n",
        b'data: {"card":1',
        b'data: {"card":1}\ndata: 2\n\n',
        b'\xef\xbb\xbfdata: {"card":1,"card":2}\n\n',
        b"data: [DONE]1\n\n",
    ],
)
def test_events_that_are_no_documents_are_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        streamed(requests(EVENTS), "text/event-stream", [body], reader())
    assert caught.value.reason is BODY_INVALID


def test_an_event_that_does_not_end_is_treated_too() -> None:
    out = streamed(requests(EVENTS), "text/event-stream", [b'\xef\xbb\xbfdata: {"card":"4111"}\r'], reader())
    assert b"4111" not in out
    assert out.startswith(b'\xef\xbb\xbfdata: {"card":"eyJ')
    assert out.endswith(b"\r")


def test_an_event_over_the_limit_is_refused() -> None:
    for body in (b"data: " + b" " * 100, b"data: 1\n" * 20, b": " + b"x" * 100):
        with pytest.raises(RequestError) as caught:
            streamed(requests(EVENTS), "text/event-stream", [body[:30], body[30:]], reader(), limit=64)
        assert caught.value.reason is BODY_OVER_LIMIT


# -- heads ------------------------------------------------------------------------------------------------------------------------------

HEAD = {**BASE, "on": "request", "headers": ["X-Card"], "query": ["card"]}
BLOCK = b"accept: */*\r\nX-Card:  4111 1111 \r\nx-other: 4111\r\nx-card: b\r\n"


def heads(block: bytes, query: bytes, who: Reader, rule: dict[str, Any] = HEAD) -> tuple[bytes, bytes]:
    found = plan(rule).request_head
    assert found is not None
    block, query, _ = found.apply(block, query, who, Counter())
    return block, query


def test_headers_and_queries_are_protected_and_come_back() -> None:
    block, query = heads(BLOCK, b"a=1&card=4111%201111&b", WIRE)
    assert b"4111 1111" not in block
    assert b"4111" not in query
    assert block.count(b"eyJ") == 2
    assert block.startswith(b"accept: */*\r\nX-Card:  eyJ")
    assert b"\r\nx-other: 4111\r\n" in block
    opened = heads(block, query, reader("billing"))
    assert opened == (BLOCK.replace(b"1111 \r\n", b"1111\r\n"), b"a=1&card=4111%201111&b")
    assert heads(block, query, reader()) == (block, query)


def test_a_header_that_would_begin_another_one_is_refused() -> None:
    both = {**HEAD, "select": "$.card"}
    for bad in ("a\r\nx-admin: 1", "a\nb", "\x00", " a", "a "):
        sealed = json.loads(treat(requests(both), json.dumps({"card": bad}).encode(), "application/json"))["card"]
        with pytest.raises(RequestError) as caught:
            heads(b"x-card: %b\r\n" % sealed.encode(), b"", reader("billing"), both)
        assert caught.value.reason is FIELD_NOT_OPENED


def test_heads_that_cannot_be_read_in_one_way_are_refused() -> None:
    for block, query in ((b"x-card: \xff\r\n", b""), (b"", b"Card=1"), (b"", b"card=%"), (b"", b"a;card=1")):
        with pytest.raises(RequestError):
            heads(block, query, WIRE)


def test_a_removed_parameter_leaves_no_trace() -> None:
    assert heads(BLOCK, b"card=1&x=2", reader("app"), {**HEAD, "readers": {"app": "nothing"}})[1] == b"x=2"
    assert heads(b"x-card: 1\r\na: b\r\n", b"card=1", reader("app"), {**HEAD, "readers": {"app": "nothing"}}) == (b"a: b\r\n", b"")


def test_a_route_without_body_rules_reads_no_body() -> None:
    found = plan(HEAD)
    assert (found.request, found.response, found.response_head) == (None, None, None)
    assert urlencode({"a": 1}) == "a=1"
