"""Splicing: put new values into the original octets, so that whatever is not protected stays as it was, byte for byte."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from meshguard.fields.json_scan import Span

__all__ = ["splice", "splicing"]

_SPACE = b" \t\n\r"
_COMMA = 0x2C


def splice(body: bytes, spans: Sequence[Span], values: Sequence[bytes | None]) -> bytes:
    """`body` with the value of each span replaced; None takes out the whole member or element with one comma.

    `spans` are of a validated document, in order and disjoint; `values` belong to them one by one.
    """
    if len(values) == 1 and values[0] is not None:
        return b"%b%b%b" % (body[: spans[0][2]], values[0], body[spans[0][3] :])
    for result in _spliced(body, spans, values, len(spans) + 1):
        if result is not None:
            return result
    return body


def splicing(body: bytes, spans: Sequence[Span], values: Sequence[bytes | None], slice_: int) -> Generator[None, None, bytes]:
    """`splice`, pausing after about `slice_` steps of 1 us (where members are taken out, only after that is worked out)."""
    for result in _spliced(body, spans, values, 4 * slice_):
        if result is not None:
            return result
        yield
    return body


def _spliced(body: bytes, spans: Sequence[Span], values: Sequence[bytes | None], at_once: int) -> Iterator[bytes | None]:
    """None for each pause, then the result."""
    pieces: list[bytes] = []
    position = 0
    edits = _edits(body, spans, values) if None in values else None
    count = len(spans) if edits is None else len(edits)
    for place in range(0, count, at_once):
        upto = place + at_once
        if edits is not None:
            some = edits[place:upto]
        else:
            pairs = zip(spans[place:upto], values[place:upto], strict=True)
            some = [(span[2], span[3], value) for span, value in pairs if value is not None]
        for start, end, value in some:
            pieces.append(body[position:start])
            pieces.append(value)
            position = end
        if upto < count:
            yield None
    pieces.append(body[position:])
    yield b"".join(pieces)


def _edits(body: bytes, spans: Sequence[Span], values: Sequence[bytes | None]) -> list[tuple[int, int, bytes]]:
    """Cuts and replacements as (start, end, octets), in order and disjoint."""
    edits: list[tuple[int, int, bytes]] = []
    for (_, begin, start, end), value in zip(spans, values, strict=True):
        if value is not None:
            edits.append((start, end, value))
            continue
        after = _over_space(body, end)
        if after < len(body) and body[after] == _COMMA:
            edits.append((begin, _over_space(body, after + 1), b""))
            continue
        # The last of its container: the comma before it goes instead, and with it members right before that are cut too.
        before = begin
        while True:
            if edits and edits[-1][1] == before and edits[-1][2] == b"":
                before = edits.pop()[0]
                continue
            back = len(body[:before].rstrip(_SPACE)) if body[before - 1] in _SPACE else before
            if edits and edits[-1][1] > back - 1:
                break
            if body[back - 1] == _COMMA:
                before = back - 1
            break
        edits.append((before, end, b""))
    return edits


def _over_space(body: bytes, position: int) -> int:
    while position < len(body) and body[position] in _SPACE:
        position += 1
    return position
