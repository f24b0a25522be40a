"""SIGKILL at random moments under load: every request that was answered is in the ledger, exactly once, and the ledger still verifies."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from meshguard.cli.audit_integrity import verifiers
from meshguard.storage.audit import verify_ledger
from meshguard.storage.shard_reader import ShardReader
from tests.harness.client import RawClient, get
from tests.harness.mesh import Mesh
from tests.harness.proxy import Proxy
from tests.harness.strict import Truncated
from tests.harness.upstream import raw

KILLS = int(os.environ.get("MESHGUARD_LEDGER_KILLS", "3"))
"""`MESHGUARD_LEDGER_KILLS=200 make test ARGS=tests/e2e/test_ledger_crash.py` is the long version."""
CLIENTS = 3


def entries(directory: Path) -> Iterator[dict[str, Any]]:
    """Also of segments that were compressed meanwhile."""
    for _, entry in ShardReader(0, directory).entries():
        yield orjson.loads(entry)


class Load:
    """Clients that note the path of every whole answer they got."""

    def __init__(self, proxy: Proxy, mesh: Mesh, run: int) -> None:
        self.answered: list[str] = []
        self._over = threading.Event()
        self.enough = threading.Semaphore(0)
        self._threads = [threading.Thread(target=self._work, args=(proxy, mesh, run, number)) for number in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _work(self, proxy: Proxy, mesh: Mesh, run: int, number: int) -> None:
        count = 0
        client = RawClient(proxy.address("default"), mesh.client("billing"))
        try:
            while not self._over.is_set():
                path = (f"/x/{run}/{number}/{count}", "/stream", f"/denied/{run}/{number}/{count}")[count % 3]
                answer = client.request(get(path))
                if answer.status not in (200, 403):
                    break
                self.answered.append(path)
                self.enough.release()
                count += 1
        except (OSError, AssertionError, Truncated):
            pass  # killed, perhaps in the middle of an answer
        finally:
            client.close()

    def join(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(10)


@pytest.mark.timeout(120 + 30 * KILLS)
@pytest.mark.parametrize("durability", ["batch", "request"])
def test_what_was_answered_is_on_record_once(tmp_path: Path, durability: str) -> None:
    mesh = Mesh(tmp_path)
    config = {
        "profile": "development",
        "identity": mesh.identity(tmp_path),
        "listeners": {"default": {"tls": "mutual", "to": "app"}},
        "clusters": {"app": mesh.endpoints()},
        "ledger": {"directory": "ledger", "durability": durability, "segment_bytes": 65536},
        "decision_log": {"path": "/dev/null"},
    }
    policy = {"rules": [{"id": "all", "allow": "authenticated", "paths": ["/x/**", "/stream"]}]}
    proxy = Proxy(tmp_path, config, policies={"p.yaml": policy})
    mesh.client("billing")  # made once, before the threads
    chance = random.Random(7)
    answered: list[str] = []
    size = 200_000
    big = raw([b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size, b"x" * size])
    try:
        mesh.upstream.scripts["/stream"] = big
        for run in range(KILLS):
            proxy.start(ready=False).wait_ready(60)  # hundreds of starts, on whatever else the machine does
            load = Load(proxy, mesh, run)
            for _ in range(chance.randrange(20, 300)):
                assert load.enough.acquire(timeout=10)
            proxy.signal(signal.SIGKILL)
            assert proxy.process is not None
            proxy.process.wait(5)
            load.join()
            proxy.stop()
            answered += load.answered
        proxy.start()  # repairs what the last kill has torn
        proxy.stop()
        decisions = [entry for entry in entries(tmp_path / "ledger" / "shard-0") if "what" in entry]
    finally:
        proxy.stop()
        mesh.close()
    assert verify_ledger(tmp_path / "ledger", verifiers([], tmp_path / "ledger")).good
    assert len(answered) > 20 * KILLS
    whole = Counter(entry["id"] for entry in decisions if "begun" not in entry)
    begun = Counter(entry["id"] for entry in decisions if "begun" in entry)
    assert max(whole.values()) == max(begun.values()) == 1
    paths = Counter({entry["id"]: entry["what"]["path"] for entry in decisions}.values())
    streamed = answered.count("/stream")
    assert streamed
    assert paths["/stream"] >= streamed
    assert [path for path in answered if path != "/stream" and paths[path] != 1] == []
