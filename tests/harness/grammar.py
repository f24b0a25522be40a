"""Hypothesis strategies for HTTP/1.1 requests: valid ones with their meaning, and ones that are bent a little.

`requests()` gives (bytes, Meaning): a parser must accept the bytes and agree with the meaning, however they are split.
`bent_requests()` gives bytes near the grammar, without a verdict: the property is agreement (of two parsers, or of what was judged
with what was forwarded), and that nothing but the declared refusal is raised.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from hypothesis import strategies as st

__all__ = ["Meaning", "bent_requests", "cuts", "pieces", "requests"]

TCHAR = "!#$%&'*+-.^`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
RESERVED = {
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "upgrade",
    "expect",
    "te",
    "trailer",
    "keep-alive",
    "proxy-connection",
}


@dataclass(frozen=True)
class Meaning:
    """What a valid request says: names in lower case, in order; without Host and framing."""

    method: str
    target: str
    minor: int
    host: str
    fields: tuple[tuple[str, bytes], ...]
    body: bytes
    chunked: bool


methods = st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
tokens = st.text(TCHAR, min_size=1, max_size=20)
names = tokens.filter(lambda name: name.lower() not in RESERVED)
inner = st.text("".join(map(chr, [9, *range(0x20, 0x7F)])), max_size=40)
values = inner.map(lambda text: text.strip(" \t").encode())
white = st.text(" \t", max_size=3).map(str.encode)
segments = st.text("abcXYZ019-._~!$&'()*+,=:@", min_size=1, max_size=8).filter(lambda part: part.strip("."))
paths = st.lists(segments, min_size=0, max_size=5).map(lambda parts: "/" + "/".join(parts))
queries = st.one_of(st.none(), st.text("abc019-._~!$&'()*+,;=:@/?%20", max_size=20).filter(lambda q: "%" not in q))
hosts = st.sampled_from(["shop.example", "a", "127.0.0.1", "[::1]:8443", "shop.example:443"])
bodies = st.binary(max_size=300)


def _chunks(draw: st.DrawFn, body: bytes) -> bytes:
    out, rest = b"", body
    while rest:
        size = draw(st.integers(1, len(rest)))
        digits = f"{size:x}" if draw(st.booleans()) else f"{size:X}".rjust(draw(st.integers(1, 6)), "0")
        out += digits.encode() + b"\r\n" + rest[:size] + b"\r\n"
        rest = rest[size:]
    return out + b"0\r\n\r\n"


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, Meaning]:
    """A valid HTTP/1.1 request in any permitted spelling of its white space, field order and chunking."""
    method, path, query, host = draw(methods), draw(paths), draw(queries), draw(hosts)
    target = path if query is None else f"{path}?{query}"
    fields = draw(st.lists(st.tuples(names, values), max_size=6))
    lines = [(name.encode() + b":" + draw(white) + value + draw(white), name, value) for name, value in fields]
    kind = draw(st.sampled_from(["none", "length", "chunked"]))
    body = b"" if kind == "none" else draw(bodies)
    extra = [(b"Host:" + draw(white) + host.encode(), "", b"")]
    if kind == "length":
        extra.append((b"content-Length: %d" % len(body), "", b""))
    elif kind == "chunked":
        extra.append((b"Transfer-Encoding: chunked", "", b""))
    everything = draw(st.permutations(lines + extra))
    order = tuple((name.lower(), value) for _, name, value in everything if name)
    head = f"{method} {target} HTTP/1.1\r\n".encode() + b"".join(line + b"\r\n" for line, _, _ in everything) + b"\r\n"
    framed = _chunks(draw, body) if kind == "chunked" else body
    return head + framed, Meaning(method, target, 1, host, order, body, kind == "chunked")


FRAGMENTS = [
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b"\0",
    b"\x0b",
    b":",
    b",",
    b";",
    b"0",
    b"\r\n\r\n",
    b"chunked",
    b"Content-Length: 3\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Content-Length: +3\r\n",
    b"Host: b\r\n",
    b" HTTP/1.1\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"X : y\r\n",
    b"\r\n folded",
    b"\xff",
    b"_",
    b"Connection: close\r\n",
    b"Expect: 100-continue\r\n",
    b"0x",
    b"5;a=b\r\n",
    b"\xc2\xa0",
    b"#",
    b"%2f",
    b"\\",
]


@st.composite
def bent_requests(draw: st.DrawFn) -> bytes:
    """A valid request with up to three small wounds: bytes inserted, removed, replaced, a line doubled."""
    data = draw(requests())[0]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["insert", "remove", "replace", "double"])):
            case "insert":
                data = data[:at] + draw(st.sampled_from(FRAGMENTS)) + data[at:]
            case "remove":
                data = data[:at] + data[at + draw(st.integers(1, 3)) :]
            case "replace":
                data = data[:at] + draw(st.sampled_from(FRAGMENTS)) + data[at + 1 :]
            case "double":
                lines = data.split(b"\r\n")
                number = draw(st.integers(0, len(lines) - 1))
                data = b"\r\n".join([*lines[: number + 1], *lines[number:]])
    return data


def cuts(data: bytes) -> st.SearchStrategy[list[int]]:
    """Positions at which `data` is split."""
    return st.lists(st.integers(0, len(data)), max_size=8).map(sorted)


def pieces(data: bytes, positions: list[int]) -> list[bytes]:
    """`data` split at `positions`; empty pieces are left out."""
    edges = [0, *positions, len(data)]
    return [data[a:b] for a, b in pairwise(edges) if a < b]
