"""Witnesses and other places for checkpoints: what they get, what is kept of their answers, and what a rolled back ledger meets."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.control.ledger_publish import Publisher
from meshguard.control.ledger_witness import Witness
from meshguard.control.settings.ledger import CheckpointConfig
from meshguard.ledger import post_quantum
from meshguard.ledger.merkle import Tree, leaf_hash, range_root
from meshguard.ledger.notes import NoteSigner, open_note
from meshguard.storage.commit import Commit
from meshguard.storage.ledger import OpenLedger
from meshguard.storage.shard_reader import ShardReader
from tests.harness.witness import WitnessServer, roots
from tests.storage.ledgers import NOW, SIGNER, closed, entry, opened

KEYS = {"Ed25519": lambda: Ed25519PrivateKey.from_private_bytes(b"w" * 32), "ML-DSA-44": post_quantum.new_key}


@pytest.fixture(params=KEYS)
def witness(request: pytest.FixtureRequest) -> Iterator[WitnessServer]:
    try:
        key = KEYS[request.param]()
    except post_quantum.NoPostQuantum as exc:
        pytest.skip(str(exc))
    made = WitnessServer(NoteSigner("witness.example/w1", key, cosigner=True), [SIGNER.verifier])
    yield made
    made.stop()


def committed(ledger: OpenLedger, first: int, count: int) -> Commit:
    for number in range(first, first + count):
        ledger.shard.append(entry(number))
    work = ledger.shard.begin(NOW, checkpoint=True)
    work.run()
    ledger.shard.end(work, None)
    return work


def publisher(ledger: OpenLedger, witness: WitnessServer, **more: Any) -> Publisher:
    return Publisher(CheckpointConfig(witness_urls=[witness.url], witnesses=[witness.signer.verifier.render()], **more), ledger)


def test_each_checkpoint_is_cosigned_with_the_proof_that_it_continues_the_last(tmp_path: Path, witness: WitnessServer) -> None:
    ledger = opened(tmp_path / "ledger", segment_bytes=4096)
    made = publisher(ledger, witness, publish_file=tmp_path / "elsewhere")
    size = 0
    for count in (1, 2, 5, 40, 1, 77, 3):
        work = committed(ledger, size, count)
        size += count
        made._publish(work)
        text = (tmp_path / "elsewhere.shard-0").read_text()
        assert text == (tmp_path / "ledger" / "shard-0" / "checkpoint").read_text()
        assert open_note(text, [witness.signer.verifier, SIGNER.verifier], every=True).text.split("\n")[1] == str(size)
    assert witness.requests == [200] * 7
    assert max(witness.proofs) > 2
    made.close()
    closed(ledger)


def test_after_a_restart_the_witness_says_where_it_is(tmp_path: Path, witness: WitnessServer) -> None:
    ledger = opened(tmp_path, segment_bytes=4096)
    publisher(ledger, witness)._publish(committed(ledger, 0, 50))
    committed(ledger, 50, 60)  # not published
    closed(ledger)
    ledger = opened(tmp_path, segment_bytes=4096)
    publisher(ledger, witness)._publish(committed(ledger, 110, 3))
    assert witness.requests == [200, 409, 200]
    assert next(iter(witness.seen.values()))[0] == 113
    closed(ledger)


def test_a_rollback_and_a_fork_are_not_cosigned(tmp_path: Path, witness: WitnessServer, caplog: pytest.LogCaptureFixture) -> None:
    ledger = opened(tmp_path / "a")
    publisher(ledger, witness)._publish(committed(ledger, 0, 50))
    closed(ledger)
    for count, said in ((20, "a larger ledger than this one"), (60, "it answered 422"), (50, "it answered 409")):
        caplog.clear()
        ledger = opened(tmp_path / str(count))  # another history under the same name
        ledger.shard.append(entry(0, path="/other"))
        work = committed(ledger, 1, count - 1)
        publisher(ledger, witness)._publish(work)
        told = [record.getMessage() + str(getattr(record, "data", "")) for record in caplog.records]
        assert any(said in line for line in told), told
        text = (tmp_path / str(count) / "shard-0" / "checkpoint").read_text()
        assert witness.signer.verifier.accepts(open_note(text, [SIGNER.verifier])) is None
        closed(ledger)
    assert next(iter(witness.seen.values()))[0] == 50


def test_a_commit_waits_for_no_witness_and_the_newest_is_published(tmp_path: Path, witness: WitnessServer) -> None:
    """While a witness takes its time, what comes meanwhile is skipped but for the last."""
    ledger = opened(tmp_path)
    made = publisher(ledger, witness)
    asked, let_go = threading.Event(), threading.Event()
    add = witness.add

    def slow(body: str) -> tuple[int, str, str]:
        asked.set()
        assert let_go.wait(10)
        return add(body)

    witness.add = slow  # type: ignore[method-assign]
    made.take(committed(ledger, 0, 1))
    assert asked.wait(10)
    for number in range(1, 6):
        made.take(committed(ledger, number, 1))
    let_go.set()
    made.close()
    assert witness.requests == [200, 200]
    assert next(iter(witness.seen.values()))[0] == 6
    closed(ledger)


def test_a_wrong_or_unknown_cosignature_is_not_kept(tmp_path: Path, witness: WitnessServer) -> None:
    ledger = opened(tmp_path)
    stranger = NoteSigner("stranger.example", Ed25519PrivateKey.generate(), cosigner=True)
    made = Publisher(CheckpointConfig(witness_urls=[witness.url], witnesses=[stranger.verifier.render()]), ledger)
    work = committed(ledger, 0, 3)
    made._publish(work)
    assert (tmp_path / "shard-0" / "checkpoint").read_text() == work.note
    witness.seen.clear()
    honest = witness.signer

    class Liar:
        def signature(self, text: str, seconds: int) -> tuple[str, bytes, bytes]:
            return honest.signature(text.replace("\n3\n", "\n4\n"), seconds)

    witness.signer = Liar()  # type: ignore[assignment]
    made = Publisher(CheckpointConfig(witness_urls=[witness.url], witnesses=[honest.verifier.render()]), ledger)
    made._publish(work)
    assert (tmp_path / "shard-0" / "checkpoint").read_text() == work.note
    closed(ledger)


def test_an_unreachable_witness_costs_only_itself(tmp_path: Path) -> None:
    ledger = opened(tmp_path)
    made = Publisher(CheckpointConfig(witness_urls=["http://127.0.0.1:1"]), ledger)
    work = committed(ledger, 0, 3)
    made.take(work)
    made.close()
    assert (tmp_path / "shard-0" / "checkpoint").read_text() == work.note
    closed(ledger)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300))
def test_the_proof_from_a_frontier_is_the_proof_from_everything(one: int, other: int) -> None:
    """Made from the old tree's frontier and the hashes behind it, judged by another implementation."""
    old, new = sorted((one, other))
    leaves = [leaf_hash(b"%d" % number) for number in range(new)]

    class Hashes(ShardReader):
        def range_root(self, low: int, high: int) -> bytes:
            assert low >= old, "only what is behind the old tree is read"
            return range_root(leaves[low:high])

    tree = Tree()
    tree.extend(leaves[:old])
    proof = Hashes(0, Path("/nowhere")).consistency(tree, new)
    if old < new:
        assert roots(old, new, proof, tree.root()) == (tree.root(), range_root(leaves))
    else:
        assert proof == []


def test_the_tree_at_a_size_is_read_from_the_nearest_segment(tmp_path: Path) -> None:
    ledger = opened(tmp_path, segment_bytes=4096)
    for start in range(0, 200, 20):
        committed(ledger, start, 20)
    closed(ledger)
    reader = ShardReader(0, tmp_path / "shard-0")
    leaves = [leaf_hash(entry(number)) for number in range(200)]
    assert len(reader.parts()) > 3
    for size in (1, 20, 33, 77, 199, 200):
        assert reader.tree_at(size).root() == range_root(leaves[:size])
    first = reader.parts()[0]
    assert first.path is not None
    os.unlink(first.path)  # expired
    assert reader.tree_at(5).root() == range_root(leaves[:5])
    with pytest.raises(ValueError, match="missing"):
        reader.tree_at(201)
    assert Witness("http://127.0.0.1:1/x/", reader).url == "http://127.0.0.1:1/x"
