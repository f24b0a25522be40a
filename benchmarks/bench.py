"""What all candidates of one run share: directories, certificates, the upstream, ports, cores, the load generator."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks import documents, install, pki, procs

__all__ = ["Bench", "Options"]


@dataclass(slots=True)
class Options:
    """The run's settings. Seconds are of one measured window; `rate` is requests a second of the latency row, `reload_rate` of
    the row `reloads`, which makes `reloads` reloads in all its rounds together."""

    rows: list[str] = field(default_factory=list)
    peers: list[str] = field(default_factory=list)
    ours: str = "meshguard"
    rounds: int = 5
    seconds: float = 3.0
    warmup_s: float = 1.0
    rules: int = 1000
    trace: float = 0.01
    rate: float = 4000.0
    idle_connections: int = 500
    reloads: int = 1000
    reload_rate: float = 300.0
    trials: int = 20
    load_core: int = 0
    proxy_core: int = max(0, (os.cpu_count() or 1) - 1)


class Bench:
    """The workplace of a run. Use as a context manager: what it started ends with it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        install.compile_package()
        self.tools = install.compile_tools()
        self.work = install.OUT / "run"
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        self.certs = self.work / "certs"
        pki.make(self.certs)
        self.ports = procs.PortKeeper()
        self.up_h1, self.up_h2 = self.ports.port(), self.ports.port()
        self._upstream: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Bench:
        command = [self.tools["upstream"], self.up_h1, self.up_h2, *documents.write(self.work)]
        self._upstream = procs.start(command, self.options.load_core, self.work / "upstream.log")
        procs.wait_port(self.up_h2, self._upstream, 5)
        return self

    def __exit__(self, *_: object) -> None:
        if self._upstream is not None:
            procs.stop(self._upstream)

    def load_command(self, port: int, tls: bool, **settings: object) -> list[str]:
        """The load generator's command line for one proxy port."""
        words: list[object] = [
            "taskset",
            "-c",
            self.options.load_core,
            self.tools["load"],
            f"port={port}",
            f"core={self.options.proxy_core}",
        ]
        if tls:
            words += [f"cert={self.certs / 'client.both.pem'}", f"ca={self.certs / 'ca.pem'}"]
        settings.setdefault("trace", self.options.trace)
        return [*map(str, words), *(f"{key}={value}" for key, value in settings.items())]

    def load(self, port: int, tls: bool, pids: Sequence[int], secs: float, **settings: object) -> dict[str, Any]:
        """One bounded load; its JSON object, or {"fatal": why}."""
        command = self.load_command(port, tls, pids=",".join(map(str, pids)), secs=secs, **settings)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=secs + 90, check=False)
            result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        except subprocess.TimeoutExpired:
            return {"fatal": "the load did not end in time"}
        except (IndexError, ValueError):
            return {"fatal": f"load ended with {done.returncode}: {done.stderr[-200:]}"}
        return result
