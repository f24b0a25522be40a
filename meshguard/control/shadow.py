"""The candidate policy of a configuration: read and compiled beside the live one.

Whatever is wrong with it (absent files, errors in documents, anything else) leaves it out and is told; the live policy never knows.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from meshguard.control.settings.shadow import ShadowConfig
from meshguard.model.errors import MeshguardError

if TYPE_CHECKING:
    from meshguard.control.pacing import Breathe
    from meshguard.fields.keyset import Keyset
    from meshguard.policy.compiled import CompiledPolicy

__all__ = ["ShadowPolicy", "load_shadow"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ShadowPolicy:
    """`policy` None: there is none that can be asked, and `error` says why."""

    policy: CompiledPolicy | None
    error: str = ""

    def told(self) -> dict[str, object]:
        """For the admin API."""
        policy = self.policy
        return {
            "policy_digest": policy.digest if policy is not None else None,
            "rules": policy.rule_count if policy is not None else 0,
            "error": self.error or None,
        }


def load_shadow(config: ShadowConfig, keysets: Mapping[str, Keyset], breathe: Breathe) -> ShadowPolicy:
    """Never raises for what the documents say."""
    from meshguard.control.policies import load_policy

    try:
        return ShadowPolicy(load_policy(config.policies, keysets=keysets, breathe=breathe).compiled)
    except (MeshguardError, OSError, ValueError) as exc:
        error = str(exc)
    except Exception as exc:
        # the outermost frame of the candidate: an error in it, whatever it is, must not become one of the live policy
        log.exception("the candidate policy could not be compiled")
        error = type(exc).__name__
    log.error("the candidate policy is left out", extra={"data": {"error": error}})
    return ShadowPolicy(None, error)
