"""Which requests get spans, and the ids of spans that were not drawn on the path.

The path draws one span id per request, the parent id for the next hop. The id of the server span is only needed when a span is
really recorded, so it is derived here, as a pure function of the record: the decision log and the span encoder see the same id
without storing it, and a request that was not sampled can still be recorded afterwards because it was denied or failed.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b

from meshguard.model.record import RequestRecord
from meshguard.telemetry.outcome import verdict_name

__all__ = ["ALWAYS", "SpanIds"]

ALWAYS = ("denials", "errors")
"""What can be recorded whatever the sampling says: `denials` (verdicts deny and refuse), `errors` (verdict error, status 5xx, aborted)."""


class SpanIds:
    """Decides about and identifies the spans of a record. `key` is a random 64-bit number of this process.

    Raises ValueError for a word in `always` that is not in ALWAYS.
    """

    __slots__ = ("_denials", "_errors", "_key", "_secret")

    def __init__(self, key: int, always: Collection[str] = ()) -> None:
        unknown = sorted(set(always) - set(ALWAYS))
        if unknown:
            raise ValueError(f"always: expected {' or '.join(ALWAYS)}, not {unknown[0]!r}")
        self._key = key & (2**64 - 1)
        self._secret = self._key.to_bytes(8, "big")
        self._denials = "denials" in always
        self._errors = "errors" in always

    def recorded(self, record: RequestRecord) -> bool:
        """Whether this request gets spans."""
        if record.sampled:
            return True
        refusal = record.refusal
        if refusal is None and record.status < 500 and not record.aborted:
            return False  # the usual case, without a call
        verdict = verdict_name(type(record.verdict), refusal)
        if verdict in ("deny", "refuse"):
            return self._denials
        return self._errors and (verdict == "error" or record.status >= 500 or bool(record.aborted))

    def trace_id(self, record: RequestRecord) -> bytes:
        """32 hex digits: the trace of the record, or one of its own when its head was refused before a trace could begin."""
        return record.trace_id or self._derived(record, 16)

    def server_span_id(self, record: RequestRecord) -> bytes:
        """16 hex digits, the same at each call."""
        if record.span_id:
            return record.span_id
        if record.client_span_id:
            # a random number, moved by a constant: as random as before, and different from the client span's id
            return b"%016x" % (int(record.client_span_id, 16) ^ self._key or 1)
        return self._derived(record, 8)

    def _derived(self, record: RequestRecord, size: int) -> bytes:
        return blake2b(record.decision_id.encode(), digest_size=size, key=self._secret).hexdigest().encode()
