"""Everything that comes from files: configuration, policies, field rules, keysets, token keys. Loaded and checked as one.

Runs in a thread: reading, validating and compiling ten thousand rules takes longer than a request may wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from meshguard.control.policies import load_policy
from meshguard.control.settings.configuration import Configuration
from meshguard.control.settings.load import LoadedConfiguration
from meshguard.fields.compile import CompiledFields
from meshguard.keys.file import load_keyset
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

    @property
    def configuration(self) -> Configuration:
        return self.loaded.configuration


def load_inputs(load_configuration: Callable[[], LoadedConfiguration]) -> Inputs:
    """Reads everything anew. Raises DocumentError with every problem, KeysetError, OSError."""
    loaded = load_configuration()
    configuration = loaded.configuration
    create = configuration.profile == "development"
    keysets = {name: load_keyset(config.path, name, create=create) for name, config in configuration.keys.items()}
    policy = load_policy(configuration.policies, keysets=keysets)
    files = [Path(loaded.document.file), *configuration.policies, *(config.path for config in configuration.keys.values())]
    for listener in configuration.listeners.values():
        files += [path for path in (listener.certificate, listener.key) if path is not None]
        files += [path for entry in listener.certificates for path in (entry.certificate, entry.key)]
    files += [cluster.tls.ca for cluster in configuration.clusters.values() if cluster.tls is not None and cluster.tls.ca is not None]
    return Inputs(loaded, policy.compiled, policy.fields, policy.warnings, tuple(files))
