"""Everything that comes from files: configuration, policies, field rules, keysets, token keys. Loaded and checked as one.

Runs in a thread: reading, validating and compiling ten thousand rules takes longer than a request may wait.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meshguard.control.contracts import Contracts, contract_files, load_contracts
from meshguard.control.keyring import Keyring, LoadedKeys
from meshguard.control.pacing import Breathe, let_go, unpaced
from meshguard.control.policies import LoadedPolicy, load_policy
from meshguard.control.settings.configuration import Configuration
from meshguard.control.settings.load import LoadedConfiguration
from meshguard.model.errors import DocumentError, Problem
from meshguard.policy.compiled import CompiledPolicy

if TYPE_CHECKING:
    from meshguard.control.shadow import ShadowPolicy
    from meshguard.fields.compile import CompiledFields
    from meshguard.fields.keyset import Keyset
    from meshguard.sources.bundles import BundleKeeper, Candidate
    from meshguard.telemetry.controls import Citations

__all__ = ["Inputs", "bundle_keeper", "load_inputs"]


@dataclass(frozen=True, slots=True)
class Inputs:
    """One consistent, valid set. `files` are the paths to watch."""

    loaded: LoadedConfiguration
    policy: CompiledPolicy
    fields: CompiledFields | None
    warnings: tuple[Problem, ...]
    files: tuple[Path, ...]
    keys: LoadedKeys
    contracts: Contracts
    candidate: Candidate | None = None  # the bundle that the policy came from
    controls: Citations | None = None  # of the packs that the configuration names
    shadow: ShadowPolicy | None = None  # the candidate beside the live policy

    @property
    def configuration(self) -> Configuration:
        return self.loaded.configuration


def load_inputs(
    load_configuration: Callable[[], LoadedConfiguration],
    keyring: Keyring,
    bundles: BundleKeeper | None = None,
    breathe: Breathe = unpaced,
) -> Inputs:
    """Reads everything anew; keysets that live on come from the `keyring`, with a `bundle` in the configuration the policy is what
    `bundles` gives. `breathe` paces the work beside a running loop. Raises DocumentError with every problem, KeysetError, OSError."""
    loaded = load_configuration()
    configuration = loaded.configuration
    create = configuration.profile == "development"
    keys = keyring.load(configuration.keys, create=create)
    candidate = None
    if configuration.bundle is not None:
        candidate, policy, contracts = _from_bundle(bundles or bundle_keeper(configuration), keys.keysets, configuration, breathe)
    else:
        policy = load_policy(configuration.policies, keysets=keys.keysets, breathe=breathe)
        contracts = load_contracts(configuration, {})
    files = [Path(loaded.document.file), *configuration.policies, *keys.files, *contract_files(configuration)]
    for listener in configuration.listeners.values():
        files += [path for path in (listener.certificate, listener.key) if path is not None]
        files += [path for entry in listener.certificates for path in (entry.certificate, entry.key)]
    files += [cluster.tls.ca for cluster in configuration.clusters.values() if cluster.tls is not None and cluster.tls.ca is not None]
    if configuration.bundle is not None and configuration.bundle.path is not None:
        files.append(configuration.bundle.path)
    controls = shadow = None
    if configuration.shadow is not None:
        from meshguard.control.shadow import load_shadow

        shadow = load_shadow(configuration.shadow, keys.keysets, breathe)
        files += configuration.shadow.policies
    if configuration.packs:
        from meshguard.control.packs.citing import citations

        controls = citations(loaded, policy)
    inputs = Inputs(loaded, policy.compiled, policy.fields, policy.warnings, tuple(files), keys, contracts, candidate, controls, shadow)
    parts = policy.documents_parts()
    del policy
    let_go(parts, breathe)
    return inputs


def _from_bundle(
    bundles: BundleKeeper, keysets: Mapping[str, Keyset], configuration: Configuration, breathe: Breathe
) -> tuple[Candidate, LoadedPolicy, Contracts]:
    """The best bundle whose documents and contracts compile. A signed one that does not is refused like any other: what was in force goes
    on."""
    first: DocumentError | None = None
    for candidate in bundles.choose():
        try:
            policy = load_policy(candidate.documents(), keysets=keysets, environment={}, read=candidate.read, breathe=breathe)
            return candidate, policy, load_contracts(configuration, candidate.bundle.files)
        except DocumentError as exc:
            bundles.refused = f"bundle {candidate.bundle.name} version {candidate.bundle.version}: {exc}"
            bundles.refusal = {"code": "documents", "error": bundles.refused, "offered": candidate.bundle.digest}
            first = first or exc
    raise first or DocumentError([])


def bundle_keeper(configuration: Configuration) -> BundleKeeper:
    """The keeper of a configuration with a `bundle`. Raises DocumentError."""
    from meshguard.sources.bundles import BundleKeeper, BundleSettings

    config = configuration.bundle
    if config is None:
        raise DocumentError([])
    settings = BundleSettings(
        config.path, config.url, config.ca, tuple(config.keys), config.threshold, config.state, config.interval_s, config.name, config.fleet
    )
    if config.fleet is None:
        return BundleKeeper(settings)
    from meshguard.control.fleet.bundles import pull_once

    return BundleKeeper(settings, pull=pull_once(configuration))
