"""Strings in the Huffman code of HPACK (RFC 7541 section 5.2 and appendix B).

The code is canonical: the lengths of its 257 codes say all of it. Two decoders share the work.

The automaton decides everything. Its states are the inner nodes of the code tree; a state is a list from the next octet to (next state,
decoded octets), filled when a step is taken for the first time: all 65 536 steps would take 60 ms and 8 MB, what real strings need are
some thousands. INVARIANT: it never grows beyond those steps, and all connections share it.

zlib decodes what is longer, at a third to a twentieth of the cost (39 octets in 1.4 us, 648 in 4.6). The codes of deflate are canonical
in the same order, and at most 15 bits long; in HPACK every code longer than that begins with 15 ones, so that with the end of a block as
the code of 15 ones the short codes of both are the same. Bits lie mirrored in their octets.
"""

from __future__ import annotations

import zlib
from typing import Any

__all__ = ["HuffmanError", "decode_huffman"]

# Bits of the code of each octet, then of EOS.
_LENGTHS = bytes.fromhex(
    "0d171c1c1c1c1c1c1c181e1c1c1e1c1c1c1c1c1c1c1c1e1c1c1c1c1c1c1c1c1c060a0a0c0d06080b0a0a080b08060606050505060606060606060708"
    "0f060c0a0d06070707070707070707070707070707070707070707070807080d130d0e060f05060506050606060507070606060506070605050607070707"
    "070f0b0e0d1c141614141616161716171717171718171818161718171717171516171617171816151416161717151716161815161717151516151716171714"
    "161616171616171a1a1413161716191a1a1a1b1b1a181913151a1b1b1a1b1815151a1a1c1b1b1b14181415161515171616191918181a171a1b1a1a1b1b1b1b"
    "1b1c1b1b1b1b1b1a1e"
)
_EOS = 256


class HuffmanError(Exception):
    """Not a string in this code: EOS inside, or padding that is too long or not made of ones."""


_Node = list["_Node | int | None"]
_Step = tuple["_State", bytes]


def _tree() -> _Node:
    """The code tree: an inner node is [on 0, on 1], a leaf is its octet (or EOS)."""
    root: _Node = [None, None]
    code = length = 0
    for symbol in sorted(range(257), key=lambda symbol: (_LENGTHS[symbol], symbol)):
        code <<= _LENGTHS[symbol] - length
        length = _LENGTHS[symbol]
        node = root
        for shift in range(length - 1, 0, -1):
            bit = code >> shift & 1
            below = node[bit]
            if not isinstance(below, list):
                below = node[bit] = [None, None]
            node = below
        node[code & 1] = symbol
        code += 1
    return root


class _State(list[_Step | None]):
    """The steps from one inner node, by octet; None: not taken yet, or never possible. `ends`: a string may end here, since what was read
    of the next code is correct padding."""

    __slots__ = ("ends", "node")

    def __init__(self, node: _Node) -> None:
        super().__init__()
        self.node = node
        self.ends = False


_ROOT = _tree()
_STATES: dict[int, _State] = {}  # by identity of the node


def _make_states() -> _State:
    pending = [_ROOT]
    while pending:
        node = pending.pop()
        _STATES[id(node)] = _State(node)
        pending += [below for below in node if isinstance(below, list)]
    padding: _Node | int | None = _ROOT
    for _ in range(8):  # up to seven ones: the beginning of EOS
        if isinstance(padding, list):
            _STATES[id(padding)].ends = True
            padding = padding[1]
    return _STATES[id(_ROOT)]


_START = _make_states()


def _step(state: _State, octet: int) -> _Step:
    node = state.node
    decoded = bytearray()
    for shift in range(7, -1, -1):
        below = node[octet >> shift & 1]
        if isinstance(below, list):
            node = below
        elif below is None or below == _EOS:
            raise HuffmanError("EOS in a string")
        else:
            decoded.append(below)
            node = _ROOT
    return _STATES[id(node)], bytes(decoded)


def _learn(data: bytes) -> None:
    """Adds the steps that `data` needs. Raises HuffmanError where it holds EOS."""
    state = _START
    for octet in data:
        if not state:
            state.extend([None] * 256)
        step = state[octet]
        if step is None:
            step = state[octet] = _step(state, octet)
        state = step[0]


def _walk(data: bytes) -> bytes:
    """The string of `data`, by the automaton. Raises HuffmanError."""
    state: Any = _START
    while True:
        pieces: list[bytes] = []
        add = pieces.append
        try:
            for octet in data:
                state, piece = state[octet]
                add(piece)
            break
        except (TypeError, IndexError):  # a step that is taken for the first time
            _learn(data)
            state = _START
    if not state.ends:
        raise HuffmanError("padding")
    return b"".join(pieces)


# -- the same by zlib -------------------------------------------------------------------------------------------------------

_MIRROR = bytes(int(f"{octet:08b}"[::-1], 2) for octet in range(256))


def _inflater() -> Any:
    """A raw inflater that has just read the header of the last block, whose literals have the codes of HPACK; it ends with an octet."""
    bits: list[int] = []

    def number(value: int, size: int) -> None:
        bits.extend(value >> shift & 1 for shift in range(size))

    for _ in range(3):  # three empty blocks with fixed codes fill the header up to whole octets
        number(0, 1)
        number(1, 2)
        number(0, 7)
    number(1, 1)  # the last block, with codes of its own (RFC 1951 section 3.2.7)
    number(2, 2)
    number(0, 5)  # 257 literals
    number(0, 5)  # a distance, which has no code
    number(15, 4)  # 19 lengths for the code of lengths: 0 to 15 have four bits each, the three that repeat have none
    for symbol in (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15):
        number(4 if symbol < 16 else 0, 3)
    for length in (*(length if length <= 15 else 0 for length in _LENGTHS[:_EOS]), 15, 0):
        bits.extend(length >> shift & 1 for shift in (3, 2, 1, 0))
    header = bytes(sum(bits[start + bit] << bit for bit in range(8)) for start in range(0, len(bits), 8))
    inflater = zlib.decompressobj(-9)
    inflater.decompress(header)
    return inflater


_inflate_from_here = _inflater().copy
_END_OF_BLOCK = b"\xff\xfe".translate(_MIRROR)
_FEW = 12
"""Octets that the automaton decodes faster."""


def decode_huffman(data: bytes) -> bytes:
    """The string of `data`. Raises HuffmanError.

    zlib answers only where it cannot be wrong. Its end of block is fifteen ones, and exactly so many ones and a zero are put behind the
    string. Correct padding, 0 to 7 ones, leaves as many bits over, and one. If a code was cut short, too few ones are left for an end.
    What begins with fifteen ones itself (a longer code, EOS, padding) leaves two octets or more; padding of 8 to 14 ones leaves one octet,
    as 7 do, but makes the last octet all ones.
    """
    if len(data) < _FEW:
        return _walk(data)
    inflater = _inflate_from_here()
    string: bytes = inflater.decompress(data.translate(_MIRROR) + _END_OF_BLOCK)
    if inflater.eof:
        over = len(inflater.unused_data)
        if not over or (over == 1 and data[-1] != 0xFF):
            return string
    return _walk(data)
