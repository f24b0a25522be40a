"""The ledger: where every decision is kept, how certain it is, and what happens when it cannot be written."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from meshguard.control.settings.values import DocumentPath, Section, Size, url_of

__all__ = ["CheckpointConfig", "LedgerConfig", "NatsConfig", "RetentionConfig", "S3Config", "ShipConfig"]


def _verifier(value: str) -> str:
    from meshguard.ledger.notes import NoteError, NoteVerifier  # here: it loads `cryptography`, which the models alone do not need

    try:
        NoteVerifier.parse(value)
    except NoteError as exc:
        raise ValueError("a verifier key as `meshguard audit key --show` prints it: name+key id+base64") from exc
    return value


def _key_name(value: str) -> str:
    if "+" in value or any(char.isspace() for char in value):
        raise ValueError("a name without spaces and plus signs, such as shop.example/meshguard/node-7")
    return value


def _http(value: str) -> str:
    return url_of(value, ("http", "https"), "https://witness.example/checkpoints")


def _nats(value: str) -> str:
    return url_of(value, ("nats", "tls"), "tls://nats.example:4222")


_LETTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")


def _token(value: str) -> str:
    if not value or len(value) > 64 or not _LETTERS.issuperset(value):
        raise ValueError("letters, digits, dashes and underscores, at most 64")
    return value


def _subject(value: str) -> str:
    for part in value.split("."):
        _token(part)
    return value


def _plain(value: str) -> str:
    if not (_LETTERS | frozenset("./")).issuperset(value):
        raise ValueError("letters, digits and . _ / - only")
    return value


class CheckpointConfig(Section):
    """Signed checkpoints of the tree. A copy kept elsewhere is what shows that the ledger was cut short or replaced."""

    key: DocumentPath | None = Field(
        default=None, description="Ed25519 key (PEM), made by `meshguard audit key FILE`. Profile development makes one in the directory."
    )
    post_quantum_key: DocumentPath | None = Field(
        default=None, description="ML-DSA-44 key, made by `meshguard audit key FILE --post-quantum`: a second signature, of 3.3 KB."
    )
    name: Annotated[str, AfterValidator(_key_name)] | None = Field(
        default=None, min_length=1, max_length=128, description="Name of the key and start of the origin; default: trust domain and key."
    )
    interval_s: float = Field(default=1.0, ge=0.05, le=3600, description="Between two checkpoints while entries come.")
    trusted: list[Annotated[str, AfterValidator(_verifier)]] = Field(default=[], description="Verifier keys of earlier signing keys.")
    publish_file: DocumentPath | None = Field(default=None, description="The newest checkpoint is also written to FILE.shard-N.")
    publish_fleet: bool = Field(default=False, description="The newest checkpoint is also kept in the fleet's store.")
    publish_url: Annotated[str, AfterValidator(_http)] | None = Field(
        default=None, description="The newest checkpoint is posted here; signatures in the answer (a witness's) are kept with it."
    )
    witness_urls: list[Annotated[str, AfterValidator(_http)]] = Field(
        default=[], max_length=8, description="Witnesses that are asked to cosign each (C2SP tlog-witness; their submission prefixes)."
    )
    witnesses: list[Annotated[str, AfterValidator(_verifier)]] = Field(default=[], description="Verifier keys of witnesses.")


class RetentionConfig(Section):
    """What becomes of old segments. The leaf hashes stay, so the tree can still be verified."""

    compress: Literal["gzip", "none"] = Field(default="gzip", description="Of segments that are complete.")
    days: float | None = Field(default=None, gt=0, le=36500, description="Entries older than this are deleted, whole segments at a time.")
    total_bytes: Size | None = Field(default=None, description="Above this the oldest segments are deleted.")


class S3Config(Section):
    """A bucket of S3 or of what speaks its protocol. Credentials: as of AWS SDKs (environment, web identity, container, instance)."""

    bucket: Annotated[str, AfterValidator(_plain)] = Field(min_length=3, max_length=63)
    prefix: Annotated[str, AfterValidator(_plain)] = Field(default="", max_length=512, description="Of the object names, as meshguard/.")
    region: Annotated[str, AfterValidator(_plain)] | None = Field(default=None, description="Default: AWS_REGION.")
    endpoint: Annotated[str, AfterValidator(_http)] | None = Field(default=None, description="Default: https://s3.REGION.amazonaws.com.")
    ca: DocumentPath | None = None


class NatsConfig(Section):
    """A JetStream stream: entries under a checkpoint, as JSON lines, in order, each once. Needs `meshguard[nats]`."""

    servers: list[Annotated[str, AfterValidator(_nats)]] = Field(min_length=1)
    stream: Annotated[str, AfterValidator(_token)] = Field(default="MESHGUARD_LEDGER", description="Made when it is not there.")
    subject: Annotated[str, AfterValidator(_subject)] = Field(default="meshguard.ledger", description="Start of the subjects.")
    credentials: DocumentPath | None = Field(default=None, description="A .creds file.")
    ca: DocumentPath | None = None


class ShipConfig(Section):
    """The ledger's copy in other places. What was not shipped to all of them does not expire."""

    directory: DocumentPath | None = Field(default=None, description="Complete segments are copied here.")
    s3: S3Config | None = None
    nats: NatsConfig | None = None

    @model_validator(mode="after")
    def _somewhere(self) -> ShipConfig:
        if self.directory is None and self.s3 is None and self.nats is None:
            raise ValueError("directory, s3 or nats, or leave the section out")
        return self


class LedgerConfig(Section):
    """Every decision on record, tamper-evident. Needs a directory; one process writes to one shard of it."""

    directory: DocumentPath
    durability: Literal["batch", "request"] = Field(
        default="batch",
        description="batch: an entry is written before the answer goes, synced within `sync_s`. request: the answer waits for the sync.",
    )
    on_failure: Literal["refuse", "degrade"] | None = Field(
        default=None, description="When it cannot be written: refuse requests (default in strict), or go on and record the gap (else)."
    )
    sync_s: float = Field(default=0.2, ge=0.005, le=10, description="Longest time until what was written is synced, in `batch`.")
    segment_bytes: Size = Field(default=64 << 20, ge=65536, description="Size at which a new segment begins.")
    segment_s: float = Field(default=86400.0, ge=1, le=31_536_000, description="Age at which a new segment begins.")
    checkpoints: CheckpointConfig = Field(default={}, validate_default=True)
    retention: RetentionConfig = Field(default={}, validate_default=True)
    ship: ShipConfig | None = None
