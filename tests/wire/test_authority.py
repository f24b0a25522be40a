"""Exactly one host, optionally a port, in one spelling."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.model.errors import RequestError
from meshguard.wire.authority import parse_authority


@pytest.mark.parametrize(
    ("text", "sent", "host"),
    [
        (b"a", b"a", "a"),
        (b"Shop.Example", b"shop.example", "shop.example"),
        (b"shop.example.", b"shop.example", "shop.example"),
        (b"shop.example:", b"shop.example", "shop.example"),
        (b"shop.example.:80", b"shop.example:80", "shop.example"),
        (b"a:0", b"a:0", "a"),
        (b"a:65535", b"a:65535", "a"),
        (b"a:00080", b"a:80", "a"),
        (b"a:00000", b"a:0", "a"),
        (b"a_b", b"a_b", "a_b"),
        (b"a-b.c--d", b"a-b.c--d", "a-b.c--d"),
        (b"127.0.0.1:8080", b"127.0.0.1:8080", "127.0.0.1"),
        (b"[::1]", b"[::1]", "[::1]"),
        (b"[::1]:80", b"[::1]:80", "[::1]"),
        (b"[::1]:", b"[::1]", "[::1]"),
        (b"[0:0:0:0:0:0:0:1]", b"[::1]", "[::1]"),
        (b"[2001:DB8::00A]:443", b"[2001:db8::a]:443", "[2001:db8::a]"),
        (b"[1::0:0:2]", b"[1::2]", "[1::2]"),
        (b"a" * 63 + b".b", b"a" * 63 + b".b", "a" * 63 + ".b"),
    ],
)
def test_accepted(text: bytes, sent: bytes, host: str) -> None:
    assert parse_authority(text) == (sent, host)


@pytest.mark.parametrize(
    "text",
    [
        b"", b".", b"..", b":80", b"a..b", b"a..", b"-a", b"a-", b"a-.", b".a", b"_a", b"a b", b"a,b", b"a;b", b"a/b", b"a?b", b"a#b",
        b"a\\b", b"u@a",
        b"u:p@a", b"a:b", b"a:-1", b"a:+1", b"a:65536", b"a:999999", b"a:80:80", b"a:80a", b"a: 80", b"a%2eb", b"*", b"*.a", b"a\n",
        b"a\r", b"a\x00",
        b"\xc3\xa9", b"::1", b"[", b"[]", b"[]:80", b"[::1", b"::1]", b"[::1]a", b"[::1]:80a", b"[::1]]", b"[[::1]]", b"[fe80::1%25eth0]",
        b"[v1.a]", b"[:]", b"[:::]", b"[1::2::3]", b"[1:2:3:4:5:6:7:8:9]", b"[12345::]", b"[127.0.0.1]", b"[a]", b"[1.2.3.4::]", b"a" * 254,
        b"a.[::1]", b"http://a", b"a" * 64, b"b." + b"a" * 64,
    ],
)  # fmt: skip
def test_refused(text: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_authority(text)
    assert caught.value.reason.code == "ambiguous_authority"


@settings(max_examples=500)
@given(st.text("aZ09.-_:[]%@,/ ", max_size=10) | st.text("01abF:.[]", max_size=18))
def test_what_is_sent_is_its_own_canonical_form(text: str) -> None:
    try:
        sent, host = parse_authority(text.encode())
    except RequestError:
        return
    assert parse_authority(sent) == (sent, host)
    assert host == host.lower()
    assert sent.decode() == host or sent.decode().rpartition(":")[0] == host
    assert not host.endswith(".")
    if host.startswith("["):
        ipaddress.IPv6Address(host[1:-1])


@given(st.integers(0, 2**128 - 1))
def test_every_spelling_of_an_address_is_one_host(value: int) -> None:
    address = ipaddress.IPv6Address(value)
    hosts = {parse_authority(f"[{text}]".encode())[1] for text in (address.exploded, address.compressed, address.exploded.upper())}
    assert len(hosts) == 1
