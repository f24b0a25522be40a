"""What the proxy tells: decision log, telemetry, the admin address."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from meshguard.control.settings.values import DocumentPath, ListenAddress, Section, url_of

__all__ = ["AdminConfig", "DecisionLogConfig", "QuarantineConfig", "TelemetryConfig"]


def _log_path(value: object, info: ValidationInfo) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError('a file, or "-" for standard output')
    base = (info.context or {}).get("base")
    return value if value == "-" or value.startswith("/") or base is None else f"{base}/{value}"


def _otlp(value: str) -> str:
    return url_of(value, ("http", "https"), "http://collector:4318")


class DecisionLogConfig(Section):
    """One JSON line for each request. A full queue drops lines and counts them; it never delays a request."""

    path: Annotated[str, BeforeValidator(_log_path)] = Field(default="-", description='A file, or "-" for standard output.')
    queue: int = Field(default=8192, ge=1, le=10_000_000, description="Lines that may wait for the disk.")


class TelemetryConfig(Section):
    """Spans and metrics by OTLP over HTTP; metrics also stand on the admin port for Prometheus."""

    otlp: Annotated[str, AfterValidator(_otlp)] | None = Field(
        default=None, description="Base URL of the collector; absent: nothing is sent."
    )
    sample: float = Field(default=0.01, ge=0, le=1, description="Share of new traces that are sampled; a caller's decision is kept.")
    always: list[Literal["denials", "errors"]] = Field(default=["denials", "errors"], description="Sampled whatever `sample` says.")
    service_name: str = Field(default="meshguard", min_length=1)


class AdminConfig(Section):
    """Health, metrics and state of this process. Reachable from this machine only unless another address is written here."""

    address: ListenAddress = Field(default="127.0.0.1:9901", validate_default=True)
    token_file: DocumentPath | None = Field(
        default=None,
        description="File with the bearer token of operations that change or disclose something (quarantine, queries); made with mode 0600"
        " when it does not exist. Absent: those operations are off.",
    )


class QuarantineConfig(Section):
    """Identities that are cut out (`meshguard quarantine`)."""

    path: DocumentPath | None = Field(
        default=None, description="File that keeps the quarantine over restarts, written by meshguard; absent: it ends with the process."
    )
