"""Every kind of change to a ledger on disk, at random places, by somebody who knows the format: found, and named.

The attacker mends what can be mended without the signing key: checksums, lengths, and (in some) the stored leaf hashes too.
"""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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


Edit = tuple[str, int]
_PLACES = st.integers(0, COUNT - 1)
_KINDS = st.sampled_from(["edit", "delete", "insert", "repeat", "swap", "move", "cut", "garble"])
_EDITS = st.lists(st.tuples(_KINDS, _PLACES), min_size=1, max_size=4)


def changed(entries: list[bytes], edits: list[Edit]) -> list[bytes]:
    """The entries after these changes, each at a place of what is left."""
    made = list(entries)
    for kind, place in edits:
        if not made:
            break
        place %= len(made)
        if kind == "edit":
            made[place] = made[place].replace(b"/orders", b"/forged", 1)
        elif kind == "delete":
            del made[place]
        elif kind == "insert":
            made.insert(place, entry(9000 + place, path="/never"))
        elif kind == "repeat":
            made.insert(place, made[place])
        elif kind == "swap":
            made[place], made[-1 - place] = made[-1 - place], made[place]
        elif kind == "move":
            made.append(made.pop(place))
        elif kind == "cut":
            del made[place:]
        else:
            made[place] = made[place][: len(made[place]) // 2] + b"}"
    return made


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=_EDITS, hashes=st.booleans(), data=st.data())
def test_any_change_of_a_segment_is_found_at_its_index(original: Path, edits: list[Edit], hashes: bool, data: st.DataObject) -> None:
    """Whatever was done, by somebody who mends every checksum (and in half of the cases the stored hashes): it is found, and what is named
    first is the first entry that differs, or, with the hashes gone, a range that begins at the last checkpoint before it."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(shutil.copytree(original, Path(place) / "ledger"))
        segments = listed(directory / "shard-0")
        number = data.draw(st.integers(0, len(segments) - 1))
        segment = segments[number]
        rewrite(segment.path, lambda entries: changed(entries, edits), hashes=hashes)
        before, after = entries_of(original / "shard-0" / segment.path.name), entries_of(segment.path)
        report = judged(directory)
        if after == before:
            assert report.good
            return
        first = report.shards[0].first_bad
        assert first is not None, (edits, report)
        shared = min(len(before), len(after))
        wrong = segment.first + next((at for at in range(shared) if before[at] != after[at]), shared)
        if hashes:
            assert first.index <= max(wrong, segment.first + len(after))
            assert wrong - 10 <= first.index
        else:
            assert first.index == wrong
            assert first.kind in expected_kinds(before, after, wrong - segment.first)


def expected_kinds(before: list[bytes], after: list[bytes], place: int) -> set[str]:
    """What may be said of the first difference: is the entry that is there known from elsewhere, is the one that should be there kept?"""
    if place == len(after):
        return {"deleted", "truncated"}
    if place == len(before):
        return {"inserted"}
    known, kept = after[place] in before[place:], before[place] in after[place:]
    if known and kept:
        return {"reordered", "inserted", "deleted"}  # a repetition in front of others is both
    return {"deleted"} if known else {"inserted"} if kept else {"edited", "inserted", "deleted"}


def entries_of(path: Path) -> list[bytes]:
    data = path.read_bytes()
    _, begin = Header.parse(data)
    return [data[start + HEADER : end] for start, end in records(data, begin)]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 255)), min_size=1, max_size=6), data=st.data())
def test_any_octets_anywhere(original: Path, changes: list[tuple[int, int]], data: st.DataObject) -> None:
    """Of any file of the shard: a change that is not the same octet again is found (the hashes are derived: what they say is judged by the
    entries)."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(shutil.copytree(original, Path(place) / "ledger"))
        files = sorted(path for path in (directory / "shard-0").iterdir() if path.suffix == ".segment" or path.name == "checkpoints")
        path = data.draw(st.sampled_from(files))
        old = path.read_bytes()
        new = bytearray(old)
        for at, value in changes:
            new[at % len(new)] = value
        path.write_bytes(bytes(new))
        assert judged(directory).good == (bytes(new) == old)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(0, COUNT - 1), kept=st.integers(1, COUNT // 10))
def test_any_rollback_is_found_against_any_later_checkpoint(original: Path, size: int, kept: int) -> None:
    """Cut back with hashes, header and checkpoints, as if the rest had never been: good in itself, not against what was kept elsewhere."""
    held = notes_of(original)[min(kept, len(notes_of(original))) - 1]
    signed = int(held.split("\n")[1])
    with tempfile.TemporaryDirectory() as place:
        directory = Path(shutil.copytree(original, Path(place) / "ledger"))
        shard = directory / "shard-0"
        for segment in listed(shard):
            if segment.first > size:
                segment.path.unlink()
                segment.hashes.unlink()
            else:
                rewrite(segment.path, lambda entries, first=segment.first: entries[: size - first], hashes=True)
        (shard / "checkpoints").write_text("".join(note for note in notes_of(directory) if int(note.split("\n")[1]) <= size))
        report = judged(directory, held)
        assert report.good == (signed <= size), report
        if signed > size:
            assert [finding.kind for finding in report.shards[0].findings][-1] == "truncated"


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
