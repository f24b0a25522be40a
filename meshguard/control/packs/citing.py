"""What single requests are judged by under a configuration that names packs: made once for each state, off the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshguard.control.packs.catalogue import pack_of
from meshguard.control.packs.data_checks import field_rules, holds_account_numbers
from meshguard.control.packs.judge import judge
from meshguard.control.packs.model import Subject
from meshguard.telemetry.controls import Citations

if TYPE_CHECKING:
    from meshguard.control.policies import LoadedPolicy
    from meshguard.control.settings.load import LoadedConfiguration

__all__ = ["citations"]


def citations(loaded: LoadedConfiguration, policy: LoadedPolicy) -> Citations:
    """For the packs that the configuration names."""
    configuration = loaded.configuration
    packs = [pack_of(name) for name in configuration.packs]
    subject = Subject(loaded, policy)
    summary: dict[str, dict[str, object]] = {pack.name: {"satisfied": 0, "not_assessed": 0, "not_applicable": 0} for pack in packs}
    for result in judge(subject, packs):
        told = summary[result.pack.name]
        if result.status == "violated":
            violated = told.setdefault("violated", [])
            if isinstance(violated, list):
                violated.append(result.control.id)
        else:
            count = told[result.status]
            told[result.status] = (count if isinstance(count, int) else 0) + 1
    return Citations(
        [(pack.cited(control), control.request) for pack in packs for control in pack.controls if control.request],
        subject.traits(),
        frozenset(rule.id for _, _, rule in field_rules(subject) if holds_account_numbers(rule)),
        configuration.ledger is not None,
        summary,
    )
