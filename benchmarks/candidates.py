"""A candidate: one proxy, how it is started, whether it is ready, and whether it does what its figures will claim."""

from __future__ import annotations

import http.client
import ssl
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import procs, rules
from benchmarks.bench import Bench

__all__ = ["HOST", "Candidate", "Plan", "Prepare"]

HOST = "orders.prod.svc.cluster.local:8080"
"""The authority that every request names."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How to start a candidate. `ports` maps h1-plain, h1-mtls, h2-mtls and grpc to the port that serves them (one missing: not served).

    `policy`: it must refuse a path in no rule. `demands_certificate`: it must refuse a client without one.
    `around`: ports by name that are not the proxy's service (its admin port, upstreams that a row brings).
    `pinned`: it runs on the core that is measured. `log`: the file in which it writes a line for each request, if it does.
    """

    command: Sequence[object]
    ports: Mapping[str, int]
    policy: bool = False
    demands_certificate: bool = True
    log: Path | None = None
    around: Mapping[str, int] = field(default_factory=dict)
    cwd: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    ready_timeout_s: float = 20.0
    pinned: bool = True


Prepare = Callable[[Bench, Path], Plan]
"""Writes a candidate's configuration into the directory given; raises install.Absent when its program is not there."""


class Candidate:
    """Started and stopped by the rows; `start_s` is the time from its start to its first good answer."""

    def __init__(self, bench: Bench, name: str, prepare: Prepare) -> None:
        self.bench = bench
        self.name = name
        self._prepare = prepare
        self._process: subprocess.Popen[bytes] | None = None
        self.plan: Plan | None = None
        self.start_s = 0.0

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Starts the proxy and waits for its first good answer. Raises RuntimeError when it does not come, install.Absent."""
        directory = self.bench.work / self.name
        directory.mkdir(parents=True, exist_ok=True)
        plan = self._prepare(self.bench, directory)
        log = directory / "out.log"
        began = time.monotonic()
        core = self.bench.options.proxy_core if plan.pinned else None
        self._process = procs.start(plan.command, core, log, plan.cwd, plan.env)
        self.plan = plan
        try:
            for port in set(plan.ports.values()):
                procs.wait_port(port, self._process, plan.ready_timeout_s)
            kind = "h1-mtls" if "h1-mtls" in plan.ports else "h1-plain"
            while (answer := self.ask(kind, rules.ORDERS + "/1")) != 200:
                if time.monotonic() > began + plan.ready_timeout_s:
                    raise RuntimeError(f"the first request on {kind} gave {answer}")
                time.sleep(0.02)
        except RuntimeError as error:
            self.stop()
            tail = log.read_text(errors="replace").strip()[-400:]
            raise RuntimeError(f"{self.name}: {error}; {log}: {tail}") from error
        self.start_s = time.monotonic() - began

    def stop(self) -> None:
        if self._process is not None:
            procs.stop(self._process)
            self._process = None

    def pids(self) -> list[int]:
        return procs.tree(self._process.pid) if self._process else []

    def port(self, kind: str) -> int | None:
        """The port that serves h1-plain, h1-mtls, h2-mtls or grpc; None when it is not served."""
        return self.plan.ports.get(kind) if self.plan else None

    def ask(self, kind: str, path: str, certificate: bool = True) -> int | str:
        """Status of one HTTP/1.1 request, or the name of what went wrong."""
        return self.fetch(kind, path, certificate)[0]

    def fetch(self, kind: str, path: str, certificate: bool = True) -> tuple[int | str, bytes]:
        """`ask` with the body of the answer."""
        port = self.port(kind)
        if port is None:
            return "no such port", b""
        link: http.client.HTTPConnection
        if kind == "h1-plain":
            link = http.client.HTTPConnection("localhost", port, timeout=5)
        else:
            link = http.client.HTTPSConnection("localhost", port, timeout=5, context=self._client_context(["http/1.1"], certificate))
        try:
            link.request("GET", path, headers={"Host": HOST})
            answer = link.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__, b""
        finally:
            link.close()

    def speaks_h2(self) -> bool:
        """Whether the mTLS port agrees to HTTP/2 by ALPN."""
        port = self.port("h2-mtls")
        if port is None:
            return False
        try:
            with (
                procs.connect(port) as raw,
                self._client_context(["h2", "http/1.1"], True).wrap_socket(raw, server_hostname="localhost") as link,
            ):
                return link.selected_alpn_protocol() == "h2"
        except OSError:
            return False

    def faults(self) -> list[str]:
        """What the running proxy does not do although its figures would pretend that it does."""
        assert self.plan is not None
        found = []
        if "h1-mtls" in self.plan.ports:
            answer = self.ask("h1-mtls", rules.ORDERS + "/1", certificate=False)
            if self.plan.demands_certificate and isinstance(answer, int) and answer < 400:
                found.append(f"answers {answer} to a client without certificate")
            answer = self.ask("h1-mtls", "/not/in/any/rule")
            if self.plan.policy and answer != 403:
                found.append(f"a path in no rule gave {answer}, not 403")
        return found

    def _client_context(self, protocols: list[str], certificate: bool) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.bench.certs / "ca.pem"))
        context.check_hostname = False  # an SVID names a workload, not a host
        context.set_alpn_protocols(protocols)
        if certificate:
            context.load_cert_chain(self.bench.certs / "client.both.pem")
        return context
