"""A descriptor set with what messages can have: a proto3 and a proto2 file, one service. Built here, so that no compiler is needed."""

from __future__ import annotations

from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

_F = descriptor_pb2.FieldDescriptorProto


def field(name: str, number: int, kind: int, *, label: int = _F.LABEL_OPTIONAL, of: str = "", **more: Any) -> Any:
    return _F(name=name, number=number, type=kind, label=label, type_name=of or None, **more)  # type: ignore[arg-type]


@cache
def descriptor_set() -> Any:
    role = descriptor_pb2.EnumDescriptorProto(
        name="Role", value=[descriptor_pb2.EnumValueDescriptorProto(name=name, number=n) for n, name in enumerate(("USER", "ADMIN"))]
    )
    notes = descriptor_pb2.DescriptorProto(name="NotesEntry", field=[field("key", 1, _F.TYPE_STRING), field("value", 2, _F.TYPE_INT32)])
    notes.options.map_entry = True
    payment = descriptor_pb2.DescriptorProto(
        name="Payment", field=[field("amount", 1, _F.TYPE_INT64), field("rate", 2, _F.TYPE_DOUBLE), field("currency", 3, _F.TYPE_STRING)]
    )
    order = descriptor_pb2.DescriptorProto(
        name="Order",
        field=[
            field("id", 1, _F.TYPE_STRING),
            field("payment", 2, _F.TYPE_MESSAGE, of=".bank.v1.Payment"),
            field("items", 3, _F.TYPE_MESSAGE, label=_F.LABEL_REPEATED, of=".bank.v1.Payment"),
            field("notes", 4, _F.TYPE_MESSAGE, label=_F.LABEL_REPEATED, of=".bank.v1.Order.NotesEntry"),
            field("role", 5, _F.TYPE_ENUM, of=".bank.v1.Role"),
            field("counts", 6, _F.TYPE_SINT32, label=_F.LABEL_REPEATED),
            field("fixed", 7, _F.TYPE_FIXED64),
            field("flag", 8, _F.TYPE_BOOL),
            field("blob", 9, _F.TYPE_BYTES),
            field("card", 10, _F.TYPE_STRING, oneof_index=0),
            field("iban", 11, _F.TYPE_STRING, oneof_index=0),
            field("parent", 12, _F.TYPE_MESSAGE, of=".bank.v1.Order"),
            field("small", 13, _F.TYPE_UINT32),
            field("rates", 14, _F.TYPE_FLOAT, label=_F.LABEL_REPEATED),
            field("maybe", 15, _F.TYPE_INT32, oneof_index=1, proto3_optional=True),
        ],
        nested_type=[notes],
        oneof_decl=[descriptor_pb2.OneofDescriptorProto(name="source"), descriptor_pb2.OneofDescriptorProto(name="_maybe")],
    )
    methods = [
        descriptor_pb2.MethodDescriptorProto(
            name=name, input_type=of, output_type=".bank.v1.Order", client_streaming=many, server_streaming=many
        )
        for name, of, many in (("Place", ".bank.v1.Order", False), ("Chat", ".bank.v1.Order", True), ("Old", ".bank.old.Legacy", False))
    ]
    service = descriptor_pb2.ServiceDescriptorProto(name="Orders", method=methods)
    legacy = descriptor_pb2.DescriptorProto(
        name="Legacy",
        field=[
            field("id", 1, _F.TYPE_INT32, label=_F.LABEL_REQUIRED),
            field("level", 2, _F.TYPE_ENUM, of=".bank.old.Level"),
            field("limit", 3, _F.TYPE_INT32, default_value="7"),
        ],
        extension_range=[descriptor_pb2.DescriptorProto.ExtensionRange(start=100, end=200)],
    )
    level = descriptor_pb2.EnumDescriptorProto(
        name="Level", value=[descriptor_pb2.EnumValueDescriptorProto(name=name, number=n) for n, name in ((1, "LOW"), (2, "HIGH"))]
    )
    old = descriptor_pb2.FileDescriptorProto(
        name="old.proto",
        package="bank.old",
        syntax="proto2",
        message_type=[legacy],
        enum_type=[level],
        extension=[field("extra", 100, _F.TYPE_STRING, extendee=".bank.old.Legacy")],
    )
    new = descriptor_pb2.FileDescriptorProto(
        name="bank.proto",
        package="bank.v1",
        syntax="proto3",
        dependency=["old.proto"],
        message_type=[payment, order],
        enum_type=[role],
        service=[service],
    )
    return descriptor_pb2.FileDescriptorSet(file=[old, new])


@cache
def types() -> dict[str, type[Message]]:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_set().file:
        pool.Add(file)
    names = ("bank.v1.Order", "bank.v1.Payment", "bank.old.Legacy")
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name)) for name in names}


def order(**values: Any) -> Any:
    return types()["bank.v1.Order"](**values)
