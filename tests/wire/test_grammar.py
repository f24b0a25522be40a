"""The expressions, octet by octet."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.wire.grammar import (
    AUTHORITY,
    CHUNK_LINE,
    CONTENT_LENGTH,
    FIELD_BLOCK,
    FORBIDDEN_IN_HEAD,
    PLAIN_REQUEST_HEAD,
    REQUEST_HEAD,
    REQUEST_LINE,
    RESPONSE_HEAD,
    TOKEN,
)

OCTETS = range(256)
TCHARS = frozenset(b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")  # RFC 9110 section 5.6.2


@pytest.mark.parametrize("octet", OCTETS)
def test_every_octet_everywhere(octet: int) -> None:
    char = bytes([octet])
    token, value = octet in TCHARS, octet in b"\t " or 0x21 <= octet <= 0x7E or octet >= 0x80
    assert (TOKEN(b"a" + char) is not None) is token
    assert (TOKEN(char) is not None) is token
    for name in (char, b"a" + char, char + b"a"):
        field = b"%b: x\r\n" % name
        good = token or (octet == 0x3A and name == b"a:")
        assert (FIELD_BLOCK(field) is not None) is good
        assert (REQUEST_HEAD(b"GET / HTTP/1.1\r\n" + field + b"\r\n") is not None) is good
        assert (PLAIN_REQUEST_HEAD(b"GET / HTTP/1.1\r\n" + field + b"\r\n") is not None) is (good and octet != 0x5F)
        assert (RESPONSE_HEAD(b"HTTP/1.1 200 OK\r\n" + field + b"\r\n") is not None) is good
    for text in (char, b"x" + char, char + b"x", b"x" + char + b"y"):
        assert (FIELD_BLOCK(b"a:%b\r\n" % text) is not None) is value
        assert (REQUEST_HEAD(b"GET / HTTP/1.1\r\na:%b\r\n\r\n" % text) is not None) is value
        assert (RESPONSE_HEAD(b"HTTP/1.1 200 %b\r\n\r\n" % text) is not None) is value
        visible = 0x21 <= octet <= 0x7E
        assert (REQUEST_LINE(b"GET /%b HTTP/1.1" % text) is not None) is visible
        assert (REQUEST_HEAD(b"GET /%b HTTP/1.1\r\n\r\n" % text) is not None) is visible
        assert (CHUNK_LINE(b"5;%b\r\n" % text) is not None) is value
    assert (REQUEST_LINE(b"G%bT / HTTP/1.1" % char) is not None) is token
    assert (CONTENT_LENGTH(b"1" + char) is not None) is (octet in b"0123456789")
    assert (CONTENT_LENGTH(char) is not None) is (octet in b"0123456789")
    hexadecimal = octet in b"0123456789abcdefABCDEF"
    assert (CHUNK_LINE(char + b"\r\n") is not None) is hexadecimal
    assert (CHUNK_LINE(b"5" + char + b"\r\n") is not None) is hexadecimal
    assert (CHUNK_LINE(char + b"5\r\n") is not None) is hexadecimal
    assert (AUTHORITY(b"a" + char) is not None) is (char.isalnum() or octet in b".-_:")


@pytest.mark.parametrize("octet", OCTETS)
def test_what_no_head_may_hold(octet: int) -> None:
    char = bytes([octet])
    control = (octet < 0x20 and octet not in (9, 10, 13)) or octet == 0x7F
    assert (FORBIDDEN_IN_HEAD(b"a" + char) is not None) is (control or octet == 10)
    assert (FORBIDDEN_IN_HEAD(b"a" + char + b"b") is not None) is (control or octet in (10, 13))
    assert FORBIDDEN_IN_HEAD(b"a\r\n" + b"b\r") is None


@pytest.mark.parametrize("ending", [b"\n", b"\r", b"\r\n", b"\x00", b" ", "\u2028".encode(), "\u0661".encode()])
def test_a_full_match_takes_no_line_end_with_it(ending: bytes) -> None:
    assert CONTENT_LENGTH(b"5" + ending) is None
    assert TOKEN(b"a" + ending) is None
    assert AUTHORITY(b"a" + ending) is None
    assert REQUEST_LINE(b"GET / HTTP/1.1" + ending) is None
    assert FIELD_BLOCK(b"a: b\r\n" + ending) is None


@settings(max_examples=300)
@given(st.lists(st.sampled_from([b"a", b":", b" ", b"\r\n", b"\r", b"\n", b"_", b"\x00", b"\xe9", b"\t"]), max_size=12))
def test_a_block_is_lines_that_are_fields(parts: list[bytes]) -> None:
    block = b"".join(parts)
    lines = block.split(b"\r\n")
    good = lines[-1] == b""
    for line in lines[:-1]:
        name, colon, value = line.partition(b":")
        good = good and bool(colon and name) and set(name) <= TCHARS and not set(value) & {0, 10, 13}
    assert (FIELD_BLOCK(block) is not None) is good
    head = REQUEST_HEAD(b"GET / HTTP/1.1\r\n" + block + b"\r\n")
    if good:
        assert head is not None
    if head is not None and b"\r\n\r\n" not in b"\r\n" + block:
        assert good
