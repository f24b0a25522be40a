"""The tally of shadows is bounded, adds up over processes, and is the same from records and from the ledger."""

from __future__ import annotations

from meshguard.telemetry.shadow import CALLS, EXAMPLES, OTHER, ROWS, Tally, merged, observed


def test_rows_calls_and_examples_are_bounded() -> None:
    tally = Tally()
    for number in range(CALLS + 50):
        tally.add(("rule", "r", "would_deny", "a", "GET", f"/{number}"), f"id-{number}", float(number))
    (row,) = tally.rows()
    assert row["count"] == CALLS + 50
    assert len(row["calls"]) == CALLS + 1
    assert row["calls"][0] == [*OTHER, 50]
    assert row["examples"] == [f"id-{number}" for number in range(CALLS + 50 - EXAMPLES, CALLS + 50)]
    assert (row["since"], row["until"]) == (0.0, CALLS + 49.0)
    for number in range(ROWS + 10):
        tally.add(("rule", f"r{number}", "would_allow", "a", "GET", "/"), "x", 1.0)
    assert len(tally.rows()) == ROWS
    assert tally.dropped == 11
    tally.add(("rule", "r", "would_deny", "a", "GET", "/" + "x" * 10_000), "y", 1.0)


def test_processes_are_added_up() -> None:
    one, other = Tally(), Tally()
    one.add(("candidate", "read", "would_allow", "a", "GET", "/1"), "id-1", 10.0)
    other.add(("candidate", "read", "would_allow", "a", "GET", "/1"), "id-2", 20.0, 2)
    other.add(("field", "card", "would_mask", "a", "GET", "/1"), "id-2", 20.0)
    first, second = merged([one.rows(), other.rows()])
    assert (first["count"], first["calls"], set(first["examples"])) == (3, [["a", "GET", "/1", 3]], {"id-1", "id-2"})
    assert (first["since"], second["kind"]) == (10.0, "field")


def test_what_a_record_says_of_shadows() -> None:
    entry = {
        "why": {"shadow": [{"rule": "r", "effect": "would_deny"}]},
        "candidate": {"effect": "would_allow", "rule": "read"},
        "fields": [{"operation": "seal", "field": "a", "count": 9}, {"operation": "would_mask", "field": "b", "count": 2}],
    }
    assert list(observed(entry)) == [
        ("rule", "r", "would_deny", 1),
        ("candidate", "read", "would_allow", 1),
        ("field", "b", "would_mask", 2),
    ]
    assert not list(observed({"who": {}}))
