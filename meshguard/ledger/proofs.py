"""Inclusion and consistency proofs, made and verified (RFC 9162 sections 2.1.3 and 2.1.4). Verification raises, it never answers False."""

from __future__ import annotations

from collections.abc import Sequence

from meshguard.ledger.merkle import RangeRoot, node_hash, split_point
from meshguard.model.errors import MeshguardError

__all__ = ["ProofError", "consistency_proof", "inclusion_proof", "verify_consistency", "verify_inclusion"]


class ProofError(MeshguardError):
    """A proof does not prove what it is said to."""


def inclusion_proof(index: int, size: int, root_of: RangeRoot) -> list[bytes]:
    """PATH(index, D_size): the nodes from the leaf's sibling up to below the root."""
    if not 0 <= index < size:
        raise ProofError(f"entry {index} is not in a tree of {size}")
    proof: list[bytes] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + split_point(high - low)
        if index < middle:
            proof.append(root_of(middle, high))
            high = middle
        else:
            proof.append(root_of(low, middle))
            low = middle
    proof.reverse()
    return proof


def consistency_proof(old: int, new: int, root_of: RangeRoot) -> list[bytes]:
    """PROOF(old, D_new). Empty for equal sizes and for an empty old tree."""
    if not 0 <= old <= new:
        raise ProofError(f"a tree of {new} cannot continue one of {old}")
    if old in (0, new):
        return []
    proof: list[bytes] = []
    low, high, whole = 0, new, True
    while old != high:
        middle = low + split_point(high - low)
        if old <= middle:
            proof.append(root_of(middle, high))
            high = middle
        else:
            proof.append(root_of(low, middle))
            low = middle
            whole = False
    if not whole:
        proof.append(root_of(low, high))
    proof.reverse()
    return proof


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], root: bytes) -> None:
    """Raises ProofError unless `leaf` (its hash) is entry `index` of the tree with this size and root (2.1.3.2)."""
    if not 0 <= index < size:
        raise ProofError(f"entry {index} is not in a tree of {size}")
    number, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise ProofError("the proof is too long")
        if number & 1 or number == last:
            node = node_hash(sibling, node)
            while not number & 1 and number:
                number >>= 1
                last >>= 1
        else:
            node = node_hash(node, sibling)
        number >>= 1
        last >>= 1
    if last != 0:
        raise ProofError("the proof is too short")
    if node != root:
        raise ProofError("the proof leads to another root")


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Raises ProofError unless the tree of `new` entries begins with the one of `old` (2.1.4.2)."""
    if not 0 <= old <= new:
        raise ProofError(f"a tree of {new} cannot continue one of {old}")
    if old in (0, new):
        if proof:
            raise ProofError("the proof is too long")
        if old == new and old_root != new_root:
            raise ProofError("two trees of one size have different roots")
        return
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    if not path:
        raise ProofError("the proof is too short")
    number, last = old - 1, new - 1
    while number & 1:
        number >>= 1
        last >>= 1
    first = second = path[0]
    for node in path[1:]:
        if last == 0:
            raise ProofError("the proof is too long")
        if number & 1 or number == last:
            first = node_hash(node, first)
            second = node_hash(node, second)
            while not number & 1 and number:
                number >>= 1
                last >>= 1
        else:
            second = node_hash(second, node)
        number >>= 1
        last >>= 1
    if last != 0:
        raise ProofError("the proof is too short")
    if first != old_root:
        raise ProofError("the proof leads to another root of the older tree")
    if second != new_root:
        raise ProofError("the proof leads to another root of the newer tree")
