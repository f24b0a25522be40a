"""Quarantine on a fleet: from the operator's command to the last instance that enforces it, over a real NATS server.

    python -m benchmarks.micro.fleet [--instances 200] [--changes 30] [--processes 2] [--json]

Most instances are simulated: each has the real connection, watch, signature check, state file and report of an instance, all in a few
processes, without listeners. Two are real proxies: a client whose identity is cut out keeps a connection to each, and the time until it
is closed counts too; others send requests all the time, and none of them may fail. A change is timed from before the operator's edit (read,
sign, write) to the last effect anywhere, on the monotonic clock that all processes of a machine share.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from meshguard.control.fleet.access import access_of
from meshguard.control.fleet.containment import FleetContainment
from meshguard.control.fleet.edit import change_set, living
from meshguard.control.fleet.instances import Reports
from meshguard.control.fleet.link import Link
from meshguard.control.settings.fleet import FleetConfig
from meshguard.integrity.containment import Member
from meshguard.sources.identity import IdentityUpdate
from meshguard.sources.nats_store import Store, keyed, open_store
from tests.harness.client import RawClient, Truncated, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.nats import NatsServer, binary
from tests.harness.proxy import Proxy

BAD = f"{SHOP}bad"
REAL = 2
ANSWER_S = 10.0


async def nobody() -> IdentityUpdate | None:
    return None


def section(url: str, directory: Path, instance: str) -> dict[str, Any]:
    signers = {"signers": [str(directory / "signer.pub")]}
    return {"name": "bench", "servers": [url], "state": str(directory / instance), "instance": instance, "quarantine": signers}


def simulate(url: str, directory: str, numbers: list[int], pipe: Connection) -> None:
    """A process with many instances; tells the time of each effect as (sequence, monotonic seconds)."""
    logging.disable()  # a hundred instances would write to one standard error
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_simulate(url, Path(directory), numbers, pipe))


async def _simulate(url: str, directory: Path, numbers: list[int], pipe: Connection) -> None:
    async with asyncio.TaskGroup() as group:
        for number in numbers:
            group.create_task(_instance(FleetConfig.model_validate(section(url, directory, f"simulated-{number}")), pipe))


async def _instance(config: FleetConfig, pipe: Connection) -> None:
    reports = Reports(config, str(config.instance), 0, lambda: {"version": "bench", "quarantine": containment.told()})

    def changed() -> None:
        reports.changed.set()
        held = containment.held
        pipe.send((held.sequence if held is not None else 0, time.monotonic()))

    containment = FleetContainment(config, lambda quarantine: None, lambda event, data: None, changed)

    async def watch(store: Store) -> None:
        containment.connected()
        bucket = await store.bucket(config.buckets.quarantine)
        await bucket.watch(keyed(config.name), containment.take, config.check_s)

    await Link(access_of(config, nobody), config.retry_s, config.retry_max_s, [watch, reports.run], lambda event, data: None).run()


class Others:
    """A client of an identity that nobody cuts out: requests without a pause, and every one that fails is counted."""

    def __init__(self, proxy: Proxy, mesh: Mesh, name: str) -> None:
        self.requests = self.errors = 0
        self._proxy, self._context = proxy, mesh.client(name)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with RawClient(self._proxy.address("inbound"), self._context) as client:
            while not self._stop.wait(0.002):
                self.requests += 1
                try:
                    self.errors += client.request(get("/")).status != 200
                except (OSError, Truncated):
                    self.errors += 1
                    return

    def end(self) -> None:
        self._stop.set()
        self._thread.join(10)


def closed_at(client: RawClient, found: list[float]) -> None:
    """Waits for the end of a connection that idles."""
    client.sock.settimeout(ANSWER_S)
    with contextlib.suppress(OSError):
        while client.sock.recv(65536):
            pass
    found.append(time.monotonic())


async def timed(config: FleetConfig, key: ed25519.Ed25519PrivateKey, edit: Any) -> tuple[int, float, float]:
    """(sequence, begun, written) of one change."""
    store = await open_store(access_of(config, nobody))
    try:
        begun = time.monotonic()
        made = await change_set(store, config, edit, [key], time.time())
        return made.sequence, begun, time.monotonic()
    finally:
        await store.close()


async def count_living(config: FleetConfig) -> int:
    store = await open_store(access_of(config, nobody))
    try:
        return len(await living(store, config, time.time()))
    finally:
        await store.close()


def effects(pipes: list[Connection], sequence: int, count: int) -> list[float]:
    """The times at which `count` simulated instances enforced `sequence`."""
    times: list[float] = []
    deadline = time.monotonic() + ANSWER_S
    while len(times) < count:
        ready = multiprocessing.connection.wait(pipes, deadline - time.monotonic())
        if not ready:
            raise SystemExit(f"{count - len(times)} of {count} instances did not enforce the change within {ANSWER_S} s")
        for pipe in ready:
            number, moment = pipe.recv()  # type: ignore[union-attr]  # these are all connections
            if number == sequence:
                times.append(moment)
    return times


def measure(directory: Path, instances: int, changes: int, processes: int) -> dict[str, Any]:
    key = ed25519.Ed25519PrivateKey.generate()
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (directory / "signer.pub").write_bytes(public)
    mesh = Mesh(directory)
    proxies, others, workers, pipes = [], [], [], []
    with NatsServer(directory) as server:
        server.make_buckets()
        config = FleetConfig.model_validate(section(server.url, directory, "operator"))
        try:
            for number in range(REAL):
                place = directory / f"real-{number}"
                place.mkdir()
                document = {
                    "identity": mesh.identity(place),
                    "listeners": {"inbound": {"to": "app", "tls": "mutual"}},
                    "clusters": {"app": mesh.endpoints()},
                    "fleet": section(server.url, directory, f"real-{number}"),
                }
                policy = {"rules": [{"id": "all", "allow": "authenticated", "paths": ["/**"]}]}
                proxies.append(Proxy(place, document, policies={"p.yaml": policy}).start())
            simulated = instances - REAL
            context = multiprocessing.get_context("spawn")
            for index in range(processes):
                ours, theirs = context.Pipe(duplex=False)
                numbers = list(range(index, simulated, processes))
                process = context.Process(target=simulate, args=(server.url, str(directory), numbers, theirs), daemon=True)
                process.start()
                theirs.close()
                workers.append(process)
                pipes.append(ours)
            deadline = time.monotonic() + 120
            while (there := asyncio.run(count_living(config))) < instances:
                if time.monotonic() > deadline:
                    raise SystemExit(f"only {there} of {instances} instances have reported")
                time.sleep(0.5)
            others = [Others(proxy, mesh, f"other-{index}") for index, proxy in enumerate(proxies)]
            results = [_change(config, key, mesh, proxies, pipes, simulated) for _ in range(changes)]
        finally:
            for other in others:
                other.end()
            for process in workers:
                process.kill()
                process.join(5)
            for proxy in proxies:
                proxy.stop()
            mesh.close()
    written, each, last, real = zip(*results, strict=True)
    flat = [moment for one in each for moment in one]
    return {
        "instances": instances,
        "changes": changes,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "written_ms_median": _ms(statistics.median(written)),
        "effect_ms_median": _ms(statistics.median(flat)),
        "effect_ms_p99": _ms(_p99(flat)),
        "last_effect_ms_median": _ms(statistics.median(last)),
        "last_effect_ms_max": _ms(max(last)),
        "connection_cut_ms_median": _ms(statistics.median(real)),
        "connection_cut_ms_max": _ms(max(real)),
        "other_requests": sum(other.requests for other in others),
        "other_errors": sum(other.errors for other in others),
    }


def _change(
    config: FleetConfig, key: ed25519.Ed25519PrivateKey, mesh: Mesh, proxies: list[Proxy], pipes: list[Connection], simulated: int
) -> tuple[float, list[float], float, float]:
    """Cuts out and lets in again: seconds to the written set, to each effect, to the last one, to the last closed connection."""
    clients = [RawClient(proxy.address("inbound"), mesh.client("bad")) for proxy in proxies]
    closed: list[float] = []
    threads = []
    for client in clients:
        if client.request(get("/")).status != 200:
            raise SystemExit("the identity is cut out before it was asked for")
        threads.append(threading.Thread(target=closed_at, args=(client, closed)))
        threads[-1].start()
    sequence, begun, written = asyncio.run(timed(config, key, lambda members: (*members, Member(BAD, "bench", "bench", time.time()))))
    times = effects(pipes, sequence, simulated)
    for thread in threads:
        thread.join(ANSWER_S)
    for client in clients:
        client.close()
    sequence, *_ = asyncio.run(timed(config, key, lambda members: tuple(each for each in members if each.target != BAD)))
    effects(pipes, sequence, simulated)
    for proxy in proxies:
        _let_in(proxy, mesh)
    return written - begun, [moment - begun for moment in times], max(*times, *closed) - begun, max(closed) - begun


def _let_in(proxy: Proxy, mesh: Mesh) -> None:
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, Truncated), RawClient(proxy.address("inbound"), mesh.client("bad")) as client:
            if client.request(get("/")).status == 200:
                return
    raise SystemExit("the identity was not let in again")


def _p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=200)
    parser.add_argument("--changes", type=int, default=30)
    parser.add_argument("--processes", type=int, default=2, help="for the simulated instances")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if binary() is None:
        raise SystemExit("nats-server is not there: apt-get install nats-server")
    with tempfile.TemporaryDirectory(prefix="meshguard-fleet-") as directory:
        found = measure(Path(directory), options.instances, options.changes, options.processes)
    if options.json:
        print(json.dumps(found))
        return 0
    print(f"{found['instances']} instances ({REAL} real), {found['changes']} changes, {found['cores']} cores, Python {found['python']}")
    print(f"  operator's edit written          {found['written_ms_median']:8.1f} ms median")
    print(f"  one instance enforces            {found['effect_ms_median']:8.1f} ms median, {found['effect_ms_p99']:.1f} ms p99")
    print(f"  last instance of all enforces    {found['last_effect_ms_median']:8.1f} ms median, {found['last_effect_ms_max']:.1f} ms worst")
    cut, worst = found["connection_cut_ms_median"], found["connection_cut_ms_max"]
    print(f"  last connection is closed        {cut:8.1f} ms median, {worst:.1f} ms worst")
    print(f"  requests of other identities     {found['other_requests']}, failed {found['other_errors']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
