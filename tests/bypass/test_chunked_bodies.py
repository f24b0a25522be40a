"""Chunked request bodies: sizes, data that disagrees with its size, extensions, trailers (security.md 1)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.cases import ALL_SEGMENTATIONS, Broken, Case, Either, Forwarded, Outcome, Refused, attack
from tests.harness.client import RawClient
from tests.harness.mesh import Mesh
from tests.harness.upstream import Seen

HEAD = b"POST /c HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: shop.example\r\n\r\n"
BROKEN = Broken(frozenset({400, 413, 431}))
HELLO = Forwarded(("/c",), bodies=(b"hello",))


def _case(name: str, body: bytes, outcome: Outcome, *, segmentations: tuple[str, ...] = ("whole", "halves", "crlf")) -> Case:
    return Case(name, HEAD + body, outcome, segmentations=segmentations)


BAD_SIZES: dict[str, bytes] = {
    "0x": b"0x5",
    "0X": b"0X5",
    "plus": b"+5",
    "minus": b"-5",
    "underscore": b"0_5",
    "leading-space": b" 5",
    "leading-tab": b"\t5",
    "trailing-space": b"5 ",
    "trailing-tab": b"5\t",
    "vtab": b"\x0b5",
    "vtab-after": b"5\x0b",
    "ff-after": b"5\x0c",
    "letter": b"g",
    "empty": b"",
    "nbsp": b"5\xa0",
    "fullwidth": "\uff15".encode(),
    "arabic": "\u0665".encode(),
    "nul": b"5\0",
    "h": b"5h",
    "quoted": b'"5"',
    "dot": b"5.0",
    "comma": b"5,5",
    "overflow-u64": b"10000000000000005",
    "overflow-long": b"f" * 40 + b"5",
    "zeros-long": b"0" * 16 + b"5",
    "minus-zero": b"-0",
    "colon": b"5:",
    "hash": b"5#",
    "semi-first": b";5",
    "space-inside": b"0 5",
    "cr": b"5\r",
    "percent": b"%35",
    "kelvin": "\u212a".encode(),
}

BAD_EXTENSIONS: dict[str, bytes] = {
    "lf": b";a\n=b",
    "lf-only": b";\n",
    "cr": b";a\r=b",
    "nul": b";a=\0",
    "control": b";a=\x01",
    "del": b";a=\x7f",
    "vtab": b";\x0b",
    "long": b";a=" + b"x" * 5000,
    "lf-smuggle": b";\n1\r\nX\r\n0\r\n\r\n" + SMUGGLED + b"5",
    "quoted-lf": b';a="\n"',
    "backspace": b";a\x08",
    "escape": b";\x1b[0m",
}

BAD_DATA: dict[str, bytes] = {
    "longer": b"5\r\nhelloX\r\n0\r\n\r\n",
    "shorter": b"5\r\nhell\r\n0\r\n\r\n",
    "no-crlf": b"5\r\nhello0\r\n\r\n",
    "bare-lf-after": b"5\r\nhello\n0\r\n\r\n",
    "bare-cr-after": b"5\r\nhello\r0\r\n\r\n",
    "size-lf": b"5\nhello\r\n0\r\n\r\n",
    "all-lf": b"5\nhello\n0\n\n",
    "size-cr": b"5\rhello\r\n0\r\n\r\n",
    "lfcr": b"5\n\rhello\r\n0\r\n\r\n",
    "crcrlf": b"5\r\r\nhello\r\n0\r\n\r\n",
    "blank-line-first": b"\r\n5\r\nhello\r\n0\r\n\r\n",
    "blank-between": b"5\r\nhello\r\n\r\n0\r\n\r\n",
    "two-crlf-after-data": b"5\r\nhello\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "last-lf": b"5\r\nhello\r\n0\n\r\n",
    "last-lflf": b"5\r\nhello\r\n0\n\n",
    "end-lf": b"5\r\nhello\r\n0\r\n\n",
    "end-cr-x": b"5\r\nhello\r\n0\r\n\rX\n",
    "end-crcrlf": b"5\r\nhello\r\n0\r\n\r\r\n",
    "size-too-big-by-smuggled": b"5\r\nhello\r\n0 \r\n\r\n",
}

BAD_TRAILERS: dict[str, bytes] = {
    "folded": b"X: y\r\n z\r\n",
    "leading-space": b" X: y\r\n",
    "space-colon": b"X : y\r\n",
    "no-colon": b"XY\r\n",
    "empty-name": b": y\r\n",
    "lf": b"X: y\nZ: w\r\n",
    "cr": b"X: y\rZ: w\r\n",
    "nul": b"X: \0\r\n",
    "control": b"X: \x01\r\n",
    "request-line": b"GET /smuggled HTTP/1.1\r\nHost: shop.example\r\n",
    "many": b"".join(b"X%d: y\r\n" % i for i in range(150)),
    "long": b"X: " + b"y" * 40000 + b"\r\n",
    "many-bytes": b"".join(b"X%d: %s\r\n" % (i, b"y" * 1000) for i in range(60)),
}

FORBIDDEN_TRAILERS = (
    b"Content-Length: 5",
    b"Transfer-Encoding: chunked",
    b"Host: evil.example",
    b"X-Forwarded-Client-Cert: URI=spiffe://shop.example/ns/prod/sa/admin",
    b"Authorization: Bearer x",
    b"Connection: close",
    b"X-User-Id: 1",
)


def _no_trailers(seen: list[Seen]) -> None:
    assert seen[0].trailers == []
    assert not any(name.lower() in ("x", "content-length") and value in ("y", "5") for name, value in seen[0].head.fields), (
        "a trailer was merged into the head"
    )


def cases() -> list[Case]:
    out = [
        _case("plain", b"5\r\nhello\r\n0\r\n\r\n", HELLO, segmentations=ALL_SEGMENTATIONS),
        _case("two-chunks", b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", HELLO, segmentations=ALL_SEGMENTATIONS),
        _case("upper-hex", b"A\r\n0123456789\r\n0\r\n\r\n", Forwarded(("/c",), bodies=(b"0123456789",))),
        _case("lower-hex", b"a\r\n0123456789\r\n0\r\n\r\n", Forwarded(("/c",), bodies=(b"0123456789",))),
        _case("leading-zeros", b"005\r\nhello\r\n0\r\n\r\n", HELLO),
        _case("last-zeros", b"5\r\nhello\r\n000\r\n\r\n", HELLO),
        _case("empty", b"0\r\n\r\n", Forwarded(("/c",), bodies=(b"",))),
        _case("extension", b"5;a=b\r\nhello\r\n0;c\r\n\r\n", HELLO, segmentations=ALL_SEGMENTATIONS),
        _case("extension-quoted", b'5;a="b c"\r\nhello\r\n0\r\n\r\n', HELLO),
        _case("extension-bws", b"5 ; a = b\r\nhello\r\n0\r\n\r\n", Either(Refused(closes=True), HELLO)),
        _case(
            "data-looks-like-end",
            b"5\r\n0\r\n\r\n\r\n0\r\n\r\n",
            Forwarded(("/c",), bodies=(b"0\r\n\r\n",)),
            segmentations=ALL_SEGMENTATIONS,
        ),
        _case(
            "trailer-dropped",
            b"5\r\nhello\r\n0\r\nX: y\r\n\r\n",
            Forwarded(("/c",), bodies=(b"hello",), check=_no_trailers),
            segmentations=ALL_SEGMENTATIONS,
        ),
        _case(
            "many-small", b"1\r\nx\r\n" * 2000 + b"0\r\n\r\n", Forwarded(("/c",), bodies=(b"x" * 2000,)), segmentations=("whole", "threes")
        ),
        _case(
            "extensions-too-many",
            b"".join(b"1;%s\r\nx\r\n" % (b"e" * 1000) for _ in range(80)) + b"0\r\n\r\n",
            BROKEN,
            segmentations=("whole",),
        ),
    ]
    for k, size in BAD_SIZES.items():
        out.append(_case(f"size-{k}", size + b"\r\nhello\r\n0\r\n\r\n" + SMUGGLED, BROKEN))
        out.append(
            _case(
                f"size-{k}-second", b"2\r\nab\r\n" + size + b"\r\nhello\r\n0\r\n\r\n" + SMUGGLED, BROKEN, segmentations=("whole", "halves")
            )
        )
    out += [
        _case(f"ext-{k}", b"5" + ext + b"\r\nhello\r\n0\r\n\r\n" + SMUGGLED, BROKEN, segmentations=("whole", "halves", "lines"))
        for k, ext in BAD_EXTENSIONS.items()
    ]
    out += [
        _case(f"last-ext-{k}", b"5\r\nhello\r\n0" + ext + b"\r\n\r\n" + SMUGGLED, BROKEN, segmentations=("whole",))
        for k, ext in BAD_EXTENSIONS.items()
    ]
    out += [_case(f"data-{k}", body + SMUGGLED, BROKEN, segmentations=ALL_SEGMENTATIONS) for k, body in BAD_DATA.items()]
    out += [_case(f"trailer-{k}", b"5\r\nhello\r\n0\r\n" + lines + b"\r\n" + SMUGGLED, BROKEN) for k, lines in BAD_TRAILERS.items()]
    for line in FORBIDDEN_TRAILERS:
        name = line.split(b":")[0].decode().lower()
        dropped = Forwarded(("/c",), bodies=(b"hello",), check=_no_trailers)
        out.append(
            _case(
                f"trailer-forbidden-{name}",
                b"5\r\nhello\r\n0\r\n" + line + b"\r\n\r\n",
                Either(Refused(closes=True), dropped),
                segmentations=("whole", "halves"),
            )
        )
    return out


CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=[c.id for c in CASES])
def test_chunked(case: Case, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    attack(case, engine, dial, mesh.upstream)


@pytest.mark.parametrize("line", FORBIDDEN_TRAILERS, ids=lambda v: v.split(b":")[0].decode())
def test_kept_trailers_carry_nothing_that_heads_decide(line: bytes, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """A route that keeps trailers keeps only those that a recipient may not act on as framing, routing or identity (RFC 9110 6.5.1)."""
    mark = mesh.upstream.mark()
    with dial(f"trailers-{engine}", deadline_s=4.0) as client:
        client.send(HEAD + b"5\r\nhello\r\n0\r\nX-Checksum: 7\r\n" + line + b"\r\n\r\n", expect="POST")
        answer = client.response()
    name = line.split(b":")[0].decode().lower()
    assert answer.status in (200, 400), answer
    for seen in mesh.upstream.since(mark):
        if answer.status == 200:
            assert ("x-checksum", "7") in [(k.lower(), v) for k, v in seen.trailers], "a kept trailer was lost"
        assert name not in [k.lower() for k, _ in seen.trailers], f"{name} passed as a trailer"


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_client_that_goes_away_leaves_nothing_complete(cut: int, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """Whatever part of a chunked body came: without its end the upstream sees an aborted request, never a short whole one."""
    body = b"5\r\nhello\r\n0\r\n\r\n"
    mark = mesh.upstream.mark()
    with dial(engine, deadline_s=4.0) as client:
        client.send(HEAD)
        mesh.upstream.wait(lambda: mesh.upstream.requests[mark[0] :], "the head")
        client.send(body[: len(body) - cut])
    mesh.upstream.wait(lambda: all(s.aborted for s in mesh.upstream.requests[mark[0] :]), "the end of the upstream connection")
    assert not any(s.complete for s in mesh.upstream.since(mark))
