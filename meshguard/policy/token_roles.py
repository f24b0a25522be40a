"""Which roles the claims of a token give: an index by claim and value, so the cost follows the token and not the number of roles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from meshguard.policy.conditions import claim_members, member_key
from meshguard.policy.rules import Role

__all__ = ["TokenRoles"]


class TokenRoles:
    """Roles with a `jwt` part; a role is given when each claim it names has one of its values."""

    __slots__ = ("_by_claim", "_needed")

    def __init__(self, roles: Sequence[Role]) -> None:
        self._needed: dict[int, int] = {}
        self._by_claim: dict[str, dict[tuple[str, object], list[int]]] = {}
        for role in roles:
            if role.claims:
                self._needed[role.subject] = len(role.claims)
            for claim in role.claims:
                values = self._by_claim.setdefault(claim.path, {})
                for key in claim.keys:
                    values.setdefault(key, []).append(role.subject)

    def held(self, claims: Mapping[str, object]) -> set[int]:
        """Subjects of the roles whose every claim is satisfied."""
        counts: dict[int, int] = {}
        for path, values in self._by_claim.items():
            satisfied: set[int] = set()
            for member in claim_members(claims, path):
                satisfied.update(values.get(member_key(member), ()))
            for subject in satisfied:
                counts[subject] = counts.get(subject, 0) + 1
        return {subject for subject, count in counts.items() if count == self._needed[subject]}
