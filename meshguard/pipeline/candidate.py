"""What a candidate policy would have decided otherwise: asked beside the live decision, and never heard by it.

INVARIANT: the live verdict is settled before the candidate is asked; whatever the candidate does, raising included, changes nothing but
what is told. It has facts of its own: a token that only the candidate looks at leaves no trace in the request.
"""

from __future__ import annotations

import logging
from time import time
from typing import TYPE_CHECKING

from meshguard.model.errors import RequestError
from meshguard.model.verdicts import CandidateResult, Denial, Permit
from meshguard.pipeline.facts import RequestFacts
from meshguard.policy.decision import Conditional

if TYPE_CHECKING:
    from meshguard.model.principal import Principal
    from meshguard.pipeline.exchange import Exchange
    from meshguard.pipeline.plan import Plan
    from meshguard.policy.compiled import CompiledPolicy
    from meshguard.policy.decision import Binding

__all__ = ["Outlook", "bound", "compare", "outlook_of"]

log = logging.getLogger(__name__)

Outlook = CandidateResult | Permit | Denial | Conditional
"""What a plan knows of the candidate: the whole result where both verdicts are final, else what has to be asked at each request."""


def bound(policy: CompiledPolicy, principal: Principal | None) -> Binding | None:
    """The caller under the candidate; None where it could not be bound."""
    try:
        return policy.bind(principal)
    except Exception:
        # the outermost frame of the candidate, as in the other two
        log.exception("the candidate policy failed")
        return None


def outlook_of(binding: Binding, plan: Plan, port: int) -> Outlook:
    """For one plan, whose live outlook is known."""
    try:
        outlook = binding.outlook(plan.method, plan.path, plan.readings, plan.host, port)
    except Exception:
        log.exception("the candidate policy failed")
        return CandidateResult("error")
    if isinstance(outlook, Conditional) or isinstance(plan.outlook, Conditional):
        return outlook
    return _result(outlook, plan.outlook)


def compare(outlook: Outlook, live: Permit | Denial, exchange: Exchange) -> CandidateResult:
    """The candidate's answer for one request, next to the live one."""
    if isinstance(outlook, CandidateResult):
        return outlook
    try:
        verdict = outlook.decide(RequestFacts(exchange, time())) if isinstance(outlook, Conditional) else outlook
    except RequestError as error:  # it needs a token, and this one is not valid
        return CandidateResult("would_deny" if isinstance(live, Permit) else "same", "", error.reason.code)
    except Exception:
        log.exception("the candidate policy failed")
        return CandidateResult("error")
    return _result(verdict, live)


def _result(verdict: Permit | Denial, live: Permit | Denial) -> CandidateResult:
    if isinstance(verdict, Permit):
        effect = "same" if isinstance(live, Permit) else "would_allow"
        return CandidateResult(effect, verdict.rule_id, "", "", verdict.policy_digest)
    effect = "same" if isinstance(live, Denial) else "would_deny"
    near = verdict.near_miss
    nearest = f"{near.rule_id}: {near.condition}" if near is not None else ""
    return CandidateResult(effect, verdict.rule_id or "", verdict.reason.code, nearest, verdict.policy_digest)
