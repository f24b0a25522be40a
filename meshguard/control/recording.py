"""What the control plane puts on record in the ledger: who was cut out and let in, which bundle came, which change was taken or refused.

Each function makes the data of one event, pure and bounded; `Telemetry.event` writes it. Times are whole epoch seconds (the ledger holds
no floating-point numbers). Names of events: `quarantine`, `bundle`, `break_glass`, `reload`, `controls`, `key_destroyed`,
`keys`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshguard.control.inputs import Inputs
    from meshguard.integrity.bundle import Bundle
    from meshguard.policy.quarantine import Entry, Quarantine

__all__ = ["MAX_TEXT", "Tell", "bounded", "bundle_told", "changes", "digests", "silent"]

Tell = Callable[[str, Mapping[str, Any]], object]
"""Puts an event on record, by name and data."""
MAX_TEXT = 2000
"""Characters of one text: an error may list every problem of a hundred documents."""
_MOST = 100
"""Entries of one change of the quarantine that are told one by one; what is more is told as a number."""


def silent(event: str, data: Mapping[str, Any]) -> None:
    """A `Tell` for where no ledger is."""


def bounded(value: Any) -> Any:
    """The same data with every text cut to MAX_TEXT, and valid Unicode."""
    if isinstance(value, str):
        text = value.encode("utf-8", "backslashreplace").decode("utf-8")
        return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
    if isinstance(value, Mapping):
        return {str(key): bounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple | frozenset | set):
        return [bounded(item) for item in value]
    return int(value) if isinstance(value, float) else value


def changes(before: Quarantine, after: Quarantine, now: float, source: str, by: str = "") -> Iterator[dict[str, Any]]:
    """What changed between two sets: `action` add, remove or expire. `by` asked for the change; an entry that begins says so itself."""
    told = 0
    for target, entry in after.entries.items():
        if before.entries.get(target) != entry:
            told += 1
            if told <= _MOST:
                yield _entry("add", entry, source)
    for target, entry in before.entries.items():
        if target not in after.entries:
            told += 1
            if told <= _MOST:
                ended = not entry.alive(now)
                yield {**_entry("expire" if ended else "remove", entry, source), "by": "time to live" if ended else by or source}
    if told > _MOST:
        yield {"action": "more", "count": told - _MOST, "source": source}


def _entry(action: str, entry: Entry, source: str) -> dict[str, Any]:
    return {
        "action": action,
        "target": entry.target,
        "by": entry.by,
        "reason": entry.reason,
        "since": int(entry.since),
        "until": int(entry.until),
        "source": source,
    }


def bundle_told(bundle: Bundle) -> dict[str, Any]:
    """A bundle by what was signed."""
    return {"name": bundle.name, "version": bundle.version, "digest": bundle.digest, "signers": sorted(bundle.signers)}


def digests(inputs: Inputs) -> dict[str, str]:
    """What a change rests on: the digest of the policy, and of the text of the configuration."""
    text = inputs.loaded.document.text.encode("utf-8", "backslashreplace")
    told = {"policy_digest": inputs.policy.digest, "configuration_digest": "sha256:" + hashlib.sha256(text).hexdigest()}
    if inputs.candidate is not None:
        told["bundle_digest"] = inputs.candidate.bundle.digest
    return told
