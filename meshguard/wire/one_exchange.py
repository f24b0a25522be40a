"""One HTTP/1.1 request of ours to a service, and its answer, as octets: what every client of the control plane needs (RFC 9112).

Without I/O: the caller connects, sends `request`, hands over what comes, and has the deadline. The answer's body is bounded; redirects and
content codings are the caller's to judge.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import SplitResult

import h11

__all__ = ["Answer", "OneExchange", "is_loopback", "port_of"]


class Answer(NamedTuple):
    """`fields` by lower-case name."""

    status: int
    fields: Mapping[str, str]
    body: bytes


class OneExchange:
    """`request` is what to send; `receive` takes what comes, until it gives the answer. The connection ends with it."""

    def __init__(self, method: str, url: SplitResult, fields: Mapping[str, str], body: bytes, max_octets: int) -> None:
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=64 * 1024)
        self._max_octets = max_octets
        self._response: h11.Response | None = None
        self._body = bytearray()
        headers = [("host", url.netloc), *fields.items(), ("accept-encoding", "identity"), ("connection", "close")]
        if body or method in ("POST", "PUT"):
            headers.append(("content-length", str(len(body))))
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        data = self._connection.send(h11.Request(method=method, target=target, headers=headers)) or b""
        data += (self._connection.send(h11.Data(data=body)) or b"") if body else b""
        self.request = data + (self._connection.send(h11.EndOfMessage()) or b"")

    def receive(self, data: bytes) -> Answer | None:
        """The answer when it is whole; `data` is empty at the end of the connection. Raises h11.ProtocolError, ValueError."""
        self._connection.receive_data(data)
        while True:
            event = self._connection.next_event()
            if event is h11.NEED_DATA:
                return None
            if isinstance(event, h11.Response):
                self._response = event
            elif isinstance(event, h11.Data):
                self._body += event.data
                if len(self._body) > self._max_octets:
                    raise ValueError(f"an answer of more than {self._max_octets} octets")
            elif isinstance(event, h11.EndOfMessage) and self._response is not None:
                fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in self._response.headers}
                return Answer(self._response.status_code, fields, bytes(self._body))
            elif not isinstance(event, h11.InformationalResponse):
                raise ValueError("the connection ended early")


def is_loopback(host: str) -> bool:
    """This machine's own: what is sent there does not leave it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def port_of(url: SplitResult) -> int:
    """Its port, or that of its scheme. Raises ValueError for none that can be."""
    return url.port or (443 if url.scheme == "https" else 80)
