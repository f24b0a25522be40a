"""Masks: what they show and what they never show."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshguard.fields.masks import MASKS, apply_mask


@pytest.mark.parametrize(
    ("mask", "value", "shown"),
    [
        ("last4", "123-45-6789", "***-**-6789"), ("last4", "4111 1111 1111 1234", "**** **** **** 1234"), ("last4", "12345678", "****5678"),
        ("last4", "1234567", "***"), ("last4", "", "***"), ("last4", "1" * 65, "***"), ("first4", "4111111111111234", "4111************"),
        ("first4", "DE89 3704 0044", "DE89 **** ****"), ("first4", "1234", "***"), ("email", "joe@example.com", "j***@example.com"),
        ("email", "a@example.com", "***"), ("email", "joe", "***"), ("email", "a@b@c", "***"), ("email", "joe@", "***"),
        ("all", "joe@example.com", "***"),
        ("last4", "a_b\u2028cdefgh", "******efgh"),
    ],
)  # fmt: skip
def test_masks(mask: str, value: str, shown: str) -> None:
    assert json.loads(apply_mask(MASKS[mask], json.dumps(value).encode())) == shown


@pytest.mark.parametrize(
    ("raw", "shown"),
    [(b"12345678", "****5678"), (b"true", "***"), (b"null", "***"), (b'{"a":"12345678"}', "***"), (b"[12345678]", "***"), (b"1.5", "***")],
)
def test_other_values(raw: bytes, shown: str) -> None:
    assert json.loads(apply_mask(MASKS["last4"], raw)) == shown


@given(st.text(max_size=80), st.sampled_from(["last4", "first4"]))
def test_never_more_than_four_letters_or_digits(text: str, name: str) -> None:
    shown = MASKS[name](text)
    assert sum(char.isalnum() for char in shown) <= 4
    assert shown == "***" or len(shown) == len(text)
