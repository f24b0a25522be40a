"""`python -m benchmarks.soak`: a constant load while everything that can change does, every second second.

What changes in turn: the policy files, the proxy's and the client's SVIDs (new ones of the development CA), the upstream endpoints in the
configuration; all by atomic rename, and a SIGHUP now and then. What must hold: no request fails, each change is in force within seconds,
memory, descriptors and tasks do not grow, the process ends in order.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import install, procs
from benchmarks.compare import median
from meshguard.sources.development_ca import DevelopmentAuthority, write_private

__all__ = ["Reading", "Soak", "judge", "main"]

TRUST_DOMAIN = "soak.test"
CONNECTIONS = 32
LIFE = 500  # requests after which a connection of the load is replaced, with the client's newest SVID
TAKEN_OVER_S = 5.0
GROWTH_MB = 3.0
"""Of the resident size, from the end of the first minute (or fifth) to the end: a leak of 100 bytes a request would be ten times that."""
DESCRIPTORS = CONNECTIONS
"""The pool may hold as many upstream connections as requests were in flight at once. A leak for each of the 240 connections renewed in five
minutes, or for each of the 150 changes, is well beyond."""
TASKS = 4


@dataclass(frozen=True, slots=True)
class Reading:
    """The proxy at one moment: seconds since the start of the load, resident MB, descriptors, asyncio tasks."""

    at_s: float
    rss_mb: float
    descriptors: int
    tasks: int


def judge(readings: Sequence[Reading], load: dict[str, Any], exit_status: int | None, late: Sequence[str], seconds: float) -> list[str]:
    """What did not hold; empty when the soak is passed. The first minute (of short runs: the first fifth) may still grow."""
    faults = [f"not in force after {TAKEN_OVER_S:g} s: {what}" for what in late]
    if "fatal" in load or not load.get("n"):
        return [*faults, f"the load did not run: {load}"]
    if load["bad"] or load["lost"]:
        faults.append(f"{load['bad']} bad answers (first {load['first_bad']}), {load['lost']} lost, of {load['n']}")
    settled = [reading for reading in readings if reading.at_s >= min(60.0, seconds / 5)]
    quarter = max(1, len(settled) // 4)
    early, last = settled[:quarter], settled[-quarter:]
    if not settled:
        faults.append("no readings")
    else:
        for name, bound in (("rss_mb", GROWTH_MB), ("descriptors", DESCRIPTORS), ("tasks", TASKS)):
            before, after = (median(getattr(reading, name) for reading in part) for part in (early, last))
            if after - before > bound:
                faults.append(f"{name} grew from {before:g} to {after:g}, more than {bound:g}")
    if exit_status != 0:
        faults.append(f"the proxy ended with status {exit_status}")
    return faults


class Soak:
    """One run. `rate` is requests a second."""

    def __init__(self, seconds: float, rate: float) -> None:
        self.seconds = seconds
        self.rate = rate
        self.work = install.OUT / "soak"
        shutil.rmtree(self.work, ignore_errors=True)
        (self.work / "policies").mkdir(parents=True)
        self.tools = install.compile_tools()
        self.ports = procs.PortKeeper()
        self.proxy, self.admin = self.ports.port(), self.ports.port()
        self.upstreams = [self.ports.port(), self.ports.port()]
        self.authority = DevelopmentAuthority(self.work / "ca", TRUST_DOMAIN).open()
        self.revision = 0
        self.changes = 0
        self.late: list[str] = []
        self.readings: list[Reading] = []
        self.exit_status: int | None = None

    def run(self) -> list[str]:
        """Runs and returns what did not hold. Raises RuntimeError when the proxy does not start."""
        self._write_policy()
        self._write_configuration(self.upstreams)
        self._renew()
        with contextlib.ExitStack() as cleanup:
            for port in self.upstreams:
                upstream = procs.start([self.tools["upstream"], port, self.ports.port()], None, self.work / "upstream.log")
                cleanup.callback(procs.stop, upstream)
                procs.wait_port(port, upstream, 5)
            command = [sys.executable, "-m", "meshguard", "serve", "--config", self.work / "meshguard.yaml"]
            proxy = procs.start(command, None, self.work / "proxy.log", install.ROOT)
            cleanup.callback(procs.stop, proxy)
            procs.wait_port(self.proxy, proxy, 20)
            with self._load() as load:
                self._change_all_the_time(proxy, load)
                output, _ = load.communicate(timeout=30)
            proxy.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.exit_status = proxy.wait(15)
        self.report = json.loads(output.splitlines()[-1]) if output else {"fatal": "no output"}
        return judge(self.readings, self.report, self.exit_status, self.late, self.seconds)

    # -- the load -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _load(self) -> Iterator[subprocess.Popen[str]]:
        words = [f"port={self.proxy}", "mode=rate", f"rate={self.rate}", f"conns={CONNECTIONS}", f"life={LIFE}", f"secs={self.seconds}"]
        words += ["warm=0.5", f"cert={self.work / 'client.both.pem'}", f"ca={self.work / 'ca' / 'bundle.pem'}"]
        process = subprocess.Popen([str(self.tools["load"]), *words], stdout=subprocess.PIPE, text=True)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    # -- the changes ----------------------------------------------------------------------------------------------------

    def _change_all_the_time(self, proxy: subprocess.Popen[bytes], load: subprocess.Popen[str]) -> None:
        began = time.monotonic()
        first, second = self.upstreams[:1], self.upstreams[1:]
        turns = (
            self._write_policy,
            self._renew,
            lambda: self._write_configuration(first),
            self._write_policy,
            lambda: self._write_configuration(second),
            self._renew,
            lambda: self._write_configuration(self.upstreams),
        )
        while (now := time.monotonic() - began) < self.seconds - TAKEN_OVER_S / 2 and load.poll() is None:
            self._read(proxy, now)
            turns[self.changes % len(turns)]()
            self.changes += 1
            if self.changes % 5 == 0:
                proxy.send_signal(signal.SIGHUP)
            self._expect_policy()
            time.sleep(max(0.0, began + 2 * self.changes - time.monotonic()))

    def _write_policy(self) -> None:
        """The next policy: the load's rule in it is always the same, one path tells which policy is in force."""
        self.revision += 1
        rules: list[dict[str, Any]] = [
            {"id": "load", "allow": "authenticated", "methods": ["GET"], "paths": ["/api/v1/orders/**"]},
            {"id": "mark", "allow": "authenticated", "paths": [f"/revision/{self.revision}"]},
        ]
        rules += [{"id": f"more-{number}", "allow": "anyone", "paths": [f"/more/{number}"]} for number in range(self.revision % 7 * 20)]
        self._replace("policies/soak.yaml", yaml.safe_dump({"rules": rules}))

    def _write_configuration(self, upstreams: Sequence[int]) -> None:
        identity = {"certificate": "svid.pem", "key": "svid.key", "bundles": {TRUST_DOMAIN: "ca/bundle.pem"}}
        document = {
            "profile": "strict",
            "identity": {"trust_domain": TRUST_DOMAIN, "files": identity},
            "listeners": {"inbound": {"address": f"127.0.0.1:{self.proxy}", "tls": "mutual", "to": "app"}},
            "clusters": {"app": {"endpoints": [f"127.0.0.1:{port}" for port in upstreams]}},
            "policies": ["policies/"],
            "decision_log": {"path": "/dev/null"},
            "admin": {"address": f"127.0.0.1:{self.admin}"},
            "drain_s": 5,
        }
        self._replace("meshguard.yaml", yaml.safe_dump(document, sort_keys=False))

    def _renew(self) -> None:
        """New SVIDs of the same CA for the proxy and the client. The proxy's key and certificate change one after the other, as with any
        tool that writes two files."""
        proxy, client = (self.authority.issue(path) for path in ("/proxy", "/client"))
        write_private(self.work / "svid.key", proxy.key_pem())
        write_private(self.work / "svid.pem", proxy.certificate_pem, mode=0o644)
        write_private(self.work / "client.both.pem", client.certificate_pem + client.key_pem())

    def _replace(self, name: str, text: str) -> None:
        temporary = self.work / f".{Path(name).name}.new"
        temporary.write_text(text)
        os.replace(temporary, self.work / name)

    def _expect_policy(self) -> None:
        """Waits until the newest policy is in force, and the one before is not."""
        deadline = time.monotonic() + TAKEN_OVER_S
        wanted = {f"/revision/{self.revision}": 200, f"/revision/{self.revision - 1}": 403}
        while any(self._ask(path) != status for path, status in wanted.items()):
            if time.monotonic() > deadline:
                self.late.append(f"policy {self.revision} (change {self.changes})")
                return
            time.sleep(0.05)

    def _ask(self, path: str) -> int:
        context = ssl.create_default_context(cafile=str(self.work / "ca" / "bundle.pem"))
        context.load_cert_chain(self.work / "client.both.pem")
        link = http.client.HTTPSConnection("127.0.0.1", self.proxy, timeout=5, context=context)
        try:
            link.request("GET", path)
            return link.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            link.close()

    # -- the readings ---------------------------------------------------------------------------------------------------

    def _read(self, proxy: subprocess.Popen[bytes], at_s: float) -> None:
        pids = procs.tree(proxy.pid)
        self.readings.append(Reading(at_s, procs.memory_kib(pids)["rss"] * 1024 / 1e6, procs.descriptors(pids), self._tasks()))

    def _tasks(self) -> int:
        link = http.client.HTTPConnection("127.0.0.1", self.admin, timeout=5)
        try:
            link.request("GET", "/metrics")
            text = link.getresponse().read().decode()
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            link.close()
        return tasks_in(text)


def tasks_in(metrics: str) -> int:
    """The number of asyncio tasks in a Prometheus exposition; 0 when it is not there."""
    for line in metrics.splitlines():
        if line.startswith("meshguard_process_tasks") and " " in line:
            return int(float(line.split()[-1]))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """0: everything held; 1: something did not."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--rate", type=float, default=400.0, help="requests a second")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the clean-up runs
    try:
        soak = Soak(given.seconds, given.rate)
        faults = soak.run()
    except (install.Absent, RuntimeError) as error:
        print(error, file=sys.stderr)
        return 2
    first, last = soak.readings[0], soak.readings[-1]
    report = soak.report
    print(f"{report.get('n')} requests, {report.get('renewed')} connections renewed, {soak.changes} changes, p99 {report.get('p99')} us")
    print(f"resident {first.rss_mb:.1f} to {last.rss_mb:.1f} MB, descriptors {first.descriptors} to {last.descriptors}, ", end="")
    print(f"tasks {first.tasks} to {last.tasks}")
    outcome = {"seconds": given.seconds, "load": report, "changes": soak.changes, "faults": faults}
    (install.OUT / "soak.json").write_text(json.dumps({**outcome, "readings": [asdict(each) for each in soak.readings]}, indent=1) + "\n")
    for fault in faults:
        print(f"FAILED {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
