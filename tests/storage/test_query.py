"""The index and questions to it: every filter against a plain scan, pages, rebuilding, segments that were compressed or have expired."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from meshguard.ledger.entries import canonical, event_entry, rfc3339
from meshguard.ledger.where import WhereError, where
from meshguard.storage import query as query_module
from meshguard.storage.index import FILE, Index
from meshguard.storage.query import Filter, QueryError, entries, summary
from tests.storage.ledgers import NOW, closed, commit, opened

COUNT = 600
CALLERS = [f"spiffe://shop.example/ns/prod/sa/{name}" for name in ("billing", "support", "support-eu", "admin")]
PATHS = ["/orders", "/orders/7", "/orders/7/items", "/orders0", "/users/1", "/"]


def decision(number: int, chance: random.Random) -> dict[str, Any]:
    verdict = chance.choice(["allow", "allow", "allow", "deny", "refuse", "error"])
    made: dict[str, Any] = {
        "at": number,
        "id": f"boot-{number:x}",
        "outcome": {
            "status": 200 if verdict == "allow" else chance.choice([403, 500]),
            "duration_us": chance.randrange(9999),
            "attempts": 1,
        },
        "schema": "meshguard.decision/1",
        "time": rfc3339(NOW + number // 3),
        "trace_id": f"{number // 2:032x}",
        "what": {"path": chance.choice(PATHS), "method": chance.choice(["GET", "POST"]), "route": "app"},
        "who": {"principal": chance.choice(CALLERS)},
        "why": {"verdict": verdict},
    }
    made["why"]["rule" if verdict == "allow" else "reason"] = chance.choice(["a", "b"])
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    directory = tmp_path_factory.mktemp("queried")
    chance = random.Random(5)
    ledger = opened(directory, segment_bytes=65536)
    kept = []
    for number in range(COUNT):
        value = decision(number, chance)
        kept.append(value)
        if number % 50 == 0:
            ledger.shard.append(canonical({**value, "begun": True}))
        ledger.shard.append(canonical(value))
        if number % 100 == 0:
            ledger.shard.append(event_entry("policy", {"revision": number}, number, NOW + number))
            assert commit(ledger.shard) is None
    ledger.shard.append(canonical({**decision(COUNT, chance), "begun": True}))
    assert commit(ledger.shard) is None
    closed(ledger)
    return directory, kept


@pytest.fixture
def index(made: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> Iterator[Index]:
    with Index(made[0], tmp_path / "i.sqlite") as opened_index:
        assert opened_index.update() == COUNT + 12 + 6 + 1
        assert opened_index.update() == 0
        yield opened_index


def found(index: Index, wanted: Filter, **more: Any) -> list[str]:
    return [entry["id"] for _, entry in entries(index, wanted, limit=more.pop("limit", 10_000), **more)]


def scanned(made: list[dict[str, Any]], test: Any) -> list[str]:
    """Newest first, as the ledger has them."""
    return [entry["id"] for entry in reversed(made) if test(entry)]


FILTERS = {
    "principal": (Filter(principal=CALLERS[1]), lambda e: e["who"]["principal"] == CALLERS[1]),
    "beginning": (Filter(principal=CALLERS[1] + "*"), lambda e: e["who"]["principal"].startswith(CALLERS[1])),
    "path": (Filter(path="/orders"), lambda e: e["what"]["path"] == "/orders"),
    "below": (Filter(path="/orders/**"), lambda e: e["what"]["path"] == "/orders" or e["what"]["path"].startswith("/orders/")),
    "everything": (Filter(path="/**"), lambda e: True),
    "allow": (Filter(verdict="allow"), lambda e: e["why"]["verdict"] == "allow"),
    "deny": (Filter(verdict="deny"), lambda e: e["why"]["verdict"] == "deny"),
    "rule": (Filter(rule="b"), lambda e: e["why"].get("rule") == "b"),
    "reason": (Filter(reason="a", method="POST"), lambda e: e["why"].get("reason") == "a" and e["what"]["method"] == "POST"),
    "status": (Filter(status=500), lambda e: e["outcome"]["status"] == 500),
    "trace": (Filter(trace=f"{17:032x}"), lambda e: e["trace_id"] == f"{17:032x}"),
    "id": (Filter(id="boot-2a"), lambda e: e["id"] == "boot-2a"),
    "times": (Filter(since=(NOW + 50) * 10**6, until=(NOW + 60) * 10**6), lambda e: rfc3339(NOW + 50) <= e["time"] < rfc3339(NOW + 60)),
    "nothing": (Filter(principal="spiffe://nobody"), lambda e: False),
    "all": (Filter(principal=CALLERS[0], path="/orders/**", verdict="deny"), None),
}


@pytest.mark.parametrize(("few", "merged"), [(1, 0), (50, 0), (100_000, 0), (50, 200)], ids=["walks", "either", "gathers", "merges"])
@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_finds_what_a_scan_finds(
    index: Index, made: tuple[Path, list[dict[str, Any]]], name: str, few: int, merged: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_module, "_FEW", few)
    monkeypatch.setattr(query_module, "_MERGED", merged)
    wanted, test = FILTERS[name]
    if test is None:

        def test(entry: Mapping[str, Any]) -> bool:
            return all(FILTERS[part][1](entry) for part in ("below", "deny")) and entry["who"]["principal"] == CALLERS[0]

    got = [name for name in found(index, wanted) if name != f"boot-{COUNT:x}"]
    assert got == scanned(made[1], test)
    paged: list[str] = []
    cursor = ""
    while page := list(entries(index, wanted, limit=7, cursor=cursor)):
        paged += [entry["id"] for _, entry in page]
        cursor = page[-1][0]
    assert [name for name in paged if name != f"boot-{COUNT:x}"] == got


def test_expressions_filter_further(index: Index, made: tuple[Path, list[dict[str, Any]]]) -> None:
    test = where('outcome.status >= 500 and what.path.startswith("/orders") and not who.principal.contains("admin")')
    assert found(index, Filter(), test=test) == scanned(
        made[1],
        lambda e: e["outcome"]["status"] >= 500 and e["what"]["path"].startswith("/orders") and "admin" not in e["who"]["principal"],
    )


def test_a_begun_entry_is_told_only_until_its_decision_comes(index: Index) -> None:
    (last,) = [entry for _, entry in entries(index, Filter(id=f"boot-{COUNT:x}"), limit=5)]
    assert last["interrupted"]
    assert len(found(index, Filter(id="boot-0"))) == 1


def test_events_are_asked_for_by_themselves(index: Index) -> None:
    told = [entry for _, entry in entries(index, Filter(events=True, reason="policy"), limit=10)]
    assert [entry["data"]["revision"] for entry in told] == [500, 400, 300, 200, 100, 0]


def test_the_summary_counts(index: Index, made: tuple[Path, list[dict[str, Any]]]) -> None:
    told = summary(index, Filter(until=(NOW + 150) * 10**6))
    assert told["total"] == sum(told["over_time"]) == 450
    denied = sum(entry["why"]["verdict"] == "deny" for entry in made[1][:450])
    assert dict(map(tuple, told["verdicts"]))["deny"] == denied
    assert sum(count for _, count in told["denied_callers"]) == denied
    assert {name for name, _, _ in told["edges"]} == set(CALLERS)


@pytest.mark.parametrize("harm", ["gone", "garbage", "empty"])
def test_an_index_that_is_lost_is_made_anew(made: tuple[Path, list[dict[str, Any]]], tmp_path: Path, harm: str) -> None:
    path = tmp_path / FILE
    with Index(made[0], path) as index:
        index.update()
    if harm == "gone":
        path.unlink()
    else:
        for suffix in ("-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)
        path.write_bytes(b"" if harm == "empty" else b"no database at all" * 100)
    with Index(made[0], path) as index:
        index.update()
        assert len(found(index, Filter())) == COUNT + 1


def test_an_index_of_another_ledger_is_not_believed(made: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    other = tmp_path / "other"
    ledger = opened(other)
    for number in range(900):
        ledger.shard.append(canonical(decision(number + 5000, random.Random(1))))
    assert commit(ledger.shard) is None
    closed(ledger)
    path = tmp_path / FILE
    with Index(made[0], path) as index:
        index.update()
    with Index(other, path) as index:
        index.update()
        assert len(found(index, Filter())) == 900


WRONG = """
__import__('os') / a.b() / open('x') / [x for x in y] / lambda: 1 / x if y else z / a; b / f'{a}' / x := 1 / what['path'] / (
/ matches('a') / what.path.matches('(') / what.path.matches(what.path) / x ** 9
"""


@pytest.mark.parametrize("text", [text.strip() for text in re.split(r"\s/\s", WRONG)])
def test_an_expression_is_only_an_expression(text: str) -> None:
    with pytest.raises(WhereError):
        where(text)


def test_expressions_never_fail_on_an_entry() -> None:
    entry = orjson.loads(canonical(decision(1, random.Random(1))))
    for text in ("outcome.nothing > 5", "who < 3", "what.path + 1 == 2", "outcome.status / 0 == 1", "nothing.at.all.startswith('x')"):
        assert where(text)(entry) is False
    assert where("nothing == null and what.method in ['GET', 'POST'] and not (1 > 2)")(entry)
    assert where("what.path.matches('^/') and -outcome.status < 0 and 1 < 2 < 3")(entry)
    assert where("outcome.nothing > 5 or outcome.status > 0")(entry)


def test_wrong_questions_are_refused(index: Index) -> None:
    for wrong in (Filter(trace="xyz"), Filter(verdict="maybe")):
        with pytest.raises(QueryError):
            found(index, wrong)
    with pytest.raises(QueryError):
        found(index, Filter(), cursor="nonsense")
