"""Identity from a SPIFFE Workload API (SPIRE's agent and others): one stream over a Unix socket, renewed for ever.

Source: SPIFFE Workload API and Workload Endpoint standards. The agent sends a full state at the start of the stream and at each change;
when the stream ends the client comes back, with growing pauses. Whoever consumes the updates keeps the last one meanwhile: an agent that
restarts interrupts nothing, and an identity that it does not renew in time ends at its own expiry.

gRPC costs 100 ms and 20 MB to import, so that it is imported by the first call only.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING, Any

from meshguard.identity.material import Material, load_material
from meshguard.identity.pem import MAX_BUNDLE_BYTES, split_der
from meshguard.identity.spiffe import parse_spiffe_id
from meshguard.model.errors import IdentityError, MeshguardError
from meshguard.sources.identity import IdentityUpdate, Report, check_update
from meshguard.sources.workload_messages import FETCH_BUNDLES, FETCH_SVID, SvidEntry, SvidMessage, decode_bundles, decode_svids

if TYPE_CHECKING:
    import grpc.aio

__all__ = ["WorkloadApiSource", "fetch_bundles", "grpc_target", "update_from_message"]

SECURITY_HEADER = (("workload.spiffe.io", "true"),)
"""Sent with every call: a server must refuse calls without it, so that no one is tricked into making them (Workload Endpoint, 6.2)."""
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 30.0


class WorkloadApiSource:
    """An identity source. `address` is `unix:///path/to.sock`; `workload` is the SPIFFE path of the SVID to use where the agent offers
    several, else the first one is used (the agent's order says which is the default: Workload API, 4.2.1)."""

    def __init__(
        self,
        address: str,
        *,
        workload: str | None = None,
        report: Report | None = None,
        clock: Callable[[], float] = time.time,
        first_pause_s: float = FIRST_PAUSE_S,
        longest_pause_s: float = LONGEST_PAUSE_S,
    ) -> None:
        self._address = address
        self._target = grpc_target(address)
        self._workload = workload
        self._report = report
        self._clock = clock
        self._first_pause_s = first_pause_s
        self._longest_pause_s = longest_pause_s
        self.problem = ""
        """What it is waiting for, when it is: for the message of a deadline."""

    async def updates(self) -> AsyncGenerator[IdentityUpdate, None]:
        """See `IdentitySource`. Raises IdentityError (`workload_api_refused`) when the agent says that asking again is of no use."""
        from grpc import StatusCode, aio

        pause_s = self._first_pause_s
        while True:
            async with _channel(self._target) as channel:
                call = channel.unary_stream(FETCH_SVID, bytes, bytes)(b"", metadata=SECURITY_HEADER)
                try:
                    async for data in call:
                        update = await self._take(data)
                        if update is not None:
                            pause_s = self._first_pause_s
                            yield update
                    self._note(IdentityError("workload_api_unavailable", f"{self._address}: the agent ended the stream"))
                except aio.AioRpcError as exc:
                    failure = IdentityError(
                        "workload_api_unavailable", f"{self._address}: {exc.code().name}: {(exc.details() or '')[:300]}"
                    )
                    if exc.code() == StatusCode.INVALID_ARGUMENT:  # Workload Endpoint, 6.2: a client should not ask again
                        raise IdentityError("workload_api_refused", failure.detail) from exc
                    self._note(failure)
                finally:
                    call.cancel()
            # Half of the pause is chance: the workloads of a node must not all come back at the same moment.
            await asyncio.sleep(pause_s * (0.5 + random.random() / 2))
            pause_s = min(pause_s * 2, self._longest_pause_s)

    async def _take(self, data: bytes) -> IdentityUpdate | None:
        try:
            update = await asyncio.to_thread(self._update, data)
        except MeshguardError as exc:
            self._note(exc)
            return None
        self.problem = ""
        return update

    def _update(self, data: bytes) -> IdentityUpdate:
        update = update_from_message(decode_svids(data), self._workload, origin=self._address)
        check_update(update, self._clock())
        return update

    def _note(self, problem: MeshguardError) -> None:
        self.problem = str(problem)
        if self._report is not None:
            self._report(problem)


def update_from_message(message: SvidMessage, workload: str | None, *, origin: str = "") -> IdentityUpdate:
    """Check a message and make the update of it. Raises IdentityError: `workload_api_message`, and the codes of `load_material`."""
    if not message.svids:
        raise IdentityError("workload_api_message", "the agent has no SVID for this workload")
    chosen = _choose(message.svids, workload)
    material = _material(chosen)
    bundles = {material.trust_domain: tuple(split_der(chosen.bundle))}
    for other in message.svids:
        domain = parse_spiffe_id(other.spiffe_id).trust_domain
        bundles.setdefault(domain, tuple(split_der(other.bundle)))
    for key, bundle in message.federated.items():
        identity = parse_spiffe_id(key)
        if identity.path:
            raise IdentityError("workload_api_message", f"the bundle of {key!a} is not named by a trust domain")
        # An SVID's own bundle is the word on its trust domain: what is said of it as federated does not add to it.
        bundles.setdefault(identity.trust_domain, tuple(split_der(bundle)))
    return IdentityUpdate(material, bundles, message.crls, origin=origin)


async def fetch_bundles(address: str, *, deadline_s: float = 10.0) -> tuple[dict[str, tuple[bytes, ...]], tuple[bytes, ...]]:
    """The bundles by trust domain, and the revocation lists, as the agent has them now; for a caller without an SVID of its own.

    Raises IdentityError (`workload_api_unavailable`, `workload_api_message`).
    """
    from grpc import aio

    async with _channel(grpc_target(address)) as channel:
        call = channel.unary_stream(FETCH_BUNDLES, bytes, bytes)(b"", metadata=SECURITY_HEADER, timeout=deadline_s)
        try:
            async for data in call:
                message = decode_bundles(data)
                return {parse_spiffe_id(key).trust_domain: tuple(split_der(value)) for key, value in message.bundles.items()}, message.crls
        except aio.AioRpcError as exc:
            raise IdentityError("workload_api_unavailable", f"{address}: {exc.code().name}: {(exc.details() or '')[:300]}") from exc
        finally:
            call.cancel()
    raise IdentityError("workload_api_unavailable", f"{address}: the agent ended the stream without an answer")


def grpc_target(address: str) -> str:
    """`unix:///path` or `unix:/path` as gRPC's name for it. Raises IdentityError (`workload_api_address`)."""
    path = address.removeprefix("unix:")
    if path == address or not path.startswith("/") or (path.startswith("//") and not path.startswith("///")):
        raise IdentityError("workload_api_address", f"{address!a} is not the address of a Unix socket: expected unix:///path/to/agent.sock")
    return "unix:/" + path.lstrip("/")


def _channel(target: str) -> grpc.aio.Channel:
    from grpc import aio

    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", MAX_BUNDLE_BYTES),
        ("grpc.enable_retries", 0),  # the pauses are ours
        ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection, not the broken one again
    ]
    return aio.insecure_channel(target, options=options)


def _choose(svids: tuple[SvidEntry, ...], workload: str | None) -> SvidEntry:
    if workload is None:
        return svids[0]
    for entry in svids:
        if parse_spiffe_id(entry.spiffe_id).path == workload:
            return entry
    raise IdentityError(
        "workload_api_message", f"the agent has no SVID with the path {workload}: {', '.join(e.spiffe_id for e in svids)[:200]!a}"
    )


def _material(entry: SvidEntry) -> Material:
    material = load_material(split_der(entry.chain), entry.key)
    if material.spiffe_id != entry.spiffe_id:
        raise IdentityError("workload_api_message", f"the SVID is {material.spiffe_id}, the message says {entry.spiffe_id!a}")
    return material
