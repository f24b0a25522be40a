"""`python -m benchmarks.crowd [idle|slow|killed|hostile ...]`: crowds of bad clients and a good one beside them, through the real process.

idle     10 000 mTLS connections that have sent one request and are silent: memory of each
slow     clients that do not read and clients that write octet by octet: memory of each
killed   the upstream is killed in the middle of many answers: none may look whole, and the next upstream serves at once
hostile  h2load for --seconds beside clients that attack HTTP/2: not one of its requests may fail

Beside each, a good client asks all the time; its slowest answer has to come within a second (`GOOD_S`). Not part of the tests: it takes
minutes, and 20 000 descriptors (`ulimit -n`).
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks import install, procs
from meshguard.sources.development_ca import DevelopmentAuthority, write_private

GOOD_S = 1.0
IDLE_KIB = 48.0
"""A connection, at most: `performance.md` of the design calls it the first target."""
SLOW_KIB = 256.0
"""A client that does not read: high-water mark, one read of the upstream, TLS; and what the allocator keeps."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"


class Place:
    """The process, its upstream, and the certificates of its clients."""

    def __init__(self) -> None:
        self.work = install.OUT / "crowd"
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        ports = procs.PortKeeper()
        self.tls, self.plain, self.admin, self.upstream_port = (ports.port() for _ in range(4))
        authority = DevelopmentAuthority(self.work / "ca", "crowd.test").open()
        for name in ("proxy", "client"):
            made = authority.issue(f"/{name}")
            write_private(self.work / f"{name}.key", made.key_pem())
            write_private(self.work / f"{name}.pem", made.certificate_pem, mode=0o644)
        limits = {"connections": 15000, "idle_s": 900, "body_total_s": 900, "body_idle_s": 900}
        document = {
            "identity": {
                "trust_domain": "crowd.test",
                "files": {"certificate": "proxy.pem", "key": "proxy.key", "bundles": {"crowd.test": "ca/bundle.pem"}},
            },
            "listeners": {
                "inbound": {"address": f"127.0.0.1:{self.tls}", "tls": "mutual", "to": "app", "limits": limits},
                "plain": {"address": f"127.0.0.1:{self.plain}", "tls": "none", "to": "app", "protocols": ["http/1.1", "h2"]},
            },
            "clusters": {
                "app": {"endpoints": [f"127.0.0.1:{self.upstream_port}"], "circuit": {"max_connections": 2000, "max_in_flight": 2000}},
            },
            "policies": ["policy.yaml"],
            "decision_log": {"path": "decisions.jsonl"},
            "admin": {"address": f"127.0.0.1:{self.admin}"},
        }
        (self.work / "meshguard.yaml").write_text(yaml.safe_dump(document))
        (self.work / "policy.yaml").write_text(yaml.safe_dump({"rules": [{"id": "all", "allow": "anyone", "paths": ["/**"]}]}))
        self.context = ssl.create_default_context(cafile=str(self.work / "ca" / "bundle.pem"))
        self.context.check_hostname = False
        self.context.load_cert_chain(self.work / "client.pem", self.work / "client.key")

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        with contextlib.ExitStack() as cleanup:
            self.upstream = self.start_upstream()
            cleanup.callback(lambda: procs.stop(self.upstream))
            command = [sys.executable, "-m", "meshguard", "serve", "--config", self.work / "meshguard.yaml"]
            self.proxy = procs.start(command, None, self.work / "proxy.log", install.ROOT)
            cleanup.callback(procs.stop, self.proxy)
            procs.wait_port(self.tls, self.proxy, 30)
            for _ in range(200):  # pages that any traffic touches
                self.ask()
            yield

    def start_upstream(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "benchmarks.crowd_upstream", self.upstream_port]
        process = procs.start(command, None, self.work / "upstream.log", install.ROOT)
        procs.wait_port(self.upstream_port, process, 20)
        return process

    def ask(self) -> float:
        """Seconds for one request on a new mTLS connection. Raises OSError, http.client.HTTPException, RuntimeError."""
        began = time.monotonic()
        link = http.client.HTTPSConnection("127.0.0.1", self.tls, timeout=20, context=self.context)
        try:
            link.request("GET", "/good")
            answer = link.getresponse()
            if answer.status != 200 or answer.read() != b"ok":
                raise RuntimeError(f"status {answer.status}")
        finally:
            link.close()
        return time.monotonic() - began

    def rss_kib(self) -> int:
        return procs.memory_kib(procs.tree(self.proxy.pid))["rss"]

    def failures(self, path: str) -> dict[str, int]:
        """Why requests to `path` were answered with 5xx: reason and detail, and how often."""
        found: dict[str, int] = {}
        for line in (self.work / "decisions.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record["what"]["path"] == path and record["outcome"]["status"] >= 500:
                why = f"{record['why'].get('reason')}: {record['why'].get('detail', '')}"
                found[why] = found.get(why, 0) + 1
        return found

    def dial(self) -> ssl.SSLSocket:
        raw = socket.create_connection(("127.0.0.1", self.tls), 30)
        return self.context.wrap_socket(raw, server_hostname="localhost")


class Good:
    """The client that asks all the time; `slowest` and `failed` tell how it fared."""

    def __init__(self, place: Place) -> None:
        self.times: list[float] = []
        self.failed: list[str] = []
        self._place = place
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            try:
                self.times.append(self._place.ask())
            except (OSError, http.client.HTTPException, RuntimeError) as exc:
                self.failed.append(repr(exc))

    def __enter__(self) -> Good:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def told(self) -> str:
        ordered = sorted(self.times) or [0.0]
        p99 = ordered[int(len(ordered) * 0.99)]
        return f"others: {len(self.times)} requests, p50 {1000 * ordered[len(ordered) // 2]:.0f} ms, p99 {1000 * p99:.0f} ms, slowest \
{1000 * ordered[-1]:.0f} ms, {len(self.failed)} failed"

    def faults(self) -> list[str]:
        late = sum(seconds > GOOD_S for seconds in self.times)
        found = [f"others were not served: {self.failed[0]}"] if self.failed else []
        return [*found, f"{late} answers took more than {GOOD_S:g} s"] if late else found


def idle(place: Place, options: argparse.Namespace) -> list[str]:
    count = options.connections
    before = place.rss_kib()
    crowd: list[ssl.SSLSocket] = []
    began = time.monotonic()
    for _ in range(count):
        sock = place.dial()
        sock.sendall(b"GET /x HTTP/1.1\r\nhost: a\r\n\r\n")
        _answered(sock)
        crowd.append(sock)
    took = time.monotonic() - began
    time.sleep(2)
    each = (place.rss_kib() - before) / count
    with Good(place) as good:
        time.sleep(15)
    alive = 0
    for sock in crowd[:: max(1, count // 200)]:
        sock.sendall(b"GET /y HTTP/1.1\r\nhost: a\r\n\r\n")
        alive += _answered(sock)
    for sock in crowd:
        sock.close()
    print(f"idle: {count} mTLS connections in {took:.0f} s, {each:.1f} KiB each (resident {before / 1024:.0f} MiB before); {good.told()}")
    faults = good.faults() + [f"{each:.1f} KiB a connection, more than {IDLE_KIB:g}"] * (each > IDLE_KIB)
    return faults + ["some had been closed"] * (alive < len(range(0, count, max(1, count // 200))))


def _answered(sock: ssl.SSLSocket) -> bool:
    """The whole answer to a small request has come; false at the end of the connection."""
    data = b""
    while not data.endswith(b"ok"):
        piece = sock.recv(4096)
        if not piece:
            return False
        data += piece
    return True


def slow(place: Place, options: argparse.Namespace) -> list[str]:
    before = place.rss_kib()
    readers, writers = [], []
    for _ in range(options.slow):
        readers.append(place.dial())
        readers[-1].sendall(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n")
        writers.append(place.dial())
        writers[-1].sendall(b"POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000\r\n\r\n")
    peak = 0
    with Good(place) as good:
        end = time.monotonic() + options.slow_s
        while time.monotonic() < end:
            for sock in writers:
                sock.sendall(b"x")
            peak = max(peak, place.rss_kib())
            time.sleep(0.2)
    each = (peak - before) / (2 * options.slow)
    for sock in (*readers, *writers):
        sock.close()
    print(f"slow: {options.slow} that do not read and as many that write octets, {each:.0f} KiB each at most; {good.told()}")
    return good.faults() + [f"{each:.0f} KiB a client, more than {SLOW_KIB:g}"] * (each > SLOW_KIB)


def killed(place: Place, options: argparse.Namespace) -> list[str]:
    crowd = []
    for _ in range(options.slow):
        crowd.append(place.dial())
        crowd[-1].sendall(b"GET /endless HTTP/1.1\r\nhost: a\r\n\r\n")
        crowd[-1].recv(65536)
    for pid in procs.tree(place.upstream.pid):
        os.kill(pid, signal.SIGKILL)
    place.upstream.wait()
    died = time.monotonic()
    whole = hung = 0
    for sock in crowd:
        sock.settimeout(5)
        last = b""
        try:
            while data := sock.recv(1 << 20):
                last = (last + data)[-7:]
        except TimeoutError:
            hung += 1
        except OSError:
            pass
        whole += last.endswith(b"0\r\n\r\n")
    told = time.monotonic() - died
    place.upstream = place.start_upstream()
    again = time.monotonic()
    while True:
        try:
            place.ask()
            break
        except (OSError, http.client.HTTPException, RuntimeError):
            if time.monotonic() - again > 10:
                break
    with Good(place) as good:
        time.sleep(3)
    print(f"killed: {len(crowd)} answers under way, all told within {told:.1f} s, {whole} looked whole, {hung} hung; served again after \
{time.monotonic() - again - 3:.1f} s; {good.told()}")
    return good.faults() + [f"{whole} looked whole"] * bool(whole) + [f"{hung} hung"] * bool(hung)


def _requests(first: int, reset: bool) -> bytes:
    head = b"\x82\x86\x84\x41\x01a"
    out = []
    for stream in range(first, first + 400, 2):
        out.append(len(head).to_bytes(3, "big") + b"\x01\x05" + stream.to_bytes(4, "big") + head)
        if reset:
            out.append(b"\0\0\4\3\0" + stream.to_bytes(4, "big") + b"\0\0\0\x08")
    return b"".join(out)


ATTACKS: dict[str, bytes] = {
    "rapid reset": _PREFACE + _requests(1, True),
    "many streams": _PREFACE + _requests(1, False),
    "PING": _PREFACE + (b"\0\0\x08\6\0\0\0\0\0" + bytes(8)) * 2000,
    "SETTINGS": _PREFACE + b"\0\0\0\4\0\0\0\0\0" * 2000,
    "CONTINUATION": _PREFACE + b"\0\0\1\1\0\0\0\0\1\x82" + b"\0\0\1\x09\0\0\0\0\1\x82" * 5000,
    "HPACK": _PREFACE + b"\0\x20\0\1\4\0\0\0\1" + b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000 + b"\xbe" * 4186,
    "zero windows": _PREFACE + b"\0\0\6\4\0\0\0\0\0\0\4\0\0\0\0" + _requests(1, False),
    "garbage": os.urandom(20000),
    "half a preface": _PREFACE[:13],
}


def hostile(place: Place, options: argparse.Namespace) -> list[str]:
    """Each attack is a thread that begins again as soon as its connection has ended."""
    stop = threading.Event()
    rounds = dict.fromkeys(ATTACKS, 0)

    def attack(name: str, octets: bytes) -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", place.plain), 5) as sock:
                sock.settimeout(3)
                sock.sendall(octets)
                while sock.recv(65536):
                    pass
            rounds[name] += 1
            stop.wait(0.05)

    before = place.rss_kib()
    threads = [threading.Thread(target=attack, args=item, daemon=True) for item in ATTACKS.items()]
    for thread in threads:
        thread.start()
    command = ["h2load", "-c", "16", "-m", "10", f"--rps={options.rate // 16}", "-D", str(options.seconds), f"http://127.0.0.1:{place.plain}/load"]
    with Good(place) as good:
        said = subprocess.run(command, capture_output=True, text=True, timeout=options.seconds + 60, check=False).stdout
    stop.set()
    for thread in threads:
        thread.join(10)
    found = re.search(r"requests: (\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", said)
    grown = (place.rss_kib() - before) / 1024
    if found is None:
        return [f"h2load did not run: {said[-300:]}"]
    _, done, good_ones, failed, errored, late = map(int, found.groups())
    bad = failed + errored + late
    attacks = f"{sum(rounds.values())} attacks of {len(rounds)} kinds"
    print(f"hostile: {options.seconds} s, {done} requests of h2load, {bad} failed, beside {attacks}; {grown:.1f} MiB grown; {good.told()}")
    idle_ones = [f"no attack of {name}" for name, count in rounds.items() if not count]
    time.sleep(1)
    reasons = [f"h2load: {found.group()}; {place.failures('/load')}"] if bad or good_ones < done else []
    return good.faults() + reasons + idle_ones


PARTS: dict[str, Callable[[Place, Any], list[str]]] = {"idle": idle, "slow": slow, "killed": killed, "hostile": hostile}


def main(arguments: Sequence[str] | None = None) -> int:
    """0: everything held; 1: something did not; 2: it could not be run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowd", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--connections", type=int, default=10000)
    parser.add_argument("--slow", type=int, default=200)
    parser.add_argument("--slow-s", type=float, default=30.0)
    parser.add_argument("--seconds", type=int, default=300, help="of `hostile`")
    parser.add_argument("--rate", type=int, default=800, help="requests a second of h2load")
    options = parser.parse_args(arguments)
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if "idle" in (options.parts or PARTS) and hard < options.connections + 1000:
        print(f"ulimit -n is {hard}: too few descriptors for {options.connections} connections", file=sys.stderr)
        return 2
    faults = []
    for name in options.parts or PARTS:
        place = Place()
        with place.running():
            faults += [f"{name}: {fault}" for fault in PARTS[name](place, options)]
        if "Traceback" in Path(place.work / "proxy.log").read_text():
            faults.append(f"{name}: a traceback in {place.work / 'proxy.log'}")
    for fault in faults:
        print(f"FAILED {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
