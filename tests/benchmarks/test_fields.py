"""The rows of field protection: the external processor's wire form, what counts as a sealed document, ratios of what was added."""

from __future__ import annotations

import json

import pytest

from benchmarks.compare import compare
from benchmarks.documents import KINDS, NAMES, body_of, field_rules
from benchmarks.ext_proc_server import body_of_request, response_with
from benchmarks.field_load import _wrong
from benchmarks.micro.fields import transform_for
from benchmarks.targets import Target
from meshguard.fields.transforms import Reader


def _message(number: int, data: bytes) -> bytes:
    size, length = len(data), b""
    while size > 127:
        length += bytes((size & 127 | 128,))
        size >>= 7
    return bytes((number << 3 | 2,)) + length + bytes((size,)) + data


@pytest.mark.parametrize("size", [0, 1, 127, 128, 70_000])
def test_the_processor_reads_and_writes_messages_of_every_length(size: int) -> None:
    body = b"x" * size
    request = _message(5, (_message(1, body) if body else b"") + b"\x10\x01")
    assert body_of_request(request) == body
    assert body_of_request(_message(3, b"")) is None
    header = _message(1, b"content-length") + _message(3, b"%d" % size)
    option = _message(1, header) + b"\x18\x02"
    assert response_with(body) == _message(4, _message(1, _message(2, _message(1, option)) + _message(3, _message(1, body))))


@pytest.mark.parametrize(("rule", "count"), list(zip(field_rules(), (1, 10), strict=True)))
def test_only_a_document_with_so_many_sealed_fields_counts(rule: dict[str, object], count: int) -> None:
    plain = body_of(1000, count)
    nonces = iter(range(1, 100))
    sealed = transform_for(rule).apply(
        plain, "application/json", Reader(frozenset()), lambda size: b"".join(next(nonces).to_bytes(12) for _ in range(size // 12)), 0.0
    )
    assert _wrong(plain, 200, sealed.body, count) == ""
    assert _wrong(plain, 200, plain, count)
    assert _wrong(plain, 200, sealed.body.replace(b'"id":0', b'"id": 0'), count)
    assert _wrong(plain, 502, sealed.body, count)
    assert _wrong(plain, 200, plain, 0) == ""


def test_documents_are_valid_and_as_large_as_they_say() -> None:
    for size, secrets in KINDS[:4]:
        body = body_of(size, secrets)
        assert size <= len(body) < 2 * size + 1000
        assert list(json.loads(body)["customer"]) == NAMES[:secrets]


def test_what_was_added_is_compared_with_a_third() -> None:
    samples = {"mine": [{"cpu": 30.0}, {"cpu": 40.0}], "without": [{"cpu": 10.0}, {"cpu": 10.0}], "unit": [{"cpu": 40.0}, {"cpu": 40.0}]}
    target = Target("t", "row", "cpu", "us", "without", 0.5, 0.2, "mine", "added", "unit")
    found = compare({"row": samples}, "", "", targets=[target])[0]
    assert (found.ours, found.anchor, found.anchor_name, found.ratio, found.verdict) == (25.0, 40.0, "unit", 0.625, "short")
