"""Runs the real process: `python -m meshguard serve --config FILE`, waits for its readiness, collects what it writes."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import yaml

from tests.harness.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
START_DEADLINE_S = 60.0


class Lines:
    """Reads a pipe in a thread; everybody who waits is woken by each line."""

    def __init__(self, stream: Any, parse: Callable[[bytes], Any]) -> None:
        self.items: list[Any] = []
        self.raw = bytearray()
        self._stream = stream
        self._parse = parse
        self._condition = threading.Condition()
        self.ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        for line in self._stream:
            item = self._parse(line)
            with self._condition:
                self.raw += line
                if item is not None:
                    self.items.append(item)
                self._condition.notify_all()
        with self._condition:
            self.ended = True
            self._condition.notify_all()

    def join(self) -> None:
        self._thread.join(5)
        self._stream.close()

    def wait(self, predicate: Callable[[Any], Any], what: str = "a line", deadline_s: float = 20.0, since: int = 0) -> Any:
        """The first item (from index `since`) with a true `predicate(item)`."""
        position = since

        def found() -> Any:
            nonlocal position
            while position < len(self.items):
                item = self.items[position]
                position += 1
                if predicate(item):
                    return (item,)
            return None

        with self._condition:
            hit = self._condition.wait_for(found, deadline_s)
        assert hit, f"{what} was not written within {deadline_s} s; last: {self.items[-3:]}"
        return hit[0]


def _parse_json(line: bytes) -> Any:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


class Proxy:
    """One process. `config` is the configuration document; listeners without an address and the admin API get a free port."""

    def __init__(
        self, directory: Path, config: dict[str, Any], *, policies: dict[str, Any] | None = None, environment: dict[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.config = config
        self.environment = environment or {}
        self.ports: dict[str, int] = {}
        directory.mkdir(parents=True, exist_ok=True)
        for name, listener in config["listeners"].items():
            self.ports[name] = listener.setdefault("_port", free_port())
            del listener["_port"]
            listener["address"] = f"127.0.0.1:{self.ports[name]}"
        self.admin_port = free_port()
        config.setdefault("admin", {"address": f"127.0.0.1:{self.admin_port}"})
        config.setdefault("decision_log", {"path": "-"})
        for name, document in (policies or {}).items():
            self.write_policy(name, document)
        if policies is not None:
            config.setdefault("policies", ["policies/"])
        self.config_path = directory / "meshguard.yaml"
        self.write_config()
        self.process: subprocess.Popen[bytes] | None = None
        self.started_in_s = 0.0

    # ---- documents
    def write_config(self) -> None:
        _replace(self.config_path, yaml.safe_dump(self.config, sort_keys=False).encode())

    def write_policy(self, name: str, document: Any) -> Path:
        """Writes `policies/NAME` by an atomic rename; a str is written as it is."""
        path = self.directory / "policies" / name
        path.parent.mkdir(exist_ok=True)
        _replace(path, (document if isinstance(document, str) else yaml.safe_dump(document, sort_keys=False)).encode())
        return path

    # ---- life
    def start(self, *, ready: bool = True) -> Proxy:
        started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "meshguard", "serve", "--config", str(self.config_path)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **self.environment},
        )
        self.stdout = Lines(self.process.stdout, _parse_json)
        self.stderr = Lines(self.process.stderr, lambda line: line.decode("utf-8", "replace").rstrip("\n"))
        if ready:
            self.wait_ready()
            self.started_in_s = time.monotonic() - started
        return self

    def wait_ready(self, deadline_s: float = START_DEADLINE_S) -> None:
        def is_ready() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                self.stderr.join()
                raise AssertionError(f"meshguard ended with {self.process.returncode} before it was ready:\n{self.stderr_text[-4000:]}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self.admin("/readyz")[0] == 200
            return False

        try:
            eventually(is_ready, "readiness", deadline_s)
        except AssertionError:
            self.stop()
            raise

    def stop(self) -> int:
        """Ends the process by its id: SIGTERM, and SIGKILL after five seconds. Returns its exit status."""
        process = self.process
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)
        self.stdout.join()
        self.stderr.join()
        self.process = None
        return process.returncode

    def __enter__(self) -> Proxy:
        return self if self.process else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    # ---- what it says
    @property
    def stderr_text(self) -> str:
        return self.stderr.raw.decode("utf-8", "replace")

    @property
    def log_bytes(self) -> bytes:
        """Everything the process wrote to standard output (the decision log) and standard error."""
        return bytes(self.stdout.raw) + bytes(self.stderr.raw)

    def address(self, listener: str) -> tuple[str, int]:
        return ("127.0.0.1", self.ports[listener])

    def admin(self, path: str, method: str = "GET") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.admin_port, timeout=5)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def metrics(self) -> str:
        status, body = self.admin("/metrics")
        assert status == 200, body
        return body.decode()

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of `name` whose labels contain `labels`."""
        total, seen = 0.0, False
        for line in self.metrics().splitlines():
            if line.startswith("#") or not line.startswith(name):
                continue
            key, _, value = line.rpartition(" ")
            if key.split("{", 1)[0] == name and all(f'{k}="{v}"' in key for k, v in labels.items()):
                total, seen = total + float(value), True
        assert seen, f"no sample of {name} {labels}"
        return total

    def mark(self) -> int:
        return len(self.stdout.items)

    def decision(self, decision_id: str, deadline_s: float = 20.0) -> dict[str, Any]:
        """The decision record with this id."""
        return self.stdout.wait(lambda r: r.get("id") == decision_id, f"the decision record {decision_id}", deadline_s)

    def decision_where(self, predicate: Callable[[dict[str, Any]], Any], what: str, since: int = 0) -> dict[str, Any]:
        return self.stdout.wait(predicate, what, since=since)

    def reload(self, deadline_s: float = 20.0) -> str:
        """SIGHUP, then the line on standard error that reports just this reload, taken over or refused (watched files cause others)."""
        since = len(self.stderr.items)
        self.signal(signal.SIGHUP)
        line: str = self.stderr.wait(
            lambda text: ("reloaded" in text or "refused" in text) and '"why":"signal"' in text, "a report of the reload", deadline_s, since
        )
        return line

    def wait_reloaded(self, since: int, deadline_s: float = 20.0) -> str:
        """The line on standard error (from index `since`) that reports a reload, taken over or refused."""
        line: str = self.stderr.wait(lambda text: "reloaded" in text or "refused" in text, "a report of the reload", deadline_s, since)
        return line

    def rss_bytes(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_name("." + path.name + ".new")
    fresh.write_bytes(data)
    fresh.replace(path)


def eventually(predicate: Callable[[], Any], what: str, deadline_s: float = 20.0) -> Any:
    """For states that announce themselves by no event: asks again until `predicate()` is true or the deadline passes."""
    pause = threading.Event()
    deadline = time.monotonic() + deadline_s
    while True:
        result = predicate()
        if result:
            return result
        assert time.monotonic() < deadline, f"{what} did not happen within {deadline_s} s"
        pause.wait(0.01)


@contextlib.contextmanager
def lasting(predicate: Callable[[], bool], what: str) -> Iterator[None]:
    """`predicate` is true before and after the block."""
    assert predicate(), f"before: {what}"
    yield
    assert predicate(), f"after: {what}"
