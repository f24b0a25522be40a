"""W3C Trace Context: what is valid, what is dropped, what goes out."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.wire.trace_context import MAX_TRACESTATE_BYTES, Sampling, begin, start, tracestate

TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = b"00f067aa0ba902b7"
NEVER, ALWAYS = Sampling(0.0), Sampling(1.0)
bits = random.Random(7).getrandbits

LINE = re.compile(rb"traceparent: 00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-0[01]\r\n")


@pytest.mark.parametrize(
    ("value", "sampled"),
    [
        (b"00-%b-%b-01" % (TRACE, PARENT), True),
        (b"00-%b-%b-00" % (TRACE, PARENT), False),
        (b"00-%b-%b-03" % (TRACE, PARENT), True),
        (b"00-%b-%b-02" % (TRACE, PARENT), False),
        (b"00-%b-%b-ff" % (TRACE, PARENT), True),
        (b"01-%b-%b-01" % (TRACE, PARENT), True),  # later versions are read by the rules of 00
        (b"cc-%b-%b-01-what-the-future-holds" % (TRACE, PARENT), True),
        (b"cc-%b-%b-00-" % (TRACE, PARENT), False),
    ],
)
def test_a_valid_parent_is_continued_and_its_decision_honoured(value: bytes, sampled: bool) -> None:
    for sampling in (NEVER, ALWAYS):
        trace_id, parent_id, span_id, decided, line = start(value, sampling, bits)
        assert (trace_id, parent_id, decided) == (TRACE, PARENT, sampled)
        assert span_id != PARENT
        assert line == b"traceparent: 00-%b-%b-%b\r\n" % (TRACE, span_id, b"01" if sampled else b"00")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"00",
        b"00-%b-%b-01" % (b"0" * 32, PARENT),
        b"00-%b-%b-01" % (TRACE, b"0" * 16),
        b"ff-%b-%b-01" % (TRACE, PARENT),
        b"ff-%b-%b-01-x" % (TRACE, PARENT),
        b"00-%b-%b-01-x" % (TRACE, PARENT),  # version 00 has an exact length
        b"00-%b-%b-01-" % (TRACE, PARENT),
        b"00-%b-%b-1" % (TRACE, PARENT),
        b"00-%b-%b-0g" % (TRACE, PARENT),
        b"00-%b-%b-01\n" % (TRACE, PARENT),
        b" 00-%b-%b-01" % (TRACE, PARENT),
        b"00-%b-%b-01" % (TRACE.upper(), PARENT),
        b"00-%b-%b-01" % (TRACE, PARENT.upper().replace(b"00F", b"A0F")),
        b"cc-%b-%b-01.x" % (TRACE, PARENT),
        b"cc-%b-%b-01x" % (TRACE, PARENT),
        b"cc-%b-%b-01-\r\nx: y" % (TRACE, PARENT),
        b"01-%b-%b-01" % (b"0" * 32, PARENT),
        b"0-%b-%b-01" % (TRACE, PARENT),
        b"00-%b-%b-01,00-%b-%b-01" % (TRACE, PARENT, TRACE, PARENT),
        b"00-%b-%b-\xb2\xb9" % (TRACE, PARENT),
    ],
)
def test_an_invalid_parent_begins_a_trace_anew_and_drops_the_state(value: bytes) -> None:
    trace_id, parent_id, span_id, sampled, line = begin([(b"traceparent", value), (b"tracestate", b"a=1")], NEVER, bits)
    assert trace_id != TRACE
    assert parent_id == b""
    assert not sampled
    assert line == b"traceparent: 00-%b-%b-00\r\n" % (trace_id, span_id)


def test_several_parents_are_an_invalid_one() -> None:
    value = b"00-%b-%b-01" % (TRACE, PARENT)
    trace_id, parent_id, *_ = begin([(b"traceparent", value), (b"traceparent", value)], NEVER, bits)
    assert trace_id != TRACE
    assert parent_id == b""


def test_the_state_travels_with_a_valid_parent() -> None:
    specials = [
        (b"tracestate", b"rojo=1 , congo=t61rcWkgMzE"),
        (b"x-forwarded-for", b"10.0.0.1"),
        (b"traceparent", b"00-%b-%b-01" % (TRACE, PARENT)),
        (b"tracestate", b"\tv@s=x,,"),
    ]
    *_, lines = begin(specials, NEVER, bits)
    parent, state, rest = lines.split(b"\r\n")
    assert LINE.fullmatch(parent + b"\r\n")
    assert (state, rest) == (b"tracestate: rojo=1,congo=t61rcWkgMzE,v@s=x", b"")


def test_without_a_state_no_line_is_added() -> None:
    *_, line = begin([(b"traceparent", b"00-%b-%b-01" % (TRACE, PARENT))], NEVER, bits)
    assert LINE.fullmatch(line)


@pytest.mark.parametrize(
    "value",
    [
        b"a",
        b"=1",
        b"A=1",
        b"a=1,a=2",
        b"a=1,b=2,a=1",
        b"a=\x7f",
        b"a=\xe9",
        b"a=b=c",
        b"a =1",
        b"a=",
        b"@a=1",
        b"a@=1",
        b"a@b@c=1",
        b"1a=1",
        b"a@1b=1",
        b"a" * 257 + b"=1",
        b"t" * 242 + b"@v=1",
        b"t@" + b"v" * 15 + b"=1",
        b"a=" + b"x" * 257,
        b",".join(b"k%d=1" % i for i in range(33)),
        b"a=1\r\nx=y",
    ],
)
def test_an_invalid_state_is_dropped_whole(value: bytes) -> None:
    assert tracestate([value]) == b""
    assert tracestate([b"ok=1", value]) == b""


@pytest.mark.parametrize(
    "value",
    [
        b"a=1",
        b"a_-*/9=x y",
        b"0t@v=1",
        b"t" * 241 + b"@" + b"v" * 14 + b"=1",
        b"a" * 256 + b"=1",
        b"a=" + b"x" * 256,
        b",".join(b"k%d=1" % i for i in range(32)),
    ],
)
def test_a_valid_state_is_passed_on(value: bytes) -> None:
    assert tracestate([value]) == b"tracestate: %b\r\n" % value


def test_an_empty_state_makes_no_line() -> None:
    assert tracestate([b"", b" , \t,"]) == b""


def test_a_long_state_loses_long_members_first_then_the_oldest() -> None:
    long = b"long=" + b"x" * 130
    short = [b"k%02d=%b" % (i, b"y" * 20) for i in range(25)]
    line = tracestate([b",".join([short[0], long, *short[1:]])])
    assert len(line) <= len(b"tracestate: \r\n") + MAX_TRACESTATE_BYTES
    members = line[len(b"tracestate: ") : -2].split(b",")
    assert members == short[: len(members)]
    assert len(b",".join([*members, short[len(members)]])) > MAX_TRACESTATE_BYTES  # no more than necessary went


@settings(deadline=None)  # a shared machine is slow at times
@given(st.integers(0, 2**128 - 1), st.floats(0, 1))
def test_roots_are_decided_by_the_low_56_bits(number: int, ratio: float) -> None:
    sampling = Sampling(ratio)
    trace_id, parent_id, _, sampled, _ = start(None, sampling, lambda n: number & ((1 << n) - 1))
    assert parent_id == b""
    assert sampled == (int(trace_id[-14:], 16) >= round((1 - ratio) * 2**56))
    decided_by_id = Sampling(ratio, honour_parent=False)
    for flags in (b"00", b"01"):  # another hop with the same ratio decides alike
        assert start(b"00-%b-%b-%b" % (trace_id, PARENT, flags), decided_by_id, bits)[3] == sampled


def test_the_share_of_sampled_roots_is_the_ratio() -> None:
    sampling = Sampling(0.1)
    taken = sum(start(None, sampling, bits)[3] for _ in range(20_000))
    assert 1700 < taken < 2300


def test_ids_are_never_zero_even_when_the_dice_fall_so() -> None:
    *_, line = start(None, NEVER, lambda n: 0)
    assert LINE.fullmatch(line)


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_that_is_none_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio"):
        Sampling(ratio)


@settings(deadline=None)  # a shared machine is slow at times
@given(st.lists(st.tuples(st.sampled_from([b"traceparent", b"tracestate"]), st.binary(max_size=80)), max_size=4))
def test_whatever_comes_in_valid_lines_go_out(specials: list[tuple[bytes, bytes]]) -> None:
    *_, lines = begin(specials, NEVER, bits)
    parent, newline, state = lines.partition(b"\r\n")
    assert LINE.fullmatch(parent + newline)
    assert re.fullmatch(rb"(tracestate: [\x20-\x7e]+\r\n)?", state)
