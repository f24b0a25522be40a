"""The Workload API client against a real gRPC server on a Unix socket."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc import aio

from meshguard.model.errors import IdentityError, MeshguardError
from meshguard.sources.identity import IdentityUpdate, first_update
from meshguard.sources.workload_api import WorkloadApiSource, fetch_bundles, grpc_target
from tests.identity.pki import Ca, Issued, key
from tests.sources.test_workload_messages import MESSAGES

NOW = time.time()
TIMES: dict[str, Any] = {"start": NOW - 3600, "end": NOW + 3600}
SHOP = Ca("shop.example", start=NOW - 3600, end=NOW + 86400)
PARTNER = Ca("partner.example", start=NOW - 3600, end=NOW + 86400)


def entry(leaf: Issued, ca: Ca = SHOP, **changes: Any) -> Any:
    identity = leaf.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value[0].value
    arguments = {"spiffe_id": identity, "x509_svid": b"".join(leaf.chain), "x509_svid_key": leaf.key_der, "bundle": ca.der}
    return MESSAGES["X509SVID"](**(arguments | changes))


def response(*svids: Any, **more: Any) -> bytes:
    return MESSAGES["X509SVIDResponse"](svids=svids, **more).SerializeToString()


class Agent:
    """What an agent does that matters here: states pushed to every open stream, refusals, deaths."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state: bytes = b""
        self.refusal: grpc.StatusCode | None = None
        self.calls: list[dict[str, Any]] = []
        self.bundles: bytes = b""
        self.end_after_one = False
        self._changed = asyncio.Condition()
        self._server: aio.Server | None = None

    async def push(self, state: bytes) -> None:
        async with self._changed:
            self.state = state
            self._changed.notify_all()

    async def _fetch(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        metadata = dict(context.invocation_metadata())
        self.calls.append(metadata)
        assert request == b""
        if metadata.get("workload.spiffe.io") != "true":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        if self.refusal is not None:
            await context.abort(self.refusal, "no identity issued")
        while True:
            async with self._changed:
                state = self.state
                yield state
                if self.end_after_one:
                    return
                while self.state is state:
                    await self._changed.wait()

    async def _fetch_bundles(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        assert dict(context.invocation_metadata()).get("workload.spiffe.io") == "true"
        if self.bundles:
            yield self.bundles

    async def start(self) -> None:
        handler = grpc.method_handlers_generic_handler(
            "SpiffeWorkloadAPI",
            {
                "FetchX509SVID": grpc.unary_stream_rpc_method_handler(self._fetch, None, None),
                "FetchX509Bundles": grpc.unary_stream_rpc_method_handler(self._fetch_bundles, None, None),
            },
        )
        self._server = aio.server()
        self._server.add_generic_rpc_handlers((handler,))
        self._server.add_insecure_port(f"unix:{self.path}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None
        self.path.unlink(missing_ok=True)


@asynccontextmanager
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    running = Agent(tmp_path / "agent.sock")
    running.state = response(entry(SHOP.issue("/web", **TIMES)))
    await running.start()
    try:
        yield running
    finally:
        await running.stop()


@asynccontextmanager
async def updates_of(running: Agent, **more: Any) -> AsyncIterator[tuple[Callable[[], Any], asyncio.Queue[MeshguardError]]]:
    problems: asyncio.Queue[MeshguardError] = asyncio.Queue()
    source = WorkloadApiSource(f"unix://{running.path}", report=problems.put_nowait, first_pause_s=0.02, longest_pause_s=0.1, **more)
    updates = source.updates()

    async def take() -> IdentityUpdate:
        return await first_update(updates, 15, lambda: source.problem)

    try:
        yield take, problems
    finally:
        await updates.aclose()


async def test_first_state(tmp_path: Path) -> None:
    intermediate = SHOP.intermediate(**TIMES)
    leaf = intermediate.issue("/web", **TIMES)
    crl = PARTNER.crl(start=NOW - 60, end=NOW + 600)
    async with agent(tmp_path) as running, updates_of(running) as (take, problems):
        running.state = response(entry(leaf), crl=[crl], federated_bundles={"spiffe://partner.example": PARTNER.der + SHOP.der})
        update = await take()
        assert update.material.spiffe_id == "spiffe://shop.example/web"
        assert update.material.chain == (leaf.der, intermediate.der)
        assert update.bundles == {"shop.example": (SHOP.der,), "partner.example": (PARTNER.der, SHOP.der)}
        assert update.crls == (crl,)
        assert running.calls[0]["workload.spiffe.io"] == "true"
        assert problems.empty()


async def test_streamed_updates(tmp_path: Path) -> None:
    async with agent(tmp_path) as running, updates_of(running) as (take, _):
        await take()
        renewed = SHOP.issue("/web", **TIMES)
        await running.push(response(entry(renewed)))
        assert (await take()).material.chain == (renewed.der,)
        await running.push(response(entry(renewed), federated_bundles={"spiffe://partner.example": PARTNER.der}))
        assert set((await take()).bundles) == {"shop.example", "partner.example"}
        await running.push(response(entry(renewed)))
        assert set((await take()).bundles) == {"shop.example"}
        assert len(running.calls) == 1


async def test_several_svids(tmp_path: Path) -> None:
    own, other = SHOP.issue("/a", **TIMES), PARTNER.issue("/b", **TIMES)
    async with agent(tmp_path) as running:
        running.state = response(entry(own), entry(other, PARTNER))
        async with updates_of(running) as (take, _):
            assert (await take()).material.spiffe_id == "spiffe://shop.example/a"
        async with updates_of(running, workload="/b") as (take, _):
            update = await take()
            assert update.material.spiffe_id == "spiffe://partner.example/b"
            assert set(update.bundles) == {"shop.example", "partner.example"}
        async with updates_of(running, workload="/c") as (take, problems):
            pending = asyncio.ensure_future(take())
            assert "no SVID with the path /c" in str(await asyncio.wait_for(problems.get(), 10))
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)


async def test_unusable_states_are_reported_and_passed_over(tmp_path: Path) -> None:
    good = SHOP.issue("/web", **TIMES)
    bad: list[tuple[bytes, str]] = [
        (response(), "no SVID for this workload"),
        (b"\x0a\x05abc", "cut off"),
        (response(entry(good, x509_svid=b"junk")), "certificate_malformed"),
        (response(entry(good, x509_svid_key=SHOP.issue("/x", private=key("p384")).key_der)), "key_mismatch"),
        (response(entry(good, spiffe_id="spiffe://shop.example/admin")), "the message says"),
        (response(entry(good, bundle=b"")), "untrusted"),
        (response(entry(good, PARTNER)), "untrusted"),
        (response(entry(SHOP.issue("/web", start=NOW - 7200, end=NOW - 60))), "expired"),
        (response(entry(good), crl=[b"junk"]), "crl_malformed"),
        (response(entry(good), federated_bundles={"partner.example": PARTNER.der}), "spiffe_scheme"),
        (response(entry(good), federated_bundles={"spiffe://partner.example/x": PARTNER.der}), "not named by a trust domain"),
    ]
    async with agent(tmp_path) as running, updates_of(running) as (take, problems):
        first = await take()
        pending = asyncio.ensure_future(take())
        for state, said in bad:
            await running.push(state)
            problem = str(await asyncio.wait_for(problems.get(), 10))
            assert said in problem
            assert not pending.done()
        renewed = SHOP.issue("/web", **TIMES)
        await running.push(response(entry(renewed)))
        update = await pending
        assert update.material.chain == (renewed.der,) != first.material.chain
        assert len(running.calls) == 1


async def test_a_federated_bundle_does_not_add_to_our_own(tmp_path: Path) -> None:
    async with agent(tmp_path) as running, updates_of(running) as (take, _):
        running.state = response(entry(SHOP.issue("/web", **TIMES)), federated_bundles={"spiffe://shop.example": PARTNER.der})
        assert (await take()).bundles == {"shop.example": (SHOP.der,)}


async def test_bad_federated_certificate_is_only_that(tmp_path: Path) -> None:
    """A partner that publishes rubbish does not keep us from our own renewal."""
    async with agent(tmp_path) as running, updates_of(running) as (take, _):
        running.state = response(
            entry(SHOP.issue("/web", **TIMES)), federated_bundles={"spiffe://partner.example": PARTNER.issue("/x").der}
        )
        update = await take()
        store = update.trust_store(1)
        assert [domain for domain, _ in store.problems] == ["partner.example"]
        assert store.verify(update.material.chain, NOW)


async def test_agent_restarts(tmp_path: Path) -> None:
    async with agent(tmp_path) as running, updates_of(running) as (take, problems):
        await take()
        pending = asyncio.ensure_future(take())
        await running.stop()
        assert "workload_api_unavailable" in str(await asyncio.wait_for(problems.get(), 10))
        renewed = SHOP.issue("/web", **TIMES)
        running.state = response(entry(renewed))
        await running.start()
        assert (await pending).material.chain == (renewed.der,)


async def test_agent_comes_later(tmp_path: Path) -> None:
    async with agent(tmp_path) as running:
        await running.stop()
        async with updates_of(running) as (take, problems):
            pending = asyncio.ensure_future(take())
            await asyncio.wait_for(problems.get(), 10)
            await asyncio.wait_for(problems.get(), 10)
            await running.start()
            assert (await pending).material.spiffe_id


async def test_not_registered_yet(tmp_path: Path) -> None:
    """SPIRE answers PERMISSION_DENIED until the workload has an entry: asked again until it has."""
    async with agent(tmp_path) as running, updates_of(running) as (take, problems):
        running.refusal = grpc.StatusCode.PERMISSION_DENIED
        pending = asyncio.ensure_future(take())
        assert "PERMISSION_DENIED: no identity issued" in str(await asyncio.wait_for(problems.get(), 10))
        running.refusal = None
        assert (await pending).material.spiffe_id


async def test_refused_for_good(tmp_path: Path) -> None:
    async with agent(tmp_path) as running, updates_of(running) as (take, _):
        running.refusal = grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(IdentityError) as caught:
            await take()
        assert caught.value.code == "workload_api_refused"


async def test_deadline_says_what_it_waits_for(tmp_path: Path) -> None:
    source = WorkloadApiSource(f"unix://{tmp_path / 'nobody.sock'}", first_pause_s=0.02)
    with pytest.raises(IdentityError) as caught:
        await first_update(source.updates(), 0.5, lambda: source.problem)
    assert caught.value.code == "identity_unavailable"
    assert "nobody.sock" in caught.value.detail
    assert "UNAVAILABLE" in caught.value.detail


async def test_a_stream_that_ends_is_opened_again_with_pauses(tmp_path: Path) -> None:
    async with agent(tmp_path) as running:
        running.end_after_one = True
        async with updates_of(running) as (take, problems):
            for _ in range(3):
                await take()
            assert "ended the stream" in str(problems.get_nowait())
            assert len(running.calls) >= 3


async def test_fetch_bundles(tmp_path: Path) -> None:
    async with agent(tmp_path) as running:
        address = f"unix://{running.path}"
        with pytest.raises(IdentityError):
            await fetch_bundles(address)
        running.bundles = MESSAGES["X509BundlesResponse"](
            bundles={"spiffe://shop.example": SHOP.der, "spiffe://partner.example": PARTNER.der}, crl=[b"x"]
        ).SerializeToString()
        assert await fetch_bundles(address) == ({"shop.example": (SHOP.der,), "partner.example": (PARTNER.der,)}, (b"x",))
        await running.stop()
        with pytest.raises(IdentityError) as caught:
            await fetch_bundles(address, deadline_s=2)
        assert caught.value.code == "workload_api_unavailable"


@pytest.mark.parametrize(
    ("address", "target"),
    [("unix:///run/spire/agent.sock", "unix:/run/spire/agent.sock"), ("unix:/run/a.sock", "unix:/run/a.sock")],
)
def test_address(address: str, target: str) -> None:
    assert grpc_target(address) == target


@pytest.mark.parametrize("address", ["", "/run/a.sock", "unix://run/a.sock", "unix:a.sock", "tcp://1.2.3.4:80", "dns:///x"])
def test_address_refused(address: str) -> None:
    with pytest.raises(IdentityError) as caught:
        WorkloadApiSource(address)
    assert caught.value.code == "workload_api_address"


def test_grpc_is_imported_by_the_first_call_only() -> None:
    code = (
        "import sys\n"
        "import meshguard.sources.workload_api as module, meshguard.sources.files, meshguard.sources.development_ca\n"
        "module.WorkloadApiSource('unix:///x').updates()\n"
        "sys.exit(any(name.split('.')[0] in ('grpc', 'google', 'anyio') for name in sys.modules))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=15, check=False).returncode == 0
