"""Shared by the process-level suites: one PKI, one recording upstream and one process with a listener for each stance."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.harness.client import RawClient
from tests.harness.mesh import Mesh

# Hundreds of processes are started from here: without bytecode each of them would compile the whole package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shared machine is slow at times: how long an example takes is no property of what is tested.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

ENGINES = ("default", "reference")


@pytest.fixture(scope="session")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """The PKI and the upstream that every process of the session shares."""
    made = Mesh(tmp_path_factory.mktemp("mesh"))
    yield made
    made.close()


# "module", not "session": pytest would put all tests of one engine first, and start the process of each module twice
@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def arena(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The process under attack."""
    from tests.harness.arena import arena_config, arena_policies
    from tests.harness.proxy import Proxy

    directory = tmp_path_factory.mktemp("arena")
    with Proxy(directory, arena_config(mesh, directory), policies=arena_policies()) as proxy:
        yield proxy


@pytest.fixture
def dial(arena: Any, mesh: Mesh) -> Callable[..., RawClient]:
    """`dial(listener)` opens a connection as `billing`; `identity=None` presents no certificate."""

    def open_client(listener: str, identity: str | None = "billing", context: ssl.SSLContext | None = None, **options: Any) -> RawClient:
        tls = None if listener.startswith("plain") else context or mesh.client(identity)
        return RawClient(arena.address(listener), tls, **options)

    return open_client


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path
