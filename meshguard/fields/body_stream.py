"""A body that is treated as it passes: its coding taken off, cut into records, each treated, encoded again. Memory is bounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshguard.fields.codings import Decoder, Encoder, new_decoder, new_encoder
from meshguard.fields.json_body import JsonRules
from meshguard.fields.ndjson import LineCutter
from meshguard.fields.representation import NotReadableError, Representation
from meshguard.fields.sse import EventCutter
from meshguard.fields.streams import Cutter
from meshguard.fields.treatment import Work
from meshguard.model.record import FieldOperation

if TYPE_CHECKING:
    from meshguard.fields.transforms import Transform

__all__ = ["BodyStream", "new_cutter"]


class BodyStream:
    """`feed` pieces of a body, `finish` it; what comes out goes on. Raises RequestError like `Transform.apply`."""

    __slots__ = ("_cutter", "_decoder", "_encoder", "_invalid", "_limit", "_work")

    def __init__(self, transform: Transform, representation: Representation, work: Work, limit: int, message_coding: str) -> None:
        self._work = work
        self._limit = limit
        self._invalid = transform.invalid
        self._cutter = new_cutter(transform, representation, work, limit, message_coding)
        self._decoder: Decoder | None = new_decoder(representation.coding) if representation.coding else None
        self._encoder: Encoder | None = new_encoder(representation.coding) if representation.coding else None

    @property
    def held(self) -> int:
        """Octets of a record that is not whole yet."""
        return self._cutter.held

    def feed(self, data: bytes) -> bytes:
        from meshguard.fields.transforms import failures

        with failures(self._invalid):
            if self._decoder is not None and self._encoder is not None:
                return self._encoder.feed(self._cutter.feed(self._decoder.feed(data, self._limit)))
            return self._cutter.feed(data)

    def finish(self) -> bytes:
        from meshguard.fields.transforms import failures

        with failures(self._invalid):
            if self._decoder is not None and self._encoder is not None:
                self._decoder.finish()
                return self._encoder.feed(self._cutter.finish()) + self._encoder.finish()
            return self._cutter.finish()

    def operations(self) -> list[FieldOperation]:
        """What was done so far."""
        return self._work.operations()


def new_cutter(transform: Transform, representation: Representation, work: Work, limit: int, message_coding: str) -> Cutter:
    """The cutter of a streamed family. Raises NotReadableError where no rule looks into it."""
    family, rules = representation.family, transform.rules
    if family == "grpc" and rules.protobuf is not None:
        from meshguard.fields.grpc_frames import FrameCutter

        return FrameCutter(rules.protobuf, work, limit, message_coding)
    if family in ("ndjson", "sse") and rules.json is not None:
        json = rules.json
        treat = _Documents(json, work).treat
        return LineCutter(treat, limit) if family == "ndjson" else EventCutter(treat, limit)
    raise NotReadableError("a format that no field rule of this route looks into")


class _Documents:
    """Treats documents one after the other; what one of them did does not count for the next."""

    __slots__ = ("_rules", "_work")

    def __init__(self, rules: JsonRules, work: Work) -> None:
        self._rules = rules
        self._work = work

    def treat(self, document: bytes) -> bytes:
        work = self._work
        changed, work.changed, work.opened_container = work.changed, False, False
        try:
            return self._rules.treat(document, work)
        finally:
            work.changed |= changed
