"""Where the data keys of protected fields come from: a keyset file, and the provider of the key-encryption key that wraps its keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from meshguard.control.settings.values import DocumentPath, Seconds, Section, url_of
from meshguard.model.durations import seconds_of

__all__ = [
    "AwsKmsKeysetConfig",
    "FileKeysetConfig",
    "KeysetConfig",
    "Pkcs11KeysetConfig",
    "Settle",
    "VaultKeysetConfig",
    "WrappedKeysetConfig",
    "provider_values",
]

_SEGMENTS = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*\Z")


def _duration(value: object) -> object:
    return seconds_of(value) if isinstance(value, str) else value


def _service(value: str) -> str:
    from meshguard.keys.http import may_be_plain

    url_of(value, ("http", "https"), "https://vault:8200")
    if value.startswith("http://") and not may_be_plain(value.removeprefix("http://").partition("/")[0].rpartition(":")[0].strip("[]")):
        raise ValueError("an https URL (http only to this machine): data keys come back in the clear inside")
    return value


def _segments(value: str) -> str:
    if not _SEGMENTS.match(value.strip("/")):
        raise ValueError("path segments of letters, digits, '.', '_' and '-'")
    return value.strip("/")


Duration = Annotated[
    float,
    BeforeValidator(_duration),
    Field(gt=0, le=10 * 365 * 86400),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^\d+(\.\d+)?[smhdw]$"}]}),
]
Settle = Annotated[
    float,
    BeforeValidator(_duration),
    Field(ge=0, le=86400),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string", "pattern": r"^\d+(\.\d+)?[smhdw]$"}]}),
]
ServiceUrl = Annotated[str, AfterValidator(_service)]
Segments = Annotated[str, AfterValidator(_segments)]


class WrappedKeysetConfig(Section):
    """What all keysets with wrapped keys share: the file that every node has, and how long an unwrapped key lives."""

    path: DocumentPath = Field(description="The keyset file. With wrapped keys it is no secret: a ConfigMap will do.")
    cache_s: Seconds = Field(default=3600.0, description="How long a data key is used after the provider last unwrapped it.")
    retry_max_s: Seconds = Field(default=30.0, description="The longest pause between two tries while the provider is away.")
    timeout_s: Seconds = Field(default=5.0, description="Deadline of one call to the provider.")
    on_start: Literal["refuse", "serve"] = Field(
        default="refuse", description="Without keys at the start: end with an error, or serve while routes that need them refuse."
    )
    start_s: Seconds = Field(default=15.0, description="How long the start waits for the keys.")
    rewrap: Literal["never", "passing"] = Field(
        default="never", description="passing: values that pass sealed under an older version are sealed anew under the primary one."
    )
    rotate_after: Duration | None = Field(default=None, description="Age at which the node that can write the file makes a new version.")
    settle_s: Settle = Field(default=120.0, description="A new version seals only after this: by then every node must have the file.")
    retire_after: Duration | None = Field(
        default=None, description="Time after which a version that no longer seals is disabled; destroying it stays a decision of people."
    )


class FileKeysetConfig(WrappedKeysetConfig):
    """A keyset in a file; its keys lie there in the clear, or wrapped by the key in `kek`."""

    provider: Literal["file"] = Field(description="file: a JSON keyset made by `meshguard keys`.")
    kek: DocumentPath | None = Field(default=None, description="A file of 32 octets that wraps the keys.")
    state: DocumentPath | None = Field(default=None, description="A writable directory for the count of uses (default: beside the keyset).")
    subkeys: bool = Field(default=False, description="Each process seals under a key of its own: nothing is counted or written.")

    @model_validator(mode="after")
    def _fits(self) -> FileKeysetConfig:
        if self.kek is not None and (self.state is not None or self.subkeys):
            raise ValueError("no state and subkeys beside kek: wrapped keysets always seal under subkeys")
        if self.kek is None and (self.rotate_after is not None or self.retire_after is not None):
            raise ValueError("a kek beside rotate_after and retire_after: a keyset in the clear is rotated by `meshguard keys rotate`")
        return self


class AppRoleConfig(Section):
    """`auth/approle`."""

    role_id: str = Field(min_length=1)
    secret_id_file: DocumentPath | None = Field(default=None, description="Read at each login.")
    mount: Segments = "approle"


class KubernetesLoginConfig(Section):
    """`auth/kubernetes` with the service account's token."""

    role: str = Field(min_length=1)
    jwt_file: Path = Field(default=Path("/var/run/secrets/kubernetes.io/serviceaccount/token"), description="Read at each login.")
    mount: Segments = "kubernetes"


class JwtLoginConfig(Section):
    """`auth/jwt` with a JWT-SVID or another JWT, as a helper keeps it in a file."""

    role: str = Field(min_length=1)
    jwt_file: DocumentPath = Field(description="Read at each login.")
    mount: Segments = "jwt"


class VaultLoginConfig(Section):
    """One way to a token. Tokens are renewed at two thirds of their life and replaced when they are refused."""

    token_env: str | None = Field(default=None, min_length=1, description="Environment variable with the token (default: VAULT_TOKEN).")
    token_file: DocumentPath | None = None
    approle: AppRoleConfig | None = None
    kubernetes: KubernetesLoginConfig | None = None
    jwt: JwtLoginConfig | None = None

    @model_validator(mode="after")
    def _one(self) -> VaultLoginConfig:
        if len(self.model_fields_set) > 1:
            raise ValueError("one of token_env, token_file, approle, kubernetes and jwt")
        return self


class VaultKeysetConfig(WrappedKeysetConfig):
    """Keys wrapped by the Transit engine of HashiCorp Vault or OpenBao."""

    provider: Literal["vault"]
    address: ServiceUrl = Field(description="Such as https://vault:8200.")
    key: Segments = Field(description="The Transit key.")
    mount: Segments = Field(default="transit", description="Where the Transit engine is mounted.")
    namespace: Segments | None = None
    ca: DocumentPath | None = Field(default=None, description="Certificate authorities for the address (PEM); default: the system's.")
    login: VaultLoginConfig | None = None


class AwsKmsKeysetConfig(WrappedKeysetConfig):
    """Keys wrapped by AWS KMS. Credentials: environment, web identity, container, instance metadata, in this order."""

    provider: Literal["awskms"]
    key: str = Field(min_length=1, description="Key id, alias or ARN of a symmetric KMS key.")
    region: str | None = Field(default=None, pattern=r"^[a-z0-9-]+$", description="Default: of the key's ARN, else AWS_REGION.")
    endpoint: ServiceUrl | None = Field(default=None, description="Default: https://kms.REGION.amazonaws.com.")
    context: dict[str, str] = Field(default={}, description="Further members of the encryption context.")
    ca: DocumentPath | None = None


class Pkcs11KeysetConfig(WrappedKeysetConfig):
    """Keys wrapped by an AES key in an HSM (extra `pkcs11`)."""

    provider: Literal["pkcs11"]
    module: DocumentPath = Field(description="The PKCS#11 library.")
    token: str = Field(min_length=1, description="Label of the token.")
    key: str = Field(min_length=1, description="Label of the AES key.")
    pin_file: DocumentPath


def provider_values(section: Section) -> dict[str, Any]:
    """What `keys.registry` takes: the values as they are (paths stay paths), inner sections as mappings."""
    return {name: provider_values(value) if isinstance(value, Section) else value for name, value in section}


KeysetConfig = Annotated[FileKeysetConfig | VaultKeysetConfig | AwsKmsKeysetConfig | Pkcs11KeysetConfig, Field(discriminator="provider")]
