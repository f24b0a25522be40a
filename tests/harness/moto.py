"""KMS and STS of moto (`moto_server`) on loopback, behind a small proxy that can throttle, delay and refuse."""

from __future__ import annotations

import http.client
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
from typing import Any

from tests.harness.ports import free_port
from tests.harness.proxy import Lines, eventually

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "test-secret-access-key"}


class Moto:
    """`key` is the id of a symmetric key. `answer_with(status, body)` is given in place of moto's answer until `behave()`."""

    environment = ENVIRONMENT

    def __enter__(self) -> Moto:
        self.behind = free_port()
        self.calls: list[str] = []
        self._forced: tuple[int, bytes] | None = None
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.behind)],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **ENVIRONMENT},
        )  # fmt: skip
        self.output = Lines(self.process.stdout, lambda line: line.decode("utf-8", "replace"))
        eventually(self._answers, "moto", 30.0)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                outer.calls.append(self.headers.get("x-amz-target", "").rpartition(".")[2] or body.decode()[:40])
                status, data = outer._forced or outer.pass_on(self.path, dict(self.headers), body)
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        # moto tells the service by the scope of the signature
        scope = "AWS4-HMAC-SHA256 Credential=x/20260101/eu-central-1/kms/aws4_request, SignedHeaders=host, Signature=x"
        fields = {"x-amz-target": "TrentService.CreateKey", "content-type": "application/x-amz-json-1.1", "authorization": scope}
        status, data = self.pass_on("/", fields, b"{}")
        assert status == 200, data
        self.key = str(json.loads(data)["KeyMetadata"]["KeyId"])
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        self.output.join()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer_with(self, status: int, kind: str) -> None:
        self._forced = (status, json.dumps({"__type": f"com.amazonaws.kms#{kind}", "message": "no"}).encode())

    def behave(self) -> None:
        self._forced = None

    def _answers(self) -> bool:
        try:
            return self.pass_on("/moto-api/", {}, b"", "GET")[0] == 200
        except OSError:
            return False

    def pass_on(self, path: str, fields: dict[str, Any], body: bytes, method: str = "POST") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=20)
        try:
            kept = {name: value for name, value in fields.items() if name.lower() not in ("connection", "content-length")}
            connection.request(method, path, body, kept)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
