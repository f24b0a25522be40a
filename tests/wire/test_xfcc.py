"""X-Forwarded-Client-Cert: what does not parse is dropped whole, so that nobody's element can swallow or imitate another one."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.wire.xfcc import join

OWN = b"By=spiffe://d/proxy;Hash=00;URI=spiffe://d/me"


def elements(value: bytes) -> list[bytes]:
    """A reader of quoted lists, written apart: a comma outside quotes ends an element."""
    out, current, quoted, escaped = [], b"", False, False
    for char in re.findall(rb"(?s).", value):
        if escaped:
            escaped = False
        elif char == b"\\" and quoted:
            escaped = True
        elif char == b'"':
            quoted = not quoted
        elif char == b"," and not quoted:
            out.append(current.strip())
            current = b""
            continue
        current += char
    assert not quoted, "an open quote"
    return [*out, current.strip()]


@pytest.mark.parametrize(
    ("received", "kept"),
    [
        ([], []),
        ([b"URI=spiffe://d/a"], [b"URI=spiffe://d/a"]),
        ([b"By=spiffe://d/x;Hash=ab;URI=spiffe://d/a"], [b"By=spiffe://d/x;Hash=ab;URI=spiffe://d/a"]),
        ([b"URI=a,URI=b", b"URI=c"], [b"URI=a", b"URI=b", b"URI=c"]),
        ([b'Subject="CN=a, O=\\"b\\"";URI=c'], [b'Subject="CN=a, O=\\"b\\"";URI=c']),
        ([b'Subject="open'], []),
        ([b'Subject="open,URI=a"'], [b'Subject="open,URI=a"']),
        ([b'URI=a;Subject="'], []),
        ([b'URI=a"b"'], []),
        ([b"URI=a,,URI=b"], []),
        ([b","], []),
        ([b""], []),
        ([b"Evil=a"], []),
        ([b"URI"], []),
        ([b"URI=a b"], []),
        ([b"URI=a=b"], []),
        ([b"URI=a\\"], []),
        ([b'Subject="\\'], []),
        ([b"URI=good", b'Subject="bad'], [b"URI=good"]),
        ([b"uri=a"], [b"uri=a"]),
    ],
)
def test_received(received: list[bytes], kept: list[bytes]) -> None:
    assert elements(join(received, OWN)) == [*kept, OWN]


def test_without_an_identity_of_its_own_a_hop_adds_nothing() -> None:
    assert join([b"URI=a"], b"") == b"URI=a"
    assert join([], b"") == b""
    assert join([b'Subject="'], b"") == b""


parts = st.sampled_from([b"URI=", b"By=", b"Subject=", b'"', b"\\", b",", b";", b"=", b"a", b" ", b"spiffe://d/x", b"\t", b"\xff",
b'"x"', b"URI=a,URI=b"])


@settings(max_examples=400)
@given(st.lists(st.lists(parts, max_size=8).map(b"".join), max_size=3))
def test_our_element_is_always_the_last_one(received: list[bytes]) -> None:
    value = join(received, OWN)
    assert elements(value)[-1] == OWN
    assert not set(value) & {0, 10, 13}
