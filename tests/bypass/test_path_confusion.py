"""Paths: every spelling of /admin that a usual upstream could read as /admin is denied or refused, and what is forwarded is what was
judged (security.md 1, "Paths"). Rules of the arena: deny `/admin`, `/admin/**` for anyone, `/internal/**` for billing; allow `/**`."""

from __future__ import annotations

import posixpath
import random
import re
import unicodedata
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

import pytest

from tests.harness.cases import SYNTAX, Case, Either, Forwarded, Outcome, Refused, attack
from tests.harness.client import RawClient, get
from tests.harness.mesh import Mesh
from tests.harness.proxy import Proxy

BLOCKED = Refused(frozenset({400, 403}), closes=None)
DENIED = Refused(frozenset({403}), closes=None)
AMBIGUOUS = Refused(SYNTAX, closes=None)

ADMIN: dict[str, str] = {
    "plain": "/admin",
    "below": "/admin/x",
    "slash": "/admin/",
    "query": "/admin?x=1",
    "query-below": "/admin/x?y",
    "upper": "/ADMIN/x",
    "title": "/Admin/x",
    "mixed": "/aDmIn",
    "dot": "/./admin/x",
    "dots": "/a/../admin/x",
    "dots-deep": "/a/b/c/../../../admin",
    "dots-over": "/../admin/x",
    "dots-far-over": "/../../../../admin/x",
    "inner-dot": "/admin/./x",
    "double-slash": "//admin/x",
    "triple-slash": "///admin/x",
    "inner-double": "/admin//x",
    "slash-dot": "/.//admin/x",
    "dots-slash": "/a//../admin/x",
    "trailing-dots": "/admin/x/..",
    "trailing-dot": "/admin/.",
    "self": "/admin/../admin",
    "enc-a": "/%61dmin/x",
    "enc-all": "/%61%64%6d%69%6e/x",
    "enc-upper-hex": "/%61%64%6D%69%6E",
    "enc-upper-letter": "/%41dmin",
    "enc-dot": "/%2e/admin/x",
    "enc-dots": "/a/%2e%2e/admin/x",
    "enc-half-dots": "/a/.%2e/admin",
    "enc-half-dots-2": "/a/%2e./admin",
    "enc-dots-upper": "/a/%2E%2E/admin",
    "enc-slash": "/%2fadmin/x",
    "enc-slash-upper": "/%2Fadmin/x",
    "enc-slash-inner": "/admin%2fx",
    "enc-slash-dots": "/a%2f..%2fadmin",
    "enc-slash-after-dots": "/a/..%2fadmin/x",
    "enc-slash-before": "/a%2f../admin/x",
    "backslash": "/\\admin/x",
    "backslash-inner": "/admin\\x",
    "backslash-dots": "/a\\..\\admin",
    "backslash-after-dots": "/a/..\\admin",
    "enc-backslash": "/%5cadmin/x",
    "enc-backslash-inner": "/admin%5cx",
    "enc-backslash-dots": "/a%5c..%5cadmin",
    "nul": "/admin%00",
    "nul-ext": "/admin%00.png",
    "nul-inner": "/ad%00min",
    "nul-below": "/admin/x%00y",
    "double": "/%2561dmin",
    "double-slash-enc": "/%252fadmin",
    "double-dots": "/a/%252e%252e/admin",
    "triple": "/%252561dmin",
    "double-inner": "/admin%252fx",
    "double-percent": "/%25%36%31dmin",
    "overlong-slash": "/%c0%afadmin",
    "overlong-slash-inner": "/admin%c0%afx",
    "overlong-dot": "/a/%c0%ae%c0%ae/admin",
    "overlong-3": "/%e0%80%afadmin",
    "overlong-a": "/%c1%a1dmin",
    "overlong-nul": "/admin%c0%80",
    "u": "/%u0061dmin",
    "u-slash": "/%u002fadmin",
    "u-full": "/%uff0fadmin",
    "bad-percent": "/%admin",
    "bad-percent-2": "/%6",
    "bad-percent-3": "/%zzadmin",
    "bad-percent-end": "/admin%",
    "percent-plus": "/%+1dmin",
    "percent-space": "/% 61dmin",
    "param": "/admin;x",
    "param-below": "/admin;x=1/y",
    "param-empty": "/admin;/x",
    "param-first": "/;/admin/x",
    "param-first-named": "/;x=1/admin",
    "param-dots": "/a/..;/admin",
    "param-dots-named": "/a/..;x=1/admin",
    "param-dot": "/.;/admin",
    "param-inner-slash": "/;x/;y/admin",
    "param-enc": "/admin%3bx",
    "param-enc-dots": "/a/..%3b/admin",
    "param-session": "/admin;jsessionid=1",
    "fragment": "/admin#x",
    "fragment-enc": "/admin%23x",
    "fragment-trick": "/x#/../admin",
    "question-enc": "/admin%3fx",
    "question-enc-below": "/admin/%3f",
    "trailing-dot-name": "/admin.",
    "trailing-dot-below": "/admin./x",
    "trailing-dots-name": "/admin...",
    "trailing-space-enc": "/admin%20",
    "trailing-space-below": "/admin%20/x",
    "leading-space-enc": "/%20admin",
    "tab-enc": "/admin%09",
    "lf-enc": "/admin%0a",
    "cr-enc": "/admin%0d",
    "crlf-enc": "/admin%0d%0aX:%20y",
    "del-enc": "/admin%7f",
    "fullwidth-slash": "/%ef%bc%8fadmin",
    "fullwidth-a": "/%ef%bd%81dmin",
    "fullwidth-dots": "/a/%ef%bc%8e%ef%bc%8e/admin",
    "fullwidth-backslash": "/%ef%bc%bcadmin",
    "long-s-like": "/admin%e2%80%8b",
    "soft-hyphen": "/ad%c2%admin",
    "zero-width": "/ad%e2%80%8bmin",
    "circled-a": "/%e2%93%90dmin",
    "dotless-i": "/adm%c4%b1n",
    "dotted-i": "/adm%c4%b0n",
    "division-slash": "/%e2%88%95admin",
    "fraction-slash": "/%e2%81%84admin",
    "bom": "/%ef%bb%bfadmin",
    "rtl": "/%e2%80%8eadmin",
    "high": "/admin%ff",
    "latin1": "/adm%edn%2f",
    "raw-high": "/admin\xff",
    "raw-space": "/admin x",
    "raw-tab": "/admin\tx",
    "tilde": "/~/../admin",
    "stream": "/admin::$DATA",
    "stream-enc": "/admin%3a%3a$DATA",
    "short-name": "/a/../ADMIN",
    "plus": "/a/+/../../admin",
    "colon": "/a:/../admin",
    "asterisk": "/*/../admin",
    "absolute": "http://shop.example/admin",
    "absolute-upper": "http://shop.example/ADMIN/x",
    "absolute-double": "http://shop.example//admin",
    "scheme-relative": "//shop.example/../admin/x",
    "dots-query": "/a/..?/../admin" + "/../admin",
    "comma": "/admin,x/../../admin",
    "dots-only-enc": "/%2e%2e/%2e%2e/admin",
    "deep": "/a" * 200 + "/.." * 200 + "/admin",
    "dots-with-params-enc": "/a/%2e%2e;/admin",
    "many-slashes": "/" * 500 + "admin",
    "dot-slash-run": "/./././././admin",
    "dots-merge": "/a/b//..//..//admin",
    "dots-enc-after-merge": "/a//%2e%2e//%2e%2e/admin",
    "enc-upper-query": "/%41%44%4D%49%4E?x",
}
# what of the table may pass because no usual server reads it as /admin: the target that must then be forwarded
HARMLESS = {"dots-query": "/?/../admin/../admin"}
# Readings of less common upstreams: Windows best-fit conversion (U+2215, U+2044, U+00AD), characters that HFS+ ignores in names
# (CVE-2014-9390), NTFS streams (CVE-2010-2731), upper-casing before comparison, trimmed names.
RARE = {
    "leading-space-enc": "white space before a name is trimmed",
    "long-s-like": "HFS+ ignores U+200B",
    "zero-width": "HFS+ ignores U+200B",
    "bom": "HFS+ ignores U+FEFF",
    "rtl": "HFS+ ignores U+200E",
    "soft-hyphen": "U+00AD is ignorable, and a hyphen by best fit",
    "division-slash": "U+2215 is a slash by best fit",
    "fraction-slash": "U+2044 is a slash by best fit",
    "dotless-i": "upper case of U+0131 is I",
    "dotted-i": "lower case of U+0130 begins with i",
    "stream": "a name before :: is the file of an NTFS stream",
    "stream-enc": "a name before :: is the file of an NTFS stream",
}


def admin_cases() -> list[Case]:
    out = []
    for k, target in ADMIN.items():
        if k in RARE:
            continue
        data = f"GET {target} HTTP/1.1\r\nHost: shop.example\r\n\r\n".encode("latin-1")
        outcome: Outcome = BLOCKED
        if k in HARMLESS:
            outcome = Either(BLOCKED, Forwarded((HARMLESS[k],)))
        out.append(Case(f"admin-{k}", data, outcome))
    return out


CANONICAL: dict[str, tuple[str, str]] = {
    "plain": ("/a/b", "/a/b"),
    "root": ("/", "/"),
    "dot": ("/a/./b", "/a/b"),
    "dots": ("/a/x/../b", "/a/b"),
    "slashes": ("/a//b", "/a/b"),
    "leading": ("//a", "/a"),
    "unreserved": ("/%61/%62%2d%2E%5f%7e", "/a/b-._~"),
    "trailing": ("/a/", "/a/"),
    "trailing-dot": ("/a/.", "/a/"),
    "trailing-dots": ("/a/b/..", "/a/"),
    "enc-dots": ("/a/%2e%2e/b", "/b"),
    "keeps-space": ("/a%20b", "/a%20b"),
    "keeps-utf8": ("/caf%C3%A9", "/caf%C3%A9"),
    "upper-hex": ("/caf%c3%a9", "/caf%C3%A9"),
    "case-kept": ("/A/b", "/A/b"),
    "sub-delims": ("/a!$&'()*+,=:@b", "/a!$&'()*+,=:@b"),
    "query-kept": ("/a/../b?x=/../y&%2e%2F", "/b?x=/../y&%2e%2F"),
    "dot-file": ("/.well-known/x", "/.well-known/x"),
    "three-dots": ("/.../x", "/.../x"),
    "administrators": ("/administrators", "/administrators"),
    "my-admin": ("/my-admin/x", "/my-admin/x"),
    "admin-below": ("/x/admin", "/x/admin"),
    "percent-25": ("/100%25", "/100%25"),
}


def canonical_cases() -> list[Case]:
    strict = {
        "keeps-utf8",
        "upper-hex",
        "three-dots",
        "percent-25",
        "keeps-space",
    }  # refusing these is stricter than asked, passing them changed is not
    out = []
    for k, (target, sent) in CANONICAL.items():
        good = Forwarded((sent,))
        outcome: Outcome = Either(AMBIGUOUS, good) if k in strict and k != "keeps-space" else good
        out.append(Case(f"canonical-{k}", get(target), outcome))
    return out


REFUSED_SPELLINGS = [
    # a path that climbs above its root: RFC 3986 resolves it, refusing it is stricter
    "/../a",
    "/a%2fb",
    "/a%2Fb",
    "/a%5cb",
    "/a\\b",
    "/a%00b",
    "/a%",
    "/a%4",
    "/a%zz",
    "/a%u0062",
    "/a%2562",
    "/a%252e",
    "/a%c0%af",
    "/a%e0%80%af",
    "/a%0ab",
    "/a%7f",
    "/a%01",
    "/a\xe9",
    "/a#b",
    "/a;b",
    "/a;b=c/d",
    "/a/..;/b",
    "/a%25%32%66b",
    "/a%f0%80%80%af",
    "/a%ed%a0%80",
    "/a%ff",
]


def refused_cases() -> list[Case]:
    soft = {"/a%ff", "/a%ed%a0%80"}
    resolved = Either(AMBIGUOUS, Forwarded(("/a",)))
    out = []
    for target in REFUSED_SPELLINGS:
        data = f"GET {target} HTTP/1.1\r\nHost: shop.example\r\n\r\n".encode("latin-1")
        out.append(
            Case(
                f"ambiguous-{target.encode('latin-1')!r}",
                data,
                resolved
                if target == "/../a"
                else Either(AMBIGUOUS, Forwarded((target.upper().replace("/A", "/a"),)))
                if target in soft
                else AMBIGUOUS,
            )
        )
    return out


CASES = admin_cases() + canonical_cases() + refused_cases()


@pytest.mark.parametrize("case", CASES, ids=[c.id for c in CASES])
def test_path(case: Case, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    attack(case, engine, dial, mesh.upstream, segmentations=("whole", "halves"))


@pytest.mark.parametrize("kind", RARE)
def test_rare_readings(kind: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """A deny rule holds for the readings of these upstreams as well: RARE says which."""
    attack(Case(f"rare-{kind}: {RARE[kind]}", get(ADMIN[kind]), BLOCKED), engine, dial, mesh.upstream, segmentations=("whole",))


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_deny_holds_for_every_method(method: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    mark = mesh.upstream.mark()
    with dial(engine) as client:
        for target in ("/admin", "/Admin/x", "/a/../admin/x", "/internal/x", "/x/..//internal/"):
            answer = client.request(get(target, method=method))
            assert answer.status == 403, (target, answer)
    assert mesh.upstream.since(mark) == []


# ---- an independent reading of what a usual upstream makes of a path


def readings(target: str) -> set[str]:
    """Every path that a usual server, framework or file system could take `target` for: decoded up to three times, with backslashes as
    slashes or not, parameters stripped or not, compatibility forms folded, cut at NUL, trailing dots and blanks dropped, dots resolved."""
    raw = target.split("?", 1)[0].encode("latin-1")
    out: set[str] = set()
    for _ in range(4):
        for decoding in ("utf-8", "latin-1"):
            text = raw.decode(decoding, "replace")
            for folded in {text, unicodedata.normalize("NFKC", text)}:
                for cut in {folded, folded.split("\0")[0], folded.split("#")[0], folded.split("?")[0], folded.replace("\0", "")}:
                    for slashed in {cut, cut.replace("\\", "/")}:
                        for bare in {slashed, re.sub(r";[^/]*", "", slashed)}:
                            trimmed = "/".join(part.rstrip(". \t") if part.strip(".") else part for part in bare.split("/"))
                            for form in {bare, trimmed}:
                                out.add(posixpath.normpath("/" + form.lstrip("/")).lower())
        raw = unquote_to_bytes(raw)
    return out


def test_the_reading_oracle_reads() -> None:
    for target in ("/admin", "/%61dmin", "/a/..%2fadmin", "/%252fadmin", "/;x/admin", "/admin%00.png", "/ADMIN.", "/%ef%bd%81dmin"):
        assert any(r == "/admin" or r.startswith("/admin") for r in readings(target)), target
    assert "/admin" not in readings("/administrator")


PIECES = [
    "admin",
    "ADMIN",
    "%61dmin",
    "a",
    "..",
    ".",
    "%2e",
    "%2e%2e",
    ".%2e",
    "/",
    "//",
    "%2f",
    "%5c",
    "\\",
    ";",
    ";x=1",
    "%3b",
    "%00",
    "%25",
    "%252e",
    "%ef%bc%8f",
    "%c0%ae",
    "internal",
    "x",
    "~",
    ":",
    "*",
    "%20",
    ".",
]


def test_random_spellings(engine: str, arena: Proxy, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """1200 random assemblies: whatever is forwarded has no reading under /admin, and is the path on the decision record."""
    dice = random.Random(20_241)
    log_mark = _marked(arena, engine, dial)
    mark = mesh.upstream.mark()
    passed = 0
    targets = ["/" + "".join(dice.choice(PIECES) for _ in range(dice.randint(1, 7))) for _ in range(1200)]
    client = dial(engine)
    try:
        for target in targets:
            data = f"GET {target} HTTP/1.1\r\nHost: shop.example\r\n\r\n".encode("latin-1")
            if client.eof:
                client.close()
                client = dial(engine)
            answer = client.request(data)
            assert answer.status in (200, 400, 403), (target, answer)
            if "close" in answer.get("connection"):
                client.assert_closed()
            if answer.status == 200:
                passed += 1
                sent = answer.get("x-seen-target")
                bad = [r for r in readings(sent) if (r + "/").startswith(("/admin/", "/internal/"))]
                assert not bad, f"{target!r} was forwarded as {sent!r}, which can be read as {bad}"
                assert not (readings(target) & {"/admin"}) or "/admin" not in readings(sent), (target, sent)
    finally:
        client.close()
    assert passed > 20, "the generator makes nothing acceptable"
    seen = [s.target for s in mesh.upstream.since(mark)]
    assert len(seen) == passed
    end = _marked(arena, engine, dial)
    allowed = [
        r["what"]["path"]
        for r in arena.stdout.items[log_mark : end - 1]
        if r["what"]["listener"] == engine and r["why"]["verdict"] == "allow"
    ]
    assert sorted(allowed) == sorted(s.split("?", 1)[0] for s in seen), "what is on record is not what was forwarded"


def _marked(arena: Proxy, engine: str, dial: Callable[..., RawClient]) -> int:
    """Index of the first record behind a request of our own: the log is written a little later than the answers."""
    since = arena.mark()
    target = f"/mark/{engine}/{since}"
    with dial(engine) as client:
        assert client.request(get(target)).status == 200
    arena.decision_where(lambda r: r["what"]["path"] == target, "the mark", since)
    return 1 + next(i for i, r in enumerate(arena.stdout.items) if r["what"]["path"] == target)
