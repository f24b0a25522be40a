"""The sample service behind the proxy: an orders API without any security of its own, kept in memory.

    GET /orders   POST /orders   GET /orders/{id}   GET /admin/users
    GET /_store   everything as it is stored; asked directly, past the proxy, it shows what somebody with the data base would see

It believes every request, as services behind a sidecar do, and listens on the loopback only.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["OrdersService"]

MAX_BODY_BYTES = 64 * 1024
MAX_ORDERS = 1000


class OrdersService:
    """Serves from threads of its own from `start` to `stop`. Port 0 takes a free one; `port` tells which."""

    def __init__(self, port: int = 0) -> None:
        self._lock = threading.Lock()
        self._orders: dict[str, dict[str, Any]] = {"1": {"id": "1", "item": "bicycle", "price": 950.00, "payment": {"method": "invoice"}}}
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.service = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="orders", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, object]:
        """Status and JSON value for one request."""
        with self._lock:
            match method, path.split("?")[0].strip("/").split("/"):
                case "GET", ["_store"]:
                    return 200, list(self._orders.values())
                case "GET", ["orders"]:
                    return 200, {"orders": list(self._orders)}
                case "POST", ["orders"]:
                    return self._place(body)
                case "GET", ["orders", identifier] if identifier in self._orders:
                    return 200, self._orders[identifier]
                case "GET", ["admin", "users"]:
                    return 200, {"users": ["root"]}
        return 404, {"error": "not found"}

    def _place(self, body: bytes) -> tuple[int, object]:
        try:
            order = json.loads(body)
        except ValueError:
            return 400, {"error": "not JSON"}
        if not isinstance(order, dict):
            return 400, {"error": "an order is an object"}
        if len(self._orders) >= MAX_ORDERS:
            return 507, {"error": "the store is full"}
        identifier = str(len(self._orders) + 1)
        self._orders[identifier] = {**order, "id": identifier}
        return 201, self._orders[identifier]


class _Server(ThreadingHTTPServer):
    service: OrdersService
    daemon_threads = True
    block_on_close = False  # the proxy keeps its connections open: nobody waits for them at the end


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 75  # longer than the proxy keeps an idle connection

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        body = self._chunks() if self.headers.get("transfer-encoding") == "chunked" else self._sized()
        if body is None:
            self.close_connection = True
            self._write(413, {"error": "too large"})
        else:
            self._serve(body)

    def _sized(self) -> bytes | None:
        length = int(self.headers.get("content-length", 0))
        return self.rfile.read(length) if length <= MAX_BODY_BYTES else None

    def _chunks(self) -> bytes | None:
        body = b""
        while size := int(self.rfile.readline().strip(), 16):
            if len(body) + size > MAX_BODY_BYTES:
                return None
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _serve(self, body: bytes) -> None:
        self._write(*self.server.service.answer(self.command, self.path, body))

    def _write(self, status: int, value: object) -> None:
        body = json.dumps(value).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the decision log of the proxy is the one to read."""
