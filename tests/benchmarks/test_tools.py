"""The compiled tools: they build, and the load generator counts right and notices wrong answers."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import install, pki, procs

pytestmark = pytest.mark.skipif(
    not shutil.which("gcc") or not Path("/usr/include/openssl/ssl.h").exists(), reason="gcc and the OpenSSL headers are not here"
)


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return install.compile_tools(tmp_path_factory.mktemp("tools"))


@pytest.fixture
def upstream(tools: dict[str, Path], tmp_path: Path) -> Iterator[tuple[int, int]]:
    keeper = procs.PortKeeper()
    ports = keeper.port(), keeper.port()
    process = procs.start([tools["upstream"], *ports], None, tmp_path / "log")
    try:
        procs.wait_port(ports[1], process, 5)
        yield ports
    finally:
        procs.stop(process)


def load(tools: dict[str, Path], port: int, *words: str) -> dict[str, Any]:
    command = [str(tools["load"]), f"port={port}", "secs=0.2", "warm=0.05", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("words", [("mode=h1", "conns=4"), ("mode=h1", "size=70000"), ("mode=rate", "rate=200", "conns=4"), ("mode=hs",)])
def test_good_answers_are_counted(tools: dict[str, Path], upstream: tuple[int, int], words: tuple[str, ...]) -> None:
    result = load(tools, upstream[0], *words)
    assert result["n"] > 0
    assert (result["bad"], result["lost"]) == (0, 0)


def test_grpc_over_cleartext_http2(tools: dict[str, Path], upstream: tuple[int, int]) -> None:
    result = load(tools, upstream[1], "mode=grpc", "conns=2")
    assert result["n"] > 0
    assert result["bad"] == 0


def test_a_body_of_another_length_is_bad(tools: dict[str, Path], upstream: tuple[int, int]) -> None:
    result = load(tools, upstream[0], "mode=h1", "conns=1", "body=99")
    assert (result["n"], result["first_bad"]) == (0, 1000)
    assert result["bad"] > 0


def test_connections_are_renewed_at_the_end_of_their_life(tools: dict[str, Path], upstream: tuple[int, int]) -> None:
    result = load(tools, upstream[0], "mode=h1", "conns=2", "life=10")
    assert result["renewed"] > 0
    assert (result["bad"], result["lost"], result["reconnects"]) == (0, 0, 0)


def test_nothing_listening_is_told(tools: dict[str, Path]) -> None:
    assert load(tools, procs.PortKeeper().port(), "mode=h1") == {"fatal": "cannot connect"}


def test_pki_makes_svids(tmp_path: Path) -> None:
    from cryptography import x509

    pki.make(tmp_path)
    for name, uri in (("server", pki.SERVER), ("client", pki.CLIENT)):
        leaf = x509.load_pem_x509_certificate((tmp_path / f"{name}.pem").read_bytes())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [uri]
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate((tmp_path / "ca.pem").read_bytes()))


def test_a_process_is_ended_with_its_children(tmp_path: Path) -> None:
    process = procs.start(["sh", "-c", "sleep 60 & sleep 60"], None, tmp_path / "log")
    while len(procs.tree(process.pid)) < 3:
        pass
    pids = procs.tree(process.pid)
    assert procs.memory_kib(pids)["rss"] > 0
    assert procs.descriptors(pids) > 0
    procs.stop(process)
    assert not any(Path("/proc", str(pid)).exists() for pid in pids)
