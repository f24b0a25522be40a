"""Which destinations may be named, and what an address may be."""

from __future__ import annotations

import asyncio
import ipaddress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshguard.control.settings.destinations import DestinationsConfig
from meshguard.model.errors import RequestError, UpstreamError
from meshguard.model.reasons import DESTINATION_REFUSED
from meshguard.net.cluster.settings import ClusterSettings
from meshguard.net.destinations import Destinations, DestinationSettings
from meshguard.net.own_addresses import AddressGuard, is_literal
from meshguard.wire.authority import parse_authority
from meshguard.wire.forwarded import parse_networks


def destinations(**settings: Any) -> Destinations:
    return Destinations(
        "mesh", DestinationSettings(ClusterSettings(resolve="dns"), **settings), lambda host: None, cast(Any, None), AddressGuard((), ())
    )


def allowed(family: Destinations, authority: str) -> bool:
    sent, host = parse_authority(authority.encode())
    try:
        family.judge(host, int(sent[len(host) + 1 :] or 0))
    except RequestError as error:
        return error.reason is not DESTINATION_REFUSED
    return True


@pytest.mark.parametrize(
    ("patterns", "yes", "no"),
    [
        ([], ["a", "a:1", "x.y.z:80"], []),
        (["*"], ["a", "x.y.z:80"], []),
        (["orders"], ["orders", "ORDERS.", "orders:1"], ["orders.x", "x.orders", "order"]),
        (["orders:8443"], ["orders", "orders:8443"], ["orders:1"]),
        (["*.prod.svc"], ["a.prod.svc", "a.b.prod.svc:1"], ["prod.svc", "aprod.svc", "a.prod.svc.evil", ".prod.svc"]),
        (["*.prod.svc:80"], ["a.prod.svc:80"], ["a.prod.svc", "a.prod.svc:8080"]),
    ],
)
def test_patterns(patterns: list[str], yes: list[str], no: list[str]) -> None:
    family = destinations(authorities=DestinationsConfig(authorities=patterns).authorities)
    assert [name for name in yes if not allowed(family, name)] == []
    assert [name for name in no if name[0] != "." and allowed(family, name)] == []


def test_addresses_among_the_patterns() -> None:
    family = destinations(authorities=DestinationsConfig(authorities=["[fd00::1]", "[fd00::2]:80"]).authorities, literals=True)
    assert [allowed(family, name) for name in ("[fd00::1]", "[FD00:0::1]:9", "[fd00::2]:80", "[fd00::2]", "[fd00::3]")] == [
        True, True, True, False, False,
    ]  # fmt: skip


@given(st.ip_addresses(v=4))
def test_every_spelling_of_an_address_is_one(ip: ipaddress.IPv4Address) -> None:
    number = int(ip)
    a, b, c, d = ip.packed
    for text in (
        str(ip),
        str(number),
        hex(number),
        f"0{number:o}",
        f"{a}.{number & 0xFFFFFF}",
        f"{a}.{b}.{c << 8 | d}",
        f"0x{a:x}.{b}.{c}.{d}",
    ):
        assert is_literal(text), text


def test_names_are_no_addresses() -> None:
    assert not any(map(is_literal, ("localhost", "a", "1a", "orders.prod.svc", "0x", "1.2.3.4.example", "1.2.3.4.5", "256.1.1.1.1")))


def test_a_change_closes_only_what_it_refuses() -> None:
    """One host that can no longer be identified does not close those behind it; another address closes them all."""

    def tls_of(host: str) -> None:
        if host == "b":
            raise RequestError(DESTINATION_REFUSED, host)

    def connector(tls: object) -> Any:
        return SimpleNamespace(tls=tls, connect=None)

    async def run() -> None:
        guard = AddressGuard((), ())
        settings = DestinationSettings(ClusterSettings(resolve="dns"))
        family = Destinations("mesh", settings, lambda host: None, connector, guard)
        kept = {host: family.open(host, 80, None) for host in "abcd"}
        family.reconfigure(settings, tls_of, connector, guard)
        assert (len(family), family.evicted) == (3, 1)
        assert [host for host in "acd" if family.open(host, 80, None) is kept[host]] == ["a", "c", "d"]
        with pytest.raises(RequestError):
            family.open("b", 80, None)
        family.reconfigure(replace(settings, address="{host}.mesh:{port}"), lambda host: None, connector, guard)
        assert len(family) == 0
        await family.close()

    asyncio.run(run())


def _reason(guard: AddressGuard, host: str, port: int = 80) -> str:
    try:
        guard.judge(host, port)
    except UpstreamError as error:
        return error.reason.code
    return ""


def test_what_no_destination_may_be() -> None:
    guard = AddressGuard([("127.0.0.1", 9901), ("0.0.0.0", 8443), ("::1", 15001)], parse_networks(["169.254.0.0/16", "fe80::/10"]))
    refused = (
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "169.254.169.254",
        "fe80::1",
        "fe80::1%2",
        "::ffff:169.254.169.254",
    )
    assert [host for host in refused if _reason(guard, host) != "destination_refused"] == []
    loops = [("127.0.0.1", 9901), ("::ffff:127.0.0.1", 9901), ("127.0.0.1", 8443), ("127.7.7.7", 8443), ("::1", 15001)]
    assert [pair for pair in loops if _reason(guard, *pair) != "loop_detected"] == []
    others = [("127.0.0.2", 9901), ("127.0.0.1", 80), ("192.0.2.1", 8443), ("10.0.0.1", 80), ("::1", 8443), ("2001:db8::1", 15001)]
    assert [pair for pair in others if _reason(guard, *pair)] == []


@pytest.mark.parametrize("text", ["a b", "*", "*.", "a:0", "a:70000", "a:x", "", "http://a", "a/b", "*a.b"])
def test_patterns_that_cannot_be(text: str) -> None:
    if text == "*":
        assert DestinationsConfig(authorities=[text]).authorities == ["*"]
        return
    with pytest.raises(ValueError, match="authorities"):
        DestinationsConfig(authorities=[text])
