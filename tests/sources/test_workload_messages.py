"""The hand-written reader of Workload API messages against protobuf itself, and against junk."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from meshguard.model.errors import IdentityError
from meshguard.sources.workload_messages import SvidEntry, decode_bundles, decode_svids


def _messages() -> dict[str, Any]:
    """The messages of the SPIFFE Workload API as protobuf classes, from the field numbers and types of the standard."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="tests/workloadapi.proto", package="tests.workload", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, bool, str]) -> descriptor_pb2.DescriptorProto:
        found = file.message_type.add(name=name)
        for label, number, kind, repeated, type_name in fields:
            found.field.add(
                name=label,
                number=number,
                type=kind,
                label=field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL,
                type_name=type_name or None,
            )
        return found

    def with_map(parent: descriptor_pb2.DescriptorProto, label: str, number: int, entry: str) -> None:
        nested = parent.nested_type.add(name=entry)
        nested.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
        nested.field.add(name="value", number=2, type=field.TYPE_BYTES, label=field.LABEL_OPTIONAL)
        nested.options.map_entry = True
        parent.field.add(
            name=label,
            number=number,
            type=field.TYPE_MESSAGE,
            label=field.LABEL_REPEATED,
            type_name=f".tests.workload.{parent.name}.{entry}",
        )

    message(
        "X509SVID",
        ("spiffe_id", 1, field.TYPE_STRING, False, ""),
        ("x509_svid", 2, field.TYPE_BYTES, False, ""),
        ("x509_svid_key", 3, field.TYPE_BYTES, False, ""),
        ("bundle", 4, field.TYPE_BYTES, False, ""),
        ("hint", 5, field.TYPE_STRING, False, ""),
        ("later", 900, field.TYPE_DOUBLE, False, ""),
    )
    response = message(
        "X509SVIDResponse",
        ("svids", 1, field.TYPE_MESSAGE, True, ".tests.workload.X509SVID"),
        ("crl", 2, field.TYPE_BYTES, True, ""),
        ("later", 77, field.TYPE_UINT64, False, ""),
    )
    with_map(response, "federated_bundles", 3, "FederatedBundlesEntry")
    bundles = message("X509BundlesResponse", ("crl", 1, field.TYPE_BYTES, True, ""), ("later", 78, field.TYPE_FIXED32, False, ""))
    with_map(bundles, "bundles", 2, "BundlesEntry")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tests.workload.{name}"))
        for name in ("X509SVID", "X509SVIDResponse", "X509BundlesResponse")
    }


MESSAGES = _messages()
SVIDS = st.builds(
    lambda *values: MESSAGES["X509SVID"](
        spiffe_id=values[0], x509_svid=values[1], x509_svid_key=values[2], bundle=values[3], hint=values[4], later=values[5]
    ),
    st.text(),
    st.binary(),
    st.binary(),
    st.binary(max_size=500),
    st.text(),
    st.floats(allow_nan=False),
)


@given(
    st.lists(SVIDS, max_size=3),
    st.lists(st.binary(), max_size=3),
    st.dictionaries(st.text(), st.binary(), max_size=3),
    st.integers(0, 2**64 - 1),
)
def test_svids(svids: list[Any], crls: list[bytes], federated: dict[str, bytes], later: int) -> None:
    sent = MESSAGES["X509SVIDResponse"](svids=svids, crl=crls, federated_bundles=federated, later=later)
    read = decode_svids(sent.SerializeToString())
    assert read.svids == tuple(SvidEntry(s.spiffe_id, s.x509_svid, s.x509_svid_key, s.bundle, s.hint) for s in svids)
    assert read.crls == tuple(crls)
    assert read.federated == federated


@given(st.lists(st.binary(), max_size=3), st.dictionaries(st.text(), st.binary(), max_size=3), st.integers(0, 2**32 - 1))
def test_bundles(crls: list[bytes], bundles: dict[str, bytes], later: int) -> None:
    read = decode_bundles(MESSAGES["X509BundlesResponse"](crl=crls, bundles=bundles, later=later).SerializeToString())
    assert (read.crls, read.bundles) == (tuple(crls), bundles)


@given(st.binary(max_size=100))
def test_junk_is_refused_or_means_what_protobuf_reads(data: bytes) -> None:
    """Invariant: no other exception; and what protobuf refuses we do not read as an SVID."""
    try:
        read = decode_svids(data)
    except IdentityError as exc:
        assert exc.code == "workload_api_message"  # noqa: PT017 # the alternative is to have read it
        return
    sent = MESSAGES["X509SVIDResponse"]()
    try:
        sent.ParseFromString(data)
    except Exception:  # protobuf's own, by implementation: it may be stricter about fields that we pass over
        return
    assert len(read.svids) == len(sent.svids)
    assert read.crls == tuple(sent.crl)


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a",
        b"\x0a\x05abc",
        b"\x00\x00",
        b"\x0b",
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x0a\x03\x0a\x01\xff",
        b"\x09\x00",
        b"\x0d\x00",
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(IdentityError):
        decode_svids(data)


def test_the_key_is_in_no_repr() -> None:
    sent = MESSAGES["X509SVIDResponse"](svids=[MESSAGES["X509SVID"](spiffe_id="spiffe://x/y", x509_svid_key=b"sekret")])
    assert "sekret" not in repr(decode_svids(sent.SerializeToString()))
