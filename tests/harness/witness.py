"""A witness (C2SP tlog-witness) on loopback, as its specification reads: it keeps what it signed last of each log, and checks consistency
by an implementation of its own (RFC 6962 section 2.1.2, by recursion over the shape of the trees)."""

from __future__ import annotations

import threading
from base64 import b64decode
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from meshguard.ledger.notes import Note, NoteError, NoteSigner, NoteVerifier, open_note

__all__ = ["WitnessServer"]


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def roots(old: int, new: int, proof: list[bytes], old_root: bytes) -> tuple[bytes, bytes]:
    """The roots of both trees as the proof implies them. Raises ValueError when it has another length."""
    rest = list(proof)

    def walk(old: int, new: int, whole: bool) -> tuple[bytes, bytes]:
        if old == new:
            node = old_root if whole else rest.pop(0)
            return node, node
        middle = 1 << ((new - 1).bit_length() - 1)
        if old <= middle:
            left_old, left_new = walk(old, middle, whole)
            return left_old, _node(left_new, rest.pop(0))
        right_old, right_new = walk(old - middle, new - middle, False)
        left = rest.pop(0)
        return _node(left, right_old), _node(left, right_new)

    try:
        found = walk(old, new, True)
    except IndexError as exc:
        raise ValueError("too short") from exc
    if rest:
        raise ValueError("too long")
    return found


class WitnessServer:
    """`signer` cosigns for logs with one of the keys `logs`. `seen`: origin to (size, root); `requests`: status of each."""

    def __init__(self, signer: NoteSigner, logs: list[NoteVerifier]) -> None:
        self.signer = signer
        self.seen: dict[str, tuple[int, bytes]] = {}
        self.requests: list[int] = []
        self.proofs: list[int] = []
        self._logs = logs
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                status, kind, text = outer.add(body) if self.path == "/prefix/add-checkpoint" else (404, "text/plain", "")
                outer.requests.append(status)
                self.send_response(status)
                self.send_header("content-type", kind)
                self.send_header("content-length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/prefix"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def add(self, body: str) -> tuple[int, str, str]:
        """Status, content type and text of the answer."""
        head, _, checkpoint = body.partition("\n\n")
        first, *lines = head.split("\n")
        if not first.startswith("old ") or len(lines) > 63:
            return 400, "text/plain", ""
        old, proof = int(first[4:]), [b64decode(line, validate=True) for line in lines]
        try:
            note = Note.parse(checkpoint)
        except NoteError:
            return 400, "text/plain", ""
        origin, size, root = note.text.split("\n")[:3]
        new, new_root = int(size), b64decode(root)
        if not any(origin.startswith(log.name) for log in self._logs):
            return 404, "text/plain", ""
        try:
            open_note(checkpoint, self._logs)
        except NoteError:
            return 403, "text/plain", ""
        if old > new:
            return 400, "text/plain", ""
        with self._lock:
            size_seen, root_seen = self.seen.get(origin, (0, b""))
            if old != size_seen:
                return 409, "text/x.tlog.size", f"{size_seen}\n"
            if old == new and root_seen != new_root:
                return 409, "text/plain", ""
            if 0 < old < new:
                try:
                    if roots(old, new, proof, root_seen) != (root_seen, new_root):
                        raise ValueError
                except ValueError:
                    return 422, "text/plain", ""
            elif proof:
                return 422, "text/plain", ""
            self.proofs.append(len(proof))
            self.seen[origin] = (new, new_root)
        name, key_id, value = self.signer.signature(note.text, 1_800_000_000)
        return 200, "text/plain", Note("x\n", ((name, key_id, value),)).render().rpartition("\n\n")[2]
