"""Puts a configuration and a policy to control packs: each check is run once, whichever controls ask for it."""

from __future__ import annotations

from collections.abc import Iterable

from meshguard.control.packs.data_checks import DATA_CHECKS
from meshguard.control.packs.model import Check, Control, Fault, NotJudged, Pack, Result, Status, Subject
from meshguard.control.packs.policy_checks import POLICY_CHECKS
from meshguard.control.packs.record_checks import RECORD_CHECKS
from meshguard.control.packs.transport_checks import TRANSPORT_CHECKS
from meshguard.model.errors import Problem
from meshguard.sources.complaints import Complaint, Told
from meshguard.sources.documents import place_problems

__all__ = ["CHECKS", "judge"]

CHECKS: dict[str, Check] = {**TRANSPORT_CHECKS, **RECORD_CHECKS, **POLICY_CHECKS, **DATA_CHECKS}


def judge(subject: Subject, packs: Iterable[Pack]) -> list[Result]:
    """A result for each control, in the order of the packs."""
    return [_result(subject, pack, control) for pack in packs for control in pack.controls]


def _result(subject: Subject, pack: Pack, control: Control) -> Result:
    faults: dict[tuple[object, ...], Fault] = {}
    notes: list[str] = []
    open_ones = passed = 0
    for name in control.checks:
        outcome = _outcome(subject, name)
        if isinstance(outcome, NotJudged):
            notes.append(outcome.words)
            open_ones += outcome.status == "not_assessed"
        else:
            passed += not outcome
            faults.update({(fault.file, fault.path, fault.words, fault.value): fault for fault in outcome})
    status: Status
    if faults:
        status = "violated"
    elif open_ones:
        status = "not_assessed"
    else:
        status = "satisfied" if passed else "not_applicable"
    return Result(pack, control, status, tuple(_placed(subject, list(faults.values()))), tuple(dict.fromkeys(notes)))


def _outcome(subject: Subject, name: str) -> list[Fault] | NotJudged:
    outcome = subject.memo.get(name)
    if outcome is None:
        try:
            outcome = list(CHECKS[name](subject))
        except NotJudged as reason:
            outcome = reason
        subject.memo[name] = outcome
    return outcome


def _placed(subject: Subject, faults: list[Fault]) -> list[Problem]:
    """With lines: of what is said, or of the section where it is missing."""
    problems: list[Problem] = []
    if subject.loaded is not None:
        document = subject.loaded.document
        mine = [Complaint(fault.path, fault.words, Told(fault.value) if fault.value else None) for fault in faults if fault.file is None]
        problems += document.problems(mine)
    else:
        problems += [Problem("(installation)", "", fault.words, value=fault.value) for fault in faults if fault.file is None]
    from meshguard.sources.documents import path_text

    theirs = [Problem(fault.file, path_text(fault.path), fault.words, value=fault.value) for fault in faults if fault.file is not None]
    sources = [loaded.document for loaded in subject.policy.documents] if subject.policy is not None else []
    return problems + place_problems(theirs, sources)
