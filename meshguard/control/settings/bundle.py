"""Policy as a signed, versioned bundle: where it comes from and whose signatures it needs."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from meshguard.control.settings.values import DocumentPath, Name, Seconds, Section, url_of

__all__ = ["BundleConfig"]


def _url(value: str) -> str:
    return url_of(value, ("http", "https"), "https://bundles.shop.example/prod.json")


class BundleConfig(Section):
    """A node with this section takes its policy from signed bundles and from nowhere else: `policies` must be absent. Say one of `path`,
    `url` and `fleet`."""

    path: DocumentPath | None = Field(default=None, description="File that is watched.")
    url: Annotated[str, AfterValidator(_url)] | None = Field(default=None, description="Fetched with its ETag; https beyond loopback.")
    fleet: Name | None = Field(default=None, description="Key in the fleet's bucket of bundles, which is watched.")
    ca: DocumentPath | None = Field(default=None, description="CA certificates for `url`; absent: those of the system.")
    interval_s: Seconds = Field(default=30.0, description="Between two fetches.")
    keys: list[DocumentPath] = Field(min_length=1, description="PEM files with the public keys of trusted signers.")
    threshold: int = Field(default=1, ge=1, le=16, description="So many different signers must have signed.")
    state: DocumentPath = Field(description="Directory for the bundle last in force: restarts go on with it, and versions never go back.")
    name: Name | None = Field(default=None, description="Take only bundles of this name.")
