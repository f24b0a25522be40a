"""The quarantine of a fleet as one signed statement: the whole set, under a number that only goes forward.

One document and not one for each entry: whoever can write to the store, but cannot sign, could otherwise take single entries away, or put
an older one back, and nobody who comes new would notice. So letting somebody in takes a signed set with a higher number, just as cutting
somebody out does; taking the document away, or replaying an old one, changes nothing for a node that knows a newer one.

The payload is JSON in a DSSE envelope; the number is the time of the change in milliseconds, or one more than the number before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from meshguard.integrity.dsse import Envelope, PublicKey, SignatureError, parse_envelope, verify
from meshguard.model.errors import MeshguardError

__all__ = ["MAX_MEMBERS", "PAYLOAD_TYPE", "ContainmentError", "ContainmentSet", "Member", "accept", "encode", "next_sequence", "open_set"]

PAYLOAD_TYPE = "application/vnd.meshguard.quarantine+json"
MAX_MEMBERS = 2000
"""A set of so many fits a message of 1 MiB."""
_FORMAT = 1
_MAX_BYTES = 8 << 20


class ContainmentError(MeshguardError):
    """A set is not taken. `code`: malformed, unsigned, fleet (of another one), rollback, changed (other content under the same number)."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"quarantine {code}: {detail}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Member:
    """Who is cut out: as `policy.quarantine.Entry`."""

    target: str
    reason: str
    by: str
    since: float
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class ContainmentSet:
    """`made` is epoch seconds; `digest` the SHA-256 of the signed payload and `signers` key ids, both filled by `open_set`."""

    fleet: str
    sequence: int
    made: float
    members: tuple[Member, ...]
    digest: str = ""
    signers: frozenset[str] = field(default_factory=frozenset)


def encode(contained: ContainmentSet) -> Envelope:
    """The envelope to sign."""
    payload = {
        "format": _FORMAT,
        "fleet": contained.fleet,
        "sequence": contained.sequence,
        "made": contained.made,
        "quarantine": [
            {"target": each.target, "reason": each.reason, "by": each.by, "since": each.since, "until": each.until}
            for each in contained.members
        ],
    }
    return Envelope(PAYLOAD_TYPE, json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(), ())


def open_set(data: bytes, keys: Iterable[PublicKey], threshold: int) -> ContainmentSet:
    """The set in `data`, signed by `threshold` of `keys`; without keys nobody needs to have signed. Raises ContainmentError."""
    if len(data) > _MAX_BYTES:
        raise ContainmentError("malformed", f"larger than {_MAX_BYTES} octets")
    trusted = list(keys)
    try:
        envelope = parse_envelope(data, PAYLOAD_TYPE)
        signers = verify(envelope, trusted, threshold) if trusted else frozenset[str]()
    except SignatureError as exc:
        raise ContainmentError("unsigned" if exc.code == "too_few_signatures" else "malformed", str(exc)) from exc
    try:
        value = json.loads(envelope.payload)
        if value["format"] != _FORMAT:
            raise ContainmentError("malformed", f"format {_FORMAT} was expected")
        listed = value["quarantine"]
        if not isinstance(listed, list):
            raise ContainmentError("malformed", "a list of members was expected")
        members = tuple(Member(**each) for each in listed)
        found = ContainmentSet(
            value["fleet"],
            value["sequence"],
            float(value["made"]),
            members,
            "sha256:" + hashlib.sha256(envelope.payload).hexdigest(),
            signers,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ContainmentError("malformed", "the payload is no quarantine set") from exc
    _check(found)
    return found


def _check(found: ContainmentSet) -> None:
    whole = isinstance(found.sequence, int) and not isinstance(found.sequence, bool) and found.sequence > 0
    texts = all(isinstance(text, str) for each in found.members for text in (each.target, each.reason, each.by))
    times = all(_is_time(moment) for each in found.members for moment in (each.since, each.until))
    if not (whole and texts and times and isinstance(found.fleet, str)):
        raise ContainmentError("malformed", "fleet, sequence and members of a quarantine set were expected")
    if len(found.members) > MAX_MEMBERS or len({each.target for each in found.members}) != len(found.members):
        raise ContainmentError("malformed", f"at most {MAX_MEMBERS} members, each once")


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12


def accept(found: ContainmentSet, held: ContainmentSet | None, fleet: str) -> None:
    """Whether a node that enforces `held` may take `found`. Raises ContainmentError.

    INVARIANT: the number never goes back, and a number never changes its content."""
    if found.fleet != fleet:
        raise ContainmentError("fleet", f"{found.fleet!r}, this is {fleet!r}")
    if held is None:
        return
    if found.sequence < held.sequence:
        raise ContainmentError("rollback", f"number {found.sequence} after {held.sequence}")
    if found.sequence == held.sequence and found.digest != held.digest:
        raise ContainmentError("changed", f"number {found.sequence} is there with another content")


def next_sequence(before: Sequence[int], now: float) -> int:
    """A number for a change at `now` (epoch seconds), above all numbers of `before`."""
    return max([int(now * 1000), *(number + 1 for number in before)])
