"""Every kind of change to a ledger on disk, at random places, by somebody who knows the format: found, and named.

The attacker mends what can be mended without the signing key: checksums, lengths, and (in some) the stored leaf hashes too.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from meshguard.ledger.frame import HEADER, entry_of, frame, records
from meshguard.ledger.merkle import leaf_hash
from meshguard.ledger.notes import notes_in
from meshguard.ledger.verify import ShardReport
from meshguard.storage.audit import AuditReport, verify_ledger
from meshguard.storage.segments import Header, LedgerDamaged, listed
from tests.storage.ledgers import SIGNER, closed, commit, entry, opened, written

COUNT = 240
Change = Callable[[list[bytes], int], list[bytes]]


def edited(entries: list[bytes], place: int) -> list[bytes]:
    return [*entries[:place], entries[place].replace(b"/orders", b"/forged"), *entries[place + 1 :]]


def deleted(entries: list[bytes], place: int) -> list[bytes]:
    return entries[:place] + entries[place + 1 :]


def inserted(entries: list[bytes], place: int) -> list[bytes]:
    return [*entries[:place], entry(9999, path="/never"), *entries[place:]]


def repeated(entries: list[bytes], place: int) -> list[bytes]:
    return [*entries[:place], entries[place - 1], *entries[place:]]


def reordered(entries: list[bytes], place: int) -> list[bytes]:
    return [*entries[:place], entries[place + 1], entries[place], *entries[place + 2 :]]


KINDS: dict[str, tuple[Change, str]] = {
    "edit": (edited, "edited"),
    "delete": (deleted, "deleted"),
    "insert": (inserted, "inserted"),
    "repeat": (repeated, "inserted"),
    "reorder": (reordered, "reordered"),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("original")
    written(directory, COUNT)
    report = judged(directory)
    assert report.good, report
    assert report.shards[0].size == report.shards[0].signed == COUNT
    assert len(listed(directory / "shard-0")) > 3
    return directory


@pytest.fixture
def ledger(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "ledger")
    return tmp_path / "ledger"


def judged(directory: Path, *held: str) -> AuditReport:
    return verify_ledger(directory, [SIGNER.verifier], [(f"held {number}", text) for number, text in enumerate(held)])


def bad(directory: Path, *held: str) -> ShardReport:
    report = judged(directory, *held)
    assert not report.good
    return report.shards[0]


def rewrite(path: Path, change: Callable[[list[bytes]], list[bytes]], *, hashes: bool = False) -> None:
    """The segment with other entries, every checksum right."""
    data = path.read_bytes()
    _, begin = Header.parse(data)
    entries = [data[start + HEADER : end] for start, end in records(data, begin)]
    made = change(entries)
    path.write_bytes(data[:begin] + b"".join(map(frame, made)))
    if hashes:
        path.with_suffix(".hashes").write_bytes(b"".join(map(leaf_hash, made)))


def notes_of(directory: Path) -> list[str]:
    return list(notes_in((directory / "shard-0" / "checkpoints").read_text()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_a_change_is_named_at_its_index(ledger: Path, kind: str, seed: int) -> None:
    change, name = KINDS[kind]
    chance = random.Random(f"{kind} {seed}")
    segments = listed(ledger / "shard-0")
    number = chance.randrange(len(segments))
    segment = segments[number]
    count = (segments[number + 1].first if number + 1 < len(segments) else COUNT) - segment.first
    place = chance.randrange(1, count - 1)
    rewrite(segment.path, lambda entries: change(entries, place))
    first = bad(ledger).first_bad
    assert first is not None
    assert (first.kind, first.index, first.exact) == (name, segment.first + place, True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_change_with_new_hashes_is_found_in_its_range(ledger: Path, kind: str) -> None:
    """Somebody who writes the leaf hashes anew cannot sign: the range between two checkpoints is named."""
    change, _ = KINDS[kind]
    segment = listed(ledger / "shard-0")[1]
    rewrite(segment.path, lambda entries: change(entries, 5), hashes=True)
    first = bad(ledger).first_bad
    assert first is not None
    assert segment.first + 5 - 10 <= first.index <= segment.first + 5


@pytest.mark.parametrize("seed", range(40))
def test_one_octet_anywhere(ledger: Path, original: Path, seed: int) -> None:
    chance = random.Random(seed)
    segment = chance.choice(listed(ledger / "shard-0"))
    data = bytearray(segment.path.read_bytes())
    place = chance.randrange(len(data))
    data[place] ^= 1 << chance.randrange(8)
    segment.path.write_bytes(bytes(data))
    _, begin = Header.parse((original / "shard-0" / segment.path.name).read_bytes())
    first = bad(ledger).first_bad
    assert first is not None
    if place < begin:
        assert (first.kind, first.index) == ("damaged_header", segment.first)
    else:
        assert (first.kind, first.index) == ("edited", _index_of(segment.first, place, begin))


def _index_of(first: int, place: int, begin: int) -> int:
    """The entry that holds octet `place`, by the sizes that the generator's entries have."""
    offset, index = begin, first
    while True:
        size = HEADER + len(entry(index))
        if place < offset + size:
            return index
        offset += size
        index += 1


def test_truncation_below_a_checkpoint_is_named(ledger: Path) -> None:
    segment = listed(ledger / "shard-0")[-1]
    rewrite(segment.path, lambda entries: entries[:-3])
    first = bad(ledger).first_bad
    assert first is not None
    assert (first.kind, first.index) == ("truncated", COUNT - 3)


def test_a_whole_segment_is_missing(ledger: Path) -> None:
    segments = listed(ledger / "shard-0")
    segments[2].path.unlink()
    segments[2].hashes.unlink()
    first = bad(ledger).first_bad
    assert first is not None
    assert (first.kind, first.index) == ("deleted", segments[2].first)


def test_a_rollback_shows_only_against_a_held_checkpoint(ledger: Path) -> None:
    """Entries, hashes and checkpoints cut back to an earlier state: perfect in itself."""
    held = notes_of(ledger)[-1]
    shard = ledger / "shard-0"
    segments = listed(shard)
    for segment in segments[2:]:
        segment.path.unlink()
        segment.hashes.unlink()
    size = segments[2].first
    kept = [note for note in notes_of(ledger) if int(note.split("\n")[1]) <= size]
    (shard / "checkpoints").write_text("".join(kept))
    assert judged(ledger).good
    first = bad(ledger, held).first_bad
    assert first is not None
    assert (first.kind, first.index) == ("truncated", size)


def test_a_fork_shows_against_a_held_checkpoint(original: Path, tmp_path: Path) -> None:
    """The holder of the key writes another history: each is good in itself, and the other's checkpoint convicts it."""
    other = tmp_path / "other"
    ledger = opened(other)
    for number in range(COUNT):
        ledger.shard.append(entry(number, path="/orders" if number < 100 else "/other"))
        if number % 10 == 9:
            assert commit(ledger.shard) is None
    closed(ledger)
    assert judged(other).good
    report = bad(other, notes_of(original)[-1])
    assert [finding.kind for finding in report.findings] == ["forked"]
    assert judged(other, notes_of(original)[5]).good  # up to there they are one


def test_a_forged_checkpoint_is_not_believed(ledger: Path) -> None:
    notes = notes_of(ledger)
    size = notes[-1].split("\n")[1]
    forged = notes[-1].replace(f"\n{size}\n", f"\n{int(size) - 1}\n")
    (ledger / "shard-0" / "checkpoints").write_text("".join([*notes[:-1], forged]))
    assert "bad_checkpoint" in {finding.kind for finding in bad(ledger).findings}


def test_checkpoints_that_are_gone_are_missed(ledger: Path) -> None:
    (ledger / "shard-0" / "checkpoints").unlink()
    assert not judged(ledger).good


@pytest.mark.parametrize("kind", ["edit", "delete", "insert", "reorder"])
def test_nothing_starts_on_a_ledger_changed_since_its_last_checkpoint_but_one(ledger: Path, kind: str) -> None:
    change, _ = KINDS[kind]
    rewrite(listed(ledger / "shard-0")[-1].path, lambda entries: change(entries, 2))
    with pytest.raises(LedgerDamaged):
        opened(ledger, segment_bytes=4096)


def test_nothing_starts_on_a_ledger_that_was_cut_short(ledger: Path) -> None:
    rewrite(listed(ledger / "shard-0")[-1].path, lambda entries: entries[:-1])
    with pytest.raises(LedgerDamaged, match="truncated"):
        opened(ledger, segment_bytes=4096)


def test_a_clients_text_cannot_forge_an_entry() -> None:
    """Whatever stands in a path: one entry stays one record, one line, one object."""
    evil = entry(1, path='/x\\u0000{\\"id\\":\\"forged\\"}\\n')
    record = frame(evil)
    assert list(records(record, 0)) == [(0, len(record))]
    assert entry_of(record) == evil
    assert b"\n" not in evil
