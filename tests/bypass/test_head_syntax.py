"""Request lines and header fields outside the strict grammar: refused, connection closed, nothing forwarded (security.md 1)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.cases import ALL_SEGMENTATIONS, WHOLE_AND_SPLIT, Case, Either, Forwarded, Refused, attack
from tests.harness.client import RawClient, get
from tests.harness.mesh import Mesh
from tests.harness.upstream import Seen

REFUSED = Refused(frozenset({400, 501, 505}))
HOST = b"\r\nHost: shop.example\r\n\r\n"
# printable characters that RFC 3986 keeps out of a target: refused, but the end of the head is beyond doubt
ODD_TARGET = Refused(frozenset({400}), closes=None)
ODD_CHARACTERS = {"quote", "lt", "brace", "pipe", "caret", "backtick", "fragment", "fragment-in-query"}

BAD_LINES: dict[str, bytes] = {
    "two-spaces": b"GET  /l HTTP/1.1",
    "two-spaces-2": b"GET /l  HTTP/1.1",
    "leading-space": b" GET /l HTTP/1.1",
    "leading-tab": b"\tGET /l HTTP/1.1",
    "trailing-space": b"GET /l HTTP/1.1 ",
    "trailing-tab": b"GET /l HTTP/1.1\t",
    "tabs": b"GET\t/l\tHTTP/1.1",
    "vtab": b"GET\x0b/l HTTP/1.1",
    "ff": b"GET /l\x0cHTTP/1.1",
    "nbsp": b"GET\xa0/l HTTP/1.1",
    "cr": b"GET\r/l HTTP/1.1",
    "http12": b"GET /l HTTP/1.2",
    "http19": b"GET /l HTTP/1.9",
    "http20": b"GET /l HTTP/2.0",
    "http2": b"GET /l HTTP/2",
    "http09": b"GET /l HTTP/0.9",
    "http30": b"GET /l HTTP/3.0",
    "lower": b"GET /l http/1.1",
    "mixed": b"GET /l Http/1.1",
    "no-version": b"GET /l",
    "no-version-space": b"GET /l ",
    "no-target": b"GET HTTP/1.1",
    "no-target-2": b"GET  HTTP/1.1",
    "only-method": b"GET",
    "x-after": b"GET /l HTTP/1.1x",
    "zero-padded": b"GET /l HTTP/01.1",
    "zero-padded-2": b"GET /l HTTP/1.01",
    "eleven": b"GET /l HTTP/11.1",
    "one-ten": b"GET /l HTTP/1.10",
    "space-in-version": b"GET /l HTTP/1 .1",
    "comma": b"GET /l HTTP/1,1",
    "plus": b"GET /l HTTP/+1.1",
    "minus": b"GET /l HTTP/-1.1",
    "ftp": b"GET /l FTP/1.1",
    "arabic": "GET /l HTTP/1.\u0661".encode(),
    "missing-slash": b"GET /l HTTP1.1",
    "h": b"GET /l H/1.1",
    "four": b"GET /l HTTP/1.1 x",
    "space-in-target": b"GET /l x HTTP/1.1",
    "nul-in-target": b"GET /l\0x HTTP/1.1",
    "raw-high": b"GET /l\xff HTTP/1.1",
    "utf8": "GET /\u00e9 HTTP/1.1".encode(),
    "del": b"GET /l\x7f HTTP/1.1",
    "control": b"GET /l\x01 HTTP/1.1",
    "quote": b'GET /l"x HTTP/1.1',
    "lt": b"GET /<l> HTTP/1.1",
    "brace": b"GET /{l} HTTP/1.1",
    "pipe": b"GET /l|x HTTP/1.1",
    "caret": b"GET /l^x HTTP/1.1",
    "backtick": b"GET /l`x HTTP/1.1",
    "fragment": b"GET /l#x HTTP/1.1",
    "fragment-in-query": b"GET /l?a#b HTTP/1.1",
    "control-in-query": b"GET /l?a\x01 HTTP/1.1",
    "space-in-query": b"GET /l?a b HTTP/1.1",
    "high-in-query": b"GET /l?\xff HTTP/1.1",
    "nul-in-query": b"GET /l?\0 HTTP/1.1",
    "method-at": b"G@T /l HTTP/1.1",
    "method-comma": b"GE,T /l HTTP/1.1",
    "method-paren": b"GET() /l HTTP/1.1",
    "method-colon": b"GET: /l HTTP/1.1",
    "method-high": b"G\xc9T /l HTTP/1.1",
    "method-nul": b"GET\0 /l HTTP/1.1",
    "method-slash": b"GET/ /l HTTP/1.1",
    "method-quote": b'"GET" /l HTTP/1.1',
    "method-brace": b"{GET} /l HTTP/1.1",
    "method-empty": b" /l HTTP/1.1",
    "asterisk-get": b"GET * HTTP/1.1",
    "asterisk-post": b"POST * HTTP/1.1",
    "asterisk-x": b"OPTIONS *x HTTP/1.1",
    "relative": b"GET l HTTP/1.1",
    "relative-dots": b"GET ../l HTTP/1.1",
    "query-only": b"GET ?l HTTP/1.1",
    "authority": b"GET shop.example HTTP/1.1",
    "authority-port": b"GET shop.example:443 HTTP/1.1",
    "backslash": b"GET \\l HTTP/1.1",
    "colon": b"GET :/l HTTP/1.1",
    "no-authority": b"GET http:///l HTTP/1.1",
    "one-slash": b"GET http:/l HTTP/1.1",
    "no-slash": b"GET http:l HTTP/1.1",
    "javascript": b"GET javascript://x/l HTTP/1.1",
    "file": b"GET file:///l HTTP/1.1",
    "ftp-target": b"GET ftp://shop.example/l HTTP/1.1",
    "ws": b"GET ws://shop.example/l HTTP/1.1",
    "scheme-x": b"GET x-http://shop.example/l HTTP/1.1",
    "response": b"HTTP/1.1 200 OK",
    "bom": b"\xef\xbb\xbfGET /l HTTP/1.1",
    "nul-first": b"\0GET /l HTTP/1.1",
    "preface-line": b"PRI * HTTP/2.0",
    "ssh": b"SSH-2.0-OpenSSH_9",
    "proxy-v1": b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET /l HTTP/1.1",
    "proxy-v2": b"\r\n\r\n\0\r\nQUIT\n!\x11\0\x0c\1\2\3\4\5\6\7\x08\0\1\0\2GET /l HTTP/1.1",
}

BAD_FIELDS: dict[str, bytes] = {
    "space-colon": b"X : y",
    "tab-colon": b"X\t: y",
    "vtab-colon": b"X\x0b: y",
    "leading-space": b" X: y",
    "leading-tab": b"\tX: y",
    "inner-space": b"X Y: z",
    "empty-name": b": y",
    "only-colon": b":",
    "no-colon": b"XY",
    "blank": b" ",
    "tab-line": b"\t",
    "nul-name": b"X\0: y",
    "del-name": b"X\x7f: y",
    "high-name": b"X\xe9: y",
    "utf8-name": "X\u00e9: y".encode(),
    "paren": b"X(y): z",
    "at": b"x@y: z",
    "quote": b'"x": y',
    "slash": b"x/y: z",
    "bracket": b"x[0]: y",
    "brace": b"{x}: y",
    "comma": b"x,y: z",
    "semicolon": b"x;y: z",
    "equals": b"x=y: z",
    "backslash": b"x\\y: z",
    "lt": b"<x>: y",
    "question": b"x?: y",
    "nul-value": b"X: a\0b",
    "nul-end": b"X: a\0",
    "control": b"X: a\x01b",
    "bell": b"X: \x07",
    "backspace": b"X: \x08",
    "vtab-value": b"X: a\x0bb",
    "ff-value": b"X: a\x0cb",
    "escape": b"X: \x1b",
    "del-value": b"X: a\x7f",
    "cr-value": b"X: a\rb",
    "cr-end": b"X: a\r",
    "lf-value": b"X: a\nY: b",
    "fold-space": b"X: a\r\n b",
    "fold-tab": b"X: a\r\n\tb",
    "fold-empty": b"X:\r\n b",
    "fold-blank": b"X: a\r\n \r\nY: b",
    "lf-line": b"X: a\nHost: evil.example",
    "cr-line": b"X: a\rHost: evil.example",
    "underscore": b"X_Y: z",
    "underscore-lead": b"_x: y",
    "ff-name": b"\x0cX: y",
    "nbsp-name": b"\xa0X: y",
    "ends-in-nbsp": b"X\xa0: y",
    "pseudo": b":path: /admin/x",
    "pseudo-authority": b":authority: evil.example",
    "crcrlf": b"X: y\r",
    "soh": b"X\x01: y",
}


def _value(name: str, value: str) -> Callable[[list[Seen]], None]:
    def check(seen: list[Seen]) -> None:
        assert seen[0].head.all(name) == [value], seen[0].head.raw

    return check


def _good(field: bytes, name: str, value: str) -> Forwarded:
    return Forwarded(("/l",), check=_value(name, value))


GOOD = b"GET /l HTTP/1.1\r\nHost: shop.example\r\n"


def cases() -> list[Case]:
    out = [Case(f"line-{k}", line + HOST, ODD_TARGET if k in ODD_CHARACTERS else REFUSED) for k, line in BAD_LINES.items()]
    for k, field in BAD_FIELDS.items():
        out.append(
            Case(
                f"field-{k}",
                GOOD + field + b"\r\n\r\n",
                REFUSED,
                segmentations=ALL_SEGMENTATIONS if k in ("fold-space", "lf-value", "nul-value", "space-colon") else WHOLE_AND_SPLIT,
            )
        )
        out.append(
            Case(
                f"field-{k}-first",
                b"GET /l HTTP/1.1\r\n" + field + b"\r\nHost: shop.example\r\n\r\n",
                REFUSED,
                segmentations=("whole", "lines"),
            )
        )
        out.append(Case(f"field-{k}-middle", GOOD + b"A: 1\r\n" + field + b"\r\nB: 2\r\n\r\n", REFUSED, segmentations=("whole",)))
    out += [
        Case("lf-only", b"GET /l HTTP/1.1\nHost: shop.example\n\n", REFUSED, segmentations=ALL_SEGMENTATIONS),
        Case("line-lf", b"GET /l HTTP/1.1\nHost: shop.example\r\n\r\n", REFUSED),
        Case("end-lf", b"GET /l HTTP/1.1\r\nHost: shop.example\r\n\n", REFUSED),
        Case("end-lflf", b"GET /l HTTP/1.1\r\nHost: shop.example\n\n", REFUSED),
        Case("end-lfcrlf", b"GET /l HTTP/1.1\r\nHost: shop.example\n\r\n", REFUSED),
        Case("cr-only", b"GET /l HTTP/1.1\rHost: shop.example\r\r" + b"\n" * 4, REFUSED),
        Case("line-crcrlf", b"GET /l HTTP/1.1\r\r\nHost: shop.example\r\n\r\n", REFUSED),
        Case("end-crcrlf", b"GET /l HTTP/1.1\r\nHost: shop.example\r\n\r\r\n\r\n", REFUSED),
        Case("lf-first", b"\nGET /l HTTP/1.1" + HOST, REFUSED),
        Case("cr-first", b"\rGET /l HTTP/1.1" + HOST, REFUSED),
        Case("space-crlf-first", b" \r\nGET /l HTTP/1.1" + HOST, REFUSED),
        Case("crlf-first", b"\r\nGET /l HTTP/1.1" + HOST, Either(REFUSED, Forwarded(("/l",))), segmentations=ALL_SEGMENTATIONS),
        Case(
            "many-crlf-first",
            b"\r\n" * 20000 + b"GET /l HTTP/1.1" + HOST,
            Either(Refused(frozenset({400, 431})), Forwarded(("/l",))),
            segmentations=("whole",),
        ),
        Case("http2-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", REFUSED, segmentations=ALL_SEGMENTATIONS),
        Case(
            "bad-second",
            get("/first") + b"GET /l HTTP/1.1\nHost: shop.example\r\n\r\n",
            Refused(frozenset({400}), first=("/first",)),
            segmentations=ALL_SEGMENTATIONS,
        ),
        Case("blank-second", get("/first") + b" \r\n" + get("/second"), Refused(frozenset({400}), first=("/first",))),
        # what must pass, exactly as sent
        Case("empty-value", GOOD + b"X:\r\n\r\n", _good(b"", "x", "")),
        Case("no-space", GOOD + b"X:y\r\n\r\n", _good(b"", "x", "y")),
        Case("padded", GOOD + b"X: \t y \t \r\n\r\n", _good(b"", "x", "y")),
        Case("inner-tab", GOOD + b"X: a\tb\r\n\r\n", _good(b"", "x", "a\tb")),
        Case("colon-value", GOOD + b"X: a:b:c\r\n\r\n", _good(b"", "x", "a:b:c")),
        Case("colon-first-value", GOOD + b"X: :y\r\n\r\n", _good(b"", "x", ":y")),
        Case("token-name", GOOD + b"!#$%&'*+-.^`|~9aZ: y\r\n\r\n", _good(b"", "!#$%&'*+-.^`|~9aZ", "y")),
        Case("obs-text", GOOD + b"X: caf\xe9\r\n\r\n", Either(REFUSED, _good(b"", "x", "caf\xe9"))),
        Case("lower-method", b"get /l HTTP/1.1" + HOST, Either(Refused(frozenset({400, 403, 405, 501}), closes=None), Forwarded(("/l",)))),
        Case(
            "odd-method", b"M-SEARCH /l HTTP/1.1" + HOST, Either(Refused(frozenset({400, 403, 405, 501}), closes=None), Forwarded(("/l",)))
        ),
        Case(
            "options-asterisk",
            b"OPTIONS * HTTP/1.1" + HOST,
            Either(Refused(frozenset({400, 403, 404, 405}), closes=None), Forwarded(("*",))),
        ),
        Case(
            "query-kept",
            b"GET /l?a=%2F..&b=//x;y%00 HTTP/1.1" + HOST,
            Either(Refused(frozenset({400}), closes=None), Forwarded(("/l?a=%2F..&b=//x;y%00",))),
        ),
        Case("query-question", b"GET /l?a=b?c=/d HTTP/1.1" + HOST, Forwarded(("/l?a=b?c=/d",))),
        Case("query-empty", b"GET /l? HTTP/1.1" + HOST, Either(REFUSED, Forwarded(("/l?",)))),
    ]
    return out


CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=[c.id for c in CASES])
def test_head(case: Case, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    attack(case, engine, dial, mesh.upstream)


def test_first_bytes_alone_do_not_hang(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """A client that half-closes inside a head gets a refusal or the end, at once."""
    data = get("/cut")
    mark = mesh.upstream.mark()
    for cut in (1, 4, 10, len(data) - 3, len(data) - 1):
        with dial(f"plain-{engine}", deadline_s=4.0) as client:
            client.send(data[:cut])
            client.half_close()
            assert [a.status for a in client.rest()] in ([], [400], [408])
    assert mesh.upstream.since(mark) == []
