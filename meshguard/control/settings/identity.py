"""Who this proxy is, whom it believes, and which tokens it takes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from meshguard.control.settings.values import DocumentPath, FieldName, Section, TrustDomain, url_of

__all__ = ["IdentityConfig", "IdentityFiles", "JwtConfig"]


def _workload_api(value: str) -> str:
    # SPIFFE Workload Endpoint section 4: unix:///path or tcp://<ip>:<port>
    if value.startswith("unix:/") and len(value.rstrip("/")) > len("unix:"):
        return value
    return url_of(value, ("tcp",), "unix:///run/spire/agent.sock")


def _workload_path(value: str) -> str:
    if not value.startswith("/") or value.endswith("/") or "//" in value or any(part in (".", "..") for part in value.split("/")):
        raise ValueError("the path of a SPIFFE ID, such as /ns/prod/sa/orders")
    return value


class IdentityFiles(Section):
    """An X.509-SVID and trust bundles in PEM files, watched for changes."""

    certificate: DocumentPath = Field(description="Certificate chain, leaf first.")
    key: DocumentPath = Field(description="Private key (PKCS #8).")
    bundles: dict[TrustDomain, DocumentPath] = Field(min_length=1, description="CA certificates of each trust domain.")
    crls: list[DocumentPath] = Field(default=[], description="Certificate revocation lists.")


class IdentityConfig(Section):
    """Exactly one source: `files`, `workload_api` or `development_ca`."""

    trust_domain: TrustDomain = Field(description="The trust domain that this proxy belongs to.")
    files: IdentityFiles | None = None
    workload_api: Annotated[str, AfterValidator(_workload_api)] | None = Field(
        default=None, description="Socket of the SPIFFE Workload API."
    )
    development_ca: DocumentPath | None = Field(default=None, description="Directory of the development CA, made on first use.")
    workload: Annotated[str, AfterValidator(_workload_path)] | None = Field(default=None, description="Path of this proxy's own SPIFFE ID.")


def _jwks(value: object, info: ValidationInfo) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a file or an https URL")
    if "://" in value:
        return url_of(value, ("https",), "https://issuer.example/jwks.json")
    base = (info.context or {}).get("base")
    return f"{base}/{value}" if base is not None and not value.startswith("/") else value


class JwtConfig(Section):
    """Tokens of one issuer. Algorithms are pinned here and never taken from a token."""

    issuer: str = Field(min_length=1, description="Exact value of `iss`.")
    audiences: list[str] = Field(min_length=1, description="Accepted values of `aud`.")
    jwks: Annotated[str, BeforeValidator(_jwks)] = Field(description="Key set: a file, or an https URL.")
    algorithms: list[Literal["ES256", "ES384", "ES512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "EdDSA"]] = Field(
        default=["ES256", "RS256"], min_length=1
    )
    header: FieldName = Field(default="authorization", description="Field that carries `Bearer TOKEN`.")
