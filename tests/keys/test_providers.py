"""The contract of every KEK provider: what it wraps it unwraps, bound to keyset and version; its trouble is told as what it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from meshguard.keys.provider import Binding, Kek, KekError
from meshguard.keys.registry import PROVIDERS, kek_of
from tests.keys.services import SERVICES, Service

BINDING = Binding("orders-pii", 1)


@pytest.fixture(scope="module", params=[name for name, _ in PROVIDERS])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    made = SERVICES[request.param](tmp_path_factory.mktemp(request.param))
    yield made
    made.close()


def run(service: Service, work: Callable[[Kek], Any], **changes: Any) -> Any:
    async def go() -> Any:
        kek = kek_of(service.values | changes)
        try:
            return await work(kek)
        finally:
            await kek.close()

    return asyncio.run(go())


def test_a_new_key_comes_plain_and_wrapped(service: Service) -> None:
    async def work(kek: Kek) -> None:
        key, wrapped = await kek.new_key(BINDING)
        other, _ = await kek.new_key(BINDING)
        assert len(key) == 32
        assert key != other
        assert key.hex() not in wrapped
        assert wrapped.isascii()
        assert await kek.unwrap(wrapped, BINDING) == key
        assert await kek.unwrap(await kek.wrap(key, BINDING), BINDING) == key

    run(service, work)


@pytest.mark.parametrize("other", [Binding("orders-pii", 2), Binding("billing", 1), Binding("orders-pi", 11)])
def test_a_wrapped_key_is_bound_to_its_keyset_and_version(service: Service, other: Binding) -> None:
    async def work(kek: Kek) -> None:
        _, wrapped = await kek.new_key(BINDING)
        with pytest.raises(KekError) as caught:
            await kek.unwrap(wrapped, other)
        assert not caught.value.away

    run(service, work)


def test_a_wrapped_key_that_was_altered_does_not_unwrap(service: Service) -> None:
    async def work(kek: Kek) -> None:
        _, wrapped = await kek.new_key(BINDING)
        for place in (len(wrapped) // 2, len(wrapped) - 8):
            altered = wrapped[:place] + ("A" if wrapped[place] != "A" else "B") + wrapped[place + 1 :]
            with pytest.raises(KekError) as caught:
                await kek.unwrap(altered, BINDING)
            assert not caught.value.away
        with pytest.raises(KekError):
            await kek.unwrap("", BINDING)

    run(service, work)


def test_a_service_that_cannot_be_reached_is_away(service: Service) -> None:
    _, wrapped = run(service, lambda kek: kek.new_key(BINDING))

    async def work(kek: Kek) -> None:
        for call in (lambda: kek.new_key(BINDING), lambda: kek.unwrap(wrapped, BINDING), lambda: kek.wrap(bytes(32), BINDING)):
            with pytest.raises(KekError) as caught:
                await call()
            assert caught.value.away

    run(service, work, **service.unreachable)


def test_its_place_is_told_and_holds_no_secret(service: Service) -> None:
    place = kek_of(service.values).place
    assert place
    assert not any(secret in place for secret in service.secrets)


def test_every_provider_of_the_registry_is_tested() -> None:
    assert set(SERVICES) == {name for name, _ in PROVIDERS}


def test_a_kek_file_is_private_and_of_the_right_size(tmp_path: Path) -> None:
    kek = kek_of({"provider": "file", "kek": tmp_path / "kek"})
    for content, mode, away in ((bytes(32), 0o644, False), (bytes(32), 0o660, False), (bytes(31), 0o600, False), (b"x" * 44, 0o600, False)):
        (tmp_path / "kek").write_bytes(content)
        (tmp_path / "kek").chmod(mode)
        with pytest.raises(KekError) as caught:
            asyncio.run(kek.new_key(BINDING))
        assert caught.value.away is away
    (tmp_path / "kek").write_bytes(b"AAAA" * 10 + b"AAA=\n")
    key, wrapped = asyncio.run(kek.new_key(BINDING))
    (tmp_path / "kek").write_bytes(bytes(32))
    assert asyncio.run(kek.unwrap(wrapped, BINDING)) == key
