"""Everything that comes from files: configuration, policies, field rules, keysets, token keys. Loaded and checked as one.

Runs in a thread: reading, validating and compiling ten thousand rules takes longer than a request may wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from meshguard.control.keyring import Keyring, LoadedKeys
from meshguard.control.policies import load_policy
from meshguard.control.settings.configuration import Configuration
from meshguard.control.settings.load import LoadedConfiguration
from meshguard.fields.compile import CompiledFields
from meshguard.model.errors import Problem
from meshguard.policy.compiled import CompiledPolicy

__all__ = ["Inputs", "load_inputs"]


@dataclass(frozen=True, slots=True)
class Inputs:
    """One consistent, valid set. `files` are the paths to watch."""

    loaded: LoadedConfiguration
    policy: CompiledPolicy
    fields: CompiledFields | None
    warnings: tuple[Problem, ...]
    files: tuple[Path, ...]
    keys: LoadedKeys

    @property
    def configuration(self) -> Configuration:
        return self.loaded.configuration


def load_inputs(load_configuration: Callable[[], LoadedConfiguration], keyring: Keyring) -> Inputs:
    """Reads everything anew; keysets that live on come from the `keyring`. Raises DocumentError with every problem, KeysetError,
    OSError."""
    loaded = load_configuration()
    configuration = loaded.configuration
    create = configuration.profile == "development"
    keys = keyring.load(configuration.keys, create=create)
    policy = load_policy(configuration.policies, keysets=keys.keysets)
    files = [Path(loaded.document.file), *configuration.policies, *keys.files]
    for listener in configuration.listeners.values():
        files += [path for path in (listener.certificate, listener.key) if path is not None]
    files += [cluster.tls.ca for cluster in configuration.clusters.values() if cluster.tls is not None and cluster.tls.ca is not None]
    return Inputs(loaded, policy.compiled, policy.fields, policy.warnings, tuple(files), keys)
