"""The exact scanner against a table and against the parser of the standard library; the fast way against the exact one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.fields import json_fast
from meshguard.fields.json_fast import shallow
from meshguard.fields.json_locate import locate
from meshguard.fields.json_scan import MAX_DEPTH, JsonError, Span, resolve, scan, validate
from meshguard.fields.json_splice import splice
from meshguard.fields.selectors import Matcher, parse_selector
from tests.fields.documents_of import documents, selectors


def matcher_of(*texts: str) -> Matcher:
    return Matcher([parse_selector(text) for text in texts], range(len(texts)))


def found(body: bytes, *texts: str) -> list[bytes]:
    return [body[start:end] for _, _, start, end in scan(body, matcher_of(*texts))]


VALID = [
    b"0", b"-0", b"1.0", b"1e400", b"-1.5E-7", b"1E+2", b'""', b"null", b" true\n", b"[]", b"{}", b"[ ]", b"{ }", b'{"":""}',
    b"[[],{},[{}]]",
    b'"\\u0000\\"\\\\\\/\\b\\f\\n\\r\\t"', b'"\\ud83d\\ude00"', b'"\\uD800\\uDC00x"', "\"é\U0001f600\u2028\"".encode(), b'"\x7f"',
    b'"\\\\ud800"',
    b"12345678901234567890123456789012345678901234567890", b'{"x":1,"y":2}', b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
    b'{"a":[1,"b",{"c":null}]}',
]  # fmt: skip
INVALID = [
    b"", b" ", b"nul", b"True", b"NaN", b"Infinity", b"-Infinity", b"[NaN]", b"01", b"-", b"+1", b".5", b"1.", b"1e", b"1e+", b"0x10",
    b"1_0", b"--1",
    b"'a'", b"{a:1}", b"{'a':1}", b'{"a"}', b'{"a":}', b'{"a":1,}', b'{,"a":1}', b"[1,]", b"[,1]", b"[1 2]", b'{"a":1 "b":2}',
    b'{"a" 1}', b"[1}", b'{"a":1]',
    b"[", b"{", b'{"a":1', b"[1", b'"a', b'"\\"', b'"\\x"', b'"\\u12"', b'"\\u123g"', b'"\\U0041"', b'"\n"', b'"\x00"', b'"\x1f"',
    b"\x00", b"1\x00",
    b"{}{}", b"{} x", b"[]]", b"1 1", b"\xef\xbb\xbf{}", '{"a":1}'.encode("utf-16"), '{"a":1}'.encode("utf-16-le"), b'"\xff"',
    b'"\xc0\xaf"', b'"\xed\xa0\x80"',
    b'"\xf4\x90\x80\x80"', b'"\xc3"', b'"\\ud800"', b'"\\udc00"', b'"\\ud800\\ud800"', b'"\\ud800x\\udc00"', b'"\\udc00\\ud800"',
    b'["\\ud800","\\udc00"]',
    b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), b'{"a":' * 65 + b"1" + b"}" * 65, b"/*x*/1", b"1//x", b"[1,\xa02]", b"\x0b1",
    b"\x0c1", b"1\x85",
    b"[" * 100_000, b'{"a":' * 100_000, b"undefined", b"[1,,2]", b'{"a":1,"b"}', b'{"a"::1}', b'{1:2}', b'{null:1}', b'{"a":1};',
]  # fmt: skip


@pytest.mark.parametrize("body", VALID)
@pytest.mark.parametrize("texts", [("$.zz",), ("$..zz",), ("$[*].zz", "$.a.zz")])
def test_valid(body: bytes, texts: tuple[str, ...]) -> None:
    validate(body)
    assert scan(body, matcher_of(*texts)) == []
    assert locate(body, matcher_of(*texts)) == []


@pytest.mark.parametrize("body", INVALID)
@pytest.mark.parametrize("texts", [("$.zz",), ("$..zz",), ("$[*].zz", "$.a.zz")])
def test_invalid(body: bytes, texts: tuple[str, ...]) -> None:
    with pytest.raises(JsonError):
        validate(body)
    with pytest.raises(JsonError):
        locate(body, matcher_of(*texts))


@pytest.mark.parametrize(
    ("body", "texts", "values"),
    [
        (b'{"a":{"b":1.0},"b":2}', ["$.a.b"], [b"1.0"]),
        (b'{"\\u0061":{"\\u0062" : 1 } }', ["$.a.b"], [b"1"]),
        (b'{"a":[{"b":1},{"c":2},{"b":[3]}]}', ["$.a[*].b"], [b"1", b"[3]"]),
        (b'{"a":[{"b":1},{"b":2},{"b":3}]}', ["$.a[1].b"], [b"2"]),
        (b'[[1,2],[3]]', ["$[*][0]"], [b"1", b"3"]),
        (b'{"a":{"x":1,"y":{"x":2}}}', ["$.a.*"], [b"1", b'{"x":2}']),
        (b'{"s":1,"l":[{"s":{"t":2}},["s",{"s":null}]]}', ["$..s"], [b"1", b'{"t":2}', b"null"]),
        (b'{"a":"{\\"ssn\\":1}","b":"ssn","ssn":"\\"ssn\\":2"}', ["$.ssn"], [b'"\\"ssn\\":2"']),
        (b'{"a":1}', ["$.a.b", "$.A", "$.b"], []),
        (b'{"a":[1]}', ["$.a.x", "$.a['0']"], []),
        (b'{"0":7}', ["$[0]", "$['0']"], [b"7"]),
        (b'{"":{"":"x"}}', ["$['']['']"], [b'"x"']),
        ('{"é":1,"e\u0301":2}'.encode(), ["$.é"], [b"1"]),
        (b'"x"', ["$.a"], []),
        (b'{"a":1,"b":2,"a2":3}', ["$.a", "$.b"], [b"1", b"2"]),
    ],
)  # fmt: skip
def test_selected_values(body: bytes, texts: list[str], values: list[bytes]) -> None:
    assert found(body, *texts) == values
    assert [body[start:end] for _, _, start, end in locate(body, matcher_of(*texts))] == values


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"ssn":1,"ssn":2}', "$.ssn"),
        (b'{"ssn":1,"\\u0073sn":1}', "$.ssn"),
        (b'{"\\u0073sn":1,"x":2,"s\\u0073n":1}', "$.ssn"),
        (b'{"p":{"ssn":1},"p":{}}', "$.p.ssn"),
        (b'{"p":1,"p":{"ssn":1}}', "$.p.ssn"),
        (b'{"p":null,"\\u0070":{"ssn":1}}', "$.p.ssn"),
        (b'{"a":[{"ssn":1,"ssn":1}]}', "$..ssn"),
        (b'{"a":{"x":1},"a":{"ssn":1}}', "$..ssn"),
        (b'{"x":1,"x":1}', "$.*"),
        (b'[{"a":1},{"a":1,"b":0,"a":1}]', "$[*].a"),
        (b'{"p":12,"p":1}', "$.p"),
    ],
)
def test_two_members_of_one_name_on_the_way_are_refused(body: bytes, text: str) -> None:
    with pytest.raises(JsonError, match="same name"):
        locate(body, matcher_of(text))


def test_two_members_of_one_name_elsewhere_pass() -> None:
    body = b'{"x":1,"x":2,"ssn":{"y":1,"y":2}}'
    assert [body[start:end] for _, _, start, end in locate(body, matcher_of("$.ssn"))] == [b'{"y":1,"y":2}']


def test_a_value_inside_a_selected_value_of_the_same_rule_goes_with_it() -> None:
    body = b'{"s":{"s":{"s":1}},"t":{"s":2}}'
    assert [body[start:end] for _, _, start, end in locate(body, matcher_of("$..s"))] == [b'{"s":{"s":1}}', b"2"]


@pytest.mark.parametrize("texts", [("$.a", "$..b"), ("$..b", "$.a"), ("$.a.b", "$..b")])
def test_overlap_of_two_rules_is_refused(texts: tuple[str, str]) -> None:
    with pytest.raises(JsonError, match="two field rules"):
        locate(b'{"a":{"b":1}}', matcher_of(*texts))


def test_errors_carry_no_content() -> None:
    with pytest.raises(JsonError) as caught:
        validate(b'{"card":"4111111111111111","x":bad}')
    assert "4111" not in str(caught.value)
    assert "bad" not in str(caught.value)


@pytest.mark.parametrize("pad", [b"", b" " * 200, b'"' + b"x" * 200 + b'",'])
@pytest.mark.parametrize(("inner", "flat"), [(MAX_DEPTH - 1, True), (MAX_DEPTH, False), (200, False)])
def test_depth_is_counted_outside_of_strings(pad: bytes, inner: int, flat: bool) -> None:
    deep = b"[1," * inner + b'"]}\\"]\\\\"' + b",2]" * inner
    body = b"[" + pad + b'"[[[[[[{{{{","}}}}]]]",' + b"[]," * 100 + deep + b"]"
    assert shallow(body) is flat
    if flat:
        validate(body)
    else:
        with pytest.raises(JsonError, match="containers"):
            validate(body)


def outcome(body: bytes, matcher: Matcher) -> list[Span] | None:
    try:
        return resolve(scan(body, matcher))
    except JsonError:
        return None


@settings(max_examples=400, deadline=None)
@given(documents, selectors)
def test_the_fast_way_gives_the_exact_answer_or_declines(body: bytes, texts: list[str]) -> None:
    matcher = matcher_of(*texts)
    answer = json_fast.try_scan(body, matcher)
    if answer is not None:
        assert answer == scan(body, matcher)


@settings(max_examples=400, deadline=None)
@given(
    documents,
    selectors,
    st.integers(0, 10_000),
    st.sampled_from([b"", b'"', b"\\", b",", b":", b"{", b"}", b"[", b"]", b" ", b"0", b"\\u", b"\xff", b"\xc3"]),
    st.integers(0, 3),
)
def test_the_fast_way_never_accepts_what_the_exact_one_refuses(body: bytes, texts: list[str], place: int, piece: bytes, cut: int) -> None:
    place %= len(body) + 1
    body = body[:place] + piece + body[place + cut :]
    matcher = matcher_of(*texts)
    answer = json_fast.try_scan(body, matcher) if body else None
    if answer is not None:
        assert answer == scan(body, matcher)


@pytest.mark.parametrize("texts", [["$.customer.ssn"], ["$.orders[*].card"], ["$..card"], ["$.orders[1].card", "$.customer.*"]])
def test_the_fast_way_answers_for_usual_documents(texts: list[str]) -> None:
    orders = [{"card": str(number), "note": 'a "quote"', "n": None} for number in range(30)]
    for indent in (None, 2):
        body = json.dumps({"customer": {"ssn": "1", "tags": []}, "orders": orders, "total": 1.5}, indent=indent).encode()
        answer = json_fast.try_scan(body, matcher_of(*texts))
        assert answer is not None
        assert answer == scan(body, matcher_of(*texts))


def _pairs(pairs: list[tuple[str, Any]]) -> Any:
    return ("object", tuple(pairs))


def _select(value: Any, steps: tuple[Any, ...]) -> list[Any]:
    """Selected values by the plain meaning of the steps, on the tree that the standard library makes."""
    if not steps:
        return [value]
    step, rest = steps[0], steps[1:]
    is_object = isinstance(value, tuple) and value[:1] == ("object",)
    children = list(value[1]) if is_object else list(enumerate(value)) if isinstance(value, list) else []
    out: list[Any] = []
    for key, child in children:
        if (step.name is None or (is_object and step.name == key)) and (step.index is None or (not is_object and step.index == key)):
            out += _select(child, rest)
        if step.deep:
            out += _select(child, steps)
    return out


def _strict_loads(text: bytes) -> Any:
    return json.loads(text, object_pairs_hook=_pairs, parse_int=str, parse_float=str)


@settings(max_examples=300, deadline=None)
@given(documents, selectors.map(lambda texts: texts[:1]))
def test_selected_values_are_those_of_an_independent_parser(body: bytes, texts: list[str]) -> None:
    try:
        spans = scan(body, matcher_of(*texts))
    except JsonError:  # a name twice: the documents are valid otherwise, as the next line holds
        validate(body)
        return
    expected = _select(_strict_loads(body), parse_selector(texts[0]).steps)
    assert sorted(repr(_strict_loads(body[start:end])) for _, _, start, end in spans) == sorted(map(repr, expected))


@settings(max_examples=300, deadline=None)
@given(documents, selectors)
def test_splicing_leaves_everything_else_as_it_was(body: bytes, texts: list[str]) -> None:
    spans = outcome(body, matcher_of(*texts))
    if spans is None:
        return
    assert splice(body, spans, [body[start:end] for _, _, start, end in spans]) == body
    marked = splice(body, spans, [b'"\x01%d\x01"' % number for number in range(len(spans))])
    for number, (_, _, start, end) in enumerate(spans):
        marked = marked.replace(b'"\x01%d\x01"' % number, body[start:end])
    assert marked == body


@settings(max_examples=300, deadline=None)
@given(documents, selectors)
def test_removing_members_leaves_a_valid_document_without_them(body: bytes, texts: list[str]) -> None:
    matcher = matcher_of(*texts)
    spans = outcome(body, matcher)
    if spans is None:
        return
    result = splice(body, spans, [None] * len(spans))
    validate(result)
    if not any("[" in text.replace("['", "") or "*" in text for text in texts):  # without elements nothing moves up
        assert outcome(result, matcher) == []


@pytest.mark.parametrize(
    ("body", "text", "result"),
    [
        (b'{"a":1,"b":2,"c":3}', "$.a", b'{"b":2,"c":3}'),
        (b'{"a":1, "b":2, "c":3}', "$.b", b'{"a":1, "c":3}'),
        (b'{"a":1, "b":2, "c":3 }', "$.c", b'{"a":1, "b":2 }'),
        (b'{ "a":1 }', "$.a", b"{  }"),
        (b'{"a" : 1 , "b" : 2}', "$.*", b"{}"),
        (b"[1, 2, 3]", "$[*]", b"[]"),
        (b"[1, 2, 3]", "$[2]", b"[1, 2]"),
        (b'[{"s":1},{"s":2,"t":3},{"t":4,"s":5}]', "$..s", b'[{},{"t":3},{"t":4}]'),
    ],
)
def test_removal_takes_one_comma(body: bytes, text: str, result: bytes) -> None:
    spans = locate(body, matcher_of(text))
    assert splice(body, spans, [None] * len(spans)) == result
