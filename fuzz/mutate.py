"""Mutations of an input: octets, words of the target's language, and parts of other inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

__all__ = ["mutate", "shrink"]

_LONGEST = 1500


def mutate(random: Random, data: bytes, others: Sequence[bytes], words: Sequence[bytes]) -> bytes:
    """`data` after one to five changes."""
    for _ in range(random.choice((1, 1, 2, 3, 5))):
        at = random.randrange(len(data) + 1)
        match random.randrange(9):
            case 0 | 1:
                data = data[:at] + random.choice(words) + data[at:]
            case 2:
                word = random.choice(words)
                data = data[:at] + word + data[at + len(word) :]
            case 3:
                data = data[:at] + data[at + random.choice((1, 1, 2, 4, 16)) :]
            case 4:
                data = data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
            case 5:
                end = at + random.randrange(1, 40)
                data = data[:end] + data[at:end] + data[end:]
            case 6:
                other = random.choice(others)
                data = data[:at] + other[random.randrange(len(other) + 1) :]
            case 7:
                if at < len(data):
                    data = data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :]
            case _:
                data = data[:at] + data[at : at + 1] * random.choice((2, 8, 33, 129, 520)) + data[at + 1 :]
    return data[:_LONGEST]


def shrink(data: bytes, breaks: Callable[[bytes], bool]) -> bytes:
    """A small part of `data` that still breaks: pieces of halving size are left out as long as that helps."""
    size = max(1, len(data) // 2)
    while size:
        at = 0
        while at < len(data):
            shorter = data[:at] + data[at + size :]
            if breaks(shorter):
                data = shorter
            else:
                at += size
        size //= 2
    return data
