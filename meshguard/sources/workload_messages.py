"""The four messages of the SPIFFE Workload API's X.509 profile, read from and written to their protobuf encoding.

Source: workloadapi.proto of the SPIFFE standards (service `SpiffeWorkloadAPI`, no package), as far as X.509 goes:

    X509SVIDResponse      1 repeated X509SVID svids   2 repeated bytes crl   3 map<string, bytes> federated_bundles
    X509SVID              1 string spiffe_id   2 bytes x509_svid   3 bytes x509_svid_key   4 bytes bundle   5 string hint
    X509BundlesResponse   1 repeated bytes crl   2 map<string, bytes> bundles

The requests are empty. By hand, and not generated: three fields of two wire types need no runtime of 10 MB in an idle sidecar, nor code
that is tied to its version. Unknown fields are passed over, as protobuf has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from meshguard.model.errors import IdentityError

__all__ = ["FETCH_BUNDLES", "FETCH_SVID", "BundlesMessage", "SvidEntry", "SvidMessage", "decode_bundles", "decode_svids"]

FETCH_SVID = "/SpiffeWorkloadAPI/FetchX509SVID"
FETCH_BUNDLES = "/SpiffeWorkloadAPI/FetchX509Bundles"


@dataclass(frozen=True, slots=True)
class SvidEntry:
    """One X509SVID message: chain and bundle are DER after DER, the key PKCS #8 in DER. The key is in no repr."""

    spiffe_id: str
    chain: bytes
    key: bytes = field(repr=False)
    bundle: bytes
    hint: str


@dataclass(frozen=True, slots=True)
class SvidMessage:
    """X509SVIDResponse; `federated` has the bundles by the SPIFFE ID of the trust domain."""

    svids: tuple[SvidEntry, ...]
    crls: tuple[bytes, ...]
    federated: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class BundlesMessage:
    """X509BundlesResponse; `bundles` by the SPIFFE ID of the trust domain."""

    bundles: dict[str, bytes]
    crls: tuple[bytes, ...]


def decode_svids(data: bytes) -> SvidMessage:
    """Decode an X509SVIDResponse. Raises IdentityError (`workload_api_message`)."""
    svids: list[SvidEntry] = []
    crls: list[bytes] = []
    federated: dict[str, bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            svids.append(_svid(value))
        elif number == 2:
            crls.append(value)
        elif number == 3:
            key, bundle = _entry(value)
            federated[key] = bundle
    return SvidMessage(tuple(svids), tuple(crls), federated)


def decode_bundles(data: bytes) -> BundlesMessage:
    """Decode an X509BundlesResponse. Raises IdentityError (`workload_api_message`)."""
    crls: list[bytes] = []
    bundles: dict[str, bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            crls.append(value)
        elif number == 2:
            key, bundle = _entry(value)
            bundles[key] = bundle
    return BundlesMessage(bundles, tuple(crls))


def _svid(data: bytes) -> SvidEntry:
    found: dict[int, bytes] = {}
    for number, value in _fields(data):
        found[number] = value  # the last one counts, as protobuf has it for a field that is not repeated
    return SvidEntry(_text(found.get(1, b"")), found.get(2, b""), found.get(3, b""), found.get(4, b""), _text(found.get(5, b"")))


def _entry(data: bytes) -> tuple[str, bytes]:
    found = dict(_fields(data))
    return _text(found.get(1, b"")), found.get(2, b"")


def _text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise IdentityError("workload_api_message", "a string is not UTF-8") from exc


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The length-delimited fields of a message in order; fields of the other types are passed over."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise IdentityError("workload_api_message", "field number 0")
        if kind == 2:
            length, at = _varint(data, at)
            if length > end - at:
                raise IdentityError("workload_api_message", "a field is cut off")
            yield number, data[at : at + length]
            at += length
        elif kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
            if at > end:
                raise IdentityError("workload_api_message", "a field is cut off")
        else:
            raise IdentityError("workload_api_message", f"wire type {kind} is not in use")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise IdentityError("workload_api_message", "a number is cut off or too long")
        octet = data[at]
        at += 1
        value |= (octet & 0x7F) << shift
        if octet < 0x80:
            return value, at
        shift += 7
