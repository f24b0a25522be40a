"""OTLP messages as protobuf bytes, written directly (opentelemetry-proto 1.x: common, resource, trace, metrics).

A span costs the official classes 14 us and this 2: most of a span is a handful of attributes that repeat, and those are encoded
once. The tests decode every message with the official classes. Only what meshguard sends is here; field numbers stand beside their tags.
"""

from __future__ import annotations

import struct
from binascii import unhexlify
from collections.abc import Iterable, Mapping

from meshguard.telemetry.metrics import Family, HistogramValue, Kind, Labels

__all__ = [
    "CLIENT",
    "SERVER",
    "STATUS_ERROR",
    "STATUS_UNSET",
    "AttributeValue",
    "NumberAttribute",
    "TextAttribute",
    "metrics_request",
    "rejected",
    "resource_message",
    "span",
    "span_attribute",
    "span_name",
    "traces_request",
]

AttributeValue = str | int | bool | float
SERVER = 2
CLIENT = 3
STATUS_UNSET = 0
STATUS_ERROR = 2

_CACHE = 512
_CUMULATIVE = 2
_double = struct.Struct("<d").pack
_times = struct.Struct("<BQBQ").pack  # two fixed64 fields with their tags
# Span.flags = 16, fixed32, by (is a server, is sampled): bit 8 says that bit 9 is meant, bit 9 that the parent is remote, bit 0 sampled
_FLAGS = {
    (server, sampled): b"\x85\x01" + ((0x300 if server else 0x100) | sampled).to_bytes(4, "little")
    for server in (False, True)
    for sampled in (False, True)
}


def _varint(number: int) -> bytes:
    if number < 0x80:
        return _ONE[number]
    if number < 0x4000:
        return bytes((number & 0x7F | 0x80, number >> 7))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_ONE = [bytes((number,)) for number in range(0x80)]


def _field(tag: bytes, payload: bytes) -> bytes:
    return b"%b%b%b" % (tag, _varint(len(payload)), payload)


def _any_value(value: AttributeValue) -> bytes:
    if isinstance(value, str):
        return _field(b"\x0a", value.encode("utf-8", "backslashreplace"))  # AnyValue.string_value = 1
    if isinstance(value, bool):
        return b"\x10" + _ONE[value]  # bool_value = 2
    if isinstance(value, int):
        return b"\x18" + _varint(value & 0xFFFFFFFFFFFFFFFF)  # int_value = 3, two's complement
    return b"\x21" + _double(value)  # double_value = 4


def _attribute(tag: bytes, key: str, value: AttributeValue) -> bytes:
    return _field(tag, _field(b"\x0a", key.encode()) + _field(b"\x12", _any_value(value)))  # KeyValue.key = 1, value = 2


def span_attribute(key: str, value: AttributeValue) -> bytes:
    """One attribute as a field of a Span, for values that rarely come again."""
    return _attribute(b"\x4a", key, value)  # Span.attributes = 9


class _Varying(dict[int, bytes]):
    """An attribute of a span whose values differ. Everything before the value depends on the value's length only, and is kept by length:
    an encoding is then one look-up and one concatenation."""

    __slots__ = ("_key",)
    _tag = b""  # of the value in AnyValue
    _sized = True  # its length stands before it

    def __init__(self, key: str) -> None:
        super().__init__()
        self._key = _field(b"\x0a", key.encode())

    def __missing__(self, size: int) -> bytes:
        value = self._tag + (_varint(size) if self._sized else b"")
        value = b"\x12" + _varint(len(value) + size) + value  # KeyValue.value = 2
        made = b"\x4a" + _varint(len(self._key) + len(value) + size) + self._key + value
        if len(self) < _CACHE:
            self[size] = made
        return made


class TextAttribute(_Varying):
    """A text attribute for values that differ."""

    __slots__ = ()
    _tag = b"\x0a"  # string_value = 1

    def encoded(self, text: str) -> bytes:
        """The attribute with this value."""
        data = text.encode("utf-8", "backslashreplace")
        return self[len(data)] + data


class NumberAttribute(_Varying):
    """An integer attribute (not negative) for values that differ."""

    __slots__ = ()
    _tag = b"\x18"  # int_value = 3
    _sized = False

    def encoded(self, number: int) -> bytes:
        """The attribute with this value."""
        data = _varint(number)
        return self[len(data)] + data


def span_name(name: str) -> bytes:
    """The name as a field of a Span."""
    return _field(b"\x2a", name.encode("utf-8", "backslashreplace"))  # name = 5


def span(
    trace_id: bytes,
    span_id: bytes,
    parent_id: bytes,
    name: bytes,
    kind: int,
    start_ns: int,
    end_ns: int,
    attributes: Iterable[bytes],
    status: int,
    sampled: bool,
) -> bytes:
    """A span as a field of ScopeSpans. Ids are hex digits (no `parent_id`: a root), times epoch nanoseconds, `name` is a `span_name`."""
    body = b"".join(
        (
            b"\x0a\x10",  # trace_id = 1
            unhexlify(trace_id),
            b"\x12\x08",  # span_id = 2
            unhexlify(span_id),
            b"\x22\x08" + unhexlify(parent_id) if parent_id else b"",  # parent_span_id = 4
            name,
            b"\x30\x02" if kind == SERVER else b"\x30\x03",  # kind = 6
            _times(0x39, start_ns, 0x41, end_ns),  # start_time_unix_nano = 7, end_time_unix_nano = 8
            *attributes,
            b"\x7a\x02\x18\x02" if status == STATUS_ERROR else b"",  # status = 15, Status.code = 3
            _FLAGS[kind == SERVER, sampled],
        )
    )
    return b"\x12%b%b" % (_varint(len(body)), body)  # ScopeSpans.spans = 2


def resource_message(attributes: Mapping[str, AttributeValue]) -> bytes:
    """A Resource as field 1 of ResourceSpans and ResourceMetrics."""
    return _field(b"\x0a", b"".join(_attribute(b"\x0a", key, value) for key, value in attributes.items()))  # Resource.attributes = 1


def _scope(name: str, version: str) -> bytes:
    return _field(b"\x0a", _field(b"\x0a", name.encode()) + _field(b"\x12", version.encode()))  # scope = 1; its name = 1, version = 2


def traces_request(resource: bytes, scope_name: str, scope_version: str, schema_url: str, spans: bytes) -> bytes:
    """An ExportTraceServiceRequest around encoded `spans`."""
    scope_spans = _scope(scope_name, scope_version) + spans + _field(b"\x1a", schema_url.encode())  # schema_url = 3
    return _field(b"\x0a", resource + _field(b"\x12", scope_spans))  # resource_spans = 1, scope_spans = 2


def metrics_request(
    resource: bytes, scope_name: str, scope_version: str, schema_url: str, families: Iterable[Family], start_ns: int, now_ns: int
) -> bytes:
    """An ExportMetricsServiceRequest: every family as cumulative since `start_ns`, at `now_ns`."""
    times = struct.pack("<BQBQ", 0x11, start_ns, 0x19, now_ns)  # start_time_unix_nano = 2, time_unix_nano = 3
    metrics = b"".join(_metric(family, times) for family in families if family.samples)
    scope_metrics = _scope(scope_name, scope_version) + metrics + _field(b"\x1a", schema_url.encode())
    return _field(b"\x0a", resource + _field(b"\x12", scope_metrics))  # resource_metrics = 1, scope_metrics = 2


def _metric(family: Family, times: bytes) -> bytes:
    points: list[bytes] = []
    for labels, value in family.samples:
        if isinstance(value, HistogramValue):
            point = times + _histogram(value) + _labels(b"\x4a", family.label_names, labels)  # HistogramDataPoint.attributes = 9
        elif isinstance(value, int):
            point = times + b"\x31" + value.to_bytes(8, "little", signed=True)  # as_int = 6
            point += _labels(b"\x3a", family.label_names, labels)  # NumberDataPoint.attributes = 7
        else:
            point = times + b"\x21" + _double(value) + _labels(b"\x3a", family.label_names, labels)  # as_double = 4
        points.append(_field(b"\x0a", point))  # data_points = 1
    data = b"".join(points)
    if family.kind is Kind.GAUGE:
        typed = _field(b"\x2a", data)  # Metric.gauge = 5
    elif family.kind is Kind.HISTOGRAM:
        typed = _field(b"\x4a", data + b"\x10" + _ONE[_CUMULATIVE])  # histogram = 9, aggregation_temporality = 2
    else:
        data += b"\x10" + _ONE[_CUMULATIVE] + (b"\x18\x01" if family.kind is Kind.COUNTER else b"")  # is_monotonic = 3
        typed = _field(b"\x3a", data)  # sum = 7
    texts = _field(b"\x0a", family.name.encode()) + _field(b"\x12", family.help.encode()) + _field(b"\x1a", family.unit.encode())
    return _field(b"\x12", texts + typed)  # ScopeMetrics.metrics = 2


def _histogram(value: HistogramValue) -> bytes:
    counts = [int(count) for count in value.counts]
    return b"".join(
        (
            b"\x21",  # count = 4, fixed64
            sum(counts).to_bytes(8, "little"),
            b"\x29",  # sum = 5, double
            _double(value.total),
            _field(b"\x32", struct.pack(f"<{len(counts)}Q", *counts)),  # bucket_counts = 6, packed fixed64
            _field(b"\x3a", struct.pack(f"<{len(value.bounds)}d", *value.bounds)),  # explicit_bounds = 7, packed double
        )
    )


def _labels(tag: bytes, names: tuple[str, ...], labels: Labels) -> bytes:
    if names and not labels:
        return _attribute(tag, "otel.metric.overflow", True)
    return b"".join(_attribute(tag, name, value) for name, value in zip(names, labels, strict=True) if value != "")


def rejected(response: bytes) -> int:
    """How many items a collector did not take, of an Export*ServiceResponse: partial_success = 1 {rejected = 1}. 0 for anything else,
    also for bytes that are no such message: what a collector answers decides nothing here."""
    partial = _find(response, 1, 2)
    if not isinstance(partial, bytes):
        return 0
    count = _find(partial, 1, 0)
    return count if isinstance(count, int) and 0 <= count < 1 << 63 else 0


def _find(message: bytes, number: int, wire_type: int) -> bytes | int | None:
    """The first field of this number and type (0 varint, 2 length-delimited) in a protobuf message; None where it is missing or garbled."""
    position = 0
    while position < len(message):
        tag, position = _read_varint(message, position)
        if tag < 0:
            return None
        value: bytes | int = 0
        if tag & 7 == 0:
            value, position = _read_varint(message, position)
        elif tag & 7 == 2:
            size, position = _read_varint(message, position)
            if size < 0 or position + size > len(message):
                return None
            value = message[position : position + size]
            position += size
        elif tag & 7 in (1, 5):
            position += 8 if tag & 7 == 1 else 4
        else:
            return None
        if position < 0:
            return None
        if tag >> 3 == number and tag & 7 == wire_type:
            return value
    return None


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """(number, next position), or (-1, -1)."""
    number = 0
    for shift in range(0, 64, 7):
        if position >= len(message):
            break
        byte = message[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
    return -1, -1
