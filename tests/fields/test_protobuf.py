"""Protobuf and gRPC messages by descriptor: checked against the protobuf runtime, octet for octet outside the protected fields."""

from __future__ import annotations

import gzip
import json
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.fields.compile import CompiledFields, compile_fields
from meshguard.fields.protobuf_descriptor import FieldNode
from meshguard.fields.protobuf_wire import ProtobufError, rewrite, varint
from meshguard.fields.transforms import Transform
from meshguard.model.errors import DocumentError, RequestError
from meshguard.model.reasons import BODY_INVALID, BODY_NOT_INSPECTABLE, BODY_OVER_LIMIT, FIELD_NOT_OPENED
from tests.fields.parts import ROLES, RULE, Counter, keyset, reader

_F = descriptor_pb2.FieldDescriptorProto


def _field(name: str, number: int, kind: int, *, repeated: bool = False, of: str = "") -> Any:
    label = _F.LABEL_REPEATED if repeated else _F.LABEL_OPTIONAL
    return _F(name=name, number=number, type=kind, label=label, type_name=of or None)  # type: ignore[arg-type]


@cache
def shop() -> Any:
    """shop.v1: an Order with a nested payment, repeated items, maps, bytes, a recursive parent; the service Orders."""
    entry = descriptor_pb2.DescriptorProto(name="NotesEntry", field=[_field("key", 1, _F.TYPE_STRING), _field("value", 2, _F.TYPE_STRING)])
    entry.options.map_entry = True
    secrets = descriptor_pb2.DescriptorProto(
        name="SecretsEntry", field=[_field("key", 1, _F.TYPE_STRING), _field("value", 2, _F.TYPE_MESSAGE, of=".shop.v1.Payment")]
    )
    secrets.options.map_entry = True
    payment = descriptor_pb2.DescriptorProto(
        name="Payment",
        field=[_field("card", 1, _F.TYPE_STRING), _field("blob", 2, _F.TYPE_BYTES), _field("amount", 3, _F.TYPE_DOUBLE)],
    )
    order = descriptor_pb2.DescriptorProto(
        name="Order",
        field=[
            _field("id", 1, _F.TYPE_INT64),
            _field("payment", 2, _F.TYPE_MESSAGE, of=".shop.v1.Payment"),
            _field("tags", 3, _F.TYPE_STRING, repeated=True),
            _field("items", 4, _F.TYPE_MESSAGE, repeated=True, of=".shop.v1.Payment"),
            _field("notes", 5, _F.TYPE_MESSAGE, repeated=True, of=".shop.v1.Order.NotesEntry"),
            _field("secrets", 6, _F.TYPE_MESSAGE, repeated=True, of=".shop.v1.Order.SecretsEntry"),
            _field("fixed", 7, _F.TYPE_FIXED32),
            _field("parent", 1000, _F.TYPE_MESSAGE, of=".shop.v1.Order"),
            _field("packed", 9, _F.TYPE_INT32, repeated=True),
        ],
        nested_type=[entry, secrets],
    )
    service = descriptor_pb2.ServiceDescriptorProto(
        name="Orders",
        method=[descriptor_pb2.MethodDescriptorProto(name="Get", input_type=".shop.v1.Payment", output_type=".shop.v1.Order")],
    )
    file = descriptor_pb2.FileDescriptorProto(
        name="shop.proto", package="shop.v1", syntax="proto3", message_type=[payment, order], service=[service]
    )
    return descriptor_pb2.FileDescriptorSet(file=[file])


@cache
def types() -> dict[str, type[Message]]:
    pool = descriptor_pool.DescriptorPool()
    for file in shop().file:
        pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"shop.v1.{name}")) for name in ("Order", "Payment")}


FIELDS = ["payment.card", "payment.blob", "tags", "items.card", "notes", "secrets.card", "parent.payment.card"]
BASE: dict[str, Any] = {name: value for name, value in RULE.items() if name != "select"}
GRPC: dict[str, Any] = {**BASE, "paths": ["/shop.v1.Orders/Get"], "protobuf": {"descriptor": "shop.pb", "fields": FIELDS}}
PLAIN: dict[str, Any] = {
    **BASE,
    "on": "both",
    "protobuf": {"descriptor": "shop.pb", "fields": FIELDS, "request": "shop.v1.Order", "response": "shop.v1.Order"},
}


def compiled(*rules: dict[str, Any]) -> CompiledFields:
    source = SimpleNamespace(file="policies/p.yaml", value=SimpleNamespace(fields=list(rules)))

    def read(file: str, name: str) -> bytes:
        assert file == "policies/p.yaml"
        if name != "shop.pb":
            raise FileNotFoundError(2, "No such file", name)
        data: bytes = shop().SerializeToString()
        return data

    return compile_fields([source], ROLES, {"orders-pii": keyset()}, read)


@cache
def plain() -> Transform:
    plan = compiled(PLAIN).plan("POST", "/orders/7")
    assert plan is not None
    assert plan.request is not None
    return plan.request


def treat(found: Transform, body: bytes, *roles: str) -> bytes:
    return found.apply(body, "application/x-protobuf", reader(*roles), Counter(), 0.0).body


def order(**values: Any) -> Any:
    return types()["Order"](**values)


texts = st.text(st.characters(codec="utf-8"), max_size=6)
payments = st.builds(lambda **values: types()["Payment"](**values), card=texts, blob=st.binary(max_size=6), amount=st.just(1.5))
orders = st.recursive(
    st.builds(
        order,
        id=st.integers(-5, 1 << 40),
        payment=st.none() | payments,
        tags=st.lists(texts, max_size=3),
        items=st.lists(payments, max_size=2),
        notes=st.dictionaries(texts, texts, max_size=2),
        secrets=st.dictionaries(texts, payments, max_size=2),
        fixed=st.integers(0, 9),
        packed=st.lists(st.integers(-1, 300), max_size=4),
    ),
    lambda inner: st.builds(lambda parent, payment: order(parent=parent, payment=payment), inner, payments),
    max_leaves=2,
)


@settings(max_examples=120, deadline=None)
@given(orders, st.binary(max_size=0) | st.just(b"\xf8\x07\x05\xfa\x07\x03abc\xfd\x07\x01\x02\x03\x04\xf3\x07\xf8\x07\x01\xf4\x07"))
def test_messages_come_back_octet_for_octet(message: Any, unknown: bytes) -> None:
    """Unknown fields (a varint, a string, a fixed32, a group) in front and behind stay where they are."""
    body = unknown + message.SerializeToString() + unknown
    sealed = treat(plain(), body)
    assert treat(plain(), sealed) == sealed
    assert treat(plain(), sealed, "billing") == body
    read = types()["Order"].FromString(sealed)
    for value in _protected(read):
        assert value.startswith("eyJ")
    assert (read.id, read.fixed, list(read.packed), set(read.notes)) == (
        message.id,
        message.fixed,
        list(message.packed),
        set(message.notes),
    )


def _protected(message: Any) -> list[str]:
    found = [
        *message.tags,
        *message.notes.values(),
        *(item.card for item in message.items),
        *(item.card for item in message.secrets.values()),
    ]
    if message.HasField("payment"):
        found += [message.payment.card, message.payment.blob.decode("latin-1")]
    if message.HasField("parent") and message.parent.HasField("payment"):
        found.append(message.parent.payment.card)
    return [value for value in found if value]


def test_bytes_that_look_like_anything_come_back() -> None:
    for blob in (
        b"\x00\xff",
        b"tok_1_" + b"A" * 32,
        b"eyJhbGciOiJkaXIi",
        b'{"alg":"dir"}',
        b'"',
        b"\\",
        b"{",
        b"null",
        b"tkr_1_" + b"A" * 40,
    ):
        body = order(payment=types()["Payment"](blob=blob)).SerializeToString()
        sealed = treat(plain(), body)
        assert sealed != body
        assert treat(plain(), sealed, "billing") == body


def test_views_of_messages() -> None:
    rule = {**PLAIN, "readers": {"billing": "open", "support": {"mask": "last4"}, "app": "nothing"}}
    plan = compiled(rule).plan("POST", "/orders/7")
    assert plan is not None
    assert plan.request is not None
    body = order(id=3, payment=types()["Payment"](card="4111-1111-1111-1234", blob=b"\x01", amount=2.0)).SerializeToString()
    for given_body in (body, treat(plan.request, body)):
        masked = types()["Order"].FromString(treat(plan.request, given_body, "support"))
        assert (masked.payment.card, masked.payment.blob, masked.payment.amount) == ("****-****-****-1234", b"***", 2.0)
        removed = types()["Order"].FromString(treat(plan.request, given_body, "app"))
        assert (removed.payment.card, removed.payment.amount, removed.id) == ("", 2.0, 3)


def test_a_value_sealed_in_a_message_opens_in_json() -> None:
    both = {**PLAIN, "select": "$.card"}
    plan = compiled(both).plan("POST", "/orders/7")
    assert plan is not None
    assert plan.request is not None
    sealed = types()["Order"].FromString(treat(plan.request, order(payment=types()["Payment"](card="é", blob=b"\xff")).SerializeToString()))
    for value, expected in ((sealed.payment.card, "é"), (sealed.payment.blob.decode(), "/w==")):
        document = json.dumps({"card": value}).encode()
        opened = plan.request.apply(document, "application/json", reader("billing"), Counter(), 0.0).body
        assert json.loads(opened) == {"card": expected}
    text = json.loads(plan.request.apply(b'{"card":"no base64!"}', "application/json", reader(), Counter(), 0.0).body)["card"]
    with pytest.raises(RequestError) as caught:
        treat(plan.request, order(payment=types()["Payment"](blob=text.encode())).SerializeToString(), "billing")
    assert caught.value.reason is FIELD_NOT_OPENED


CARD = b"\x12\x06\x0a\x04" + b"4111"


@pytest.mark.parametrize(
    "body",
    [
        CARD[:-1], b"\x12\x06\x0a\x05" + b"4111", b"\x10\x01", b"\x15\x01\x02\x03\x04", b"\x18\x05", b"\x12\x02\x08\x01",
        b"\x12\x03\x0a\x01\xff",
        b"\x00\x01", b"\x06\x01", b"\x07\x01", b"\x80" * 11 + b"\x01", b"\xff" * 9 + b"\x02", b"\x08", b"\x08\x80", b"\x0b\x0c\x0c",
        b"\x0b\x14",
        b"\x0b", b"\x0c", b"\x09\x01", b"\x0d\x01", b"\x0b" * 70 + b"\x0c" * 70, b"\x13\x14", b"\xff\xff\xff\xff\x7f\x01",
        b"\x0b\x12\x05\x0c",
    ],
)  # fmt: skip
def test_malformed_messages_are_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        treat(plain(), body)
    assert caught.value.reason is BODY_INVALID


def test_messages_in_one_another_are_bounded() -> None:
    loop = FieldNode({1: "string"}, {})
    loop.inner[2] = loop
    body = b""
    for _ in range(100):
        body = b"\x12" + varint(len(body)) + body
    with pytest.raises(ProtobufError):
        rewrite(body, loop, lambda kind, value, node, number: value)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=40))
def test_what_is_accepted_the_runtime_reads_alike(body: bytes) -> None:
    """Octets from nowhere: refused, or the runtime reads before and after the same outside the protected fields."""
    try:
        sealed = treat(plain(), body)
    except RequestError:
        return
    try:
        before = types()["Order"].FromString(body)
    except Exception:
        return  # the runtime is stricter, about strings for example
    after = types()["Order"].FromString(treat(plain(), sealed, "billing"))
    assert after == before


# -- gRPC -----------------------------------------------------------------------------------------------------------------------------


def frame(message: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(message).to_bytes(4, "big") + message


def grpc(direction: str = "response", rule: dict[str, Any] = GRPC) -> Transform:
    plan = compiled({**rule, "on": direction}).plan("POST", "/shop.v1.Orders/Get")
    assert plan is not None
    found = plan.response if direction == "response" else plan.request
    assert found is not None
    return found


def streamed(found: Transform, pieces: list[bytes], *roles: str, coding: str = "", limit: int = 4096) -> bytes:
    representation = found.check_headers(["application/grpc"], [])
    stream = found.stream(representation, reader(*roles), Counter(), limit, message_coding=coding)
    return b"".join([*map(stream.feed, pieces), stream.finish()])


def test_a_grpc_stream_is_treated_message_by_message() -> None:
    messages = [order(id=number, payment=types()["Payment"](card=f"4111{number}")).SerializeToString() for number in range(3)]
    body = b"".join(map(frame, [*messages, b""]))
    whole = streamed(grpc(), [body])
    assert b"4111" not in whole
    single = [body[place : place + 1] for place in range(len(body))]
    assert streamed(grpc(), single) == whole
    assert streamed(grpc(), [whole[:50], whole[50:]], "billing") == body
    stream = grpc().stream(grpc().check_headers(["application/grpc+proto"], []), reader(), Counter(), 4096)
    assert stream.feed(frame(messages[0]) + b"\0") != b"", "a whole message waits for the next one"


def test_compressed_messages_are_treated_and_compressed_again() -> None:
    message = order(payment=types()["Payment"](card="4111")).SerializeToString()
    out = streamed(grpc(), [frame(gzip.compress(message), 1) + frame(message)], coding="gzip")
    length = int.from_bytes(out[1:5], "big")
    assert out[0] == 1
    assert types()["Order"].FromString(gzip.decompress(out[5 : 5 + length])).payment.card.startswith("eyJ")
    untouched = frame(gzip.compress(order(id=5).SerializeToString()), 1)
    assert streamed(grpc(), [untouched], coding="gzip") == untouched


@pytest.mark.parametrize(
    ("body", "coding", "reason"),
    [
        (frame(CARD, 2), "", BODY_INVALID), (frame(CARD, 1), "", BODY_INVALID), (frame(CARD, 1), "identity", BODY_INVALID),
        (frame(CARD, 1), "gzip", BODY_INVALID), (frame(CARD)[:-1], "", BODY_INVALID), (b"\0\0\0", "", BODY_INVALID),
        (b"\0\0\0\xff\xff", "", BODY_OVER_LIMIT), (frame(gzip.compress(b"\0" * 100_000), 1), "gzip", BODY_OVER_LIMIT),
        (frame(CARD, 1), "snappy", BODY_NOT_INSPECTABLE), (frame(CARD, 1), "gzip,gzip", BODY_NOT_INSPECTABLE),
    ],
)  # fmt: skip
def test_grpc_bodies_that_cannot_be_read_are_refused(body: bytes, coding: str, reason: Any) -> None:
    with pytest.raises(RequestError) as caught:
        streamed(grpc("request", {**GRPC, "protobuf": {**GRPC["protobuf"], "fields": ["card"]}}), [body], coding=coding)
    assert caught.value.reason is reason


def test_a_path_without_its_message_does_not_pass() -> None:
    """One rule with two methods: another path that its template covers has no message, so its bodies are refused."""
    rule = {**GRPC, "paths": ["/shop.v1.Orders/Get", "/shop.v1.Orders/{any}"], "on": "response"}
    with pytest.raises(DocumentError, match="gRPC method"):
        compiled(rule)
    found = compiled({**GRPC, "on": "response"}).plan("POST", "/SHOP.v1.orders/get/")
    assert found is not None
    assert found.response is not None
    assert b"4111" not in streamed(found.response, [frame(order(tags=["4111"]).SerializeToString())])


@pytest.mark.parametrize(
    ("change", "path", "words"),
    [
        ({"descriptor": "none.pb"}, "protobuf.descriptor", "can be read"),
        ({"fields": ["payment.crd"]}, "protobuf.fields[0]", "amount, blob, card"),
        ({"fields": ["payment"]}, "protobuf.fields[0]", "name a field of it"),
        ({"fields": ["id"]}, "protobuf.fields[0]", "no place in id"),
        ({"fields": ["tags.x"]}, "protobuf.fields[0]", "ends at tags"),
        ({"response": "shop.v1.Ordr"}, "protobuf.response", "a message of the descriptor set"),
        ({"fields": ["a..b"]}, "protobuf.fields[0]", "joined by dots"),
        ({"feilds": ["a"]}, "protobuf.feilds", "did you mean 'fields'"),
    ],
)
def test_a_descriptor_without_it_is_named(change: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(DocumentError) as caught:
        compiled({**GRPC, "protobuf": {**GRPC["protobuf"], **change}})
    found = {problem.path: str(problem) for problem in caught.value.problems}
    assert words in found.get(f"fields[0].{path}", ""), found
