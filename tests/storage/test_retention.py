"""Compression, shipping and expiry: nothing that counts is lost, the tree can be derived throughout, interruptions are taken up."""

from __future__ import annotations

import gzip
import io
import random
from pathlib import Path

import pytest

from meshguard.storage import packed as packed_module
from meshguard.storage.audit import verify_ledger
from meshguard.storage.index import Index
from meshguard.storage.packed import BLOCK, PackedSegment, pack
from meshguard.storage.query import Filter, entries
from meshguard.storage.retention import Retention, compress, delete, doomed, ship
from meshguard.storage.segments import listed
from meshguard.storage.shard_reader import ShardReader
from tests.storage.ledgers import NOW, SIGNER, closed, commit, entry, opened, written

DAY = 86400


@pytest.fixture
def shard(tmp_path: Path) -> ShardReader:
    return ShardReader(0, written(tmp_path / "ledger", 200))


def good(shard: ShardReader, expired: int = 0) -> None:
    report = verify_ledger(shard.directory.parent, [SIGNER.verifier])
    assert report.good, report
    assert report.shards[0].size == report.shards[0].signed == 200
    assert report.shards[0].expired == expired


def test_compressed_segments_are_read_verified_and_queried(shard: ShardReader) -> None:
    before = list(shard.entries())
    with Index(shard.directory.parent) as index:
        index.update()
        count = compress(shard, 200)
        assert count == len(shard.parts()) - 1
        assert compress(shard, 200) == 0
        assert list(shard.entries()) == before
        good(shard)
        assert len(list(entries(index, Filter(), limit=1000))) == 200  # made before, read after
        index.rebuild()
        assert index.update() == 200
        assert len(list(entries(index, Filter(path="/orders/**"), limit=1000))) == 200
    closed(opened(shard.directory.parent, segment_bytes=4096))


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 7])
def test_a_packed_file_is_gzip_and_read_from_the_middle(tmp_path: Path, size: int) -> None:
    chance = random.Random(size)
    data = bytes(chance.choices(b"abcdefgh\0", k=size))
    path = tmp_path / "x.gz"
    with open(path, "wb") as target:
        pack(io.BytesIO(data), target)
    assert gzip.decompress(path.read_bytes()) == data
    packed = PackedSegment.open(path)
    assert packed is not None
    for _ in range(40):
        start, length = chance.randrange(size + 1), chance.randrange(1, 2 * BLOCK)
        assert packed.read(start, length) == data[start : start + length]
    packed.close()


def test_the_table_of_a_packed_file_has_no_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_module, "_SIZES", 2)
    data = random.Random(1).randbytes(7 * BLOCK)
    with open(tmp_path / "x.gz", "wb") as target:
        pack(io.BytesIO(data), target)
    assert gzip.decompress((tmp_path / "x.gz").read_bytes()) == data
    packed = PackedSegment(tmp_path / "x.gz")
    assert packed.read(5 * BLOCK + 3, 10) == data[5 * BLOCK + 3 :][:10]
    packed.close()


@pytest.mark.parametrize("cut", [1, 30, 60])
def test_a_packed_file_without_its_end_is_read_as_a_whole(tmp_path: Path, cut: int) -> None:
    with open(tmp_path / "x.gz", "wb") as target:
        pack(io.BytesIO(b"x" * BLOCK), target)
    data = (tmp_path / "x.gz").read_bytes()
    (tmp_path / "x.gz").write_bytes(data[:-cut])
    assert PackedSegment.open(tmp_path / "x.gz") is None


def test_a_change_in_a_compressed_segment_is_found(shard: ShardReader) -> None:
    compress(shard, 200)
    part = shard.parts()[1]
    assert part.path is not None
    data = gzip.decompress(part.path.read_bytes())
    part.path.write_bytes(gzip.compress(data.replace(b"/orders", b"/forged", 3)))
    report = verify_ledger(shard.directory.parent, [SIGNER.verifier])
    assert report.shards[0].first_bad is not None
    assert report.shards[0].first_bad.index == part.first


def test_what_no_checkpoint_covers_is_left_alone(tmp_path: Path) -> None:
    shard = ShardReader(0, written(tmp_path, 200))
    assert compress(shard, 0) == 0
    assert doomed(shard, 0, Retention(days=1), NOW + 99 * DAY, "n") == []


def test_old_segments_go_and_their_hashes_stay(shard: ShardReader) -> None:
    assert doomed(shard, 200, Retention(days=2), NOW + DAY, "n") == []
    condemned = doomed(shard, 200, Retention(days=2), NOW + 3 * DAY, "n")
    assert [item.part.first for item in condemned] == [segment.first for segment in listed(shard.directory)[:-1]]
    for item in condemned[:2]:
        delete(shard, item.part)
    gone = condemned[1].part.end or 0
    good(shard, expired=gone)
    assert shard.range_root(0, gone // 2)
    assert next(shard.entries()) == (gone, entry(gone))
    assert condemned[0].event["root"] == shard.range_root(0, condemned[0].part.end or 0).hex()
    with Index(shard.directory.parent) as index:
        index.update()
        assert len(list(entries(index, Filter(), limit=1000))) == 200 - gone
    ledger = opened(shard.directory.parent, segment_bytes=4096)
    ledger.shard.append(entry(200))
    assert commit(ledger.shard) is None
    closed(ledger)


def test_an_index_forgets_what_expired(shard: ShardReader) -> None:
    with Index(shard.directory.parent) as index:
        index.update()
        (first, *_) = doomed(shard, 200, Retention(days=2), NOW + 3 * DAY, "n")
        delete(shard, first.part)
        assert len(list(entries(index, Filter(), limit=1000))) == 200 - (first.part.end or 0)
        index.update()
        assert index.database.execute("SELECT COUNT(*) FROM entries").fetchone()[0] == 200 - (first.part.end or 0)


def test_the_oldest_go_when_it_gets_too_large(shard: ShardReader) -> None:
    sizes = [segment.path.stat().st_size for segment in listed(shard.directory)]
    condemned = doomed(shard, 200, Retention(total_bytes=sum(sizes[2:-1]) + 1), NOW, "n")
    assert len(condemned) == 2
    assert {item.event["reason"] for item in condemned} == {"size"}


def test_changed_hashes_of_expired_entries_are_found(shard: ShardReader) -> None:
    first = doomed(shard, 200, Retention(days=2), NOW + 3 * DAY, "n")[0].part
    delete(shard, first)
    data = bytearray(first.hashes.read_bytes())
    data[40] ^= 1
    first.hashes.write_bytes(bytes(data))
    assert not verify_ledger(shard.directory.parent, [SIGNER.verifier]).good
    first.hashes.unlink()
    assert not verify_ledger(shard.directory.parent, [SIGNER.verifier]).good


def test_shipping_resumes_and_repeats_nothing(shard: ShardReader, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    complete = len(shard.parts()) - 1
    assert ship(shard, 200, target, "shop.example/x") == complete
    place = target / "shop.example_x" / "shard-0"
    assert ship(shard, 200, target, "shop.example/x") == 0
    compress(shard, 200)
    assert ship(shard, 200, target, "shop.example/x") == 0  # in another form, but there
    some = sorted(place.glob("*.segment"))[1]
    some.rename(some.with_name(some.name + ".new"))  # interrupted in the middle of this copy
    assert ship(shard, 200, target, "shop.example/x") == 1
    copy = verify_ledger(target / "shop.example_x", [SIGNER.verifier])
    assert copy.shards[0].size >= shard.parts()[-1].first


def test_nothing_is_deleted_that_was_not_shipped(shard: ShardReader, tmp_path: Path) -> None:
    retention = Retention(days=2, ship=tmp_path / "elsewhere")
    assert doomed(shard, 200, retention, NOW + 3 * DAY, "n") == []
    ship(shard, 200, tmp_path / "elsewhere", "n")
    assert doomed(shard, 200, retention, NOW + 3 * DAY, "n")
