"""The Merkle tree of RFC 9162 section 2.1: a growing tree that keeps only its frontier, and hashes of ranges.

A tree of `size` leaves is the list of its largest complete subtrees, one per bit of `size`, the largest first: the frontier. Appending
a leaf costs one node hash on average; the state is O(log n).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

__all__ = ["EMPTY_ROOT", "Tree", "leaf_hash", "node_hash", "range_root", "split_point"]

EMPTY_ROOT = sha256(b"").digest()


def leaf_hash(entry: bytes) -> bytes:
    """MTH({entry})."""
    return sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node."""
    return sha256(b"\1" + left + right).digest()


def split_point(size: int) -> int:
    """The largest power of two below `size` (`size` > 1)."""
    return 1 << ((size - 1).bit_length() - 1)


class Tree:
    """A growing tree. `frontier`: hashes of the complete subtrees of a tree of `size` leaves, the largest first."""

    __slots__ = ("_stack", "size")

    def __init__(self, size: int = 0, frontier: Iterable[bytes] = ()) -> None:
        self.size = size
        self._stack = list(frontier)
        if len(self._stack) != size.bit_count() or any(len(node) != 32 for node in self._stack):
            raise ValueError("the frontier does not fit the size")

    @property
    def frontier(self) -> tuple[bytes, ...]:
        return tuple(self._stack)

    def extend(self, leaves: Iterable[bytes]) -> None:
        """Append leaf hashes. Level by level: one tight loop a level costs two thirds of carrying each leaf up on its own."""
        stack, bits, digest = self._stack, self.size, sha256
        nodes = list(leaves)
        self.size += len(nodes)
        left: list[bytes] = []  # what has no partner, from the lowest level up; b"" for none
        while nodes:
            if bits & 1:
                nodes.insert(0, stack.pop())
            left.append(nodes.pop() if len(nodes) & 1 else b"")
            pairs = iter(nodes)
            nodes = [digest(b"\1" + one + other).digest() for one, other in zip(pairs, pairs, strict=True)]
            bits >>= 1
        stack += [node for node in reversed(left) if node]

    def root(self) -> bytes:
        """MTH of all leaves so far."""
        stack = self._stack
        if not stack:
            return EMPTY_ROOT
        root = stack[-1]
        for node in stack[-2::-1]:
            root = node_hash(node, root)
        return root

    def copy(self) -> Tree:
        return Tree(self.size, self._stack)


def range_root(leaves: Sequence[bytes]) -> bytes:
    """MTH of these leaf hashes."""
    tree = Tree()
    tree.extend(leaves)
    return tree.root()


RangeRoot = Callable[[int, int], bytes]
"""From a range [low, high) of leaves to its MTH."""
