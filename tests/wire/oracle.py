"""What h11 makes of a stream, and whether that is what our engine made of it. Used by the property tests and by the fuzz targets."""

from __future__ import annotations

import re
from typing import Any

import h11

from meshguard.wire.fields import NOT_IN_TRAILERS, REQUEST_CONSUMED, RESPONSE_CONSUMED, SPOOFABLE, split_block
from tests.wire.drive import Run

__all__ = ["agree", "h11_events", "judged_apart", "meaning_of"]

_FRAMING_IN_TRAILERS = re.compile(
    rb"(?i)\n0+(?:;[^\r\n]*+)?\r\n(?:[^\r\n]++\r\n)*?(?:content-length|transfer-encoding):"
)


def judged_apart(data: bytes) -> bool:
    """The stream may hold Transfer-Encoding or Content-Length in a trailer section: dropped here whatever they say, while h11 judges their
    values. An intended disagreement."""
    return _FRAMING_IN_TRAILERS.search(data) is not None


def h11_events(role: Any, data: bytes, methods: list[bytes], eof: bool = False) -> list[tuple[Any, bytes, Any]]:
    """(head, body, end or None) of each message in `data` up to the first that h11 refuses, with its limits out of the way."""
    out: list[tuple[Any, bytes, Any]] = []
    rest = data
    while rest or not out:
        connection = h11.Connection(role, max_incomplete_event_size=1 << 20)
        if role is h11.CLIENT:
            method = methods.pop(0) if methods else b"GET"
            connection.send(h11.Request(method=method, target=b"/", headers=[(b"host", b"a")]))
            connection.send(h11.EndOfMessage())
        elif rest.startswith(b"\r\n"):
            rest = rest[2:]
        connection.receive_data(rest)
        if eof:
            connection.receive_data(b"")
        head, body = None, b""
        while True:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError:
                event = h11.NEED_DATA
            if event is h11.NEED_DATA or type(event) is h11.ConnectionClosed:
                if head is not None:
                    out.append((head, body, None))
                return out
            if event is h11.PAUSED:
                break
            if type(event) is h11.InformationalResponse:
                out.append((event, b"", True))
                if event.status_code == 101:
                    return out
            elif type(event) in (h11.Request, h11.Response):
                head = event
            elif type(event) is h11.Data:
                body += bytes(event.data)
            elif type(event) is h11.EndOfMessage:
                out.append((head, body, event))
                break
        following = connection.trailing_data[0]
        if len(following) >= len(rest):
            break
        rest = following
    return out


def lower(pairs: Any) -> list[tuple[bytes, bytes]]:
    return [(bytes(name).lower(), bytes(value)) for name, value in pairs]


def consumed(name: bytes, names: tuple[bytes, ...], spoofable: tuple[bytes, ...]) -> bool:
    plain = name.replace(b"_", b"-")
    return name in names or any(plain == other or (other.endswith(b"*") and plain.startswith(other[:-1])) for other in spoofable)


def nominated(pairs: list[tuple[bytes, bytes]]) -> set[bytes]:
    return {token.strip(b" \t").lower() for name, value in pairs if name == b"connection" for token in value.split(b",")}


KEPT = {b"host", b"content-length", b"transfer-encoding", b"authorization", b"cookie", b"via", b"content-type", b"content-encoding"}


def agree(ours: Run, theirs: list[tuple[Any, bytes, Any]]) -> None:
    """Head by head: method or status, target, the fields that are left after removal, body, trailers."""
    messages = ours.messages
    for number, message in enumerate(messages):
        if message.head.get("status") == 101:  # h11 refuses what was not asked for; here the exchange does, since it knows
            messages = messages[:number]
            break
    complete = [message for message in messages if message.complete]
    assert len(theirs) >= len(complete)
    assert len(theirs) >= len(messages), "h11 refuses a head"
    for message, (event, body, end) in zip(messages, theirs, strict=False):
        head = message.head
        pairs = lower(event.headers)
        gone = nominated(pairs) - KEPT
        left = lower(split_block(head["block"]))
        if "method" in head:
            assert head["method"] == event.method
            hosts = [value for name, value in pairs if name == b"host"]
            if head["scheme"]:
                absolute = head["scheme"] + b"://" + hosts[0].lower()
                assert event.target.lower().startswith(absolute) or event.target.lower().startswith(head["scheme"] + b"://")
                sent = event.target[len(absolute) :]
                assert head["target"] == (sent if sent.startswith(b"/") else b"/" + sent if sent or event.method != b"OPTIONS" else b"*")
            else:
                assert head["target"] == event.target
                assert head["authority"] == (hosts[0] if hosts else b"")
            assert head["minor"] == int(event.http_version[-1:])
            expected = [(n, v) for n, v in pairs if not consumed(n, REQUEST_CONSUMED, SPOOFABLE) and n not in gone and b"_" not in n]
        else:
            assert head["status"] == event.status_code
            expected = [(n, v) for n, v in pairs if not consumed(n, RESPONSE_CONSUMED, (b"x-meshguard-*",)) and n not in gone]
        assert left == expected
        if message.complete and end is not True:
            assert message.body == body
            assert end is not None, "h11 does not think that the message is over"
            trailers = [(n, v) for n, v in lower(end.headers) if n not in NOT_IN_TRAILERS]
            assert lower(split_block(message.trailers)) == trailers
        elif not message.complete:
            assert body.startswith(message.body) or message.body.startswith(body)


def meaning_of(run: Run) -> tuple[object, ...]:
    """What both engines have to say alike; h11 gives trailers in lower case, and keeps what it waits for to itself."""
    run.left = 0
    for message in run.messages:
        message.trailers = b"".join(b"%b: %b\r\n" % pair for pair in lower(split_block(message.trailers)))
    return run.same()
