"""Ways to get a protected value past its rule in the clear: spellings of keys, duplicates, other encodings, invalid documents."""

from __future__ import annotations

import gzip
import json

import pytest

from meshguard.model.errors import RequestError
from tests.fields.parts import RULE, Counter, apply, reader, transform

SECRET = b"123-45-6789"
SSN = {**RULE, "id": "ssn", "select": "$.person.ssn"}
DEEP = {**RULE, "id": "ssn", "select": "$..ssn"}

SEALED_IN_EVERY_SPELLING = [
    b'{"person":{"ssn":"%b"}}',
    b'{"person":{"\\u0073sn":"%b"}}',
    b'{"person":{"\\u0073\\u0073\\u006E":"%b"}}',
    b'{"\\u0070erson":{"ssn" \t:\r\n "%b"}}',
    b'{"x":"{\\"person\\":{\\"ssn\\":1}}","person":{"y":"\\"ssn\\":","ssn":"%b"}}',
    b'{"person":{"y":"\\\\","ssn":"%b"}}',
    b'{"person":{"y":"}","z":"{\\"ssn\\"","ssn":"%b"}}',
    b'{"person":{"ssn":["%b"]}}',
    b'{"person":{"ssn":{"ssn":{"a":"%b"}}}}',
    b'\n\t {"a":[[[[{"person":{"ssn":1}}]]]],"person":{"b":[{"c":"]}"}],"ssn":"%b"}}',
    b'{"person":{"":"","ssn":"%b"}}',
    b'{"a":1,"a":2,"person":{"b":1,"b":2,"ssn":"%b"}}',
]


@pytest.mark.parametrize("template", SEALED_IN_EVERY_SPELLING)
def test_no_spelling_escapes(template: bytes) -> None:
    body = template % SECRET
    result = apply(transform(SSN), body)
    assert SECRET not in result
    assert apply(transform(SSN), result, "billing") == body


REFUSED = [
    b'{"person":{"ssn":"%b","ssn":""}}',
    b'{"person":{"ssn":"","ssn":"%b"}}',
    b'{"person":{"ssn":"","\\u0073sn":"%b"}}',
    b'{"person":{"ssn":"%b"},"person":{}}',
    b'{"person":{},"person":{"ssn":"%b"}}',
    b'{"person":{},"\\u0070erson":{"ssn":"%b"}}',
    b'{"person":{"ssn":"%b"}} ,',
    b'{"person":{"ssn":"%b"}}{"person":{}}',
    b'{"person":{"ssn":"%b"}}\x00',
    b'\xef\xbb\xbf{"person":{"ssn":"%b"}}',
    b"{'person':{'ssn':'%b'}}",
    b'{person:{ssn:"%b"}}',
    b'{"person":{"ssn":"%b",}}',
    b'{"person":/**/{"ssn":"%b"}}',
    b'{"person":{"ssn":"%b"},"x":NaN}',
    b'{"person":{"ssn":"%b"},"x":"\xff"}',
    b'{"person":{"ssn":"%b"},"x":"\\ud800"}',
    b'{"person":{"ssn":"%b"},"x":01}',
    b'{"person":{"x":"\n","ssn":"%b"}}',
    b'{"person":{"ssn\\u00":"%b"}}',
    b'{"x":' + b"[" * 64 + b"]" * 64 + b',"person":{"ssn":"%b"}}',
    b'{"person":{"ssn":"%b"}',
    b"ssn=%b",
    b'data: {"person":{"ssn":"%b"}}\n\n',
    b'{"person":{"ssn":"%b"}}\n{"person":{"ssn":"%b"}}',
]


@pytest.mark.parametrize("template", REFUSED)
@pytest.mark.parametrize("rule", [SSN, DEEP], ids=["path", "deep"])
def test_what_readers_could_take_in_two_ways_is_refused(template: bytes, rule: dict[str, object]) -> None:
    with pytest.raises(RequestError) as caught:
        apply(transform(rule), template.replace(b"%b", SECRET))
    assert SECRET.decode() not in str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-7", "utf-8-sig"])
def test_other_encodings_are_refused(encoding: str) -> None:
    body = json.dumps({"person": {"ssn": "123-45-6789"}}).encode(encoding)
    if encoding == "utf-7":
        body = body.replace(b'"', b"+ACI-")
    with pytest.raises(RequestError):
        apply(transform(SSN), body)


def test_a_coded_body_is_refused_unless_its_coding_is_taken_off() -> None:
    found = transform(SSN)
    for codings in (["deflate"], ["gzip", "gzip"], ["gzip, gzip"], ["x-gzip"], ["compress"], ["gzip;q=1"], ["gzip\x00"]):
        with pytest.raises(RequestError):
            found.check_headers(["application/json"], codings)
    coded = gzip.compress(b'{"person":{"ssn":"123-45-6789"}}')
    with pytest.raises(RequestError):  # without saying so
        apply(found, coded)
    coding = found.check_headers(["application/json"], ["gzip"]).coding
    treated = found.apply(coded, "application/json", reader(), Counter(), 0.0, coding=coding).body
    assert b"123-45" not in gzip.decompress(treated)
    for bad in (b'{"person":{"ssn":"123-45-6789"}}', gzip.compress(coded), coded + coded, coded + b"x", coded[:-1], b"\0" + coded):
        with pytest.raises(RequestError):
            found.apply(bad, "application/json", reader(), Counter(), 0.0, coding=coding)


@pytest.mark.parametrize("size", [1000, 20_000])
def test_hostile_documents_cost_linear_time(size: int) -> None:
    """Each body makes a naive scanner quadratic or recursive; all of them are answered or refused, none hangs."""
    for body in (
        b'{"ssn' * size, b'"' + b"\\" * size, b"[" * size, b'{"a":' * size, b'{"person":{"x":"' + b'\\"' * size + b'"}}',
        b'{"person":{' + b",".join(b'"k%d":1' % number for number in range(size)) + b"}}", b"[" + b"[]," * size + b"1]", b" " * size,
        b'{"person":{"x":' + b"1" * size + b"}}", b'{"person":{"x":1' + b" " * size + b"}", b'{"person"' + b" " * size,
    ):  # fmt: skip
        for rule in (SSN, DEEP):
            try:
                apply(transform(rule), body)
            except RequestError:
                pass
