"""Table-driven attacks: what is sent, what must come of it, and the checks that hold after every case.

After each case, whatever it was: every byte that the upstream received was strict HTTP/1.1 and belongs to an expected request, and
an innocent request on a new connection gets its own answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tests.harness.client import RawClient, Response, get, segments
from tests.harness.strict import Truncated
from tests.harness.upstream import Seen, Upstream

_tokens = itertools.count(1)

FRAMING = frozenset({400, 501})
SYNTAX = frozenset({400})
WHOLE_AND_SPLIT = ("whole", "halves", "crlf")
ALL_SEGMENTATIONS = ("whole", "halves", "crlf", "lines", "threes", "bytes")


@dataclass(frozen=True)
class Refused:
    """Answered by meshguard itself with one of `statuses`; nothing of it reaches the upstream. `closes`: None when both are right.
    `first` innocent requests before it (pipelined) are answered."""

    statuses: frozenset[int] = SYNTAX
    closes: bool | None = True
    first: tuple[str, ...] = ()


@dataclass(frozen=True)
class Broken:
    """The body breaks after the head was good: the upstream may hold a part but no complete request; the client gets one of
    `statuses` or a closed connection, never a success."""

    statuses: frozenset[int] = SYNTAX


@dataclass(frozen=True)
class Forwarded:
    """Each of `targets` reaches the upstream in order and is answered by its own echo; `check` looks at what the upstream saw."""

    targets: tuple[str, ...]
    bodies: tuple[bytes, ...] | None = None
    closes: bool | None = False
    check: Callable[[list[Seen]], None] | None = None
    statuses: tuple[int, ...] | None = None
    interim: tuple[int, ...] = ()


@dataclass(frozen=True)
class Either:
    """Refusing and forwarding (cleaned) are both right."""

    refused: Refused
    forwarded: Forwarded


Outcome = Refused | Broken | Forwarded | Either


@dataclass(frozen=True)
class Case:
    """`data` as sent; `methods` of the answers that are expected (for framing of HEAD answers)."""

    id: str
    data: bytes
    outcome: Outcome
    methods: tuple[str, ...] = ()
    segmentations: tuple[str, ...] = WHOLE_AND_SPLIT
    note: str = field(default="", compare=False)


def innocent(open_client: Callable[[], RawClient], upstream: Upstream) -> str:
    """A good request on a new connection: answered by its own echo. Returns its target."""
    target = f"/innocent/{next(_tokens)}"
    with open_client() as client:
        answer = client.request(get(target))
    assert answer.status == 200, f"an innocent request afterwards got {answer} {answer.head.raw!r}"
    assert answer.get("x-seen-target") == target, f"an innocent request got another's answer: {answer}"
    return target


def attack(
    case: Case, engine: str, dial: Callable[..., RawClient], upstream: Upstream, *, segmentations: tuple[str, ...] | None = None
) -> None:
    """Runs one case in all its segmentations: the first over mTLS, the others (and the innocent requests) in plaintext, where a segment
    is what one read of the proxy sees and no handshake has to be paid."""
    plain = f"plain-{engine}"
    for index, how in enumerate(segmentations or case.segmentations):
        listener = plain if index else engine
        run(case, how, lambda: dial(listener, deadline_s=4.0), upstream, lambda: dial(plain, deadline_s=4.0))  # noqa: B023


def run(
    case: Case, how: str, open_client: Callable[[], RawClient], upstream: Upstream, open_innocent: Callable[[], RawClient] | None = None
) -> None:
    """Runs one case in one segmentation and checks everything."""
    mark = upstream.mark()
    try:
        with open_client() as client:
            client.send(segments(case.data, how), expect=case.methods or None)
            outcome = case.outcome
            if isinstance(outcome, Broken):
                _broken(outcome, client)
            else:
                _answers(outcome, client, upstream)
        afterwards = innocent(open_innocent or open_client, upstream)
        seen = upstream.since(mark)
        assert not upstream.violations_since(mark), f"the upstream received malformed bytes: {upstream.violations_since(mark)}"
        others = [s for s in seen if s.target != afterwards and not s.target.startswith("/sentinel/")]
        match case.outcome:
            case Refused(first=first):
                assert [s.target for s in others] == list(first), f"a refused request reached the upstream: {others}"
            case Broken():
                assert not any(s.complete for s in others), f"a broken body looked complete to the upstream: {others}"
                assert len(others) <= 1, others
            case Forwarded():
                _forwarded(case.outcome, others)
            case Either():
                if others:
                    _forwarded(case.outcome.forwarded, others)
        total = sum(len(s.head.raw) for s in seen)
        assert upstream.bytes_since(mark) >= total
        if isinstance(case.outcome, Refused) and not case.outcome.first:
            assert upstream.bytes_since(mark) == total, "bytes that belong to no request reached the upstream"
    except AssertionError as exc:
        raise AssertionError(f"[{case.id} / {how}] sent {case.data[:400]!r}\n{exc}") from exc
    except Exception as exc:
        raise AssertionError(f"[{case.id} / {how}] sent {case.data[:400]!r}\n{type(exc).__name__}: {exc}") from exc


def _forwarded(outcome: Forwarded, others: list[Seen]) -> None:
    assert [s.target for s in others] == list(outcome.targets), f"the upstream saw {others}, expected {outcome.targets}"
    assert all(s.complete for s in others), f"incomplete at the upstream: {others}"
    if outcome.bodies is not None:
        assert [bytes(s.body) for s in others] == list(outcome.bodies)
    if outcome.check is not None:
        outcome.check(others)


def _broken(outcome: Broken, client: RawClient) -> None:
    """A refusal or the end of the connection; in any case the connection ends."""
    try:
        answers = client.rest()
    except Truncated as exc:
        raise AssertionError(f"the answer was cut off: {exc}") from exc
    assert len(answers) <= 1, f"a broken request got {len(answers)} answers: {answers}"
    for answer in answers:
        assert answer.status in outcome.statuses, f"a broken request got {answer}"


def _is_refusal(answer: Response, statuses: Iterable[int]) -> None:
    assert answer.status in statuses, f"expected one of {sorted(statuses)}, got {answer}"
    assert answer.decision_id
    assert set(answer.problem) <= {"type", "title", "status", "code", "instance"}, "a refusal tells more than it should"


def _closed_or_serving(client: RawClient, closes: bool | None, last: Response) -> None:
    announced = "close" in [v.strip().lower() for value in last.head.all("connection") for v in value.split(",")]
    if closes is True or (closes is None and announced):
        client.assert_closed()
    elif closes is False or not client.eof:
        assert not announced, "Connection: close where the connection should go on"
        target = f"/sentinel/{next(_tokens)}"
        try:
            answer = client.request(get(target))
        except Truncated:
            assert closes is None, "the connection ended where it should go on"
            return
        assert answer.status == 200, f"the next request on the connection got {answer}"
        assert answer.get("x-seen-target") == target, f"the next request on the connection got another's answer: {answer}"


def _answers(outcome: Refused | Forwarded | Either, client: RawClient, upstream: Upstream) -> None:
    if isinstance(outcome, Either):
        first = client.response()
        if first.status in outcome.refused.statuses:
            _is_refusal(first, outcome.refused.statuses)
            _closed_or_serving(client, outcome.refused.closes, first)
            return
        outcome, answers = outcome.forwarded, [first]
    else:
        answers = []
    if isinstance(outcome, Refused):
        for target in outcome.first:
            answer = client.response()
            assert answer.status == 200, answer
            assert answer.get("x-seen-target") == target, answer
        answer = client.response()
        _is_refusal(answer, outcome.statuses)
        _closed_or_serving(client, outcome.closes, answer)
        return
    while len(answers) < len(outcome.targets):
        answers.append(client.response())
    statuses = outcome.statuses or (200,) * len(outcome.targets)
    assert [a.status for a in answers] == list(statuses), answers
    for answer, target in zip(answers, outcome.targets, strict=True):
        if answer.status == 200:
            assert answer.get("x-seen-target") == target, f"answer of another request: {answer}"
    if outcome.interim:
        assert tuple(h.status for h in answers[0].interim) == outcome.interim, answers[0].interim
    _closed_or_serving(client, outcome.closes, answers[-1])
