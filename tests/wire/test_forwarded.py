"""X-Forwarded-For and Forwarded: what may be believed of them, and how they are written."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshguard.wire.forwarded import (
    MAX_HOPS,
    Hop,
    client_by_count,
    client_by_networks,
    forwarded_line,
    parse_forwarded,
    parse_forwarded_for,
    parse_host,
    parse_proto,
)

INNER = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))


def addresses(hops: list[Hop]) -> list[str]:
    return [hop.address for hop in hops]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b"203.0.113.9"], ["203.0.113.9"]),
        ([b"203.0.113.9, 10.0.0.1", b"10.0.0.2"], ["203.0.113.9", "10.0.0.1", "10.0.0.2"]),
        ([b"203.0.113.9:1234,[2001:DB8::1]:443 , 2001:db8:0::2"], ["203.0.113.9", "2001:db8::1", "2001:db8::2"]),
        ([b"::ffff:203.0.113.9"], ["203.0.113.9"]),
        ([b"unknown, _hidden, , 1.2.3, 1.2.3.4.5, 256.1.1.1, 01.2.3.4"], [""] * 7),
        ([b""], [""]),
        ([], []),
        ([b"\xff\xfe, 10.0.0.1"], ["", "10.0.0.1"]),
    ],
)
def test_x_forwarded_for(lines: list[bytes], expected: list[str]) -> None:
    assert addresses(parse_forwarded_for(lines)) == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([b"for=192.0.2.60;proto=http;by=203.0.113.43"], ["192.0.2.60"]),
        ([b'For="[2001:db8:cafe::17]:4711"'], ["2001:db8:cafe::17"]),
        ([b'for=192.0.2.43, for="[2001:db8::1]"', b"for=unknown"], ["192.0.2.43", "2001:db8::1", ""]),
        ([b"for=_SEVKISEK, proto=https"], ["", ""]),
        ([b'for="192.0.2.43:47011" ; host="a, b;c=d"'], ["192.0.2.43"]),
        ([b'for="1.2.3.4\\"", for=5.6.7.8'], ["", "5.6.7.8"]),
        # what does not parse tells nothing, nor does anything before it
        ([b"for=1.2.3.4", b'for="5.6.7.8', b"for=9.9.9.9"], ["", "9.9.9.9"]),
        ([b"for=1.2.3.4 for=5.6.7.8"], [""]),
        ([b"for=1.2.3.4;for=5.6.7.8"], [""]),
        ([b"for=[2001:db8::1]"], [""]),  # must be quoted
        ([b"for:1.2.3.4"], [""]),
        ([b""], []),
        ([b" , ;, "], []),
    ],
)
def test_forwarded(lines: list[bytes], expected: list[str]) -> None:
    assert addresses(parse_forwarded(lines)) == expected


def test_the_client_behind_a_number_of_proxies() -> None:
    hops = [Hop(address) for address in ("6.6.6.6", "203.0.113.9", "10.0.0.1", "10.0.0.2")]
    assert [client_by_count(hops, count) for count in range(6)] == [3, 2, 1, 0, 0, 0]
    assert client_by_count([Hop("203.0.113.9"), Hop(""), Hop("10.0.0.2")], 2) == 2  # nobody can know who is behind the gap
    assert client_by_count([Hop("10.0.0.2")], 1) == 0


def test_the_client_behind_known_proxies() -> None:
    def client(*listed: str) -> str:
        return listed[client_by_networks([Hop(address) for address in listed], INNER)]

    assert client("6.6.6.6", "203.0.113.9", "10.0.0.1", "10.0.0.2") == "203.0.113.9"
    assert client("10.6.6.6", "203.0.113.9", "fd00::1") == "203.0.113.9"  # a claim of being inside is left of an outsider
    assert client("10.0.0.1", "10.0.0.2") == "10.0.0.1"
    assert client("203.0.113.9", "", "10.0.0.2") == "10.0.0.2"
    assert client("203.0.113.9") == "203.0.113.9"


def test_written_forwarded() -> None:
    hops = [Hop("203.0.113.9", b"https", b"shop.example:8443"), Hop("2001:db8::1", b"http", b"shop.example"), Hop("")]
    assert forwarded_line(hops) == (
        b'forwarded: for=203.0.113.9;proto=https;host="shop.example:8443", '
        b'for="[2001:db8::1]";proto=http;host=shop.example, for=unknown\r\n'
    )


@given(st.lists(st.one_of(st.ip_addresses().map(str), st.just("")), max_size=MAX_HOPS), st.sampled_from([b"", b"http", b"https"]))
def test_what_is_written_is_read(listed: list[str], proto: bytes) -> None:
    canonical = [addresses(parse_forwarded_for([text.encode()]))[0] for text in listed]
    line = forwarded_line([Hop(address, proto) for address in canonical])
    value = re.fullmatch(rb"forwarded: (.*)\r\n", line)
    assert value is not None
    assert addresses(parse_forwarded([value[1]])) == canonical


@given(st.lists(st.binary(max_size=80), max_size=5))
def test_anything_may_come(lines: list[bytes]) -> None:
    """Never raises, is bounded, and tells only addresses, known schemes and canonical text."""
    for hops in (parse_forwarded(lines), parse_forwarded_for(lines)):
        assert len(hops) <= MAX_HOPS
        for hop in hops:
            assert not hop.address or str(ipaddress.ip_address(hop.address)) == hop.address
            assert hop.proto in (b"", b"http", b"https")
        hops.append(Hop("10.0.0.1"))
        assert hops[client_by_networks(hops, INNER)].address
        assert hops[client_by_count(hops, 2)].address


def test_a_long_list_is_read_from_the_right() -> None:
    line = b", ".join(b"1.2.3.%d" % (number % 256) for number in range(1000))
    assert addresses(parse_forwarded_for([line]))[-1] == "1.2.3.231"
    assert len(parse_forwarded_for([line])) == MAX_HOPS


def test_protocol_and_host_of_others() -> None:
    assert [parse_proto(value) for value in (b"HTTPS", b"http", b"ws", b"https, http", b"")] == [b"https", b"http", b"", b"", b""]
    assert parse_host(b"shop.example:8443")
    assert parse_host(b"[::1]:1")
    assert not any(map(parse_host, (b"", b"a b", b'a"b', b"a/b", b"a@b", b"a,b", b"a\r\nb", b"a\n")))
