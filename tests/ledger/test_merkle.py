"""The tree and its proofs against the definitions of RFC 9162, written down a second time here, and against known values."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.ledger.merkle import EMPTY_ROOT, Tree, leaf_hash, range_root
from meshguard.ledger.proofs import ProofError, consistency_proof, inclusion_proof, verify_consistency, verify_inclusion

# The leaves and roots that the certificate transparency implementations test with (RFC 6962 and 9162 share them).
LEAVES = [
    bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def h(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


def k(n: int) -> int:
    power = 1
    while power * 2 < n:
        power *= 2
    return power


def mth(data: Sequence[bytes]) -> bytes:
    """Section 2.1.1, word by word."""
    if not data:
        return h()
    if len(data) == 1:
        return h(b"\0", data[0])
    cut = k(len(data))
    return h(b"\1", mth(data[:cut]), mth(data[cut:]))


def path(m: int, data: Sequence[bytes]) -> list[bytes]:
    """Section 2.1.3.1."""
    if len(data) == 1:
        return []
    cut = k(len(data))
    if m < cut:
        return [*path(m, data[:cut]), mth(data[cut:])]
    return [*path(m - cut, data[cut:]), mth(data[:cut])]


def subproof(m: int, data: Sequence[bytes], complete: bool) -> list[bytes]:
    """Section 2.1.4.1."""
    if m == len(data):
        return [] if complete else [mth(data)]
    cut = k(len(data))
    if m <= cut:
        return [*subproof(m, data[:cut], complete), mth(data[cut:])]
    return [*subproof(m - cut, data[cut:], False), mth(data[:cut])]


def root_from_path(m: int, size: int, leaf: bytes, nodes: list[bytes]) -> bytes:
    """The same as the definition of `path`, backwards: no index arithmetic as in section 2.1.3.2."""
    if size == 1:
        assert not nodes
        return leaf
    cut = k(size)
    if m < cut:
        return h(b"\1", root_from_path(m, cut, leaf, nodes[:-1]), nodes[-1])
    return h(b"\1", nodes[-1], root_from_path(m - cut, size - cut, leaf, nodes[:-1]))


def test_known_roots() -> None:
    tree = Tree()
    assert tree.root() == EMPTY_ROOT == h()
    for data, root in zip(LEAVES, ROOTS, strict=True):
        tree.extend([leaf_hash(data)])
        assert tree.root().hex() == root


@pytest.mark.parametrize("size", [*range(1, 34), 63, 64, 65, 100])
def test_everything_agrees_with_the_definitions(size: int) -> None:
    data = [b"entry %d" % number for number in range(size)]
    leaves = [leaf_hash(item) for item in data]
    root = mth(data)
    assert range_root(leaves) == root

    def root_of(low: int, high: int) -> bytes:
        return range_root(leaves[low:high])

    for index in range(size):
        proof = inclusion_proof(index, size, root_of)
        assert proof == path(index, data)
        assert root_from_path(index, size, leaves[index], proof) == root
        verify_inclusion(index, size, leaves[index], proof, root)
    for old in range(1, size + 1):
        proof = consistency_proof(old, size, root_of)
        assert proof == (subproof(old, data, True))
        verify_consistency(old, size, mth(data[:old]), root, proof)


@settings(max_examples=150)
@given(st.integers(1, 80), st.data())
def test_no_wrong_proof_is_accepted(size: int, draw: st.DataObject) -> None:
    leaves = [leaf_hash(b"%d" % number) for number in range(size)]

    def root_of(low: int, high: int) -> bytes:
        return range_root(leaves[low:high])

    root = root_of(0, size)
    index = draw.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, size, root_of)
    other = draw.draw(st.integers(0, size - 1).filter(lambda number: number != index)) if size > 1 else None
    if other is not None:
        with pytest.raises(ProofError):
            verify_inclusion(other, size, leaves[index], proof, root)
    with pytest.raises(ProofError):
        verify_inclusion(index, size, leaf_hash(b"another"), proof, root)
    with pytest.raises(ProofError):
        verify_inclusion(index, size, leaves[index], [*proof, root], root)
    if proof:
        with pytest.raises(ProofError):
            verify_inclusion(index, size, leaves[index], proof[:-1], root)
        place = draw.draw(st.integers(0, len(proof) - 1))
        with pytest.raises(ProofError):
            verify_inclusion(index, size, leaves[index], [*proof[:place], b"\0" * 32, *proof[place + 1 :]], root)
    old = draw.draw(st.integers(1, size))
    nodes = consistency_proof(old, size, root_of)
    with pytest.raises(ProofError):
        verify_consistency(old, size, b"\1" * 32, root, nodes)
    with pytest.raises(ProofError):
        verify_consistency(old, size, root_of(0, old), b"\1" * 32, nodes)
    with pytest.raises(ProofError):
        verify_consistency(old, size, root_of(0, old), root, [*nodes, root])
    if nodes:
        with pytest.raises(ProofError):
            verify_consistency(old, size, root_of(0, old), root, nodes[:-1])


@given(st.lists(st.integers(0, 40), max_size=8))
def test_a_tree_continues_from_its_frontier(steps: list[int]) -> None:
    tree, everything = Tree(), []
    for step in steps:
        fresh = [leaf_hash(b"%d %d" % (len(everything), number)) for number in range(step)]
        everything += fresh
        tree = Tree(tree.size, tree.frontier)
        tree.extend(fresh)
    assert tree.root() == range_root(everything)
    assert len(tree.frontier) <= 9


def test_a_frontier_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="frontier"):
        Tree(3, [b"\0" * 32])
