"""Generated JSON documents as octets: values written by hand, so that spellings vary as they do in the wild."""

from __future__ import annotations

import json

from hypothesis import strategies as st

NAMES = ("a", "b", "card", "ssn", "é", "", "x y", "\U0001f600", 'q"q', "\\")


def _text(value: str, escape: bool) -> str:
    if escape and value:
        return '"' + "".join(f"\\u{unit:04x}" for unit in _units(value)) + '"'
    return json.dumps(value, ensure_ascii=False)


def _units(value: str) -> list[int]:
    data = value.encode("utf-16-be")
    return [int.from_bytes(data[place : place + 2]) for place in range(0, len(data), 2)]


space = st.sampled_from(["", "", "", "", " ", "\n", "\t \r\n"])
strings = st.builds(
    _text,
    st.one_of(
        st.sampled_from(NAMES), st.text(st.characters(codec="utf-8"), max_size=8), st.sampled_from(['{"card":1}', "[{]}", '"card":', "\\"])
    ),
    st.booleans(),
)
numbers = st.sampled_from(["0", "-0", "1.0", "1e400", "123456789012345678901234567890", "-1.5E-7", "0.1e+2", "7"])
scalars = st.one_of(strings, numbers, st.sampled_from(["true", "false", "null"]))
keys = st.builds(_text, st.sampled_from(NAMES), st.sampled_from([False, False, False, True]))


def _array(gaps: list[str], items: list[str]) -> str:
    return "[" + ",".join(gaps[0] + item + gaps[1] for item in items) + (gaps[2] if not items else "") + "]"


def _object(gaps: list[str], items: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{gaps[0]}{key}{gaps[1]}:{gaps[2]}{value}" for key, value in items) + (gaps[1] if not items else "") + "}"


_gaps = st.lists(space, min_size=3, max_size=3)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.builds(_array, _gaps, st.lists(inner, max_size=4)), st.builds(_object, _gaps, st.lists(st.tuples(keys, inner), max_size=4))
    ),
    max_leaves=14,
)
compact = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda items: "[" + ",".join(items) + "]"),
        st.lists(st.tuples(keys, inner), max_size=4).map(lambda items: "{" + ",".join(f"{key}:{value}" for key, value in items) + "}"),
    ),
    max_leaves=14,
)
spaced = st.builds(lambda before, value, after: (before + value + after).encode(), space, values, space)
documents = st.one_of(compact.map(str.encode), spaced)
"""Valid documents but for duplicate names, which are frequent."""

selectors = st.lists(
    st.sampled_from(["$.a", "$.card", "$.a.b", "$..card", "$..ssn", "$.*", "$[*]", "$[0]", "$[*].card", "$.a[*].b", "$.a.*.card", "$.b[1]",
                     "$['x y']",
                     "$['']", "$..['\\\\']", "$[*][*]", "$.card.card", "$['é']..a", "$.a[0].b[*].ssn", "$['q\"q'].a"]),
    min_size=1, max_size=4, unique=True,
)  # fmt: skip
