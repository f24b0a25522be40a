"""The policy of a configuration: its documents read, validated, compiled, and checked against the keysets that exist.

Used by the start, by each reload and by `meshguard check`, so what check accepts is what serve loads.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from meshguard.fields.compile import CompiledFields, compile_fields
from meshguard.fields.keyset import Keyset, is_keyset_name
from meshguard.model.errors import DocumentError, Problem
from meshguard.policy.compile import compile as compile_policy
from meshguard.policy.compiled import CompiledPolicy
from meshguard.policy.documents import PolicyDocument
from meshguard.sources.documents import Document, Loaded, load_documents, place_problems

__all__ = ["LoadedPolicy", "load_policy"]


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """The documents of a policy, in order, what they compile to (`fields` None: no body is looked at), and what is worth a look in
    them but no error."""

    documents: tuple[Loaded[PolicyDocument], ...]
    compiled: CompiledPolicy
    fields: CompiledFields | None
    warnings: tuple[Problem, ...]


def load_policy(
    paths: Sequence[str | Path | Document],
    *,
    keysets: Mapping[str, Keyset] | Collection[str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> LoadedPolicy:
    """Loads the policy in `paths` (files and directories). `keysets` are those that field rules may seal with; where only names are
    given (a check, away from the keys) the compiled fields can seal nothing, with None any name will do. Raises DocumentError
    with every problem of all documents."""
    with _without_collections():
        return _load(paths, keysets, environment)


def _load(
    paths: Sequence[str | Path | Document],
    keysets: Mapping[str, Keyset] | Collection[str] | None,
    environment: Mapping[str, str] | None,
) -> LoadedPolicy:
    documents = load_documents(paths, PolicyDocument, environment=environment)
    sources = [loaded.document for loaded in documents]
    problems: list[Problem] = []
    compiled: CompiledPolicy | None = None
    fields: CompiledFields | None = None
    try:
        compiled = compile_policy([loaded.value for loaded in documents], [loaded.file for loaded in documents])
    except DocumentError as exc:
        problems += exc.problems
    if any(loaded.value.fields for loaded in documents):
        if not isinstance(keysets, Mapping):
            names = _sealed_with(documents) if keysets is None else keysets
            keysets = {name: Keyset(name, ()) for name in names}
        roles = [name for loaded in documents for name in loaded.value.roles]
        try:
            fields = compile_fields(documents, roles, keysets)
        except DocumentError as exc:
            problems += exc.problems
    if problems or compiled is None:
        raise DocumentError(place_problems(problems, sources))
    return LoadedPolicy(tuple(documents), compiled, fields, tuple(place_problems(compiled.warnings, sources)))


def _sealed_with(documents: Sequence[Loaded[PolicyDocument]]) -> set[str]:
    names = {rule.get("seal") for loaded in documents for rule in loaded.value.fields}
    return {name for name in names if isinstance(name, str) and is_keyset_name(name)}


@contextmanager
def _without_collections() -> Iterator[None]:
    """No cyclic garbage is made here, only a great many values that stay: with 100 000 rules the collector's passes over them were
    half of 19 s."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
