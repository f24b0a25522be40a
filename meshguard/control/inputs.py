"""Everything that comes from files: configuration, policies, field rules, keysets, token keys. Loaded and checked as one.

Runs in a thread: reading, validating and compiling ten thousand rules takes longer than a request may wait.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from meshguard.control.settings.configuration import Configuration
from meshguard.control.settings.load import LoadedConfiguration
from meshguard.fields.compile import CompiledFields, compile_fields
from meshguard.fields.keyset import Keyset
from meshguard.keys.file import load_keyset
from meshguard.model.errors import DocumentError
from meshguard.policy.compile import compile as compile_policy
from meshguard.policy.compiled import CompiledPolicy
from meshguard.policy.documents import PolicyDocument
from meshguard.sources.documents import load_documents, place_problems

__all__ = ["Inputs", "load_inputs"]


@dataclass(frozen=True, slots=True)
class Inputs:
    """One consistent, valid set. `files` are the paths to watch."""

    loaded: LoadedConfiguration
    policy: CompiledPolicy
    fields: CompiledFields | None
    files: tuple[Path, ...]

    @property
    def configuration(self) -> Configuration:
        return self.loaded.configuration


def load_inputs(load_configuration: Callable[[], LoadedConfiguration]) -> Inputs:
    """Reads everything anew. Raises DocumentError with every problem, KeysetError, OSError."""
    loaded = load_configuration()
    configuration = loaded.configuration
    documents = load_documents(configuration.policies, PolicyDocument)
    values = [document.value for document in documents]
    try:
        policy = compile_policy(values, [document.file for document in documents])
        keysets: dict[str, Keyset] = {
            name: load_keyset(config.path, name, create=configuration.profile == "development")
            for name, config in configuration.keys.items()
        }
        fields = compile_fields(documents, policy.roles, keysets) if any(value.fields for value in values) else None
    except DocumentError as exc:
        raise DocumentError(place_problems(exc.problems, [document.document for document in documents])) from exc
    files = [Path(loaded.document.file), *configuration.policies, *(config.path for config in configuration.keys.values())]
    return Inputs(loaded, policy, fields, tuple(files))


