"""A trie over segments: finds everything filed under a template that a list of segments fits.

The cost of a walk follows the depth and the branches that really fit (a literal child, a parameter, affixed parameters by
the lengths of their prefix and suffix), never the number of templates beside them. Serves path templates and SPIFFE ID
patterns alike. A node has only the children it needs: in a policy of 100 000 rules most nodes are leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Generic, TypeVar

from meshguard.policy.paths import Parameter

__all__ = ["Node", "below", "children", "deepest", "insert", "walk"]

Filed = TypeVar("Filed")


class Node(Generic[Filed]):
    """`end` is what is filed under the segments up to here, `rest` what is filed under `.../**`. `literal` maps the next segment,
    `wild` is the child for any non-empty segment, `affixed` maps (length of prefix, length of suffix) to the affixes of that shape,
    `literal_only` says that neither of the two is there."""

    __slots__ = ("affixed", "end", "literal", "literal_only", "rest", "wild")

    def __init__(self) -> None:
        self.end: Filed | None = None
        self.rest: Filed | None = None
        self.literal: dict[str, Node[Filed]] | None = None
        self.literal_only = True
        self.wild: Node[Filed] | None = None
        self.affixed: dict[tuple[int, int], dict[tuple[str, str], Node[Filed]]] | None = None


def insert(root: Node[Filed], segments: Sequence[str | Parameter]) -> Node[Filed]:
    """The node of `segments`, made where it was missing; the caller files under its `end` or `rest`."""
    node = root
    for segment in segments:
        following: Node[Filed] | None
        if isinstance(segment, str):
            if node.literal is None:
                node.literal = {}
            following = node.literal.get(segment)
            if following is None:
                following = node.literal[segment] = Node()
        elif not (segment.prefix or segment.suffix):
            if node.wild is None:
                node.wild = Node()
                node.literal_only = False
            following = node.wild
        else:
            if node.affixed is None:
                node.affixed = {}
                node.literal_only = False
            shape = node.affixed.setdefault((len(segment.prefix), len(segment.suffix)), {})
            following = shape.get((segment.prefix, segment.suffix))
            if following is None:
                following = shape[(segment.prefix, segment.suffix)] = Node()
        node = following
    return node


def walk(node: Node[Filed], segments: Sequence[str], found: list[Filed], index: int = 0) -> None:
    """Append to `found` everything filed under a template that `segments` (from `index` on) fit. Recursion is as deep as the templates."""
    count = len(segments)
    while True:
        if node.rest is not None:
            found.append(node.rest)
        if index == count:
            if node.end is not None:
                found.append(node.end)
            return
        segment = segments[index]
        index += 1
        literal = node.literal
        following = literal.get(segment) if literal is not None else None
        if not node.literal_only and segment:
            if node.affixed is not None:
                for branch in _affixed(node.affixed, segment):
                    walk(branch, segments, found, index)
            wild = node.wild
            if wild is not None:
                if following is None:
                    node = wild
                    continue
                walk(wild, segments, found, index)
        if following is None:
            return
        node = following


def deepest(root: Node[Filed], segments: Sequence[str]) -> Node[Filed]:
    """The node reached by as many of the `segments` as possible, literals before parameters (for hints, not for decisions)."""
    node = root
    for segment in segments:
        following: Node[Filed] | None = node.literal.get(segment) if node.literal is not None else None
        if following is None:
            following = node.wild
        if following is None:
            return node
        node = following
    return node


def below(node: Node[Filed], limit: int) -> list[Filed]:
    """What is filed under `node` and its descendants, nearest first; at most `limit` nodes are looked at (for hints)."""
    found: list[Filed] = []
    queue = [node]
    for node in queue:  # the queue grows while it is read
        if node.end is not None:
            found.append(node.end)
        if node.rest is not None:
            found.append(node.rest)
        room = limit - len(queue)
        if room > 0:
            if node.wild is not None:
                queue.append(node.wild)
            if node.literal is not None:
                queue += islice(node.literal.values(), room)
    return found


def _affixed(affixed: dict[tuple[int, int], dict[tuple[str, str], Node[Filed]]], segment: str) -> list[Node[Filed]]:
    branches = []
    length = len(segment)
    for (before, after), shape in affixed.items():
        if length > before + after:
            branch = shape.get((segment[:before], segment[length - after :]))
            if branch is not None:
                branches.append(branch)
    return branches


def children(node: Node[Filed]) -> list[Node[Filed]]:
    """The nodes right below."""
    found = list((node.literal or {}).values())
    if node.wild is not None:
        found.append(node.wild)
    for shape in (node.affixed or {}).values():
        found += shape.values()
    return found
