"""`python -m benchmarks.websocket`: WebSocket echo through meshguard and through Envoy, CPU time of the proxy for each message.

Plaintext, both with one worker on one core, load and upstream on the other; meshguard with its policy, record and validation of every
frame, Envoy with an upgrade and no more. A message goes to the upstream and its echo comes back: two passes through the proxy. Rounds are
interleaved, medians are printed and written to `benchmarks/out/websocket.json`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks import install, procs

_HANDSHAKE = (
    b"GET /echo HTTP/1.1\r\nHost: shop.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_CONNECTIONS = 16
_TICKS = os.sysconf("SC_CLK_TCK")


def frame(payload: bytes, mask: bytes) -> bytes:
    """A text frame of less than 64 KiB."""
    length = len(payload)
    flag = 0x80 if mask else 0
    head = bytes([0x81, flag | length]) if length < 126 else bytes([0x81, flag | 126]) + length.to_bytes(2, "big")
    return head + mask + (bytes(octet ^ mask[i % 4] for i, octet in enumerate(payload)) if mask else payload)


class Echo(asyncio.Protocol):
    """The upstream: an unmasked frame for each masked one of the same size, without looking at it: it must not be the bottleneck."""

    def __init__(self, size: int) -> None:
        self._answer = frame(b"a" * size, b"")
        self._asked = len(frame(b"a" * size, b"mask"))
        self._open = False
        self._got = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:
        if not self._open:
            key = next(line.split(b":")[1].strip() for line in data.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
            from meshguard.wire.websocket_handshake import accept_of

            self._open = True
            answer = b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n\r\n" % accept_of(key)
            self._transport.write(answer)
            return
        self._got += len(data)
        count, self._got = divmod(self._got, self._asked)
        if count:
            self._transport.write(self._answer * count)


class Talker(asyncio.Protocol):
    """One client: the next message when the echo of the last one is whole."""

    def __init__(self, size: int, counts: list[int]) -> None:
        self._message = frame(b"a" * size, b"mask")
        self._expected = len(frame(b"a" * size, b""))
        self._counts = counts
        self._got = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._transport.write(_HANDSHAKE)

    def data_received(self, data: bytes) -> None:
        if self._got < 0:
            if not data.startswith(b"HTTP/1.1 101"):
                raise SystemExit(f"no tunnel: {data[:200]!r}")
            self._got = 0
            self._transport.write(self._message)
            return
        self._got += len(data)
        if self._got >= self._expected:
            self._got = 0
            self._counts[0] += 1
            self._transport.write(self._message)


def cpu_s(pids: list[int]) -> float:
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


async def measure(port: int, pids: list[int], size: int, seconds: float) -> float:
    """CPU microseconds for each message."""
    loop = asyncio.get_running_loop()
    counts = [0]
    transports = [(await loop.create_connection(lambda: Talker(size, counts), "127.0.0.1", port))[0] for _ in range(_CONNECTIONS)]
    await asyncio.sleep(0.3)
    before, done = cpu_s(pids), counts[0]
    await asyncio.sleep(seconds)
    spent, messages = cpu_s(pids) - before, counts[0] - done
    for transport in transports:
        transport.abort()
    return spent * 1e6 / messages


def meshguard(directory: Path, port: int, upstream: int) -> list[str]:
    (directory / "policies").mkdir()
    rules = [{"id": "echo", "allow": "anyone", "methods": ["GET"], "paths": ["/echo"]}]
    (directory / "policies" / "p.yaml").write_text(yaml.safe_dump({"rules": rules}))
    config = {
        "listeners": {"plain": {"address": f"127.0.0.1:{port}", "tls": "none", "to": "echo"}},
        "clusters": {"echo": {"endpoints": [f"127.0.0.1:{upstream}"]}},
        "policies": ["policies/"],
        "decision_log": {"path": str(directory / "decisions.log")},
        "admin": {"address": f"127.0.0.1:{procs.PortKeeper().port()}"},
    }
    (directory / "meshguard.yaml").write_text(yaml.safe_dump(config))
    return [sys.executable, "-m", "meshguard", "serve", "--config", str(directory / "meshguard.yaml")]


def envoy(directory: Path, port: int, upstream: int) -> list[str]:
    kinds = "type.googleapis.com/envoy.extensions.filters."

    def address(number: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    route = {"match": {"prefix": "/"}, "route": {"cluster": "echo"}}
    manager = {
        "@type": kinds + "network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "in",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": kinds + "http.router.v3.Router"}}],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    endpoint = {"endpoint": {"address": address(upstream)}}
    cluster = {
        "name": "echo",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {"cluster_name": "echo", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    config = {"static_resources": {"listeners": [{"address": address(port), "filter_chains": [chain]}], "clusters": [cluster]}}
    (directory / "envoy.json").write_text(json.dumps(config))
    return [str(install.envoy()), "-c", str(directory / "envoy.json"), "--concurrency", "1", "-l", "error", "--disable-hot-restart"]


async def run(options: argparse.Namespace, directory: Path) -> dict[str, dict[str, float]]:
    keeper = procs.PortKeeper()
    os.sched_setaffinity(0, {1})
    loop = asyncio.get_running_loop()
    found: dict[str, dict[str, list[float]]] = {}
    for size in options.sizes:
        server = await loop.create_server(lambda size=size: Echo(size), "127.0.0.1", 0)
        upstream = server.sockets[0].getsockname()[1]
        running: dict[str, tuple[subprocess.Popen[bytes], int]] = {}
        try:
            for make in (meshguard, envoy):
                port, home = keeper.port(), directory / f"{make.__name__}-{size}"
                home.mkdir()
                process = procs.start(make(home, port, upstream), 0, home / "log", cwd=install.ROOT)
                running[make.__name__] = (process, port)
                await asyncio.to_thread(procs.wait_port, port, process, 15.0)
            for _ in range(options.rounds):
                for name, (process, port) in running.items():
                    micros = await measure(port, procs.tree(process.pid), size, options.seconds)
                    found.setdefault(name, {}).setdefault(str(size), []).append(micros)
        finally:
            for process, _ in running.values():
                procs.stop(process)
            server.close()
    return {name: {size: statistics.median(values) for size, values in sizes.items()} for name, sizes in found.items()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.websocket", description=__doc__)
    parser.add_argument("--sizes", nargs="*", type=int, default=[64, 4096], help="octets of a message")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        import uvloop

        found = uvloop.run(run(options, Path(name)))
    rows = []
    for size in options.sizes:
        ours, anchor = found["meshguard"][str(size)], found["envoy"][str(size)]
        row = {"name": f"websocket-{size}", "ours": ours, "anchor": anchor, "anchor_name": "envoy", "unit": "CPU us/message"}
        rows.append({**row, "ratio": ours / anchor})
        print(f"echo of {size:5} octets: meshguard {ours:6.1f}, envoy {anchor:6.1f} CPU us/message, ratio {ours / anchor:.2f}")
    install.OUT.mkdir(parents=True, exist_ok=True)
    (install.OUT / "websocket.json").write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
