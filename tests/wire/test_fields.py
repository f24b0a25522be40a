"""Operations on field blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshguard.wire.fields import count_fields, field_values, is_field_name, remove_fields, remover, split_block, tokens
from meshguard.wire.grammar import FIELD_BLOCK

names = st.sampled_from([b"A", b"a", b"B", b"x-a", b"X-A", b"ab", b"A-", b"!#$%&'*+-.^_`|~9"])
values = st.sampled_from([b"", b"1", b"a: b", b"a,b", b":", b"\xe9\xff", b"a \t b", b"A: 1"])
white = st.sampled_from([b"", b" ", b"\t ", b"  "])
fields = st.lists(st.tuples(names, white, values, white), max_size=6)


def block_of(parts: list[tuple[bytes, bytes, bytes, bytes]]) -> bytes:
    return b"".join(b"%b:%b%b%b\r\n" % part for part in parts)


@given(fields)
def test_split_gives_every_field_as_it_was_meant(parts: list[tuple[bytes, bytes, bytes, bytes]]) -> None:
    block = block_of(parts)
    assert FIELD_BLOCK(block) is not None
    assert split_block(block) == [(name, value) for name, _, value, _ in parts]
    assert count_fields(block) == len(parts)


@given(fields, st.sampled_from([b"a", b"x-a", b"ab", b"b", b"none"]))
def test_values_of_every_line(parts: list[tuple[bytes, bytes, bytes, bytes]], name: bytes) -> None:
    assert field_values(block_of(parts), name) == [value for key, _, value, _ in parts if key.lower() == name]


@given(fields, st.sets(st.sampled_from([b"a", b"x-a", b"ab", b"b", b"none", b""])))
def test_removal_keeps_the_rest_to_the_octet(parts: list[tuple[bytes, bytes, bytes, bytes]], gone: set[bytes]) -> None:
    assert remove_fields(block_of(parts), gone) == block_of([part for part in parts if part[0].lower() not in gone])
    assert remove_fields(block_of(parts), iter(gone)) == remove_fields(block_of(parts), gone)
    if gone - {b""}:
        assert remover(gone - {b""})(block_of(parts)) == remove_fields(block_of(parts), gone - {b""})


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], []),
        ([b""], []),
        ([b"a"], [b"a"]),
        ([b"A, b ,\tC\t"], [b"a", b"b", b"c"]),
        ([b",,a,,"], [b"a"]),
        ([b"a", b"b, a"], [b"a", b"b", b"a"]),
        ([b"a b"], [b"a b"]),
        ([b'"a,b"'], [b'"a', b'b"']),
        ([b"\xa0a"], [b"\xa0a"]),
        ([b"\x0ba"], [b"\x0ba"]),
    ],
)
def test_tokens(lines: list[bytes], expected: list[bytes]) -> None:
    """ASCII blanks only: nothing else that Python calls white space is stripped."""
    assert tokens(lines) == expected


@pytest.mark.parametrize(
    ("name", "good"),
    [(b"a", True), (b"X-A_b", True), (b"!#$%&'*+-.^_`|~", True), (b"", False), (b"a b", False), (b"a:", False), (b"a\n", False),
    (b"\xe9", False),
     (b"a\x00", False), (b'"', False), (b"(", False), (b"a/b", False), (b"\x7f", False)],
)  # fmt: skip
def test_names(name: bytes, good: bool) -> None:
    assert is_field_name(name) is good
