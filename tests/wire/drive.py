"""Runs an engine over a byte stream in any segmentation, and says what it gave in a form that can be compared.

A `Run` is what a reader of the stream may rely on: the heads with every slot, the bodies as one string each (how data is cut into
events is nobody's business), the trailers, and the code of the refusal where there was one. What of a refused body was given out before
the refusal depends on the segmentation and on nothing else, so it is kept apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from meshguard.model.errors import RequestError
from meshguard.model.messages import NO_BODY, RequestHead, ResponseHead
from meshguard.wire.events import EndOfMessage, WireLimits
from meshguard.wire.http1 import RequestParser, ResponseParser
from meshguard.wire.reference import RequestReader
from meshguard.wire.semantics import FieldRules

__all__ = ["DEFAULT", "LIMITS", "RULES", "Message", "Run", "halves", "octets", "requests_of", "responses_of", "slots"]

LIMITS = WireLimits()
RULES = FieldRules()
DEFAULT: Callable[[WireLimits, FieldRules], Any] = RequestParser
REFERENCE: Callable[[WireLimits, FieldRules], Any] = RequestReader


def slots(head: RequestHead | ResponseHead) -> dict[str, object]:
    """Every slot of a head."""
    return {name: getattr(head, name) for name in type(head).__slots__}


@dataclass
class Message:
    head: dict[str, Any]
    body: bytes = b""
    trailers: bytes = b""
    complete: bool = False

    @property
    def meaning(self) -> tuple[object, ...]:
        return (self.head, self.body, self.trailers, self.complete)


@dataclass
class Run:
    """`refusal` is a reason code or empty; `detail` is for people."""

    messages: list[Message] = field(default_factory=list)
    refusal: str = ""
    detail: str = ""
    left: int = 0

    def same(self) -> tuple[object, ...]:
        """What must not depend on the segmentation."""
        whole = [message.meaning for message in self.messages if message.complete or not self.refusal]
        heads = [message.head for message in self.messages]
        return (whole, heads, self.refusal, 0 if self.refusal else self.left)


def halves(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    for cut in range(1, len(data)):
        yield data[:cut], data[cut:]


def octets(data: bytes) -> list[bytes]:
    return [data[index : index + 1] for index in range(len(data))]


def _take(engine: Any, run: Run, restart: Callable[[], None]) -> None:
    while (event := engine.next()) is not None:
        if type(event) is bytes:
            assert event, "an empty data event"
            run.messages[-1].body += event
        elif type(event) is EndOfMessage:
            run.messages[-1].trailers = event.trailers
            run.messages[-1].complete = True
            restart()
        else:
            run.messages.append(Message(slots(event)))
            if type(event) is ResponseHead and event.status < 200 and event.status != 101:
                run.messages[-1].complete = True
            elif event.length == NO_BODY:
                run.messages[-1].complete = True
                restart()


def requests_of(pieces: Iterable[bytes], *, make: Any = DEFAULT, limits: WireLimits = LIMITS, rules: FieldRules = RULES) -> Run:
    """Every request in the stream, each begun as soon as the one before is over."""
    engine, run = make(limits, rules), Run()
    try:
        for piece in pieces:
            engine.receive(piece)
            _take(engine, run, engine.restart)
    except RequestError as error:
        run.refusal, run.detail = error.reason.code, error.detail
    run.left = engine.buffered
    return run


def responses_of(pieces: Iterable[bytes], *, methods: Iterable[bytes] = (), limits: WireLimits = LIMITS, eof: bool = False) -> Run:
    """The responses to requests with `methods`, then to GETs."""
    engine, run = ResponseParser(limits), Run()
    asked = iter(methods)

    def restart() -> None:
        engine.restart(next(asked, b"GET"))

    restart()
    try:
        for piece in pieces:
            engine.receive(piece)
            _take(engine, run, restart)
        if eof:
            end = engine.eof()
            if end is not None:
                run.messages[-1].complete = True
    except RequestError as error:
        run.refusal, run.detail = error.reason.code, error.detail
    run.left = engine.buffered
    return run
