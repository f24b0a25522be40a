"""Contracts of descriptor sets: operations, content types, the words of the configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from meshguard.control.contracts import load_contracts
from meshguard.control.settings.load import load_configuration
from meshguard.model.errors import DocumentError
from meshguard.validation.protobuf import MessageChecker, ProtobufContract
from meshguard.validation.violation import UnknownOperation, Violation
from tests.fields.orders_proto import descriptor_set, types


def contract(*, deny: bool = True) -> ProtobufContract:
    return ProtobufContract({"/a.B/One": (lambda _: None, False), "/a.B/Many": (lambda _: None, True)}, deny=deny, reports=False, limit=9)


def head(path: str, *kinds: str, method: str = "POST", has_body: bool = True, deny: bool = True) -> Any:
    check = contract(deny=deny).check(method, path, None)
    return None if check is None else check.judge_head(lambda _: [], has_body, kinds)


def test_operations_and_types() -> None:
    found = head("/a.B/One", "application/grpc+proto")
    assert isinstance(found, MessageChecker)
    assert (found.framed, found.many, found.limit) == (True, False, 9)
    assert not head("/a.B/One", "application/x-protobuf").framed
    assert head("/a.B/Many", "application/grpc").many
    for path, method in (("/a.B/Two", "POST"), ("/a.b/one", "POST"), ("/a.B/One/", "POST"), ("/a.B/One", "GET")):
        with pytest.raises(UnknownOperation):
            head(path, "application/grpc", method=method)
        assert head(path, "application/grpc", method=method, deny=False) is None
    for kinds in (
        (),
        ("application/json",),
        ("application/grpc", "application/grpc"),
        ("application/grpc+json",),
        ("application/grpc-web",),
    ):
        with pytest.raises(Violation, match="content type"):
            head("/a.B/One", *kinds)
    with pytest.raises(Violation, match="a content type"):
        head("/a.B/Many", "application/protobuf")  # a stream has frames
    with pytest.raises(Violation, match="required body"):
        head("/a.B/One", has_body=False)


def configuration(directory: Path, validation: dict[str, Any], **more: Any) -> Any:
    (directory / "shop.pb").write_bytes(descriptor_set().SerializeToString())
    values = {
        "identity": {"trust_domain": "shop.example", "development_ca": "./identity"},
        "profile": "development",
        "listeners": {"in": {"address": "127.0.0.1:9", "tls": "none", "to": "app", "validation": validation}},
        "clusters": {"app": {"endpoints": ["127.0.0.1:9"]}},
        "policies": ["p.yaml"],
        **more,
    }
    (directory / "p.yaml").write_text("rules: [{id: a, allow: anyone}]")
    (directory / "meshguard.yaml").write_text(yaml.safe_dump(values))
    return load_configuration(directory / "meshguard.yaml", now=0.0, environment={}).configuration


def test_the_section(tmp_path: Path) -> None:
    loaded = load_contracts(configuration(tmp_path, {"protobuf": "shop.pb", "unknown_fields": "allow"}), {})
    check = next(iter(loaded.values())).check("POST", "/bank.v1.Orders/Old", None)
    assert check is not None
    checker: Any = check.judge_head(lambda _: [], True, ["application/grpc"])
    checker.judge(types()["bank.old.Legacy"](id=1).SerializeToString() + b"\xfa\x3e\x00")
    with pytest.raises(Violation, match="required bank") as caught:
        checker.judge(b"")
    assert caught.value.place == "body/id"
    for section, expected in (
        ({"protobuf": "shop.pb", "json_schema": "x"}, "exactly one"),
        ({"json_schema": "shop.pb", "unknown_fields": "deny"}, "one of protobuf"),
        ({"protobuf": "bundle:shop.pb"}, "no `bundle`"),
        ({"protobuf": "bundle:../shop.pb"}, "the name of a file in it"),
        ({"protobuf": "none.pb"}, "an existing file"),
    ):
        with pytest.raises(DocumentError, match=expected):
            configuration(tmp_path, section)
    found = configuration(tmp_path, {"protobuf": "shop.pb"})
    (tmp_path / "shop.pb").write_bytes(b"\xff")
    with pytest.raises(DocumentError, match="FileDescriptorSet"):
        load_contracts(found, {})
