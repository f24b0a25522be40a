"""Which controls of the named packs a request was judged by, satisfied and violated: cited in its decision record.

A request is put to tests; each control names the tests that it is about. What a test needs of the rule was worked out when the policy came
into force (`policy.traits`), so a request costs a handful of comparisons and one look-up; equal outcomes share one fragment of JSON.

    decided          the policy decided before anything was sent
    default_deny     it was denied, or allowed by a rule that does not allow everybody everything
    authenticated    allowed with a verified identity (of a workload, or of a user by token); or not allowed
    callers_named, least_privilege   the rule that allowed it names its callers; its methods and paths
    encrypted        it came over TLS 1.2 or 1.3 (not asked of the own workload's calls)
    certificate_90d, certificate_1d  the caller's certificate lives no longer than that
    need_to_know     an account number passed, and the policy said who sees what of it
    recorded         the decision goes into a ledger
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson

from meshguard.model.record import RequestRecord
from meshguard.model.verdicts import Denial, Permit

__all__ = ["TESTS", "Citations", "Cited"]

TESTS = (
    *("decided", "default_deny", "authenticated", "callers_named", "least_privilege", "encrypted"),
    *("certificate_90d", "certificate_1d", "need_to_know", "recorded"),
)
_MOST = 4096  # outcomes that are kept; then the memo starts anew
_DAY_S = 86400.0
_SLACK_S = 3600.0  # issuers back-date against clocks that are slow
_SECURE = ("TLSv1.3", "TLSv1.2")
_UNASKED = ("identity_required", "identity_expired", "identity_revoked", "quarantined", "token_required", "token_invalid")
"""Refusals before the decision by which a caller without a good identity got nothing."""
_WIDE_CALLERS = frozenset(("anonymous", "any_caller", "wild_caller"))
_WIDE_SCOPE = frozenset(("any_method", "any_path"))


class Cited:
    """What is cited for requests of one outcome."""

    __slots__ = ("fragment", "violated")

    def __init__(self, satisfied: Sequence[str], violated: Sequence[str]) -> None:
        self.violated = tuple(violated)
        told = {"satisfied": list(satisfied), "violated": list(violated)}
        self.fragment = orjson.Fragment(orjson.dumps({key: value for key, value in told.items() if value}, option=orjson.OPT_SORT_KEYS))


class Citations:
    """`controls` are (id as it is cited, names of tests); `traits` those of each allow rule by id; `sensitive` the ids of field rules about
    account numbers; `recorded`: there is a ledger. `summary` says how the configuration stands to the packs, for the record."""

    __slots__ = ("_controls", "_known", "_recorded", "_sensitive", "_traits", "summary")

    def __init__(
        self,
        controls: Sequence[tuple[str, Sequence[str]]],
        traits: Mapping[str, frozenset[str]],
        sensitive: frozenset[str],
        recorded: bool,
        summary: Mapping[str, object],
    ) -> None:
        self._controls = tuple(controls)
        self._traits = {rule: found for rule, found in traits.items() if found}
        self._sensitive = sensitive
        self._recorded = recorded
        self._known: dict[tuple[object, ...], Cited] = {}
        self.summary = summary

    def cite(self, record: RequestRecord) -> Cited:
        """For one finished request (or one whose answer begins)."""
        verdict, principal, peer = record.verdict, record.principal, record.peer
        rule = verdict.rule_id if verdict.__class__ is Permit and verdict is not None else None
        lives_s = principal.not_after - principal.not_before if principal is not None and principal.not_before else 0.0
        refusal = record.refusal
        key = (
            verdict.__class__,
            rule,
            principal is not None or bool(record.subject),
            -1 if peer.outbound else peer.tls_version in _SECURE,
            0 if not lives_s else 1 if lives_s <= _DAY_S + _SLACK_S else 2 if lives_s <= 90 * _DAY_S + _SLACK_S else 3,
            bool(record.operations) and any(act.field in self._sensitive for act in record.operations),
            verdict is None and refusal is not None and refusal.code in _UNASKED,
        )
        cited = self._known.get(key)
        if cited is None:
            if len(self._known) >= _MOST:
                self._known.clear()
            cited = self._known[key] = self._work_out(*key)
        return cited

    def _work_out(
        self, kind: type[object], rule: str | None, known: bool, secure: int, life: int, sensitive: bool, turned_away: bool
    ) -> Cited:
        permitted = kind is Permit
        wide = self._traits.get(rule or "", frozenset())
        outcome: dict[str, bool] = {"recorded": self._recorded}
        if secure >= 0:
            outcome["encrypted"] = bool(secure)
        if life:
            outcome["certificate_1d"], outcome["certificate_90d"] = life == 1, life <= 2
        if sensitive:
            outcome["need_to_know"] = True
        if permitted or kind is Denial:
            outcome["decided"] = True
            outcome["default_deny"] = not (permitted and "allow_all" in wide)
            outcome["authenticated"] = known or not permitted
        elif turned_away:
            outcome["authenticated"] = True
        if permitted:
            outcome["callers_named"] = not (wide & _WIDE_CALLERS)
            outcome["least_privilege"] = not (wide & _WIDE_SCOPE)
        satisfied: list[str] = []
        violated: list[str] = []
        for cited, tests in self._controls:
            judged = [outcome[test] for test in tests if test in outcome]
            if judged:
                (satisfied if all(judged) else violated).append(cited)
        return Cited(satisfied, violated)
