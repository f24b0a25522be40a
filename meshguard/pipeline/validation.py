"""Validation on its way: the head judged at once, and who judges the body when it is whole (E5). Only validated routes come here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshguard.fields.codings import CodingError, TooMuchError, UnavailableCodingError, decode_body
from meshguard.fields.representation import NotReadableError, parse_representation
from meshguard.model.errors import RequestError
from meshguard.model.messages import NO_BODY
from meshguard.model.reasons import BODY_NOT_INSPECTABLE, BODY_OVER_LIMIT, OPERATION_UNKNOWN, REQUEST_INVALID
from meshguard.validation.schemas import Checker
from meshguard.validation.violation import UnknownOperation, Violation
from meshguard.wire.fields import field_values

if TYPE_CHECKING:
    from meshguard.model.messages import RequestHead
    from meshguard.pipeline.message_judge import MessageJudge
    from meshguard.validation.contract import Check
    from meshguard.validation.protobuf import MessageChecker

__all__ = ["BodyJudge", "InvalidRequest", "judge_head"]


class InvalidRequest(RequestError):
    """The request breaks its contract. `place` is for the client, where it may know; `detail`, for the record, is the contract's text."""

    def __init__(self, violation: Violation) -> None:
        super().__init__(OPERATION_UNKNOWN if isinstance(violation, UnknownOperation) else REQUEST_INVALID, violation.rule)
        self.place = violation.place


class BodyJudge:
    """Judges a gathered body, `coding` taken off."""

    __slots__ = ("_checker", "_coding")
    streams = False

    def __init__(self, checker: Checker, coding: str) -> None:
        self._checker = checker
        self._coding = coding

    def judge(self, body: bytes, limit: int) -> None:
        """Raises RequestError. `limit`: octets without the coding."""
        try:
            self._checker.judge_body(decode_body(self._coding, body, limit) if self._coding and body else body)
        except Violation as violation:
            raise InvalidRequest(violation) from None
        except TooMuchError as exc:
            raise RequestError(BODY_OVER_LIMIT, str(exc)) from None
        except CodingError as exc:
            raise RequestError(REQUEST_INVALID, str(exc)) from None
        except UnavailableCodingError as exc:
            raise RequestError(BODY_NOT_INSPECTABLE, str(exc)) from None


def judge_head(check: Check, head: RequestHead) -> BodyJudge | MessageJudge | None:
    """Judges all but the body. Raises RequestError; None: the body need not be read. `streams` of what it gives: the body is judged as it
    passes."""
    if any(name in (b"upgrade", b":protocol") for name, _ in head.specials):
        raise RequestError(BODY_NOT_INSPECTABLE, "an upgrade to a protocol that no contract describes")
    block = head.block
    has_body = head.length not in (NO_BODY, 0)
    types = [value.decode("latin-1") for value in field_values(block, b"content-type")] if has_body else []
    media_types = [value.partition(";")[0].strip(" \t").lower() for value in types]
    try:
        checker = check.judge_head(
            lambda name: [value.decode("latin-1") for value in field_values(block, name.encode("latin-1"))], has_body, media_types
        )
    except Violation as violation:
        raise InvalidRequest(violation) from None
    if checker is None:
        return None
    codings = [value.decode("latin-1") for value in field_values(block, b"content-encoding")]
    try:
        coding = parse_representation(types, codings).coding
        if isinstance(checker, Checker):
            return BodyJudge(checker, coding)
        return message_judge(checker, coding, block)
    except NotReadableError as exc:
        raise RequestError(BODY_NOT_INSPECTABLE, str(exc)) from None


def message_judge(checker: MessageChecker, coding: str, block: bytes) -> MessageJudge:
    """Loaded by the first who asks for it. Raises NotReadableError."""
    from meshguard.pipeline.described import message_coding
    from meshguard.pipeline.message_judge import MessageJudge

    if coding:
        raise NotReadableError("a content coding of gRPC, which compresses messages instead")
    return MessageJudge(checker, message_coding(block))
