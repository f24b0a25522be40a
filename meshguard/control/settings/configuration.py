"""The whole configuration document."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from meshguard.control.settings.bundle import BundleConfig
from meshguard.control.settings.clusters import ClusterConfig
from meshguard.control.settings.fleet import FleetConfig
from meshguard.control.settings.identity import IdentityConfig, JwtConfig
from meshguard.control.settings.keys import KeysetConfig
from meshguard.control.settings.ledger import LedgerConfig
from meshguard.control.settings.limits import LimitsConfig
from meshguard.control.settings.listeners import ListenerConfig
from meshguard.control.settings.outputs import AdminConfig, DecisionLogConfig, QuarantineConfig, TelemetryConfig
from meshguard.control.settings.shadow import ShadowConfig
from meshguard.control.settings.values import DocumentPath, Name, Section

__all__ = ["Configuration"]


class Configuration(Section):
    """A meshguard configuration. Three sections are needed: `listeners`, `clusters` and `policies` (or `bundle`), and
    `identity` unless the profile is `development` or SPIFFE_ENDPOINT_SOCKET is set. Paths are relative to the document."""

    model_config = ConfigDict(
        title="meshguard configuration", json_schema_extra={"oneOf": [{"required": ["policies"]}, {"required": ["bundle"]}]}
    )

    profile: Literal["strict", "migration", "development"] = Field(
        default="strict", description="Fills the defaults of everything that is not said; see `meshguard check --profiles`."
    )
    identity: IdentityConfig | None = None
    jwt: list[JwtConfig] = Field(default=[], description="Issuers of end-user tokens.")
    listeners: dict[Name, ListenerConfig] = Field(min_length=1)
    clusters: dict[Name, ClusterConfig] = Field(min_length=1)
    policies: list[DocumentPath] = Field(
        default=[], description="Files, and directories with *.yaml, *.yml, *.json. Needed, unless there is a `bundle`."
    )
    bundle: BundleConfig | None = Field(default=None, description="Policy from signed bundles only.")
    fleet: FleetConfig | None = Field(default=None, description="The store that instances share; absent: there is none.")
    packs: list[Literal["pci-dss-4.0", "nist-sp-800-207", "mesh-hardening"]] = Field(
        default=[], description="Control packs: the controls that a request is judged by are cited in its decision record."
    )
    shadow: ShadowConfig | None = Field(default=None, description="A candidate policy, asked beside the live one and enforced by nobody.")
    keys: dict[Name, KeysetConfig] = Field(default={}, description="Keysets for protected fields.")
    decision_log: DecisionLogConfig = Field(default={}, validate_default=True)
    ledger: LedgerConfig | None = None
    telemetry: TelemetryConfig = Field(default={}, validate_default=True)
    admin: AdminConfig = Field(default={}, validate_default=True)
    quarantine: QuarantineConfig = Field(default={}, validate_default=True)
    limits: LimitsConfig = Field(default={}, validate_default=True)
    workers: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = Field(
        default=1, description="Processes that share the listeners; auto: one for each core this process may use."
    )
    drain_s: Annotated[float, Field(ge=0, le=3600)] = Field(default=30.0, description="Time for open requests after SIGTERM.")
    restart_s: Annotated[float, Field(gt=0, le=3600)] = Field(
        default=30.0, description="Time for a new process to become ready at a rolling restart (SIGUSR2)."
    )
