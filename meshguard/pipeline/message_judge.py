"""gRPC messages judged by their contract (E5): the one of a unary call before anything of it goes on, those of a stream one by one as they
pass. A stream that breaks its contract in its middle is reset; what was acceptable before has been passed on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from meshguard.fields.codings import CodingError, TooMuchError, UnavailableCodingError
from meshguard.fields.grpc_frames import FrameCutter, unframe
from meshguard.fields.protobuf_wire import ProtobufError
from meshguard.fields.streams import RecordTooLongError
from meshguard.model.errors import RequestError
from meshguard.model.reasons import BODY_NOT_INSPECTABLE, BODY_OVER_LIMIT, REQUEST_INVALID
from meshguard.pipeline.validation import InvalidRequest
from meshguard.validation.violation import Violation

if TYPE_CHECKING:
    from meshguard.model.record import FieldOperation
    from meshguard.validation.protobuf import MessageChecker

__all__ = ["Chained", "MessageGate", "MessageJudge"]


@contextmanager
def _failures() -> Iterator[None]:
    try:
        yield
    except Violation as violation:
        raise InvalidRequest(violation) from None
    except (RecordTooLongError, TooMuchError) as exc:
        raise RequestError(BODY_OVER_LIMIT, str(exc)) from None
    except (ProtobufError, CodingError) as exc:
        raise RequestError(REQUEST_INVALID, str(exc)) from None
    except UnavailableCodingError as exc:
        raise RequestError(BODY_NOT_INSPECTABLE, str(exc)) from None


class MessageJudge:
    """Judges the messages of one call; `coding` is that of `grpc-encoding`."""

    __slots__ = ("_checker", "_coding")

    def __init__(self, checker: MessageChecker, coding: str) -> None:
        self._checker = checker
        self._coding = coding

    @property
    def streams(self) -> bool:
        """More than one message may come: they are judged by a `gate`."""
        return self._checker.many

    def judge(self, body: bytes, limit: int) -> None:
        """A whole body. Raises RequestError."""
        checker = self._checker
        limit = min(limit, checker.limit or limit)
        with _failures():
            if not checker.framed:
                if len(body) > limit:
                    raise RecordTooLongError(limit)
                checker.judge(body)
                return
            messages = unframe(body, self._coding, limit)
            if len(messages) != 1 and not checker.many:
                raise Violation("body", "one message")
            for message in messages:
                checker.judge(message)

    def gate(self, limit: int) -> MessageGate:
        """For a body that is judged as it passes."""
        return MessageGate(self._checker, self._coding, min(limit, self._checker.limit or limit))


class _Judging:
    """What `FrameCutter` takes for rules: judges each message and leaves it as it is."""

    __slots__ = ("_checker",)

    def __init__(self, checker: MessageChecker) -> None:
        self._checker = checker

    def treat(self, message: bytes, work: object) -> bytes:
        self._checker.judge(message)
        return message


class MessageGate:
    """Passes the messages that are acceptable, each when it is whole (the interface of `fields.body_stream.BodyStream`)."""

    __slots__ = ("_cutter",)

    def __init__(self, checker: MessageChecker, coding: str, limit: int) -> None:
        rules: Any = _Judging(checker)
        work: Any = None
        self._cutter = FrameCutter(rules, work, limit, coding)

    @property
    def held(self) -> int:
        return self._cutter.held

    def feed(self, data: bytes) -> bytes:
        """Raises RequestError."""
        with _failures():
            return self._cutter.feed(data)

    def finish(self) -> bytes:
        """Raises RequestError."""
        with _failures():
            return self._cutter.finish()

    def operations(self) -> list[FieldOperation]:
        """None of its own."""
        return []


class Chained:
    """Several of them, one after the other."""

    __slots__ = ("_streams",)

    def __init__(self, streams: Sequence[Any]) -> None:
        self._streams = streams

    @property
    def held(self) -> int:
        return sum(stream.held for stream in self._streams)

    def feed(self, data: bytes) -> bytes:
        """Raises RequestError."""
        for stream in self._streams:
            data = stream.feed(data)
        return data

    def finish(self) -> bytes:
        """Raises RequestError."""
        data = b""
        for stream in self._streams:
            data = (stream.feed(data) if data else b"") + stream.finish()
        return data

    def operations(self) -> list[FieldOperation]:
        """Of all."""
        return [operation for stream in self._streams for operation in stream.operations()]
