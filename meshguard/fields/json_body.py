"""A JSON document as a body: its protected values found, treated and spliced back.

Record keys: a rule may name a member that says which record a value belongs to (`$.orders[*].id` for `$.orders[*].payment.card`). Its
*scope* is what its last wildcard or index selects (here one order; the whole document when it has none): the key of a value is the one
record member in the scope that the value lies in. A value without exactly one such key, a text or a number, is refused.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Generator, Sequence

from meshguard.fields.json_locate import locate, locate_all, locating
from meshguard.fields.json_scan import JsonError, Span, resolve, resolving
from meshguard.fields.json_splice import splice, splicing
from meshguard.fields.selectors import Matcher, Selector
from meshguard.fields.treatment import Work

__all__ = ["JsonRules", "scope_of"]

VALUE_STEPS = 8
"""Steps of 1 us that treating a value counts for."""


def scope_of(record: Selector) -> Selector | None:
    """The selector of a record key's scope; None for the whole document."""
    last = max((place for place, step in enumerate(record.steps[:-1]) if step.name is None), default=-1)
    return Selector(record.text, record.steps[: last + 1]) if last >= 0 else None


class _Record:
    """Where the record keys of one rule are: owner numbers of the key and (0: the whole document) of its scope."""

    __slots__ = ("key", "scope")

    def __init__(self, key: int, scope: int) -> None:
        self.key = key
        self.scope = scope


class JsonRules:
    """The selectors of all rules of a route. `selectors` are (selector, number of the rule), `records` the record key by rule."""

    __slots__ = ("_count", "_records", "matcher")

    def __init__(self, selectors: Sequence[tuple[Selector, int]], records: Sequence[Selector | None]) -> None:
        chosen = [selector for selector, _ in selectors]
        owners = [number for _, number in selectors]
        self._count = len(records)
        self._records: dict[int, _Record] = {}
        for number, record in enumerate(records):
            if record is None or number not in owners:
                continue
            place = len(records) + 2 * number
            scope = scope_of(record)
            self._records[number] = _Record(place + 1, place if scope is not None else 0)
            chosen.append(record)
            owners.append(place + 1)
            if scope is not None:
                chosen.append(scope)
                owners.append(place)
        self.matcher = Matcher(chosen, owners)

    def treat(self, body: bytes, work: Work) -> bytes:
        """The document for its recipient. Raises JsonError and what `Work.treat` raises."""
        if self._records:
            return self._with_records(body, work)
        spans = locate(body, self.matcher)
        if not spans:
            return body
        work.expect(len(spans))
        values = [work.treat(owner, body[start:end]) for owner, _, start, end in spans]
        return self._spliced(body, spans, values, work)

    def treating(self, body: bytes, work: Work, slice_: int) -> Generator[None, None, bytes]:
        """`treat`, pausing after about `slice_` steps of 1 us each."""
        everything = yield from locating(body, self.matcher, slice_)
        keys = {number: _Keys(body, everything, record) for number, record in self._records.items()}
        spans = yield from resolving([span for span in everything if span[0] < self._count] if keys else everything, slice_)
        work.expect(len(spans))
        values: list[bytes | None] = []
        at_once = max(1, slice_ // VALUE_STEPS)
        for place in range(0, len(spans), at_once):
            for owner, _, start, end in spans[place : place + at_once]:
                found = keys.get(owner)
                values.append(work.treat(owner, body[start:end], found.of(start) if found is not None else ""))
            yield
        if not work.changed:
            return body
        result = yield from splicing(body, spans, values, slice_)
        if work.opened_container:
            again = yield from locating(result, self.matcher, slice_)
            yield from resolving([span for span in again if span[0] < self._count], slice_)
        return result

    def _spliced(self, body: bytes, spans: list[Span], values: list[bytes | None], work: Work) -> bytes:
        if not work.changed:
            return body
        result = splice(body, spans, values)
        if work.opened_container:
            # an opened object or array must not bring in what another rule protects
            locate_all(result, self.matcher, self._count)
        return result

    def _with_records(self, body: bytes, work: Work) -> bytes:
        everything = locate_all(body, self.matcher)
        spans = resolve([span for span in everything if span[0] < self._count])
        if not spans:
            return body
        work.expect(len(spans))
        keys = {number: _Keys(body, everything, record) for number, record in self._records.items()}
        values = []
        for owner, _, start, end in spans:
            found = keys.get(owner)
            values.append(work.treat(owner, body[start:end], found.of(start) if found is not None else ""))
        return self._spliced(body, spans, values, work)


class _Keys:
    """The record keys of one rule in one document."""

    __slots__ = ("_keys", "_starts")

    def __init__(self, body: bytes, everything: Sequence[Span], record: _Record) -> None:
        scopes = [(span[2], span[3]) for span in everything if span[0] == record.scope] if record.scope else [(0, len(body))]
        self._starts = [start for start, _ in scopes]
        self._keys: list[tuple[int, str]] = [(end, "") for _, end in scopes]
        for owner, _, start, end in everything:
            if owner == record.key:
                place = bisect_right(self._starts, start) - 1
                if place >= 0 and end <= self._keys[place][0]:
                    if self._keys[place][1]:
                        raise JsonError("a second record key", start)
                    self._keys[place] = (self._keys[place][0], _text(body[start:end], start))

    def of(self, position: int) -> str:
        """The key of the value at `position`. Raises JsonError when there is none."""
        place = bisect_right(self._starts, position) - 1
        if place < 0 or position >= self._keys[place][0] or not self._keys[place][1]:
            raise JsonError("a protected value without its record key", position)
        return self._keys[place][1]


def _text(raw: bytes, position: int) -> str:
    if raw[:1] == b'"':
        return "s:" + str(json.loads(raw))
    if raw[:1] in b"-0123456789":
        return "n:" + raw.decode()
    raise JsonError("a record key that is no text or number", position)
