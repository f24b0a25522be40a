"""What a head says of its body: the lines that tell the type and the codings."""

from __future__ import annotations

from meshguard.wire.fields import field_values

__all__ = ["described", "message_coding"]


def message_coding(block: bytes) -> str:
    """gRPC's coding of messages; more than one line of it is none that is known."""
    values = field_values(block, b"grpc-encoding")
    return ",".join(value.decode("latin-1").lower() for value in values)


def described(block: bytes) -> tuple[list[str], list[str]]:
    """The values of Content-Type and of Content-Encoding."""
    return (
        [value.decode("latin-1") for value in field_values(block, b"content-type")],
        [value.decode("latin-1") for value in field_values(block, b"content-encoding")],
    )
