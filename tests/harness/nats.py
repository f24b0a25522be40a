"""A real NATS server with JetStream on loopback; the tests that need it are skipped without it. And a path to it that can be made slow."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.harness.pki import Authority
from tests.harness.ports import free_port
from tests.harness.proxy import Lines, eventually

T = TypeVar("T")

try:
    import nats
except ImportError:
    nats = None  # type: ignore[assignment]


def binary() -> str | None:
    return shutil.which("nats-server") or shutil.which("nats-server", path="/usr/sbin:/usr/local/sbin")


needs_nats = pytest.mark.skipif(
    binary() is None or nats is None, reason="NATS is not there: apt-get install nats-server, pip install nats-py"
)

BUCKETS = {"meshguard-bundles": 8, "meshguard-quarantine": 8, "meshguard-instances": 1, "meshguard-checkpoints": 8}


class NatsServer:
    """One server. With `authority` it speaks TLS under a certificate of that CA (a SPIFFE ID and the name localhost) and asks clients
    for theirs. `options` is added to its configuration."""

    def __init__(self, directory: Path, *, authority: Authority | None = None, options: str = "", port: int = 0) -> None:
        self.directory = directory / "nats"
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.authority = authority
        lines = [f"listen: 127.0.0.1:{self.port}", f'jetstream {{store_dir: "{self.directory}/data"}}', options]
        if authority is not None:
            certificate, key = authority.service("nats", dns=["localhost"]).write(self.directory, "server")
            ca = self.directory / "ca.pem"
            ca.write_bytes(authority.pem)
            lines.append(f'tls {{cert_file: "{certificate}", key_file: "{key}", ca_file: "{ca}", verify: true}}')
        self.config = self.directory / "nats.conf"
        self.config.write_text("\n".join(lines) + "\n")
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"tls://localhost:{self.port}" if self.authority is not None else f"nats://127.0.0.1:{self.port}"

    def start(self, **environment: str) -> NatsServer:
        command = [str(binary()), "-c", str(self.config)]
        none = subprocess.DEVNULL
        env = {**os.environ, **environment}
        self.process = subprocess.Popen(command, stdin=none, stdout=none, stderr=subprocess.PIPE, env=env)
        self.output = Lines(self.process.stderr, lambda line: line.decode("utf-8", "replace"))
        self.output.wait(lambda line: "Server is ready" in line, "the readiness of NATS", 10.0)
        return self

    def stop(self, number: int = signal.SIGTERM) -> None:
        process, self.process = self.process, None
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)
            self.output.join()

    def pause(self) -> None:
        """It answers nothing any more, and closes nothing either."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def __enter__(self) -> NatsServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    # -- what an operator, or an attacker, does in it

    def run(self, work: Callable[[Any], Awaitable[T]], **options: Any) -> T:
        """`await work(jetstream)` on a connection of its own."""

        async def connected() -> T:
            client = await nats.connect(self.url, allow_reconnect=False, connect_timeout=5, **options)
            try:
                return await work(client.jetstream(timeout=5))
            finally:
                await client.close()

        return asyncio.run(connected())

    def make_buckets(self, **options: Any) -> None:
        async def work(stream: Any) -> None:
            for name, history in BUCKETS.items():
                await stream.create_key_value(bucket=name, history=history)

        self.run(work, **options)

    def put(self, bucket: str, key: str, value: bytes) -> int:
        async def work(stream: Any) -> int:
            return await (await stream.key_value(bucket)).put(key, value)

        return self.run(work)

    def get(self, bucket: str, key: str, revision: int | None = None) -> bytes:
        async def work(stream: Any) -> bytes:
            return (await (await stream.key_value(bucket)).get(key, revision)).value

        return self.run(work)

    def delete(self, bucket: str, key: str) -> None:
        async def work(stream: Any) -> None:
            await (await stream.key_value(bucket)).delete(key)

        self.run(work)

    def reports(self, bucket: str = "meshguard-instances") -> dict[str, Any]:
        async def work(stream: Any) -> dict[str, Any]:
            values = await stream.key_value(bucket)
            try:
                keys = await values.keys()
            except nats.js.errors.NoKeysError:
                return {}
            return {key: json.loads((await values.get(key)).value) for key in keys}

        return self.run(work)


class SlowPath:
    """A port that leads to another one, later: what comes from there waits `delay_s` seconds."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.delay_s = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._pause = threading.Event()
        self._carrying: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> SlowPath:
        return self

    def __exit__(self, *_: object) -> None:
        self._pause.set()
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        self._thread.join(5)
        for each in self._open:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # closed already
        for thread in self._carrying:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target), 5)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            self._open += [near, far]
            for source, sink, late in ((near, far, False), (far, near, True)):
                thread = threading.Thread(target=self._carry, args=(source, sink, late), daemon=True)
                self._carrying.append(thread)
                thread.start()

    def _carry(self, source: socket.socket, sink: socket.socket, late: bool) -> None:
        try:
            while data := source.recv(65536):
                if late and self.delay_s:
                    self._pause.wait(self.delay_s)
                sink.sendall(data)
        except OSError:
            pass
        for each in (source, sink):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        source.close()  # the other one is closed by its own thread


__all__ = ["BUCKETS", "NatsServer", "SlowPath", "binary", "eventually", "needs_nats"]
