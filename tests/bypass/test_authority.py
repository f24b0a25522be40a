"""Host and the absolute form: exactly one authority, one spelling, and it is the one that is judged and forwarded (security.md 1)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.cases import Case, Either, Forwarded, Refused, attack, run
from tests.harness.client import RawClient, get
from tests.harness.mesh import Mesh
from tests.harness.upstream import Seen

REFUSED = Refused(frozenset({400}))
ODD = Refused(frozenset({400, 421}), closes=None)


def hosts(*values: bytes, line: bytes = b"GET /h HTTP/1.1") -> bytes:
    return b"".join([line, b"\r\n", *[b"Host: " + v + b"\r\n" for v in values], b"X: y\r\n\r\n"])


BAD: dict[str, bytes] = {
    "missing": hosts(),
    "twice-equal": hosts(b"shop.example", b"shop.example"),
    "twice": hosts(b"shop.example", b"evil.example"),
    "twice-rev": hosts(b"evil.example", b"shop.example"),
    "three": hosts(b"a", b"b", b"c"),
    "second-empty": hosts(b"shop.example", b""),
    "first-empty": hosts(b"", b"shop.example"),
    "empty": hosts(b""),
    "blank": hosts(b"  "),
    "list": hosts(b"shop.example, evil.example"),
    "comma": hosts(b"shop.example,"),
    "user": hosts(b"user@shop.example"),
    "user-password": hosts(b"u:p@shop.example"),
    "empty-user": hosts(b"@shop.example"),
    "path": hosts(b"shop.example/x"),
    "slash": hosts(b"shop.example/"),
    "query": hosts(b"shop.example?x"),
    "fragment": hosts(b"shop.example#x"),
    "scheme": hosts(b"http://shop.example"),
    "space": hosts(b"shop.example evil"),
    "tab": hosts(b"shop.example\tevil"),
    "backslash": hosts(b"shop.example\\evil"),
    "port-word": hosts(b"shop.example:x"),
    "port-big": hosts(b"shop.example:65536"),
    "port-huge": hosts(b"shop.example:99999999999999999999"),
    "port-minus": hosts(b"shop.example:-1"),
    "port-plus": hosts(b"shop.example:+80"),
    "port-space": hosts(b"shop.example:8 0"),
    "port-hex": hosts(b"shop.example:0x50"),
    "two-ports": hosts(b"shop.example:80:80"),
    "port-comma": hosts(b"shop.example:80,81"),
    "port-only": hosts(b":80"),
    "v6-open": hosts(b"[::1"),
    "v6-close": hosts(b"::1]"),
    "v6-bare": hosts(b"::1"),
    "v6-junk": hosts(b"[::1]x"),
    "v6-zone": hosts(b"[fe80::1%25eth0]"),
    "v6-text": hosts(b"[shop.example]"),
    "percent": hosts(b"shop%2eexample"),
    "percent-nul": hosts(b"shop.example%00"),
    "high": hosts(b"shop.example\xe9"),
    "utf8": hosts("sh\u00f6p.example".encode()),
    "fullwidth-dot": hosts("shop\uff0eexample".encode()),
    "nul": hosts(b"shop.example\0"),
    "control": hosts(b"shop.example\x01"),
    "quote": hosts(b'"shop.example"'),
    "lt": hosts(b"<shop.example>"),
    "brace": hosts(b"{shop.example}"),
    "pipe": hosts(b"shop.example|x"),
    "semicolon": hosts(b"shop.example;x"),
    "asterisk": hosts(b"*"),
    "caret": hosts(b"shop^example"),
    "backtick": hosts(b"shop`example"),
    "vtab": hosts(b"\x0bshop.example"),
    "nbsp": hosts(b"shop.example\xa0"),
    "folded": hosts(b"\r\n shop.example"),
    "dots": hosts(b".."),
    "dot": hosts(b"."),
    "double-dot": hosts(b"shop..example"),
    "leading-dot": hosts(b".shop.example"),
    "long": hosts(b"a" * 300 + b".example"),
    "two-trailing-dots": hosts(b"shop.example.."),
    "space-colon-name": b"GET /h HTTP/1.1\r\nHost : shop.example\r\n\r\n",
    "leading-space-name": b"GET /h HTTP/1.1\r\n Host: shop.example\r\n\r\n",
    "name-nul": b"GET /h HTTP/1.1\r\nHost\0: shop.example\r\n\r\n",
    "underscored-second": b"GET /h HTTP/1.1\r\nHost: shop.example\r\nH_ost: evil\r\n\r\n",
    "case-twice": b"GET /h HTTP/1.1\r\nHost: shop.example\r\nHOST: evil.example\r\n\r\n",
    "absolute-differs": hosts(b"evil.example", line=b"GET http://shop.example/h HTTP/1.1"),
    "absolute-differs-rev": hosts(b"shop.example", line=b"GET http://evil.example/h HTTP/1.1"),
    "absolute-port-differs": hosts(b"shop.example:8080", line=b"GET http://shop.example:9090/h HTTP/1.1"),
    "absolute-user": hosts(b"shop.example", line=b"GET http://user@shop.example/h HTTP/1.1"),
    "absolute-user-2": hosts(b"user@shop.example", line=b"GET http://user@shop.example/h HTTP/1.1"),
    "absolute-no-host": hosts(line=b"GET http://shop.example/h HTTP/1.1"),
    "absolute-at-trick": hosts(b"shop.example", line=b"GET http://shop.example@evil.example/h HTTP/1.1"),
    "absolute-backslash": hosts(b"shop.example", line=b"GET http://evil.example\\@shop.example/h HTTP/1.1"),
    "absolute-fragment": hosts(b"shop.example", line=b"GET http://shop.example/h#x HTTP/1.1"),
    "absolute-percent": hosts(b"shop.example", line=b"GET http://shop%2eexample/h HTTP/1.1"),
    "absolute-empty-port-x": hosts(b"shop.example", line=b"GET http://shop.example:x/h HTTP/1.1"),
    "absolute-two-hosts": hosts(b"shop.example", b"shop.example", line=b"GET http://shop.example/h HTTP/1.1"),
    "connection-host": b"GET /h HTTP/1.1\r\nConnection: host\r\n\r\n",
}


def _host(*allowed: str) -> Callable[[list[Seen]], None]:
    def check(seen: list[Seen]) -> None:
        assert seen[0].head.get("host").lower() in allowed, seen[0].head.raw

    return check


def _ok(data: bytes, name: str, target: str = "/h", hosts_seen: tuple[str, ...] = ("shop.example",)) -> Case:
    return Case(name, data, Forwarded((target,), check=_host(*hosts_seen)))


def _maybe(data: bytes, name: str, target: str = "/h", hosts_seen: tuple[str, ...] = ("shop.example",)) -> Case:
    return Case(name, data, Either(ODD, Forwarded((target,), check=_host(*hosts_seen), closes=None)))


DOT = ("shop.example", "shop.example.")
PORT = ("shop.example", "shop.example:443", "shop.example:")

GOOD = [
    _ok(hosts(b"shop.example"), "plain"),
    _ok(hosts(b"SHOP.Example"), "case"),
    _ok(hosts(b"  shop.example \t"), "padded"),
    _ok(hosts(b"shop.example:443"), "port", hosts_seen=PORT),
    _maybe(hosts(b"shop.example:"), "empty-port", hosts_seen=PORT),
    _maybe(hosts(b"shop.example."), "trailing-dot", hosts_seen=DOT),
    _ok(hosts(b"10.0.0.1"), "v4", hosts_seen=("10.0.0.1",)),
    _ok(hosts(b"[::1]:8443"), "v6", hosts_seen=("[::1]:8443", "[::1]")),
    _maybe(hosts(b"a_b.example"), "underscore", hosts_seen=("a_b.example",)),
    _maybe(hosts(b"shop.example:00443"), "zero-padded-port", hosts_seen=(*PORT, "shop.example:00443")),
    _ok(hosts(b"shop.example", line=b"GET http://shop.example/h HTTP/1.1"), "absolute"),
    _maybe(hosts(b"shop.example", line=b"GET https://shop.example/h HTTP/1.1"), "absolute-https"),
    _maybe(hosts(b"shop.example", line=b"GET HTTP://shop.example/h HTTP/1.1"), "absolute-upper"),
    _ok(hosts(b"Shop.Example", line=b"GET http://shop.exAMPLE/h HTTP/1.1"), "absolute-case"),
    _ok(hosts(b"shop.example", line=b"GET http://shop.example HTTP/1.1"), "absolute-no-path", "/"),
    _maybe(hosts(b"shop.example", line=b"GET http://shop.example?x=1 HTTP/1.1"), "absolute-query", "/?x=1"),
    _maybe(
        hosts(b"shop.example", line=b"GET http://shop.example:80/h HTTP/1.1"),
        "absolute-port-one-side",
        hosts_seen=("shop.example", "shop.example:80"),
    ),
    _ok(hosts(b"shop.example", line=b"GET http://shop.example/a/../h?x#".rstrip(b"#") + b" HTTP/1.1"), "absolute-dots", "/h?x"),
    Case("http10-no-host", b"GET /h HTTP/1.0\r\n\r\n", Either(REFUSED, Forwarded(("/h",), closes=True))),
    Case("http10", b"GET /h HTTP/1.0\r\nHost: shop.example\r\n\r\n", Forwarded(("/h",), closes=True)),
    Case(
        "absolute-admin", hosts(b"shop.example", line=b"GET http://shop.example/admin/x HTTP/1.1"), Refused(frozenset({403}), closes=None)
    ),
    Case(
        "absolute-admin-dots",
        hosts(b"shop.example", line=b"GET http://shop.example/x/../admin/x HTTP/1.1"),
        Refused(frozenset({403}), closes=None),
    ),
    Case(
        "absolute-admin-encoded",
        hosts(b"shop.example", line=b"GET http://shop.example/%61dmin/x HTTP/1.1"),
        Refused(frozenset({403}), closes=None),
    ),
    Case(
        "absolute-double-slash",
        hosts(b"shop.example", line=b"GET http://shop.example//admin/x HTTP/1.1"),
        Refused(frozenset({400, 403}), closes=None),
    ),
    Case(
        "origin-double-slash",
        hosts(b"shop.example", line=b"GET //evil.example/admin HTTP/1.1"),
        Either(ODD, Forwarded(("/evil.example/admin",))),
    ),
]
CASES = [Case(f"bad-{k}", v, Refused(frozenset({400}), closes=None) if "fragment" in k else REFUSED) for k, v in BAD.items()] + GOOD


@pytest.mark.parametrize("case", CASES, ids=[c.id for c in CASES])
def test_authority(case: Case, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    attack(case, engine, dial, mesh.upstream)


SERVED = ["shop.example", "SHOP.EXAMPLE", "shop.example:443", "shop.example:8443", "api.shop.example", "Api.Shop.Example:1"]
NOT_SERVED = [
    "other.example",
    "evil-shop.example",
    "shop.example.evil.test",
    "xshop.example",
    "shop.exampl",
    "shop.examplee",
    "example",
    "www.shop.example",
    "127.0.0.1",
    "[::1]",
    "shop-example",
    "x.api.shop.example",
    "shop.example-x",
    "localhost",
    "shop.example.example",
]


@pytest.mark.parametrize("host", SERVED)
def test_served_authorities(host: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    run(Case(host, get("/h", host=host), Forwarded(("/h",))), "whole", lambda: dial(f"hosts-{engine}"), mesh.upstream)


@pytest.mark.parametrize("host", NOT_SERVED)
def test_authorities_not_served_are_421(host: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    for data in (get("/h", host=host), f"GET http://{host}/h HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()):
        run(Case(host, data, Refused(frozenset({421}), closes=None)), "whole", lambda: dial(f"hosts-{engine}"), mesh.upstream)
