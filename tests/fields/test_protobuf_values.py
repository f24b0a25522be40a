"""Messages as values: the same as the protobuf runtime reads, or refused; what runtimes drop silently is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.fields.protobuf_descriptor import DescriptorError
from meshguard.fields.protobuf_schema import Schema
from meshguard.fields.protobuf_values import MAX_VALUES, MessageError, read_message
from meshguard.fields.protobuf_wire import varint
from tests.fields.orders_proto import descriptor_set, order, types

SCHEMA = Schema(descriptor_set().SerializeToString())
ORDER, LEGACY = SCHEMA.message("bank.v1.Order"), SCHEMA.message("bank.old.Legacy")
assert ORDER is not None
assert LEGACY is not None

_int32 = st.integers(-(2**31), 2**31 - 1)
_payment = st.fixed_dictionaries(
    {},
    optional={"amount": st.integers(-(2**63), 2**63 - 1), "rate": st.floats(allow_nan=False, allow_infinity=False), "currency": st.text()},
)
_orders = st.recursive(
    st.just({}),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            "id": st.text(),
            "payment": _payment,
            "items": st.lists(_payment, max_size=3),
            "notes": st.dictionaries(st.text(), _int32, max_size=3),
            "role": st.sampled_from(("USER", "ADMIN")),
            "counts": st.lists(_int32, max_size=4),
            "fixed": st.integers(0, 2**64 - 1),
            "flag": st.booleans(),
            "card": st.text(),
            "parent": inner,
            "small": st.integers(0, 2**32 - 1),
            "rates": st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=3),
            "maybe": _int32,
        },
    ),
    max_leaves=4,
)


def _as_numbers(value: Any, name: str = "") -> Any:
    """The JSON mapping writes 64-bit integers as texts."""
    if isinstance(value, dict):
        return {key: _as_numbers(each, key if name != "notes" else "") for key, each in value.items()}
    if isinstance(value, list):
        return [_as_numbers(each, name) for each in value]
    return int(value) if name in ("amount", "fixed") and isinstance(value, str) else value


@given(_orders)
@settings(max_examples=150, deadline=None)
def test_the_runtime_reads_the_same(values: dict[str, Any]) -> None:
    message = ParseDict(values, order())
    read = read_message(message.SerializeToString(), ORDER, unknown=False, strict=True)
    told = _as_numbers(MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True))
    empty = {"items": [], "notes": {}, "counts": [], "rates": []}

    def filled(each: Any) -> Any:
        if isinstance(each, dict):
            each = {key: filled(inner) for key, inner in each.items()}
            return {**empty, **each} if "blob" in each else each
        return [filled(inner) for inner in each] if isinstance(each, list) else each

    for one, other in ((filled(read), filled(told)),):
        assert _close(one, other), (one, other)


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-44) or one == other  # the mapping writes floats in their shortest form
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_close, one, other))
    return bool(one == other)


def tag(number: int, wire: int) -> bytes:
    return varint(number << 3 | wire)


def text(number: int, octets: bytes) -> bytes:
    return tag(number, 2) + varint(len(octets)) + octets


BAD = {
    "another wire type": (tag(1, 0) + b"\x05", ("id",)),
    "a number where a message is": (tag(2, 0) + b"\x05", ("payment",)),
    "a singular field twice": (text(1, b"a") + text(1, b"b"), ("id",)),
    "a message twice": (text(2, b"") + text(2, b""), ("payment",)),
    "two of a oneof": (text(10, b"a") + text(11, b"b"), ("iban",)),
    "a map key twice": (text(4, text(1, b"k") + b"\x10\x01") * 2, ("notes", "k")),
    "no UTF-8": (text(1, b"\xff"), ("id",)),
    "an uint32 of 33 bits": (tag(13, 0) + varint(1 << 32), ("small",)),
    "an int32 of 33 bits": (tag(15, 0) + varint(1 << 32), ("maybe",)),
    "a bool of 2": (tag(8, 0) + b"\x02", ("flag",)),
    "an unknown field": (text(500, b"x"), ()),
    "an unknown field inside": (text(2, text(77, b"x")), ("payment",)),
    "cut off": (text(1, b"abc")[:-1], ("id",)),
    "cut off inside": (text(2, text(3, b"abc")[:-1]), ("payment", "currency")),
    "a packed list cut off": (text(6, b"\x80"), ("counts", 0)),
    "a packed list of half a number": (text(14, b"\0\0\0"), ("rates", 0)),
    "field number 0": (b"\x00\x00", ()),
    "the end of a group": (tag(3, 4), ()),
    "the end of no group": (text(1, b"a") + tag(0, 4), ()),
    "a group": (tag(500, 3), ()),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_refused_and_where(name: str) -> None:
    message, place = BAD[name]
    with pytest.raises(MessageError) as caught:
        read_message(message, ORDER, unknown=False, strict=True)
    if name != "a packed list cut off":
        assert caught.value.path == place


def test_depth_and_number_of_values_are_bounded() -> None:
    deep = b""
    for _ in range(70):
        deep = text(12, deep)
    with pytest.raises(MessageError, match="in one another"):
        read_message(deep, ORDER)
    with pytest.raises(MessageError) as caught:
        read_message(text(6, b"\x00" * MAX_VALUES), ORDER)
    assert caught.value.too_large
    assert read_message(text(6, b"\x00" * (MAX_VALUES // 2)), ORDER)["counts"] == [0] * (MAX_VALUES // 2)


def test_proto2() -> None:
    legacy = types()["bank.old.Legacy"]
    good = legacy(id=1, level=2).SerializeToString()
    assert read_message(good, LEGACY, unknown=False, strict=True) == {"id": 1, "level": "HIGH", "limit": 7}
    with pytest.raises(MessageError, match=r"required bank\.old\.Legacy\.id") as caught:
        read_message(b"\x10\x01", LEGACY, strict=True)
    assert caught.value.path == ("id",)
    with pytest.raises(MessageError, match="a value of the enum"):
        read_message(b"\x08\x01\x10\x09", LEGACY, strict=True)
    assert read_message(b"\x08\x01\x10\x09", LEGACY)["level"] == 9
    extended = good + text(100, b"x")
    assert read_message(extended, LEGACY, unknown=False)["[bank.old.extra]"] == "x"


def test_sets_that_are_not_whole_are_told() -> None:
    for data, expected in ((b"", "at most"), (b"\xff\xff", "serialised"), (b"\x0a\x00", "messages")):
        with pytest.raises(DescriptorError, match=expected):
            Schema(data)
    one = descriptor_set().__class__(file=[descriptor_set().file[1]])
    with pytest.raises(DescriptorError, match=r"bank\.old\.Legacy too"):
        Schema(one.SerializeToString())
    found = ORDER.find
    assert (found("payment.amount"), found("items.rate"), found("notes")) == ("", "", "")
    assert "a field of bank.v1.Order" in found("paymnt.amount")
    assert "which is no message" in found("id.x")
