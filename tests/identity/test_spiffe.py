"""SPIFFE IDs: what the standard allows, and everything else."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshguard.identity.spiffe import MAX_ID_BYTES, SpiffeId, parse_spiffe_id, parse_trust_domain, parse_workload_path, spiffe_id
from meshguard.model.errors import IdentityError

GOOD = [
    ("spiffe://shop.example", "shop.example", ""),
    ("spiffe://shop.example/a", "shop.example", "/a"),
    ("spiffe://shop.example/ns/prod/sa/billing", "shop.example", "/ns/prod/sa/billing"),
    ("spiffe://a-b_c.9/A.b-C_d", "a-b_c.9", "/A.b-C_d"),
    ("spiffe://1/...", "1", "/..."),
    ("spiffe://x/.a/b.", "x", "/.a/b."),
    ("spiffe://x/" + "p" * (MAX_ID_BYTES - 11), "x", "/" + "p" * (MAX_ID_BYTES - 11)),
]

BAD = [
    ("", "spiffe_scheme"),
    ("shop.example/a", "spiffe_scheme"),
    ("http://shop.example/a", "spiffe_scheme"),
    ("SPIFFE://shop.example/a", "spiffe_scheme"),
    ("Spiffe://shop.example/a", "spiffe_scheme"),
    ("spiffe:/shop.example/a", "spiffe_scheme"),
    ("spiffe:shop.example/a", "spiffe_scheme"),
    (" spiffe://shop.example/a", "spiffe_scheme"),
    ("spiffe:///a", "trust_domain_invalid"),
    ("spiffe://", "trust_domain_invalid"),
    ("spiffe://Shop.example/a", "trust_domain_invalid"),
    ("spiffe://SHOP.EXAMPLE/a", "trust_domain_invalid"),
    ("spiffe://shop.example:443/a", "trust_domain_invalid"),
    ("spiffe://shop.example:/a", "trust_domain_invalid"),
    ("spiffe://user@shop.example/a", "trust_domain_invalid"),
    ("spiffe://user:pass@shop.example/a", "trust_domain_invalid"),
    ("spiffe://shop%2eexample/a", "trust_domain_invalid"),
    ("spiffe://shop.example?x=1", "trust_domain_invalid"),
    ("spiffe://shop.example#x", "trust_domain_invalid"),
    ("spiffe://shop.example\\a", "trust_domain_invalid"),
    ("spiffe://[::1]/a", "trust_domain_invalid"),
    ("spiffe://shöp.example/a", "trust_domain_invalid"),
    ("spiffe://shop.example\x00/a", "trust_domain_invalid"),
    ("spiffe://shop.example\n", "trust_domain_invalid"),
    ("spiffe://" + "a" * 256 + "/a", "trust_domain_invalid"),
    ("spiffe://shop.example/", "spiffe_path_invalid"),
    ("spiffe://shop.example/a/", "spiffe_path_invalid"),
    ("spiffe://shop.example//a", "spiffe_path_invalid"),
    ("spiffe://shop.example/a//b", "spiffe_path_invalid"),
    ("spiffe://shop.example/.", "spiffe_path_invalid"),
    ("spiffe://shop.example/..", "spiffe_path_invalid"),
    ("spiffe://shop.example/a/../b", "spiffe_path_invalid"),
    ("spiffe://shop.example/a/./b", "spiffe_path_invalid"),
    ("spiffe://shop.example/a%2fb", "spiffe_path_invalid"),
    ("spiffe://shop.example/%61", "spiffe_path_invalid"),
    ("spiffe://shop.example/a?b", "spiffe_path_invalid"),
    ("spiffe://shop.example/a#b", "spiffe_path_invalid"),
    ("spiffe://shop.example/a b", "spiffe_path_invalid"),
    ("spiffe://shop.example/a\x00b", "spiffe_path_invalid"),
    ("spiffe://shop.example/a\n", "spiffe_path_invalid"),
    ("spiffe://shop.example/a\r\nb", "spiffe_path_invalid"),
    ("spiffe://shop.example/a:b", "spiffe_path_invalid"),
    ("spiffe://shop.example/a;b", "spiffe_path_invalid"),
    ("spiffe://shop.example/a*", "spiffe_path_invalid"),
    ("spiffe://shop.example/ä", "spiffe_path_invalid"),
    ("spiffe://shop.example/\uff0e\uff0e", "spiffe_path_invalid"),
    ("spiffe://shop.example/٣", "spiffe_path_invalid"),
    ("spiffe://x/" + "p" * (MAX_ID_BYTES - 10), "spiffe_id_too_long"),
]


@pytest.mark.parametrize(("text", "domain", "path"), GOOD, ids=[item[0][:40] for item in GOOD])
def test_accepted(text: str, domain: str, path: str) -> None:
    assert parse_spiffe_id(text) == SpiffeId(domain, path, text)
    assert str(parse_spiffe_id(text)) == text


@pytest.mark.parametrize(("text", "code"), BAD, ids=[ascii(item[0][:40]) for item in BAD])
def test_refused(text: str, code: str) -> None:
    with pytest.raises(IdentityError) as caught:
        parse_spiffe_id(text)
    assert caught.value.code == code
    assert caught.value.detail.isprintable()
    assert caught.value.detail.isascii()
    assert len(caught.value.detail) < 200


def test_no_two_spellings_are_equal() -> None:
    assert parse_spiffe_id("spiffe://x/A") != parse_spiffe_id("spiffe://x/a")


def test_parts() -> None:
    assert spiffe_id("x", "/a").uri == "spiffe://x/a"
    for call in (lambda: spiffe_id("x/y", "/a"), lambda: spiffe_id("x", "a"), lambda: spiffe_id("", "/a")):
        with pytest.raises(IdentityError):
            call()
    with pytest.raises(IdentityError):
        parse_trust_domain("a/b")
    with pytest.raises(IdentityError):
        parse_workload_path("/a/")


ORACLE = re.compile(r"spiffe://([a-z0-9._-]{1,255})((?:/(?!\.{1,2}(?:/|\Z))[a-zA-Z0-9._-]+)*)", re.ASCII)


@given(
    st.one_of(
        st.text(),
        st.from_regex(r"spiffe://[a-z.]{0,5}(/[a-zA-Z.%]{0,3}){0,4}", fullmatch=True),
        st.text(alphabet="spife:/aA.%\x00é?#@", max_size=30).map(lambda tail: "spiffe://" + tail),
    )
)
def test_agrees_with_the_grammar_as_one_expression(text: str) -> None:
    expected = ORACLE.fullmatch(text)
    if expected is None or len(text) > MAX_ID_BYTES:
        with pytest.raises(IdentityError):
            parse_spiffe_id(text)
    else:
        parsed = parse_spiffe_id(text)
        assert (parsed.trust_domain, parsed.path) == (expected[1], expected[2])
        assert parsed.uri == text
