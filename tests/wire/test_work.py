"""The work per octet is bounded, whatever comes and however slowly: octets offered to expressions are counted, and processor time is only
compared with itself."""

from __future__ import annotations

from collections.abc import Callable
from time import process_time
from typing import Any

import pytest

from meshguard.model.errors import RequestError
from meshguard.wire import chunked, http1
from meshguard.wire.chunked import ChunkDecoder
from meshguard.wire.events import WireLimits
from meshguard.wire.fields import remove_fields, split_block
from meshguard.wire.http1 import RequestParser, ResponseParser
from meshguard.wire.semantics import FieldRules
from meshguard.wire.target import PathOptions, canonicalise

LIMITS = WireLimits()


class Meter:
    """Octets that were offered to an expression, from the position where it began."""

    def __init__(self) -> None:
        self.octets = 0

    def wrap(self, expression: Callable[..., Any]) -> Callable[..., Any]:
        def counted(data: bytes, position: int = 0) -> Any:
            self.octets += len(data) - position
            return expression(data, position)

        return counted


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    made = Meter()
    for module, names in (
        (http1, ("FORBIDDEN_IN_HEAD", "PLAIN_REQUEST_HEAD", "REQUEST_HEAD", "REQUEST_LINE", "RESPONSE_HEAD", "USUAL_RESPONSE")),
        (chunked, ("CHUNK_LINE", "FIELD_BLOCK", "FORBIDDEN_IN_HEAD", "_REST_OF_EXTENSION")),
    ):
        for name in names:
            if hasattr(module, name):
                monkeypatch.setattr(module, name, made.wrap(getattr(module, name)))
    return made


def dribble(engine: Any, data: bytes) -> None:
    for index in range(len(data)):
        engine.receive(data[index : index + 1])
        while engine.next() is not None:
            pass


def request_parser(meter: Meter) -> RequestParser:
    rules = FieldRules()
    rules.usual = meter.wrap(rules.usual)
    return RequestParser(LIMITS, rules)


START = b"POST / HTTP/1.1\r\nHost: a\r\n"
STREAMS = {
    "one long field": START + b"X: " + b"a" * 32000 + b"\r\n\r\n",
    "many fields": START + b"X-%d: y\r\n" * 90 % tuple(range(90)) + b"\r\n",
    "long request line": b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    "underscores": START + b"_" * 20000 + b": x\r\n\r\n",
    "chunk extension": START + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"a" * 4090 + b"\r\nhello\r\n0\r\n\r\n",
    "chunk extensions": START + b"Transfer-Encoding: chunked\r\n\r\n" + (b"5;" + b"a" * 4090 + b"\r\nhello\r\n") * 8 + b"0\r\n\r\n",
    "many chunks": START + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 3000 + b"0\r\n\r\n",
    "trailers": START + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 8000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("data", STREAMS.values(), ids=STREAMS.keys())
def test_a_slow_request_is_looked_at_once(meter: Meter, data: bytes) -> None:
    dribble(request_parser(meter), data)
    assert len(data) <= meter.octets <= 12 * len(data)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 32000 + b"\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.1 200 " + b"a" * 30000 + b"\r\n\r\n",
        b"HTTP/1.1 103 \r\nX: y\r\n\r\n" * 16 + b"HTTP/1.1 200 OK\r\nX: " + b"a" * 3000 + b"\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 8000 + b"\r\n\r\n",
    ],
    ids=["field", "reason", "interims", "trailers"],
)
def test_a_slow_response_is_looked_at_once(meter: Meter, data: bytes) -> None:
    engine = ResponseParser(LIMITS)
    engine.restart(b"GET")
    dribble(engine, data)
    assert len(data) <= meter.octets <= 12 * len(data)


def test_the_meter_sees_quadratic_work(meter: Meter) -> None:
    data = STREAMS["one long field"][:2000]
    for end in range(1, len(data)):
        http1.FORBIDDEN_IN_HEAD(data[:end])
    assert meter.octets > 100 * len(data)


def seconds(action: Callable[[], object]) -> float:
    best = 9e9
    for _ in range(5):
        start = process_time()
        for _ in range(4):
            try:
                action()
            except RequestError:
                pass
        best = min(best, process_time() - start)
    return best


WIDE = WireLimits(head_bytes=1 << 22, fields=1 << 20, request_line_bytes=1 << 20, chunk_line_bytes=1 << 20, chunk_extension_bytes=1 << 22)
RULES = FieldRules((b"x-user-*", b"x-user-id", b"x-u"))


def parse(data: bytes) -> None:
    engine = RequestParser(WIDE, RULES)
    engine.receive(data)
    while engine.next() is not None:
        pass


def answer(data: bytes) -> None:
    engine = ResponseParser(WIDE)
    engine.restart(b"GET")
    engine.receive(data)
    while engine.next() is not None:
        pass


def chunks(data: bytes) -> None:
    ChunkDecoder(WIDE).decode(data)


GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
BY_SIZE: dict[str, tuple[Callable[..., object], Callable[[int], bytes]]] = {
    "fields, no end": (parse, lambda n: GET + b"a:b\r\n" * n),
    "fields, no host": (parse, lambda n: b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * n + b"\r\n"),
    "name without colon": (parse, lambda n: GET + b"a" * n + b"\r\n\r\n"),
    "blanks": (parse, lambda n: GET + b"a:" + b" \t" * n + b"\r\n\r\n"),
    "blanks, then NUL": (parse, lambda n: GET + b"a:" + b" " * n + b"\x00\r\n\r\n"),
    "underscores": (parse, lambda n: GET + b"_" * n + b":\r\n\r\n"),
    "underscored fields": (parse, lambda n: GET + b"a_b:c\r\n" * n + b"\r\n"),
    "underscore far behind": (parse, lambda n: GET + b"a" * n + b"_:\r\n\r\n"),
    "connection options": (parse, lambda n: GET + b"Connection: " + b"a," * n + b"\r\nX: y\r\n\r\n"),
    "connection lines": (parse, lambda n: GET + b"Connection: a\r\nX:y\r\n" * n + b"\r\n"),
    "spoofable fields": (parse, lambda n: GET + b"X-Forwarded-For: 1\r\n" * n + b"\r\n"),
    "nearly spoofable": (parse, lambda n: GET + b"x-forwarde: 1\r\n" * n + b"\r\n"),
    "two traceparents": (parse, lambda n: GET + b"a:b\r\n" * n + b"traceparent: a\r\n" + b"a:b\r\n" * n + b"traceparent: a\r\n\r\n"),
    "length with blanks": (parse, lambda n: GET + b"content-length:" + b" " * n + b"1 \r\n\r\n"),
    "response fields": (answer, lambda n: OK + b"a:b\r\n" * n + b"\r\n"),
    "response reason": (answer, lambda n: b"HTTP/1.1 200 " + b" " * n + b"\x00"),
    "small chunks": (chunks, lambda n: b"1\r\na\r\n" * n + b"0\r\n\r\n"),
    "extension": (chunks, lambda n: b"1;" + b"a" * n + b"\n"),
    "fields of trailers": (chunks, lambda n: b"0\r\n" + b"a:b\r\n" * min(n, 1500) + b"\r\n"),
    "block": (split_block, lambda n: b"a:" + b" " * n + b"\r\n" + b"a" * n + b":\r\n"),
    "removal": (lambda data: remove_fields(data, [b"b"]), lambda n: b"a: b\r\n" * n),
    "dots": (canonicalise, lambda n: b"/a/.." * n),
    "slashes": (canonicalise, lambda n: b"/" * n),
    "escapes": (canonicalise, lambda n: b"/" + b"%41" * n),
    "high escapes": (canonicalise, lambda n: b"/" + b"%C3%A9" * n),
    "escaped percents": (lambda data: canonicalise(data, PathOptions(double_encoding="keep")), lambda n: b"/" + b"%25" * n),
    "segments with dots": (canonicalise, lambda n: b"/a." * n),
}  # fmt: skip


@pytest.mark.parametrize(("action", "make"), BY_SIZE.values(), ids=BY_SIZE.keys())
def test_time_grows_with_size_and_not_with_its_square(action: Callable[..., object], make: Callable[[int], bytes]) -> None:
    """Eight times the octets: about 8 where the work is linear, 64 where it is quadratic."""
    small, large = make(1500), make(12000)
    for _ in range(3):  # a busy machine may spoil a measurement, not three
        ratio = seconds(lambda: action(large)) / max(seconds(lambda: action(small)), 2e-6)
        if ratio < 24:
            return
    pytest.fail(f"8 times the octets took {ratio:.0f} times the time")
