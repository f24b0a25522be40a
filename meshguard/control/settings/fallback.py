"""What dependants get instead when the service behind a route is cut out (quarantine), or has no endpoint."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from meshguard.control.settings.values import ClusterName, FieldName, FieldValue, Section
from meshguard.wire.fields import RESPONSE_CONSUMED

__all__ = ["FallbackConfig", "FallbackResponse"]

_OURS = frozenset(name.decode("ascii") for name in RESPONSE_CONSUMED) | {"content-type", "date"}


def _own(name: str) -> str:
    if name.lower() in _OURS:
        raise ValueError("a field that meshguard does not write itself (content_type has a key of its own)")
    return name


def _with_body(status: int) -> int:
    if status in (204, 205, 304):
        raise ValueError("a status that may have content: 200 to 599 without 204, 205 and 304")
    return status


class FallbackResponse(Section):
    """A fixed answer. A gRPC call gets `grpc_status` in trailers, and nothing else of this."""

    status: Annotated[int, Field(ge=200, le=599), AfterValidator(_with_body)] = 503
    content_type: FieldValue = "application/json"
    headers: dict[Annotated[FieldName, AfterValidator(_own)], FieldValue] = Field(default={}, max_length=32)
    body: str = Field(default="", max_length=65536)
    grpc_status: int = Field(default=14, ge=1, le=16, description="14: UNAVAILABLE.")


class FallbackConfig(Section):
    """Another cluster (`to`), a fixed answer (`respond`), or both: the answer where the other cluster has no connection either."""

    when: list[Literal["quarantined", "no_endpoint", "unreachable"]] = Field(
        default=["quarantined"],
        min_length=1,
        description="quarantined: the service is cut out; no_endpoint: none is healthy; unreachable: no connection came to be.",
    )
    to: ClusterName | None = Field(default=None, description="Requests of which nothing was sent yet go there.")
    respond: FallbackResponse | None = None

    @model_validator(mode="after")
    def _something(self) -> FallbackConfig:
        if self.to is None and self.respond is None:
            raise ValueError("to, respond, or both")
        return self
