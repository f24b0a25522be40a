"""How answers are written on a downstream HTTP/1.1 connection: our own status line and framing around the block that was judged.

Writes are corked until `flush` or the end, so that a short answer is one write.
"""

from __future__ import annotations

from meshguard.model.messages import CHUNKED, NO_BODY, UNTIL_CLOSE, RequestHead
from meshguard.model.reasons import Reason
from meshguard.net.channel import HIGH_WATER, Channel
from meshguard.net.dates import date_line
from meshguard.net.limits import ConnectionLimits
from meshguard.wire.chunked import encode_chunk, encode_last_chunk
from meshguard.wire.serialise import CHUNKED_LINE, INTERIM_CONTINUE, STATUS_LINES, status_line

__all__ = ["Http1Answers"]

_CLOSE = b"connection: close\r\n"
_SWITCHING = status_line(101) + b"upgrade: websocket\r\nconnection: upgrade\r\n"


class Http1Answers:
    """The writing half of a door (`net.stream.Downstream`); the reading half has the states."""

    __slots__ = ("_chunked", "_close_after", "_drains", "_head", "_limits", "_out", "channel")

    channel: Channel
    _head: RequestHead | None
    _limits: ConnectionLimits
    _out: bytes
    _chunked: bool
    _close_after: bool
    _drains: bool

    def send_whole(self, status: int, block: bytes, body: bytes) -> None:
        self.channel.write(
            b"%b%bcontent-length: %d\r\n%b\r\n%b"
            % (STATUS_LINES.get(status) or status_line(status), block, len(body), _CLOSE if self._close_after else b"", body)
        )

    def send_interim(self, status: int, block: bytes) -> None:
        if self._head is not None and self._head.minor == 1:
            self.channel.write(b"%b%b\r\n" % (status_line(status), block))

    def send_continue(self) -> None:
        """The answer to `Expect: 100-continue`, after the decision."""
        self.channel.write(INTERIM_CONTINUE)

    def send_head(self, status: int, block: bytes, length: int, specials: list[tuple[bytes, bytes]]) -> None:
        head = self._head
        framing = b""
        if length > 0:
            framing = b"content-length: %d\r\n" % length
        elif length == NO_BODY:
            described = next((value for name, value in specials if name == b"content-length"), None)
            if described is not None:
                framing = b"content-length: %b\r\n" % described
            elif status not in (204, 304) and not (head is not None and head.method == b"HEAD"):
                framing = b"content-length: 0\r\n"
        elif head is not None and head.minor == 1 and length in (CHUNKED, UNTIL_CLOSE):
            self._chunked = True
            framing = CHUNKED_LINE
        else:
            self._close_after = True
        if self._close_after:
            framing += _CLOSE
        self._out = b"%b%b%b\r\n" % (status_line(status), block, framing)

    def send_data(self, data: bytes) -> None:
        if self._chunked:
            data = encode_chunk(data)
        self._out = self._out + data if self._out else data
        if len(self._out) > HIGH_WATER:
            self.flush()

    def send_end(self, trailers: bytes) -> None:
        if self._chunked:
            self._out += encode_last_chunk(trailers)
        self.flush()

    def flush(self) -> None:
        out = self._out
        if out:
            self._out = b""
            self.channel.write(out)

    def send_refusal(self, reason: Reason, block: bytes, body: bytes) -> None:
        head = self._head
        if reason.closes or head is None or head.expect or head.length > self._limits.refused_body_bytes:
            self._close_after = True
        else:
            self._drains = True
        body_out = b"" if head is not None and head.method == b"HEAD" else body
        connection = _CLOSE if self._close_after else b""
        self._out = b""
        self.channel.write(
            b"%b%b%bcontent-length: %d\r\n%b\r\n%b" % (status_line(reason.status), date_line(), block, len(body), connection, body_out)
        )

    def send_switch(self, block: bytes) -> None:
        """The 101 that opens a tunnel: what is sent from here on is written as it is."""
        self._out = b""
        self._chunked = False
        self._close_after = True
        self.channel.write(b"%b%b\r\n" % (_SWITCHING, block))

    def send_now(self, data: bytes) -> None:
        self.channel.write(data)
