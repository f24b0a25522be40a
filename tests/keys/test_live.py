"""The life of a wrapped keyset in a process: fresh, bridged, stale, recovered; rotations that settle; tenants. With a fake clock."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Awaitable, Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest

from meshguard.fields.envelope import Envelope, NotOpenedError
from meshguard.fields.keyset import Tenancy
from meshguard.keys.keyset_file import read_keyset
from meshguard.keys.lifecycle import change
from meshguard.keys.live import LiveKeyset, Timing
from meshguard.keys.local import LocalKek
from meshguard.keys.provider import Binding, KekError
from meshguard.keys.shredding import proof_of, signed
from meshguard.keys.wrapped import add_tenant, create_wrapped, destroy_tenant, retire, rewrap, rotate_wrapped
from meshguard.model.errors import KeysetError
from tests.keys.jose import header_of, open_value, seal_value

NONCE = bytes(12)
START = 1_700_000_000.0


class Service(LocalKek):
    """A real KEK on disk that can be away, refuse versions, or let callers wait; it counts."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.away = False
        self.refused: set[int] = set()
        self.calls = 0
        self.under_way = 0
        self.most = 0
        self.gate: asyncio.Event | None = None
        self.entered = asyncio.Event()
        self.served = defaultdict[int, asyncio.Event](asyncio.Event)

    async def unwrap(self, wrapped: str, binding: Binding) -> bytes:
        self.calls += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            self.entered.set()
            if self.gate is not None:
                await self.gate.wait()
            if self.away:
                raise KekError("away", away=True)
            if binding.version in self.refused:
                raise KekError("no", away=False)
            return await super().unwrap(wrapped, binding)
        finally:
            self.under_way -= 1
            self.served[self.calls].set()


class World:
    """One keyset on disk, its service, and the clocks."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "orders-pii.json"
        kek = directory / "kek"
        kek.write_bytes(os.urandom(32))
        kek.chmod(0o600)
        self.service = Service(kek)
        self.now = START
        self.ticks = 0.0

    def live(self, **timing: float) -> LiveKeyset:
        made = LiveKeyset(
            "orders-pii",
            self.path,
            "file",
            self.service,
            Timing(**timing),
            clock=lambda: self.ticks,
            now=lambda: self.now,
            jitter=lambda: 0.5,
        )
        made.read()
        return made

    async def create(self, tenancy: Tenancy = Tenancy.SHARED) -> None:
        await create_wrapped(self.path, "orders-pii", "file", self.service, self.now, tenancy)

    async def rotate(self, settle_s: float = 0.0) -> None:
        await rotate_wrapped(self.path, self.service, self.now, settle_s)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def run(work: Callable[[], Awaitable[Any]]) -> None:
    async def go() -> None:
        await work()

    asyncio.run(go())


def test_keys_are_used_until_nobody_confirms_them_any_more(world: World) -> None:
    async def work() -> None:
        await world.create()
        live = world.live(cache_s=100.0)
        envelope = Envelope(live.keyset, "f")
        with pytest.raises(KeysetError, match="not available"):
            envelope.seal(b"1", NONCE)
        assert live.state == "stale"
        assert await live.refresh()
        sealed = envelope.seal(b"1", NONCE)
        assert live.state == "fresh"
        world.service.away = True
        world.ticks = 99.0
        assert not await live.refresh()
        live._expire()
        assert envelope.open(sealed) == (b"1", 1)
        assert live.state == "outage"
        assert live.age_s == 99.0
        world.ticks = 100.0
        live._expire()
        for act in (lambda: envelope.open(sealed), lambda: envelope.seal(b"1", NONCE)):
            with pytest.raises(KeysetError, match="not available"):
                act()
        assert live.state == "stale"
        world.service.away = False
        assert await live.refresh()
        assert envelope.open(sealed) == (b"1", 1)
        await live.close()
        with pytest.raises(KeysetError):
            envelope.open(sealed)

    run(work)


def test_refreshes_come_ahead_of_the_end_and_tries_back_off(world: World) -> None:
    async def work() -> None:
        await world.create()
        live = world.live(cache_s=100.0, retry_max_s=8.0)
        assert await live._look() == pytest.approx(47.5)  # half of the time, spread
        calls = world.service.calls
        await live._look()
        assert world.service.calls == calls
        world.service.away = True
        pauses = []
        world.ticks = 48.0
        for _ in range(8):
            pauses.append(await live._look())
            world.ticks += pauses[-1]
        assert pauses == pytest.approx([0.25, 0.5, 1.0, 2.0, 4.0, 4.0, 4.0, 4.0])  # half of the ceilings 0.5, 1, 2, 4, 8
        assert live.failures == 8
        assert live.failed == 8
        await live.close()

    run(work)


def test_there_is_one_flight_at_a_time(world: World) -> None:
    async def work() -> None:
        await world.create()
        for _ in range(3):
            await world.rotate()
        live = world.live()
        world.service.gate = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            task = group.create_task(live.run())
            envelope = Envelope(live.keyset, "f")
            await world.service.entered.wait()
            for _ in range(100):  # requests do not wait and do not ask
                with pytest.raises(KeysetError):
                    envelope.seal(b"1", NONCE)
            assert world.service.calls == 1
            world.service.gate.set()
            async with asyncio.timeout(10):
                await world.service.served[4].wait()
                await asyncio.to_thread(lambda: None)  # the answer of the last call is taken over
            task.cancel()
        assert world.service.most == 1
        assert world.service.calls == 4
        await live.close()

    run(work)


def test_a_new_version_seals_when_it_has_settled_and_its_key_is_there(world: World) -> None:
    async def work() -> None:
        await world.create()
        live = world.live()
        await live.refresh()
        envelope = Envelope(live.keyset, "f")
        await world.rotate(settle_s=60.0)
        world.service.away = True
        live.read()
        assert envelope.open(envelope.seal(b"1", NONCE))[1] == 1
        world.now += 61.0  # active, but its key is not to be had
        await live._look()
        assert envelope.open(envelope.seal(b"1", NONCE))[1] == 1
        world.service.away = False
        world.ticks += 1000.0
        await live._look()
        assert envelope.open(envelope.seal(b"1", NONCE))[1] == 2
        # another node has made a version that this one may open before it seals with it
        await world.rotate(settle_s=60.0)
        live.read()
        await live._look()
        other = World.__new__(World)
        other.__dict__ |= world.__dict__
        other.now = world.now + 61.0
        ahead = other.live()
        await ahead.refresh()
        sealed = Envelope(ahead.keyset, "f").seal(b"3", NONCE)
        assert envelope.open(sealed) == (b"3", 3)
        assert envelope.version == 2
        await live.close()
        await ahead.close()

    run(work)


def test_a_version_that_is_refused_does_not_take_the_others_with_it(world: World) -> None:
    async def work() -> None:
        await world.create()
        live = world.live()
        await live.refresh()
        old = Envelope(live.keyset, "f").seal(b"1", NONCE)
        await live.close()
        await world.rotate()
        world.service.refused = {1}
        live = world.live()
        assert not await live.refresh()
        envelope = Envelope(live.keyset, "f")
        assert envelope.open(envelope.seal(b"2", NONCE)) == (b"2", 2)
        with pytest.raises(KeysetError):
            envelope.open(old)
        assert live.state == "stale"
        await live.close()

    run(work)


def test_disabling_is_taken_over_at_once_even_in_an_outage(world: World) -> None:
    async def work() -> None:
        await world.create()
        live = world.live()
        await live.refresh()
        envelope = Envelope(live.keyset, "f")
        old = envelope.seal(b"1", NONCE)
        await world.rotate()
        live.read()
        await live.refresh()
        world.service.away = True
        change(world.path, "disable", 1)
        live.read()
        with pytest.raises(NotOpenedError):
            envelope.open(old)
        change(world.path, "enable", 1)
        live.read()
        with pytest.raises(KeysetError):
            envelope.open(old)
        world.service.away = False
        await live.refresh()
        assert envelope.open(old) == (b"1", 1)
        await live.close()

    run(work)


def test_a_damaged_file_changes_nothing(world: World) -> None:
    async def work() -> None:
        await world.create()
        live = world.live()
        await live.refresh()
        good = world.path.read_text()
        for text in (
            "",
            "{",
            good.replace('"primary"', '"enabled"'),
            good.replace("orders-pii", "other"),
            good.replace('"file"', '"vault"'),
        ):
            world.path.write_text(text)
            with pytest.raises(KeysetError):
                live.read()
        world.path.write_text(good)
        world.path.chmod(0o664)
        with pytest.raises(KeysetError, match="chmod 644"):
            live.read()
        assert Envelope(live.keyset, "f").seal(b"1", NONCE)
        await live.close()

    run(work)


def test_a_swapped_key_does_not_unwrap(world: World) -> None:
    """The wrapped keys of two versions change places in the file: bound to their version, neither unwraps."""

    async def work() -> None:
        await world.create()
        await world.rotate()
        keys = read_keyset(world.path).keys
        text = (
            world.path.read_text()
            .replace(keys[0].wrapped, "X")
            .replace(keys[1].wrapped, keys[0].wrapped)
            .replace('"X"', f'"{keys[1].wrapped}"')
        )
        world.path.write_text(text)
        live = world.live()
        assert not await live.refresh()
        with pytest.raises(KeysetError):
            Envelope(live.keyset, "f").seal(b"1", NONCE)

    run(work)


def test_rewrap_moves_keys_to_a_new_kek_and_values_stay(world: World) -> None:
    async def work() -> None:
        await world.create(Tenancy.OWN)
        await add_tenant(world.path, world.service, "acme", world.now)
        await world.rotate()
        live = world.live()
        await live.refresh()
        sealed = Envelope(live.keyset, "f", "", "acme").seal(b"1", NONCE)
        before = read_keyset(world.path)
        with pytest.raises(KeysetError, match="secrets of tenants"):
            change(world.path, "disable", 1)
        await rewrap(world.path, world.service)
        after = read_keyset(world.path)
        assert {key.wrapped for key in before.keys}.isdisjoint(key.wrapped for key in after.keys)
        assert after.tenants["acme"].version == 2
        change(world.path, "disable", 1)
        live.read()
        await live.refresh()
        assert Envelope(live.keyset, "f", "", "acme").open(sealed) == (b"1", 2)
        await live.close()

    run(work)


def test_tenants_have_keys_of_their_own_and_one_can_be_destroyed(world: World, tmp_path: Path) -> None:
    async def work() -> None:
        await world.create(Tenancy.OWN)
        for tenant in ("acme", "globex"):
            await add_tenant(world.path, world.service, tenant, world.now)
        live = world.live()
        await live.refresh()
        acme, globex = (Envelope(live.keyset, "f", "", tenant) for tenant in ("acme", "globex"))
        for_acme, for_globex = acme.seal(b"1", NONCE), globex.seal(b"2", NONCE)
        with pytest.raises(NotOpenedError):
            globex.open(for_acme)
        for stranger in ("nobody", ""):
            with pytest.raises(KeysetError, match="no key for this tenant"):
                Envelope(live.keyset, "f", "", stranger).seal(b"1", NONCE)
        # a header of the other tenant under one's own key does not help: the tenant is in the key as well as in the header
        master = live.keyset.versions[0].material
        secret = live.keyset.tenants["acme"].octets
        value = for_acme.decode().strip('"')
        assert open_value(value, master, tenants=True, secret=secret) == b"1"
        forged = seal_value(header_of(value) | {"t": "globex"}, b"9", master, tenants=True, secret=secret)
        with pytest.raises(NotOpenedError):
            globex.open(f'"{forged}"'.encode())

        before = read_keyset(world.path)
        after = destroy_tenant(world.path, "acme")
        live.read()
        await live.refresh()
        with pytest.raises(NotOpenedError):
            acme.open(for_acme)
        with pytest.raises(KeysetError):
            acme.seal(b"1", NONCE)
        assert globex.open(for_globex) == (b"2", 1)
        assert before.tenants["acme"].wrapped not in world.path.read_text()
        with pytest.raises(KeysetError, match="destroyed"):
            await add_tenant(world.path, world.service, "acme", world.now)
        _check_proof(proof_of(before, after, world.now), tmp_path)
        await live.close()

    run(work)


def _check_proof(proof: dict[str, Any], directory: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
    from joserfc import jws
    from joserfc.jwk import OKPKey

    assert proof["tenants"] == ["acme"]
    assert "versions" not in proof
    assert len(proof["destroyed_sha256"]) == 1
    assert proof["before_sha256"] != proof["after_sha256"]
    key = Ed25519PrivateKey.generate()
    pem = directory / "proof.pem"
    pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = OKPKey.import_key(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    import json

    opened = jws.deserialize_compact(signed(proof, pem).strip(), public, algorithms=["Ed25519"])
    assert json.loads(opened.payload) == proof


def test_derived_tenants_need_no_list(world: World) -> None:
    async def work() -> None:
        await world.create(Tenancy.DERIVED)
        live = world.live()
        await live.refresh()
        acme, globex = (Envelope(live.keyset, "f", "", tenant) for tenant in ("acme", "globex"))
        value = acme.seal(b"1", NONCE)
        assert acme.open(value) == (b"1", 1)
        with pytest.raises(NotOpenedError):
            globex.open(value)
        master = live.keyset.versions[0].material
        assert open_value(value.decode().strip('"'), master, tenants=True) == b"1"
        # under the version's own key, with the right header but for the salt, it does not open
        header = header_of(value.decode().strip('"'))
        plain = seal_value(header | {"kid": "orders-pii:1"}, b"1", master)
        with pytest.raises(NotOpenedError):
            acme.open(f'"{plain}"'.encode())
        await live.close()

    run(work)


def test_versions_are_retired_by_age(world: World) -> None:
    async def work() -> None:
        await world.create()
        world.now += 1000.0
        await world.rotate(settle_s=100.0)
        assert retire(world.path, world.now + 600.0, 500.0) == []
        assert retire(world.path, world.now + 602.0, 500.0) == [1]
        assert retire(world.path, world.now + 10_000.0, 500.0) == []

    run(work)


def test_a_rotation_is_made_by_one_only(world: World) -> None:
    async def work() -> None:
        await world.create()
        world.now += 100.0
        made = await asyncio.gather(*(rotate_wrapped(world.path, world.service, world.now, 0.0, older_than_s=90.0) for _ in range(5)))
        assert sum(record is not None for record in made) == 1
        assert [key.version for key in read_keyset(world.path).keys] == [1, 2]

    run(work)


def test_the_login_is_looked_after(world: World) -> None:
    looked: list[float] = []

    async def tend() -> float:
        looked.append(world.ticks)
        return 30.0 if len(looked) < 3 else inf

    async def work() -> None:
        await world.create()
        world.service.tend = tend  # type: ignore[method-assign]
        live = world.live(cache_s=1000.0)
        assert await live._look() == pytest.approx(30.0)
        world.ticks = 30.0
        await live._look()
        assert looked == [0.0, 30.0]
        await live.close()

    run(work)


def test_a_value_that_passes_is_renewed_where_the_keyset_says_so(world: World) -> None:
    async def work() -> None:
        await world.create()
        live = world.live()
        await live.refresh()
        envelope = Envelope(live.keyset, "f")
        old = envelope.seal(b'"x"', NONCE)
        foreign = Envelope(live.keyset, "g").seal(b'"x"', NONCE)
        assert envelope.renewed(old, lambda: NONCE) is None
        await world.rotate()
        live.read()
        await live.refresh()
        fresh = envelope.renewed(old, lambda: NONCE)
        assert fresh is not None
        assert envelope.open(fresh) == (b'"x"', 2)
        assert envelope.renewed(fresh, lambda: NONCE) is None
        assert envelope.renewed(foreign, lambda: NONCE) is None
        assert envelope.renewed(old[:-4] + b'AAA"', lambda: NONCE) is None
        change(world.path, "disable", 1)
        live.read()
        assert envelope.renewed(old, lambda: NONCE) is None
        await live.close()

    run(work)
