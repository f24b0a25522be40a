"""Frames as they pass: what is refused and with which code, whatever passes is the octets that came, however they were cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameDecoder, FrameProtocol, ParseFailed

from meshguard.wire.websocket import FrameScanner, close_frame, control_frame, unmask
from tests.harness.websocket import BINARY, CLOSE, PING, PONG, TEXT, close, frame, masked


def scan(pieces: list[bytes], **options: object) -> tuple[bytes, FrameScanner]:
    """(what was given out, the scanner at the end)."""
    scanner = FrameScanner(**{"masked": True, **options})  # type: ignore[arg-type]
    out = b""
    for piece in pieces:
        out += scanner.feed(piece)
        while scanner.rest:
            rest, scanner.rest = scanner.rest, b""
            out += scanner.feed(rest)
    return out, scanner


GOOD = {
    "empty-text": frame(TEXT),
    "text": frame(TEXT, b"hello"),
    "text-utf8": frame(TEXT, "κόσμε ☃ 𝄞".encode()),
    "text-long": frame(TEXT, "é".encode() * 500),
    "text-long-ascii": frame(TEXT, b"a" * 70_000),
    "text-unmasked-key": frame(TEXT, "é".encode() * 70, mask=b"\0\0\0\0"),
    "binary": frame(BINARY, bytes(range(256))),
    "binary-64k": frame(BINARY, bytes(65536)),
    "fragments": frame(TEXT, b"a", fin=False) + frame(0, b"b", fin=False) + frame(0, b"c"),
    "fragments-of-a-character": b"".join(frame(TEXT if not i else 0, bytes([c]), fin=i == 3) for i, c in enumerate("𝄞".encode())),
    "fragments-empty": frame(TEXT, fin=False) + frame(0, fin=False) + frame(0),
    "fragments-with-ping": frame(BINARY, b"a", fin=False) + frame(PING, b"x") + frame(0, b"b"),
    "ping": frame(PING, b"x" * 125),
    "pong-unasked": frame(PONG),
    "several": frame(TEXT, b"1") + frame(BINARY, b"2") + frame(PING) + frame(TEXT, "ü".encode()),
}

BAD = {
    "rsv1": (frame(TEXT, b"x", rsv=4), 1002),
    "rsv2": (frame(BINARY, b"x", rsv=2), 1002),
    "rsv3": (frame(PING, b"x", rsv=1), 1002),
    "opcode-3": (frame(3), 1002),
    "opcode-7": (frame(7, b"x"), 1002),
    "opcode-11": (frame(11), 1002),
    "opcode-15": (frame(15), 1002),
    "not-masked": (frame(TEXT, b"x", mask=b""), 1002),
    "ping-not-masked": (frame(PING, mask=b""), 1002),
    "ping-long": (frame(PING, b"x" * 126), 1002),
    "ping-long-form": (frame(PING, b"x", width=2), 1002),
    "ping-fragment": (frame(PING, fin=False), 1002),
    "close-fragment": (frame(CLOSE, fin=False), 1002),
    "close-one-octet": (frame(CLOSE, b"\x03"), 1002),
    **{f"close-{code}": (close(code), 1002) for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535)},
    "close-not-utf8": (close(1000, b"\xff"), 1007),
    "close-half-character": (close(1000, "é".encode()[:1]), 1007),
    "length-2-for-125": (frame(BINARY, b"x" * 125, width=2), 1002),
    "length-8-for-65535": (frame(BINARY, b"x" * 65535, width=8), 1002),
    "length-negative": (b"\x82\xff" + b"\xff" * 8 + b"\0\0\0\0", 1002),
    "continuation-first": (frame(0, b"x"), 1002),
    "continuation-after-end": (frame(TEXT, b"x", fin=False) + frame(0) + frame(0), 1002),
    "text-in-fragments": (frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), 1002),
    "binary-in-fragments": (frame(BINARY, b"x", fin=False) + frame(BINARY, b"y"), 1002),
    "text-not-utf8": (frame(TEXT, b"\xff"), 1007),
    "text-not-utf8-long": (frame(TEXT, b"a" * 5000 + b"\xc3\x28" + b"a" * 5000), 1007),
    "text-surrogate": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "text-overlong": (frame(TEXT, b"\xc0\xaf"), 1007),
    "text-too-high": (frame(TEXT, b"\xf4\x90\x80\x80"), 1007),
    "text-cut": (frame(TEXT, "é".encode()[:1]), 1007),
    "text-cut-in-fragments": (frame(TEXT, "é".encode()[:1], fin=False) + frame(0), 1007),
    "text-fragments-not-utf8": (frame(TEXT, "é".encode()[:1], fin=False) + frame(0, b"a"), 1007),
    "frame-too-big": (frame(BINARY, bytes(1_000_001)), 1009),
    "frame-huge": (b"\x82\xff" + (1 << 62).to_bytes(8, "big") + b"\0\0\0\0", 1009),
    "message-too-big": (frame(BINARY, bytes(900_000), fin=False) + frame(0, bytes(900_000), fin=False) + frame(0, bytes(300_000)), 1009),
    "http": (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", 1002),
}
LIMITS = {"frame_limit": 1_000_000, "message_limit": 2_000_000}


@pytest.mark.parametrize("kind", GOOD)
def test_what_is_valid_passes_as_it_is(kind: str) -> None:
    data = GOOD[kind]
    out, scanner = scan([data], **LIMITS)
    assert (out, scanner.stopped, scanner.between_messages) == (data, False, True)
    assert scan([data[i : i + 1] for i in range(len(data))])[0] == data


def test_whole_frames_are_not_copied() -> None:
    scanner = FrameScanner(masked=True)
    data = frame(TEXT, b"x" * 1000) + frame(BINARY, b"y" * 1000)
    assert scanner.feed(data) is data
    half = data[:700]
    assert scanner.feed(half) is half
    other = data[700:]
    assert scanner.feed(other) is other


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("before", [b"", frame(TEXT, b"fine") + frame(PING)], ids=["first", "later"])
def test_what_is_not_valid_stops_at_the_frame(kind: str, before: bytes) -> None:
    """Nothing of the bad frame goes on when it came in one piece: what was given out ends with a frame."""
    data, code = BAD[kind]
    out, scanner = scan([before + data + frame(TEXT, b"later")], **LIMITS)
    assert scanner.violation is not None
    assert scanner.violation[0] == code
    assert scanner.stopped
    assert scanner.at_boundary
    assert (before + data).startswith(out)
    assert scanner.feed(frame(TEXT, b"more")) == b""
    if code != 1009:
        _, slowly = scan([octet.to_bytes(1, "big") for octet in before + data], **LIMITS)
        assert slowly.violation is not None
        assert slowly.violation[0] == code


def test_in_the_middle_of_a_frame_there_is_no_boundary() -> None:
    data = frame(TEXT, b"a" * 300 + b"\xff" + b"b" * 300)
    scanner = FrameScanner(masked=True)
    assert scanner.feed(data[:200]) == data[:200]
    assert not scanner.at_boundary
    assert scanner.feed(data[200:]) == b""
    assert scanner.violation == (1007, "text is not UTF-8")
    assert not scanner.at_boundary


@pytest.mark.parametrize(
    ("sent", "code"), [(close(), 1005), (close(1000, b"bye"), 1000), (close(3000), 3000), (close(4999, "ü".encode()), 4999)]
)
def test_a_close_is_held_out(sent: bytes, code: int) -> None:
    text = frame(TEXT, b"x")
    for pieces in ([text + sent + text], [octet.to_bytes(1, "big") for octet in text + sent + text]):
        out, scanner = scan(pieces)
        assert (out, scanner.close_frame, scanner.close_code, scanner.stopped) == (text, sent, code, True)
        assert scanner.violation is None


def test_a_server_does_not_mask() -> None:
    assert scan([frame(TEXT, b"x", mask=b"")], masked=False)[1].violation is None
    assert scan([frame(TEXT, b"x")], masked=False)[1].violation == (1002, "frame is masked")


def test_compression_allows_rsv1_on_the_first_frame_of_a_message_only() -> None:
    compressed = frame(TEXT, b"\xff\xfe", rsv=4, fin=False) + frame(0, b"\xff") + frame(TEXT, b"plain")
    assert scan([compressed], compression=True)[0] == compressed
    for bad in (frame(TEXT, fin=False) + frame(0, rsv=4), frame(PING, rsv=4), frame(TEXT, b"\xff"), frame(TEXT, rsv=6)):
        assert scan([bad], compression=True)[1].violation is not None
    assert scan([compressed])[1].violation == (1002, "reserved bits")


def test_many_frames_in_one_piece_are_looked_at_in_turns() -> None:
    data = frame(TEXT) * 5000
    scanner = FrameScanner(masked=True)
    first = scanner.feed(data)
    assert 0 < len(first) < len(data)
    assert first + scanner.rest == data
    assert scanner.at_boundary
    assert scan([data])[0] == data


def test_frames_of_our_own() -> None:
    assert close_frame(1008) == close(1008, mask=b"")
    assert close_frame(1001, b"going", b"abcd") == close(1001, b"going", mask=b"abcd")
    assert control_frame(PING, b"x", b"abcd") == frame(PING, b"x", mask=b"abcd")


@given(st.binary(max_size=400), st.binary(min_size=4, max_size=4))
def test_unmask(payload: bytes, key: bytes) -> None:
    assert unmask(payload, key) == masked(payload, key)


_PAYLOADS = st.one_of(
    st.binary(max_size=140), st.text(max_size=60).map(str.encode), st.text(alphabet="aé☃𝄞", min_size=20, max_size=200).map(str.encode)
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Frames of every kind, mostly valid ones, with now and then an octet changed."""
    out = bytearray()
    for _ in range(draw(st.integers(1, 6))):
        opcode = draw(st.sampled_from((TEXT, TEXT, BINARY, 0, PING, PONG, CLOSE, 5)))
        payload = draw(_PAYLOADS)
        if opcode == CLOSE:
            payload = draw(st.sampled_from((1000, 1001, 1005, 3000, 4999))).to_bytes(2, "big") + payload[:60]
        out += frame(
            opcode,
            payload[:125] if opcode > 7 else payload,
            fin=opcode > 7 or draw(st.booleans()),
            mask=draw(st.binary(min_size=4, max_size=4)),
        )
    if draw(st.integers(0, 3)) == 0:
        out[draw(st.integers(0, len(out) - 1))] = draw(st.integers(0, 255))
    return bytes(out)


@settings(max_examples=300, deadline=None)
@given(streams(), st.lists(st.integers(0, 800), max_size=6), st.booleans())
def test_cuts_do_not_matter_and_an_independent_reader_accepts_what_passes(data: bytes, cuts: list[int], compression: bool) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in pairwise(edges)]
    whole_out, whole = scan([data], compression=compression)
    out, scanner = scan(pieces, compression=compression)
    assert (scanner.close_frame, scanner.close_code, scanner.stopped) == (whole.close_frame, whole.close_code, whole.stopped)
    assert (scanner.violation or (0,))[0] == (whole.violation or (0,))[0]
    # cut inside a frame that turns out bad, its beginning may have passed
    assert out.startswith(whole_out)
    assert data.startswith(out)
    if not whole.violation:
        assert out == whole_out
        judge(whole_out + whole.close_frame, refused=False)
    elif not compression and whole.violation[1] != "length not in its shortest form":
        judge(data, refused=True)


def judge(data: bytes, *, refused: bool) -> None:
    """`wsproto` as a server reads the same (compressed text it cannot read is left out by reserved bits)."""
    if any_compressed(data):
        return
    protocol = FrameProtocol(client=False, extensions=[])
    protocol.receive_bytes(data)
    try:
        for _ in protocol.received_frames():
            pass
    except ParseFailed:
        assert refused, data
    else:
        assert not refused, data


def any_compressed(data: bytes) -> bool:
    decoder = FrameDecoder(client=False, extensions=[])
    decoder.receive_bytes(data)
    try:
        while decoder.process_buffer() is not None:
            pass
    except ParseFailed as exc:
        return "eserved" in str(exc)
    return False
