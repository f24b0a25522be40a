"""W3C Trace Context: what came in, whether this trace is sampled, and what goes out (W3C Recommendation, level 1).

A proxy that takes part in a trace keeps the trace id, draws a new parent id for the next hop, and passes `tracestate` on
unchanged. A `traceparent` that is missing, repeated or malformed restarts the trace, and then `tracestate` is dropped with it
(section 4.3: it belongs to the parent that could not be read).

The sampling rule follows OpenTelemetry's: the caller's decision is honoured; without a caller the low 56 bits of the trace id,
taken as a number, are compared with a threshold, so every hop with the same ratio decides alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

__all__ = ["MAX_TRACESTATE_BYTES", "MAX_TRACESTATE_MEMBERS", "Sampling", "begin", "start", "tracestate"]

MAX_TRACESTATE_MEMBERS = 32
"""List members of a combined `tracestate` (section 3.3.1.1); more make it invalid."""
MAX_TRACESTATE_BYTES = 512
"""Octets of the combined `tracestate` that are passed on; section 3.3.1.5 asks for at least this much."""
_LONG_MEMBER = 128  # section 3.3.1.5: members longer than this are the first to go when the whole is too long

_RANDOM_BITS = 56
_RANDOM_MASK = (1 << _RANDOM_BITS) - 1

# Version 00 has an exact length; ids of zeros are invalid (sections 3.2.2.3 and 3.2.2.4). Lower case only: HEXDIGLC.
_VERSION_00 = re.compile(rb"00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]([0-9a-f])").fullmatch
# Section 4.3: a later version is read by the rules of 00 as far as it goes; what follows must be set off by a dash.
_LATER_VERSION = re.compile(
    rb"(?!00|ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]([0-9a-f])(?:-[^\x00-\x1f\x7f]*)?"
).fullmatch
_SAMPLED_DIGITS = frozenset((b"1", b"3", b"5", b"7", b"9", b"b", b"d", b"f"))

_KEY = rb"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
_VALUE = rb"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER = re.compile(rb"(" + _KEY + rb")=" + _VALUE).fullmatch


class Sampling:
    """The sampling rule. `ratio` of the traces that begin here are recorded, 0.0 to 1.0.

    `honour_parent` False decides by the trace id alone, also for callers that ask for a record: for an edge, where anyone could ask.
    Raises ValueError for a ratio outside 0 to 1.
    """

    __slots__ = ("honour_parent", "ratio", "threshold")

    def __init__(self, ratio: float, *, honour_parent: bool = True) -> None:
        if not 0.0 <= ratio <= 1.0:
            raise ValueError(f"sampling ratio must be from 0 to 1, not {ratio}")
        self.ratio = ratio
        self.honour_parent = honour_parent
        # a trace is recorded when its 56 bits are >= threshold: a higher ratio then records a superset
        self.threshold = round((1.0 - ratio) * (1 << _RANDOM_BITS))


def start(traceparent: bytes | None, sampling: Sampling, randbits: Callable[[int], int]) -> tuple[bytes, bytes, bytes, bool, bytes]:
    """Continue the caller's trace, or begin one when `traceparent` is None or invalid.

    `randbits(n)` gives an integer of n random bits. Returns `(trace_id, parent_id, span_id_out, sampled, line)`: 32, 16 (empty: this is
    the root) and 16 hex digits, the decision, and the complete `traceparent` field line for the next hop.
    """
    if traceparent is not None:
        match = _VERSION_00(traceparent) or _LATER_VERSION(traceparent)
        if match is not None:
            trace_id, parent_id, flags = match.groups()
            sampled = flags in _SAMPLED_DIGITS if sampling.honour_parent else int(trace_id[18:], 16) >= sampling.threshold
            span_id = b"%016x" % (randbits(64) or 1)
            if sampled:
                return trace_id, parent_id, span_id, True, b"traceparent: 00-%b-%b-01\r\n" % (trace_id, span_id)
            return trace_id, parent_id, span_id, False, b"traceparent: 00-%b-%b-00\r\n" % (trace_id, span_id)
    number = randbits(128) or 1
    trace_id = b"%032x" % number
    span_id = b"%016x" % (randbits(64) or 1)
    if number & _RANDOM_MASK >= sampling.threshold:
        return trace_id, b"", span_id, True, b"traceparent: 00-%b-%b-01\r\n" % (trace_id, span_id)
    return trace_id, b"", span_id, False, b"traceparent: 00-%b-%b-00\r\n" % (trace_id, span_id)


def begin(
    specials: Sequence[tuple[bytes, bytes]], sampling: Sampling, randbits: Callable[[int], int]
) -> tuple[bytes, bytes, bytes, bool, bytes]:
    """`start` for the fields of a request head (`RequestHead.specials`); the lines to send on include a valid `tracestate`.

    More than one `traceparent` line is an invalid one (section 3.2: vendors must not guess which is meant).
    """
    parent: bytes | None = None
    states: list[bytes] = []
    parents = 0
    for name, value in specials:
        if name == b"traceparent":
            parent = value
            parents += 1
        elif name == b"tracestate":
            states.append(value)
    if parents > 1:
        parent = None
    result = start(parent, sampling, randbits)
    if states and result[1]:
        return (*result[:4], result[4] + tracestate(states))
    return result


def tracestate(values: Sequence[bytes]) -> bytes:
    """The complete `tracestate` line for these field values in order (combined per RFC 9110 5.3), or `b""` when it is invalid or empty.

    Invalid: a malformed or repeated key, a malformed value, more than MAX_TRACESTATE_MEMBERS. Too long: long members go first, then
    those on the right (the oldest), until MAX_TRACESTATE_BYTES fit.
    """
    members: list[bytes] = []
    keys: set[bytes] = set()
    for value in values:
        for part in value.split(b","):
            member = part.strip(b" \t")
            if not member:
                continue
            match = _MEMBER(member)
            if match is None or match[1] in keys or len(members) == MAX_TRACESTATE_MEMBERS:
                return b""
            keys.add(match[1])
            members.append(member)
    size = sum(map(len, members)) + len(members) - 1
    if size > MAX_TRACESTATE_BYTES:
        for index in range(len(members) - 1, -1, -1):
            if size > MAX_TRACESTATE_BYTES and len(members[index]) > _LONG_MEMBER:
                size -= len(members.pop(index)) + 1
        while size > MAX_TRACESTATE_BYTES:
            size -= len(members.pop()) + 1
    return b"tracestate: %b\r\n" % b",".join(members) if members else b""
