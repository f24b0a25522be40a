"""The data of events: what changed in a quarantine, and that nothing of it can be without bounds."""

from __future__ import annotations

from meshguard.control.recording import MAX_TEXT, bounded, changes
from meshguard.ledger.entries import event_entry, is_canonical
from meshguard.policy.quarantine import NOBODY, Entry, Quarantine

ONE = Entry("spiffe://shop.example/a", "leaked", "ops", 10.0, 100.0)
TWO = Entry("serial:1f", "", "ops", 20.0)


def test_what_begins_and_what_ends() -> None:
    (begun,) = changes(NOBODY, Quarantine([ONE]), 10.0, "operation")
    assert begun == {
        "action": "add", "target": ONE.target, "by": "ops", "reason": "leaked", "since": 10, "until": 100, "source": "operation",
    }  # fmt: skip
    both = Quarantine([ONE, TWO])
    assert not list(changes(both, Quarantine([TWO, ONE]), 20.0, "file"))
    (removed,) = changes(both, Quarantine([TWO]), 50.0, "operation", "alice")
    assert (removed["action"], removed["by"]) == ("remove", "alice")
    (expired,) = changes(both, Quarantine([TWO]), 100.0, "operation")
    assert (expired["action"], expired["by"]) == ("expire", "time to live")
    (longer,) = changes(both, Quarantine([Entry(ONE.target, "leaked", "ops", 10.0, 900.0), TWO]), 50.0, "file")
    assert (longer["action"], longer["until"]) == ("add", 900)


def test_a_large_change_is_told_by_its_number() -> None:
    many = Quarantine(Entry(f"spiffe://shop.example/{number}", "", "fleet", 1.0) for number in range(250))
    told = list(changes(NOBODY, many, 2.0, "file"))
    assert len(told) == 101
    assert told[-1] == {"action": "more", "count": 150, "source": "file"}


def test_data_is_bounded_and_canonical() -> None:
    data = bounded({"error": "x" * 10_000, "list": ["\ud800"], "until": 1.9, "deep": {"a": True}})
    assert len(data["error"]) == MAX_TEXT
    assert (data["until"], data["deep"]["a"]) == (1, True)
    assert is_canonical(event_entry("reload", data, 1, 2.0))
