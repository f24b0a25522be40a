"""What every source of identity hands over, and how a first value is awaited.

A source yields complete updates only: own material, all bundles, all revocation lists, checked to work together. What it cannot use it
reports and passes over, so that whoever consumes it keeps the last good state.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from meshguard.identity.material import Material
from meshguard.identity.trust import TrustStore
from meshguard.model.errors import IdentityError, MeshguardError

__all__ = ["IdentitySource", "IdentityUpdate", "Report", "check_update", "first_update"]

Report = Callable[[MeshguardError], None]
"""Told of everything that a running source could not use; never with key material."""


@dataclass(frozen=True, slots=True)
class IdentityUpdate:
    """One complete state of identity: own `material`, the CA certificates of each trust domain as DER, and revocation lists as DER."""

    material: Material
    bundles: Mapping[str, tuple[bytes, ...]]
    crls: tuple[bytes, ...] = ()
    origin: str = field(default="", compare=False)
    """Where it came from, for the record: a file, a socket, a directory."""

    def trust_store(self, generation: int) -> TrustStore:
        """A new store of these bundles and lists (parses them all: some 100 us for each certificate)."""
        return TrustStore(self.bundles, self.crls, generation=generation)


class IdentitySource(Protocol):
    """`updates()` yields the present state first and then each change, until it is closed. It raises only for what no waiting can mend."""

    def updates(self) -> AsyncGenerator[IdentityUpdate, None]: ...


def check_update(update: IdentityUpdate, now: float) -> None:
    """Refuse an update whose own SVID we would refuse from anyone else, at `now` (epoch seconds). Raises IdentityError."""
    store = update.trust_store(0)
    own = update.material.trust_domain
    for domain, problem in store.problems:
        # A partner's bad certificate is left out by the store; a bad one of our own domain is worth stopping for.
        if domain == own:
            raise problem
    store.verify(update.material.chain, now)


async def first_update(updates: AsyncGenerator[IdentityUpdate, None], deadline_s: float, why: Callable[[], str] = str) -> IdentityUpdate:
    """The first value of a source, within `deadline_s` seconds; `why` tells what it was last waiting for.

    Raises IdentityError (`identity_unavailable`) when the time is over or the source ends, and whatever the source raises. The
    iterator is not usable after an error.
    """
    try:
        async with asyncio.timeout(deadline_s):
            return await anext(updates)
    except TimeoutError as exc:
        raise IdentityError(
            "identity_unavailable", f"no identity within {deadline_s:g} s; {why() or 'the source has not answered'}"
        ) from exc
    except StopAsyncIteration as exc:
        raise IdentityError("identity_unavailable", "the source of identity has ended") from exc
