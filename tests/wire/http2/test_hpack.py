"""HPACK against RFC 7541: its examples (appendix C), each rule by a table, the hpack library as oracle."""

from __future__ import annotations

import hpack
import hpack.huffman_table
import hpack.table
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.wire.http2 import hpack_encoder
from meshguard.wire.http2.field_book import MALFORMED, REGULAR, request_book, response_book
from meshguard.wire.http2.hpack_decoder import HpackDecoder, HpackError
from meshguard.wire.http2.hpack_encoder import NO_TABLE, encode_block, encode_request, encode_status, request_method
from meshguard.wire.http2.huffman import HuffmanError, decode_huffman
from meshguard.wire.http2.static_table import STATIC_TABLE
from meshguard.wire.semantics import FieldRules
from tests.wire.http2.peer import block

RULES = FieldRules()
HUFFMAN = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)


def pairs(entries: list[tuple[int, bytes, bytes, int]]) -> list[tuple[bytes, bytes]]:
    """(name, value) of entries, whatever their kind."""
    return [(name, text[len(name) + 2 : -2] if kind == REGULAR else text) for kind, text, name, _ in entries]


def decoder(limit: int = 4096, response: bool = False) -> HpackDecoder:
    return HpackDecoder(response_book() if response else request_book(RULES), limit)


# -- the examples of appendix C --------------------------------------------------------------------------------------------

FIRST = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com")]
SECOND = [*FIRST, (b"cache-control", b"no-cache")]
THIRD = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":path", b"/index.html"),
    (b":authority", b"www.example.com"),
    (b"custom-key", b"custom-value"),
]
DATES = [b"Mon, 21 Oct 2013 20:13:21 GMT", b"Mon, 21 Oct 2013 20:13:22 GMT"]
LOCATION = (b"location", b"https://www.example.com")
ANSWERS = [
    [(b":status", b"302"), (b"cache-control", b"private"), (b"date", DATES[0]), LOCATION],
    [(b":status", b"307"), (b"cache-control", b"private"), (b"date", DATES[0]), LOCATION],
    [
        (b":status", b"200"),
        (b"cache-control", b"private"),
        (b"date", DATES[1]),
        LOCATION,
        (b"content-encoding", b"gzip"),
        (b"set-cookie", b"foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1"),
    ],
]
# name of the section: table limit, of a response, (block, fields, size of the table afterwards) each
EXAMPLES: dict[str, tuple[int, bool, list[tuple[str, list[tuple[bytes, bytes]], int]]]] = {
    "C.2.1": (
        4096, False, [("400a637573746f6d2d6b65790d637573746f6d2d686561646572", [(b"custom-key", b"custom-header")], 55)],
    ),
    "C.2.2": (4096, False, [("040c2f73616d706c652f70617468", [(b":path", b"/sample/path")], 0)]),
    "C.2.3": (4096, False, [("100870617373776f726406736563726574", [(b"password", b"secret")], 0)]),
    "C.2.4": (4096, False, [("82", [(b":method", b"GET")], 0)]),
    "C.3": (
        4096, False, [
            ("828684410f7777772e6578616d706c652e636f6d", FIRST, 57),
            ("828684be58086e6f2d6361636865", SECOND, 110),
            ("828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565", THIRD, 164),
        ],
    ),
    "C.4": (
        4096, False, [
            ("828684418cf1e3c2e5f23a6ba0ab90f4ff", FIRST, 57),
            ("828684be5886a8eb10649cbf", SECOND, 110),
            ("828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf", THIRD, 164),
        ],
    ),
    "C.5": (
        256, True, [
            ("4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e1768747470733a2f2f777777"
             "2e6578616d706c652e636f6d", ANSWERS[0], 222),
            ("4803333037c1c0bf", ANSWERS[1], 222),
            ("88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d4153444a4b48514b425a584f"
             "5157454f50495541585157454f49553b206d61782d6167653d333630303b2076657273696f6e3d31", ANSWERS[2], 215),
        ],
    ),
    "C.6": (
        256, True, [
            ("488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b97c8e9ae82ae43d3",
             ANSWERS[0], 222),
            ("4883640effc1c0bf", ANSWERS[1], 222),
            ("88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdfcd5b3960d5af27087f3672c1"
             "ab270fb5291f9587316065c003ed4ee5b1063d5007", ANSWERS[2], 215),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_appendix_c(name: str) -> None:
    limit, response, blocks = EXAMPLES[name]
    subject = decoder(response=response)
    subject.decode(bytes((0x3F, 0xE1, 0x01)) if limit == 256 else b"")
    for text, fields, size in blocks:
        assert pairs(subject.decode(bytes.fromhex(text))) == fields
        assert subject.table_octets == size


@pytest.mark.parametrize(("octets", "value"), [("0a", 10), ("1f9a0a", 1337), ("2a", 42)])
def test_integers_of_appendix_c_1(octets: str, value: int) -> None:
    """As sizes of the table, whose prefix has five bits; 42 in eight bits is a name of 42 octets."""
    if value == 42:
        assert pairs(decoder().decode(b"\x00\x2a" + b"n" * 42 + b"\x00")) == [(b"n" * 42, b"")]
    else:
        decoder().decode(bytes((bytes.fromhex(octets)[0] | 0x20,)) + bytes.fromhex(octets)[1:])


def test_the_static_table_is_that_of_the_library() -> None:
    assert list(STATIC_TABLE) == list(hpack.table.HeaderTable.STATIC_TABLE)


# -- what must not be ------------------------------------------------------------------------------------------------------

BROKEN = {
    "index 0": "80",
    "index behind the static table": "be",
    "index far away": "ffffffff0f",
    "literal with a name that is not in the table": "7e0161",
    "integer that never ends": "ff" + "ff" * 10,
    "integer longer than it needs to be": "ff80808080808080808000",
    "integer cut off": "ff80",
    "name cut off": "400561",
    "value cut off": "4001610561",
    "no value": "400161",
    "no name": "40",
    "length that is larger than any block": "40" + "7fffffff7f" + "61",
    "table size above the limit": "3fe21f",
    "table size after a field": "8220",
    "huffman: a string of EOS": "4084" + "ffffffff" + "0161",
    "huffman: padding of eight bits": "40820fff0161",
    "huffman: padding of zeros": "40820f000161",
    "huffman: padding of seven zeros": "408100" + "0161",
    "huffman: a code cut short": "4081fe0161",
    "huffman: 16 octets, padding of eight bits": "4091" + "25a849e95ba97d7f" * 2 + "ff" + "0161",
    "huffman: 16 octets, EOS inside": "4094" + "25a849e95ba97d7f" * 2 + "ffffffff" + "0161",
    "huffman: 16 octets, a code cut short": "4092" + "25a849e95ba97d7f" * 2 + "0f00" + "0161",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_hpack_is_refused(name: str) -> None:
    octets = bytes.fromhex(BROKEN[name])
    with pytest.raises(HpackError):
        decoder().decode(octets)
    if name != "integer longer than it needs to be":  # 28 bits are enough for us
        with pytest.raises((hpack.HPACKError, hpack.HPACKDecodingError, IndexError)):
            hpack.Decoder().decode(octets, raw=True)


def test_a_smaller_table_has_to_be_acknowledged_by_a_size_update() -> None:
    """RFC 7541 section 4.2."""
    for first, good in ((b"\x82", False), (b"", False), (b"\x20\x82", True), (b"\x3f\x45\x82", True), (b"\x3f\x46\x82", False)):
        subject = decoder()
        subject.set_limit(100)
        if good:
            assert pairs(subject.decode(first)) == [(b":method", b"GET")]
            assert pairs(subject.decode(b"\x82")) == [(b":method", b"GET")]
        else:
            with pytest.raises(HpackError):
                subject.decode(first)


def test_a_field_larger_than_the_table_empties_it() -> None:
    subject = decoder()
    subject.decode(block((b"a", b"b"), first=0x40))
    assert subject.table_octets == 34
    big = block((b"a", b"x" * 4096), first=0x40)
    assert pairs(subject.decode(big)) == [(b"a", b"x" * 4096)]
    assert subject.table_octets == 0
    with pytest.raises(HpackError):
        subject.decode(b"\xbe")


def test_an_entry_may_be_named_by_one_that_it_evicts() -> None:
    """RFC 7541 section 4.4."""
    subject = decoder()
    subject.decode(block((b"name", b"x" * 4000), first=0x40))
    assert pairs(subject.decode(b"\x7e\x7f\xa1\x1e" + b"y" * 4000)) == [(b"name", b"y" * 4000)]
    assert pairs(subject.decode(b"\xbe")) == [(b"name", b"y" * 4000)]


def test_the_change_of_the_table_is_told() -> None:
    for octets, changed in ((b"\x82", False), (block((b"a", b"b")), False), (block((b"a", b"b"), first=0x40), True), (b"\x20", True)):
        subject = decoder()
        subject.decode(octets)
        assert subject.changed is changed


# -- Huffman ----------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_every_string_decodes_to_itself(string: bytes) -> None:
    assert decode_huffman(HUFFMAN.encode(string)) == string


@given(st.binary(max_size=40), st.sampled_from([b"", b"\xff", b"\xff\xff", b"\x7f", b"\x00", b"\xff\xff\xff\xff"]))
@settings(max_examples=400, deadline=None)
def test_any_octets_decode_as_in_the_library(octets: bytes, tail: bytes) -> None:
    """Both decoders, zlib's and the automaton, behind one name: the length decides, so a prefix that is known is put in front."""
    for text in (octets + tail, HUFFMAN.encode(b"0a" * 20)[:25] + octets + tail):
        try:
            expected: bytes | None = hpack.huffman_table.decode_huffman(text)
        except hpack.HPACKDecodingError:
            expected = None
        try:
            got: bytes | None = decode_huffman(text)
        except HuffmanError:
            got = None
        assert got == expected


def test_every_padding_of_every_length() -> None:
    """The border between the two decoders, and all that the argument for zlib rests on: k ones behind each count of octets."""
    for length in range(1, 40):
        code = HUFFMAN.encode(b"0" * length)
        bits = "".join(f"{octet:08b}" for octet in code)[: 5 * length]
        for ones in range(40):
            padded = bits + "1" * ones
            if len(padded) % 8:
                continue
            octets = int(padded, 2).to_bytes(len(padded) // 8, "big")
            if ones < 8:
                assert decode_huffman(octets) == b"0" * length
            else:
                with pytest.raises(HuffmanError):
                    decode_huffman(octets)


# -- the library as oracle -------------------------------------------------------------------------------------------------

_NAME = st.sampled_from([b"a", b"accept", b"x-y", b"cookie", b":path", b"content-length", b"te", b"date", b"x" * 70, b"Bad", b"", b"a b"])
_VALUE = st.sampled_from([b"", b"1", b"/", b"gzip", b"trailers", b"v" * 90, b"\xff\x00", b"a\r\nb", b" x"]) | st.binary(max_size=300)


@given(st.lists(st.lists(st.tuples(_NAME, _VALUE, st.booleans()), max_size=8), max_size=6), st.booleans(), st.sampled_from([0, 64, 4096]))
@settings(deadline=None)
def test_what_the_library_encodes_we_decode(blocks: list[list[tuple[bytes, bytes, bool]]], huffman: bool, size: int) -> None:
    encoder, subject = hpack.Encoder(), decoder()
    encoder.header_table_size = size
    for fields in blocks:
        encoded = encoder.encode([hpack.NeverIndexedHeaderTuple(n, v) if never else (n, v) for n, v, never in fields], huffman=huffman)
        entries = subject.decode(encoded)
        assert [(name, value) for name, value, _ in fields] == pairs(entries)
        for kind, text, name, octets in entries:
            assert octets == 32 + len(name) + len(text) - (len(name) + 4 if kind == REGULAR else 0)
            if kind == REGULAR:
                assert text.count(b"\n") == 1
                assert text.endswith(b"\r\n")
    assert subject.table_octets == encoder.header_table._current_size


_PIECE = st.sampled_from([
    b"\x82", b"\xbe", b"\xbf", b"\xc0", b"\x40\x01a\x01b", b"\x00\x01a\x01b", b"\x10\x02te\x00", b"\x7e\x01x", b"\x20", b"\x3f\x1f",
    b"\x3f\xe1\x1f",
    b"\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff", b"\x0f\x2f\x03abc", b"\xff\x00", b"\x80",
]) | st.binary(max_size=4)  # fmt: skip


@given(st.lists(st.lists(_PIECE, max_size=10).map(b"".join), max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_octets_mean_what_they_mean_to_the_library(blocks: list[bytes]) -> None:
    """Intended difference: integers above 28 bits (the library takes any), which end in an error of another kind there too."""
    oracle, subject = hpack.Decoder(), decoder()
    for octets in blocks:
        try:
            expected = [(bytes(name), bytes(value)) for name, value in oracle.decode(octets, raw=True)]
        except (hpack.HPACKError, IndexError):
            with pytest.raises(HpackError):
                subject.decode(octets)
            return
        assert pairs(subject.decode(octets)) == expected


# -- our encoder ------------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"Accept", b"x-a", b"content-length", b"Set-Cookie", b"date", b"vary", b"X" * 130]),
            st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=200).map(str.encode),
        ),
        max_size=8,
    )
)
@settings(deadline=None)
def test_what_we_encode_the_library_decodes(fields: list[tuple[bytes, bytes]]) -> None:
    text = b"".join(b"%b: %b\r\n" % pair for pair in fields)
    decoded = hpack.Decoder().decode(NO_TABLE + encode_status(200) + encode_block(text), raw=True)
    assert [(bytes(name), bytes(value)) for name, value in decoded] == [(b":status", b"200"), *((n.lower(), v) for n, v in fields)]
    assert encode_block(text) == encode_block(text + b"Connection: close\r\nTransfer-Encoding: chunked\r\nKeep-Alive: 1\r\nTE: gzip\r\n")


def test_what_is_secret_is_never_indexed() -> None:
    for name in (b"authorization", b"cookie", b"set-cookie", b"proxy-authorization"):
        (entry,) = hpack.Decoder().decode(encode_block(b"%b: secret\r\n" % name), raw=True)
        assert not entry.indexable


def test_what_a_peer_does_not_want_indexed_goes_on_as_such() -> None:
    """RFC 7541 section 6.2.3, whichever connection it came by; and no number of names makes the memory of them grow."""
    line = b"x-session-key: secret\r\n"

    def indexable() -> bool:
        (entry,) = hpack.Decoder().decode(encode_block(line), raw=True)
        return bool(entry.indexable)

    before = set(hpack_encoder._SENSITIVE)
    try:
        assert indexable()
        peer = decoder()
        peer.decode(b"\x00\x0dx-session-key\x01a")  # without indexing, which an intermediary may change
        assert indexable()
        peer.decode(b"\x10\x0dx-session-key\x01a")
        assert not indexable()
        for number in range(1000):
            peer.decode(b"\x10\x06x-%04d\x01a" % number)
        assert len(hpack_encoder._SENSITIVE) <= 257
        line = b"x-another: 1\r\n"
        assert not indexable()  # too many to tell apart: none is indexed any more
    finally:
        hpack_encoder._SENSITIVE.clear()
        hpack_encoder._SENSITIVE.update(before)
        for memory in (hpack_encoder._literal, hpack_encoder._remembered_line, hpack_encoder._start, hpack_encoder._authority):
            memory.cache_clear()


REQUESTS = [
    (b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")]),
    (
        b"POST /x?y HTTP/1.1\r\nX-A: b\r\nHost: shop.example:80\r\nte: trailers\r\nconnection: close\r\ncontent-length: 3\r\n\r\n",
        [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/x?y"), (b":authority", b"shop.example:80"), (b"x-a", b"b"),
         (b"te", b"trailers"), (b"content-length", b"3")],
    ),
    (
        b"GET /chat HTTP/1.1\r\nhost: a\r\n:protocol: websocket\r\nsec-websocket-version: 13\r\n\r\n",
        [(b":method", b"CONNECT"), (b":scheme", b"http"), (b":path", b"/chat"), (b":authority", b"a"), (b":protocol", b"websocket"),
         (b"sec-websocket-version", b"13")],
    ),
    (
        b"DELETE /%b HTTP/1.1\r\nhost: a\r\nx: %b\r\n\r\n" % (b"p" * 3000, b"v" * 3000),
        [(b":method", b"DELETE"), (b":scheme", b"http"), (b":path", b"/" + b"p" * 3000), (b":authority", b"a"), (b"x", b"v" * 3000)],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("head", "fields"), REQUESTS)
def test_a_request_head_as_the_library_reads_it(head: bytes, fields: list[tuple[bytes, bytes]]) -> None:
    for _ in range(2):
        decoded = hpack.Decoder().decode(encode_request(head, b"http"), raw=True)
        assert [(bytes(name), bytes(value)) for name, value in decoded] == fields
    assert request_method(head) == fields[0][1]


# -- the entries ------------------------------------------------------------------------------------------------------------

MALFORMED_FIELDS = [
    (b"", b"x"), (b"A", b"x"), (b"a b", b"x"), (b"a:", b"x"), (b"a\0", b"x"), (b":unknown", b"x"), (b"a\xff", b"x"), (b"a", b"\0"),
    (b"a", b"b\r\nc: d"), (b"a", b"b\n"), (b"a", b"\r"), (b"a", b" b"), (b"a", b"b "), (b"a", b"\tb"), (b"a", b"b\t"), (b"a", b" "),
    (b"a", b"\x7f"), (b"connection", b"close"), (b"proxy-connection", b"x"), (b"keep-alive", b"x"), (b"transfer-encoding", b"chunked"),
    (b"upgrade", b"x"), (b"te", b"gzip"), (b"te", b"trailers, gzip"), (b"te", b""), (b":method", b""), (b":method", b"G T"),
    (b":method", b"GET\r\n"), (b":scheme", b"ftp"), (b":scheme", b""), (b":scheme", b"httpss"), (b":path", b""), (b":path", b"a"),
    (b":path", b"/a b"), (b":path", b"/a#b"), (b":path", b"/\xff"), (b":path", b"/a\r\nb"), (b":path", b"**"), (b":path", b"http://a/"),
    (b":authority", b"a b"), (b":authority", b"a\0"), (b":authority", b"a\xff"), (b":status", b"200"), (b":protocol", b"a b"),
    (b"host\n", b"a"), (b"a\r\nb", b"c"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), MALFORMED_FIELDS)
def test_what_no_request_may_hold(name: bytes, value: bytes) -> None:
    for rules in (RULES, FieldRules(underscores="allow")):
        assert request_book(rules).entry(name, value)[0] == MALFORMED


@pytest.mark.parametrize(("name", "value"), [(b":status", b"99"), (b":status", b"600"), (b":status", b"2000"), (b":status", b""),
                                             (b":status", b"2 0"), (b":path", b"/"), (b"connection", b"x"), (b"Age", b"1")])  # fmt: skip
def test_what_no_response_may_hold(name: bytes, value: bytes) -> None:
    assert response_book().entry(name, value)[0] == MALFORMED


def test_a_book_remembers_a_bounded_number_of_names() -> None:
    book = request_book(FieldRules(strip=(b"only-here",)))
    for index in range(3000):
        assert book.entry(b"x-%d" % index, b"v")[:2] == (REGULAR, b"x-%d: v\r\n" % index)
    assert len(book._kinds) <= 1024
