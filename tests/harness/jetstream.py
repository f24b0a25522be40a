"""A NATS server that ends and begins again with its stream, for what is shipped to it (`tests.harness.nats` is the fleet's store)."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from pathlib import Path

from tests.harness.proxy import eventually, free_port

__all__ = ["NatsServer", "nats_server"]


def nats_server() -> str | None:
    """The binary, where one is installed."""
    return shutil.which("nats-server") or shutil.which("nats-server", path="/usr/sbin")


class NatsServer:
    """`start` and `stop` may be called again: the stream stays."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> NatsServer:
        binary = nats_server()
        assert binary is not None
        self._process = subprocess.Popen(
            [binary, "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self._directory)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        eventually(self._answers, "the NATS server", 10.0)
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(5)
            self._process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as probe:
                return probe.recv(4) == b"INFO"
        except OSError:
            return False
