"""Request smuggling by framing: Content-Length against Transfer-Encoding, and every spelling of either (security.md 1).

Each attack carries a second request to /smuggled behind the first body: if any reading of the framing lets it through, the
recording upstream sees it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.cases import ALL_SEGMENTATIONS, FRAMING, SYNTAX, Case, Either, Forwarded, Outcome, Refused, attack, run
from tests.harness.client import RawClient, chunked
from tests.harness.mesh import Mesh

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: shop.example\r\n\r\n"
TOO_LARGE = frozenset({400, 413})


def head(*fields: bytes, line: bytes = b"POST /f HTTP/1.1") -> bytes:
    return b"\r\n".join([line, b"Host: shop.example", *fields]) + b"\r\n\r\n"


def _te(value: bytes) -> bytes:
    return b"Transfer-Encoding: " + value


_HELLO = Forwarded(("/f",), bodies=(b"hello",))
_LENIENT = Either(Refused(FRAMING), _HELLO)

# Values that are not `chunked`, byte for byte. None may be taken as chunked, nor ignored.
BAD_CODINGS: dict[str, bytes] = {
    "xchunked": b"xchunked",
    "chunkedx": b"chunkedx",
    "empty": b"",
    "identity": b"identity",
    "gzip": b"gzip",
    "gzip-chunked": b"gzip, chunked",
    "chunked-gzip": b"chunked, gzip",
    "chunked-chunked": b"chunked, chunked",
    "trailing-comma": b"chunked,",
    "leading-comma": b", chunked",
    "identity-chunked": b"identity, chunked",
    "chunked-identity": b"chunked, identity",
    "parameter": b"chunked;q=1",
    "quoted": b'"chunked"',
    "single-quoted": b"'chunked'",
    "vtab-before": b"\x0bchunked",
    "vtab-after": b"chunked\x0b",
    "ff-before": b"\x0cchunked",
    "ff-after": b"chunked\x0c",
    "nbsp-before": b"\xa0chunked",
    "nbsp-after": b"chunked\xa0",
    "nel-after": b"chunked\x85",
    "utf8-nbsp": b"chunked\xc2\xa0",
    "kelvin": "chun\u212aed".encode(),
    "fullwidth": "\uff43hunked".encode(),
    "dotless": "chunk\u0117d".encode(),
    "nul-after": b"chunked\0",
    "nul-before": b"\0chunked",
    "inner-space": b"chun ked",
    "inner-tab": b"chun\tked",
    "semicolon": b"chunked;",
    "slash": b"chunked/1",
    "bom": b"\xef\xbb\xbfchunked",
    "cr-inside": b"chun\rked",
    "cr-before": b"\rchunked",
    "lf-before": b"\nchunked",
    "cr-after": b"chunked\r",
    "del": b"chunked\x7f",
    "soft-hyphen": b"chun\xadked",
    "trailers": b"trailers",
    "deflate-list": b"deflate, gzip",
    "percent": b"chunke%64",
    "backspace": b"chunked\x08",
    "paren": b"(chunked)",
}

# Legal spellings of `chunked`: optional white space around the value, another case. Refusing them is strict, taking them is right.
LEGAL_CODINGS: dict[str, bytes] = {
    "upper": b"CHUNKED",
    "mixed": b"cHuNkEd",
    "tab": b"\tchunked",
    "spaces": b"   chunked",
    "trailing-space": b"chunked ",
    "trailing-tab": b"chunked\t",
}


def transfer_encoding() -> list[Case]:
    out = [Case("te-plain", head(_te(b"chunked")) + chunked(b"hello"), _HELLO, segmentations=ALL_SEGMENTATIONS)]
    out += [Case(f"te-legal-{k}", head(_te(v)) + chunked(b"hello"), _LENIENT) for k, v in LEGAL_CODINGS.items()]
    for k, v in BAD_CODINGS.items():
        out.append(Case(f"te-{k}", head(_te(v)) + chunked(b"hello") + SMUGGLED, Refused(FRAMING)))
        out.append(Case(f"te-{k}-with-cl", head(_te(v), b"Content-Length: 5") + b"hello" + SMUGGLED, Refused(FRAMING)))
    whole = chunked() + SMUGGLED
    for k, v in {**LEGAL_CODINGS, "plain": b"chunked"}.items():
        out.append(
            Case(
                f"cl-te-{k}",
                head(b"Content-Length: %d" % len(whole), _te(v)) + whole,
                Refused(FRAMING),
                segmentations=ALL_SEGMENTATIONS if k == "plain" else ("whole",),
            )
        )
        out.append(Case(f"te-cl-{k}", head(_te(v), b"Content-Length: 4") + b"5c\r\n" + SMUGGLED + b"\r\n0\r\n\r\n", Refused(FRAMING)))
    two = {
        "twice": (_te(b"chunked"), _te(b"chunked")),
        "identity-then-chunked": (_te(b"identity"), _te(b"chunked")),
        "chunked-then-identity": (_te(b"chunked"), _te(b"identity")),
        "chunked-then-x": (_te(b"chunked"), _te(b"x")),
        "x-then-chunked": (_te(b"x"), _te(b"chunked")),
        "empty-then-chunked": (_te(b""), _te(b"chunked")),
        "gzip-then-chunked": (_te(b"gzip"), _te(b"chunked")),
        "case-differs": (b"Transfer-Encoding: chunked", b"transfer-encoding: chunked"),
        "far-apart": (_te(b"chunked"), b"X: y", _te(b"chunked")),
    }
    for k, fields in two.items():
        out.append(Case(f"te-lines-{k}", head(*fields) + chunked(b"hello") + SMUGGLED, Refused(FRAMING)))
        out.append(Case(f"te-lines-{k}-cl", head(*fields, b"Content-Length: 5") + chunked(b"hello") + SMUGGLED, Refused(FRAMING)))
    names = {
        "space-colon": b"Transfer-Encoding : chunked",
        "tab-colon": b"Transfer-Encoding\t: chunked",
        "vtab-colon": b"Transfer-Encoding\x0b: chunked",
        "nul": b"Transfer-Encoding\0: chunked",
        "leading-space": b" Transfer-Encoding: chunked",
        "leading-tab": b"\tTransfer-Encoding: chunked",
        "inner-space": b"Transfer Encoding: chunked",
        "underscore": b"Transfer_Encoding: chunked",
        "underscore-one": b"TRANSFER_ENCODING: chunked",
        "nbsp": b"Transfer-Encoding\xa0: chunked",
        "after-lf": b"X: y\nTransfer-Encoding: chunked",
        "after-cr": b"X: y\rTransfer-Encoding: chunked",
        "folded": b"Transfer-Encoding:\r\n chunked",
        "folded-tab": b"Transfer-Encoding: chunked\r\n\t",
        "folded-into-other": b"X: y\r\n Transfer-Encoding: chunked",
        "no-colon": b"Transfer-Encoding chunked",
        "quoted-name": b'"Transfer-Encoding": chunked',
        "utf8-hyphen": "Transfer\u2010Encoding: chunked".encode(),
        "crcrlf": b"Transfer-Encoding: chunked\r",
        "double-colon-name": b":Transfer-Encoding: chunked",
    }
    for k, field in names.items():
        out.append(Case(f"te-name-{k}", head(field) + chunked(b"hello") + SMUGGLED, Refused(FRAMING)))
        out.append(Case(f"te-name-{k}-cl", head(b"Content-Length: 5", field) + b"hello" + SMUGGLED, Refused(FRAMING)))
    out.append(Case("te-value-starts-with-colon", head(b"Transfer-Encoding:: chunked") + chunked(b"hello") + SMUGGLED, Refused(FRAMING)))
    out += [
        Case("te-http10", head(_te(b"chunked"), line=b"POST /f HTTP/1.0") + chunked(b"hello") + SMUGGLED, Refused(FRAMING)),
        Case(
            "te-http10-keepalive",
            head(_te(b"chunked"), b"Connection: keep-alive", line=b"POST /f HTTP/1.0") + chunked(b"hello") + SMUGGLED,
            Refused(FRAMING),
        ),
        Case("te-http10-cl", head(_te(b"chunked"), b"Content-Length: 5", line=b"POST /f HTTP/1.0") + b"hello" + SMUGGLED, Refused(FRAMING)),
        Case("te-get", head(_te(b"chunked"), line=b"GET /f HTTP/1.1") + chunked(b"hello"), _HELLO),
        Case("te-connection-named", head(_te(b"chunked"), b"Connection: transfer-encoding") + chunked(b"hello"), _LENIENT),
        Case(
            "te-connection-named-cl",
            head(_te(b"chunked"), b"Content-Length: 5", b"Connection: transfer-encoding") + chunked(b"hello") + SMUGGLED,
            Refused(FRAMING),
        ),
        Case("cl-connection-named", head(b"Content-Length: 5", b"Connection: content-length") + b"hello", _LENIENT),
        Case("cl-get", head(b"Content-Length: 5", line=b"GET /f HTTP/1.1") + b"hello", _HELLO),
        Case("cl-zero", head(b"Content-Length: 0"), Forwarded(("/f",), bodies=(b"",))),
        Case("cl-delete", head(b"Content-Length: 5", line=b"DELETE /f HTTP/1.1") + b"hello", _HELLO),
        Case("no-framing-post", head(), Forwarded(("/f",), bodies=(b"",))),
        Case(
            "body-is-a-request",
            head(b"Content-Length: %d" % len(SMUGGLED)) + SMUGGLED,
            Forwarded(("/f",), bodies=(SMUGGLED,)),
            segmentations=ALL_SEGMENTATIONS,
        ),
        Case(
            "chunk-is-a-request",
            head(_te(b"chunked")) + chunked(SMUGGLED),
            Forwarded(("/f",), bodies=(SMUGGLED,)),
            segmentations=ALL_SEGMENTATIONS,
        ),
        Case(
            "body-then-next",
            head(b"Content-Length: 5") + b"hello" + SMUGGLED.replace(b"smuggled", b"next"),
            Forwarded(("/f", "/next")),
            segmentations=ALL_SEGMENTATIONS,
        ),
        Case(
            "chunked-then-next",
            head(_te(b"chunked")) + chunked(b"hello") + SMUGGLED.replace(b"smuggled", b"next"),
            Forwarded(("/f", "/next")),
            segmentations=ALL_SEGMENTATIONS,
        ),
    ]
    return out


BAD_LENGTHS: dict[str, bytes] = {
    "plus": b"+5",
    "minus": b"-5",
    "hex": b"0x5",
    "underscore": b"0_5",
    "inner-underscore": b"5_0",
    "two-numbers": b"5 5",
    "list-equal": b"5, 5",
    "list-tight": b"5,5",
    "list-differ": b"5, 0",
    "empty": b"",
    "blank": b"   ",
    "semicolon": b"5;",
    "dot": b"5.0",
    "exponent": b"5e0",
    "arabic": "\u0665".encode(),
    "fullwidth": "\uff15".encode(),
    "superscript": b"\xb5",
    "vtab-before": b"\x0b5",
    "vtab-after": b"5\x0b",
    "ff-after": b"5\x0c",
    "nbsp-after": b"5\xa0",
    "nel-after": b"5\x85",
    "nul-after": b"5\0",
    "letters": b"five",
    "quoted": b'"5"',
    "octal": b"0o5",
    "binary": b"0b101",
    "trailing-comma": b"5,",
    "leading-comma": b",5",
    "cr": b"5\r",
    "cr-inside": b"5\r5",
    "minus-zero": b"-0",
    "hash": b"5#",
    "comment": b"5 (five)",
    "colon": b":5",
    "infinity": b"inf",
    "nan": b"nan",
    "long-zeros": b"0" * 30 + b"5",
    "tab-inside": b"5\t5",
    "percent": b"%35",
}


def content_length() -> list[Case]:
    out = [Case(f"cl-{k}", head(b"Content-Length: " + v) + b"hello" + SMUGGLED, Refused(FRAMING)) for k, v in BAD_LENGTHS.items()]
    two = {
        "equal": (b"5", b"5"),
        "differ": (b"5", b"0"),
        "differ-2": (b"0", b"5"),
        "bad-then-good": (b"x", b"5"),
        "good-then-bad": (b"5", b"x"),
        "empty-then-good": (b"", b"5"),
        "zero-padded": (b"5", b"05"),
        "three": (b"5", b"5", b"5"),
    }
    for k, values in two.items():
        out.append(Case(f"cl-lines-{k}", head(*[b"Content-Length: " + v for v in values]) + b"hello" + SMUGGLED, Refused(FRAMING)))
    out.append(Case("cl-lines-case", head(b"Content-Length: 5", b"content-length: 0") + b"hello" + SMUGGLED, Refused(FRAMING)))
    names = {
        "space-colon": b"Content-Length : 5",
        "tab-colon": b"Content-Length\t: 5",
        "leading-space": b" Content-Length: 5",
        "underscore": b"Content_Length: 5",
        "folded": b"Content-Length:\r\n 5",
        "nul": b"Content-Length\0: 5",
        "after-lf": b"X: y\nContent-Length: 5",
        "after-cr": b"X: y\rContent-Length: 5",
        "inner-space": b"Content Length: 5",
    }
    out += [Case(f"cl-name-{k}", head(f) + b"hello" + SMUGGLED, Refused(FRAMING)) for k, f in names.items()]
    for k, v in {"tab": b"\t5", "spaces": b"  5", "trailing": b"5  ", "zero-padded": b"05"}.items():
        out.append(Case(f"cl-legal-{k}", head(b"Content-Length: " + v) + b"hello", _LENIENT))
    sizes = {
        "huge": b"999999999999999999",
        "u64-wrap": b"18446744073709551621",
        "u32-wrap": b"4294967301",
        "i64": b"9223372036854775808",
        "digits-200": b"9" * 200,
        "digits-5000": b"9" * 5000,
        "over-limit": b"67108865",
    }
    out += [Case(f"cl-size-{k}", head(b"Content-Length: " + v) + b"hello" + SMUGGLED, Refused(TOO_LARGE | {431})) for k, v in sizes.items()]
    return out


CASES = transfer_encoding() + content_length()


@pytest.mark.parametrize("case", CASES, ids=[c.id for c in CASES])
def test_framing(case: Case, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    attack(case, engine, dial, mesh.upstream)


def _representative() -> list[Case]:
    wanted = {"cl-te-plain", "te-cl-plain", "te-xchunked", "cl-lines-differ", "te-name-space-colon-cl", "te-name-after-lf-cl"}
    return [c for c in CASES if c.id in wanted]


@pytest.mark.parametrize("case", _representative(), ids=lambda c: c.id)
def test_framing_at_every_cut(case: Case, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """Two segments, cut after each byte of the head in turn: the first answer is the same refusal, nothing is forwarded."""
    mark = mesh.upstream.mark()
    end = case.data.index(b"\r\n\r\n") + 4
    for cut in range(1, end + 1):
        with dial(engine, deadline_s=4.0) as client:
            client.send([case.data[:cut], case.data[cut:]])
            answers = client.rest()
        assert len(answers) == 1, (cut, answers)
        assert answers[0].status in FRAMING, (cut, answers)
    assert mesh.upstream.since(mark) == []


def test_plaintext_listener_is_as_strict(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    for case in CASES[::7]:
        run(case, "halves", lambda: dial(f"plain-{engine}", deadline_s=4.0), mesh.upstream)


def test_outcomes_are_declared() -> None:
    assert all(isinstance(c.outcome, Outcome) for c in CASES)
    assert len({c.id for c in CASES}) == len(CASES)
    assert SYNTAX <= FRAMING
