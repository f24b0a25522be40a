"""One canonical path, and every reading of it that a usual upstream could have."""

from __future__ import annotations

import itertools
import posixpath
import re
import unicodedata
from urllib.parse import unquote

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from meshguard.model.errors import RequestError
from meshguard.wire.target import STRICT, PathOptions, Target, canonicalise

KEEP = PathOptions(encoded_slash="keep", double_encoding="keep", params="keep", backslash="keep")
STRIP = PathOptions(params="strip")


def refused(target: bytes, options: PathOptions = STRICT) -> bool:
    try:
        canonicalise(target, options)
    except RequestError as error:
        return error.reason.code == "ambiguous_target"
    return False


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", "/", None),
        (b"/a/b", "/a/b", None),
        (b"/a/b/", "/a/b/", None),
        (b"/a?b", "/a", b"b"),
        (b"/a?", "/a", b""),
        (b"/a?b?c/../d", "/a", b"b?c/../d"),
        (b"/a?%zz", "/a", b"%zz"),
        (b"/A/b", "/A/b", None),
        (b"//a", "/a", None),
        (b"/a//b///c", "/a/b/c", None),
        (b"/a//", "/a/", None),
        (b"/./a/./b/.", "/a/b/", None),
        (b"/a/../b", "/b", None),
        (b"/a/b/..", "/a/", None),
        (b"/a/b/../", "/a/", None),
        (b"/a/..", "/", None),
        (b"/%61/%7E%2D%2e%5F", "/a/~-._", None),
        (b"/%2e%2E/", None, None),
        (b"/a/%2e%2E/b", "/b", None),
        (b"/a/.%2e/b", "/b", None),
        (b"/a/%2e/b", "/a/b", None),
        (b"/a%20b", "/a%20b", None),
        (b"/a%3ab%3B%3f%23", "/a%3Ab%3B%3F%23", None),
        (b"/caf%c3%a9", "/caf%C3%A9", None),
        (b"/...", "/...", None),
        (b"/.a/..b/c..", "/.a/..b/c..", None),
        (b"/a:b@c!$&'()*+,=~", "/a:b@c!$&'()*+,=~", None),
        (b"/100%25", "/100%25", None),
        (b"/100%25/x", "/100%25/x", None),
        (b"*", "*", None),
    ],
)
def test_canonical(target: bytes, path: str | None, query: bytes | None) -> None:
    if path is None:
        assert refused(target)
        return
    made = canonicalise(target)
    assert (made.path, made.query) == (path, query)
    assert made.readings[0] == path.lower()


@pytest.mark.parametrize(
    "target",
    [
        b"", b"a", b"?", b"?/a", b"*a", b"**", b"/a#b", b"/a?b#c", b"/#", b"/..", b"/../a", b"/a/../../b", b"/a/%2e%2e/%2e%2e/b", b"/%",
        b"/%4",
        b"/%zz", b"/%u002f", b"/%00", b"/a%00b", b"/%0a", b"/%0D%0A", b"/%1f", b"/%7f", b"/%2f", b"/a%2Fb", b"/%5c", b"/a%5Cb", b"/a\\b",
        b"/a;b", b"/a;", b"/;/a", b"/..;/a", b"/a/..;x/b", b"/a/.;/b", b"/%252f", b"/%252e", b"/%2541", b"/%25%32%66", b"/%25u002f",
        b"/%25%75002f",
        b"/%c0%af", b"/%c0%ae%c0%ae/", b"/%e0%80%af", b"/%ff", b"/%c3", b"/%c3%", b"/%c3a9", b"/%ed%a0%80", b"/%f5%80%80%80", b"/%80",
        b"/a b", b"/a\tb", b"/\x00", b"/\x7f", b"/\xc3\xa9", b"/\xff", b'/"', b"/<", b"/>", b"/[", b"/]", b"/^", b"/`", b"/{", b"/|", b"/}",
        b"http://a/",
    ],
)  # fmt: skip
def test_refused(target: bytes) -> None:
    assert refused(target)


@pytest.mark.parametrize(
    ("target", "options", "path"),
    [
        (b"/a%2fb", PathOptions(encoded_slash="keep"), "/a%2Fb"),
        (b"/a%5cb", PathOptions(backslash="keep"), "/a%5Cb"),
        (b"/a\\b", PathOptions(backslash="keep"), None),
        (b"/a%2fb", PathOptions(backslash="keep"), None),
        (b"/%2541", PathOptions(double_encoding="keep"), "/%2541"),
        (b"/%252f", PathOptions(double_encoding="keep"), "/%252f"),
        (b"/%25%32%66", PathOptions(double_encoding="keep"), "/%252f"),
        (b"/%2541", PathOptions(encoded_slash="keep"), None),
        (b"/a;x=1/b", PathOptions(params="keep"), "/a;x=1/b"),
        (b"/a;x=1/b", STRIP, "/a/b"),
        (b"/a;x=1;y/b;", STRIP, "/a/b"),
        (b"/a/..;x/b", STRIP, "/b"),
        (b"/a/.;x/b", STRIP, "/a/b"),
        (b"/a/;x/b", STRIP, "/a/b"),
        (b"/a/..;x/b", PathOptions(params="keep"), None),
        (b"/a/;x/b", PathOptions(params="keep"), None),
        (b"/..;x/b", STRIP, None),
        (b"/a/%2e%2e;x/b", STRIP, "/b"),
        (b"/a/%2e.;x/b", PathOptions(params="keep"), None),
        (b"/a%3Bx", STRIP, "/a%3Bx"),
    ],
)
def test_options(target: bytes, options: PathOptions, path: str | None) -> None:
    if path is None:
        assert refused(target, options)
    else:
        assert canonicalise(target, options).path == path


# ---- properties

pieces = st.sampled_from(
    ["/", "/", "/", "//", ".", "..", "/./", "/../", "a", "B", "admin", "x.", "%2e", "%2E%2e", "%2f", "%5c", "%5C", "%25", "%252e",
    "%252F", "%41", "%7e",
     "%20", "%3b", ";", ";x=1", "..;", "%3F", "%23", "%c3%a9", "%EF%BC%8F", "%EF%BC%8E", "%EF%BC%85", "2e", "2f", "%E2%84%AA", "%C5%BF",
     "%E2%88%95",
     "%C2%AD", "::$DATA", "~", "+", "%2B", "%09", "%E3%80%82", "A%CC%8A", "%25%32%65"]
)  # fmt: skip
targets = st.lists(pieces, max_size=9).map(lambda parts: ("/" + "".join(parts)).encode())
octets = st.binary(max_size=12).map(lambda data: b"/" + data)
options = st.sampled_from(
    [STRICT, STRIP, KEEP, PathOptions(params="keep"), PathOptions(encoded_slash="keep"), PathOptions(double_encoding="keep")]
)


def made(target: bytes, chosen: PathOptions) -> Target:
    try:
        return canonicalise(target, chosen)
    except RequestError:
        assume(False)
        raise


@settings(max_examples=500, deadline=None)
@given(targets | octets, options)
def test_a_canonical_path_is_its_own_canonical_path(target: bytes, chosen: PathOptions) -> None:
    once = made(target, chosen)
    again = canonicalise(once.path.encode("ascii"), chosen)
    assert (again.path, again.readings) == (once.path, once.readings)
    assert again.query is None


@settings(max_examples=500, deadline=None)
@given(targets | octets, options)
def test_what_a_canonical_path_never_holds(target: bytes, chosen: PathOptions) -> None:
    path = made(target, chosen).path
    assert path.startswith("/")
    assert path.isascii()
    assert "//" not in path
    assert not set(path.split("/")) & {".", ".."}
    assert re.fullmatch(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-F]{2})*", path)
    for escape in re.findall("%(..)", path):
        assert not re.fullmatch("[A-Za-z0-9._~-]", chr(int(escape, 16))), "an unreserved character is escaped"
    if chosen is STRICT:
        assert not re.search("%2F|%5C|%00|;|%25[0-9A-Fa-f]{2}", path)


@settings(max_examples=300, deadline=None)
@given(targets, st.sampled_from(["", "?", "?a=b", "?/../%zz?x"]))
def test_the_query_is_passed_as_it_came(target: bytes, query: str) -> None:
    once = made(target + query.encode(), STRICT)
    assert once.query == (query[1:].encode() if query else None)
    assert once.path == canonicalise(target).path


# ---- an independent model of upstreams: each is a sequence of steps that real servers take


def decode(text: str) -> str:
    return unquote(text, errors="replace")


def nfkc(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def slashes(text: str) -> str:
    return text.replace("\\", "/")


def no_params(text: str) -> str:
    return re.sub(";[^/]*", "", text)


def no_trailing_dots(text: str) -> str:
    return "/".join(part if part in (".", "..") else part.rstrip(". ") for part in text.split("/"))


def before_query(text: str) -> str:
    return re.split(r"[?#]", text, maxsplit=1)[0] or "/"


def normal(text: str) -> str:
    end = "/" if text.endswith(("/", "/.", "/..")) else ""
    return posixpath.normpath("/" + text.lstrip("/")).rstrip("/") + end


UPSTREAMS: dict[str, tuple[object, ...]] = {
    "as it is": (),
    "decodes": (decode,),
    "nginx": (decode, normal),
    "decodes twice": (decode, decode, normal),
    "decodes, resolves, decodes": (decode, normal, decode),
    "decodes, resolves, decodes, resolves": (decode, normal, decode, normal),
    "tomcat": (no_params, decode, normal),
    "jetty": (normal, no_params, decode),
    "decodes, then strips": (decode, no_params, normal),
    "iis": (decode, slashes, no_trailing_dots, normal),
    "iis, resolving first": (decode, slashes, normal, no_trailing_dots, normal),
    "iis behind a proxy that decodes": (decode, decode, slashes, normal, no_trailing_dots),
    "compatibility forms": (decode, nfkc, normal),
    "compatibility forms, then again": (decode, nfkc, decode, normal),
    "compatibility forms, then slashes": (decode, nfkc, slashes, no_params, normal),
    "only case and slashes": (decode, slashes, normal),
    "cuts at a decoded query": (decode, before_query, normal),
    "everything": (no_params, decode, nfkc, decode, before_query, slashes, no_params, no_trailing_dots, normal),
}


def read(path: str, steps: tuple[object, ...]) -> str:
    for step in steps:
        path = step(path)  # type: ignore[operator]
    return bare(path.casefold())


def bare(path: str) -> str:
    """Without repeated and trailing slashes: no rule can tell them apart."""
    return re.sub("/+", "/", path).rstrip("/") or "/"


def has_reading(target: Target, reading: str) -> bool:
    return any(bare(known) == reading for known in target.readings)


@settings(max_examples=500, deadline=None)
@given(targets, st.sampled_from([STRICT, KEEP, STRIP]))
@example(b"/a/%252e%252e/../admin", KEEP)
@example(b"/x%2F..%2Fadmin", KEEP)
@example(b"/a./%2F/admin", KEEP)
@example(b"/%EF%BC%8E%EF%BC%8E/%EF%BC%85%32%66admin", STRICT)
def test_every_upstream_reads_what_was_judged(target: bytes, chosen: PathOptions) -> None:
    forwarded = made(target, chosen)
    for name, steps in UPSTREAMS.items():
        reading = read(forwarded.path, steps)
        assert has_reading(forwarded, reading), (name, forwarded.path, reading, forwarded.readings)


@settings(max_examples=300, deadline=None)
@given(
    targets,
    st.sampled_from([STRICT, KEEP]),
    st.lists(st.sampled_from([decode, nfkc, slashes, no_params, no_trailing_dots, before_query, normal]), max_size=5),
)
def test_no_order_of_steps_leads_out_of_the_readings(target: bytes, chosen: PathOptions, steps: list[object]) -> None:
    forwarded = made(target, chosen)
    reading = read(forwarded.path, tuple(steps))
    assert has_reading(forwarded, reading), (forwarded.path, reading, forwarded.readings)


@pytest.mark.parametrize(
    "target",
    [b"/admin.", b"/admin%20", b"/ADMIN", b"/admin%3Bx", b"/admin%3Fx", b"/admin%23", b"/x/..%20/admin", b"/%EF%BC%A1dmin",
    b"/adm%C2%ADin", b"/admin::$DATA",
     b"/adm%C4%B1n", b"/%20admin", b"/.%20/admin", b"/x/%EF%BC%8E%EF%BC%8E/admin", b"/x%EF%BC%8F..%EF%BC%8Fadmin", b"/...%20/admin"],
)  # fmt: skip
def test_spellings_of_admin(target: bytes) -> None:
    assert has_reading(canonicalise(target), "/admin")


@pytest.mark.parametrize("target", [b"/administrator", b"/a/admin", b"/admins", b"/x-admin", b"/admin/x", b"/adm%C3%ADn"])
def test_what_is_not_admin(target: bytes) -> None:
    assert not has_reading(canonicalise(target), "/admin")


@pytest.mark.parametrize("target", [b"/orders/7", b"/v1.2/index.html", b"/.well-known/x", b"/a:b/c@d", b"/a..b/..c"])
def test_a_usual_path_has_one_reading(target: bytes) -> None:
    assert canonicalise(target).readings == (target.decode(),)


def test_readings_are_bounded() -> None:
    """A path with very many readings is ambiguous beyond use: refused, at a cost that does not grow with their number."""
    parts = ["%3B", "%20/", "%EF%BC%8F", "%5C", "%2F", "%25", "x./", "%3F", "%EF%BC%85", "::$x/", "%C2%AD", ";y/"]
    for length in (1, 2, 3):
        for combination in itertools.permutations(parts, length):
            try:
                target = canonicalise(("/" + "".join(combination) + "a").encode(), KEEP)
            except RequestError:
                continue
            assert len(target.readings) <= 64


@pytest.mark.parametrize("piece", [b"/a.", b"/%20", b"/%C2%AD%EF%BC%8F", b"/a%3Bb%EF%BC%8E", b"%25"])
def test_long_paths_with_many_readings(piece: bytes) -> None:
    target = (b"/" + piece * 8000)[:8000].rpartition(b"/")[0] or b"/"
    try:
        readings = canonicalise(target, KEEP).readings
    except RequestError:
        readings = ()
    assert sum(map(len, readings)) <= 100_000
