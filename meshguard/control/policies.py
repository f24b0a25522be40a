"""The policy of a configuration: its documents read, validated, compiled, and checked against the keysets that exist.

Used by the start, by each reload and by `meshguard check`, so what check accepts is what serve loads.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from meshguard.model.errors import DocumentError, Problem
from meshguard.policy.compile import compile as compile_policy
from meshguard.policy.compiled import CompiledPolicy
from meshguard.policy.documents import PolicyDocument
from meshguard.sources.complaints import Complaint, nearest
from meshguard.sources.documents import Document, Loaded, load_documents, place_problems

__all__ = ["LoadedPolicy", "load_policy"]


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """The documents of a policy, in order, what they compile to, and what is worth a look in them but no error."""

    documents: tuple[Loaded[PolicyDocument], ...]
    compiled: CompiledPolicy
    warnings: tuple[Problem, ...]


def load_policy(
    paths: Sequence[str | Path | Document], *, keysets: Collection[str] | None = None, environment: Mapping[str, str] | None = None
) -> LoadedPolicy:
    """Loads the policy in `paths` (files and directories). `keysets` are the names that field rules may seal with; None: not checked
    (policies on their own). Raises DocumentError with every problem of all documents."""
    with _without_collections():
        return _load(paths, keysets, environment)


def _load(paths: Sequence[str | Path | Document], keysets: Collection[str] | None, environment: Mapping[str, str] | None) -> LoadedPolicy:
    documents = load_documents(paths, PolicyDocument, environment=environment)
    sources = [loaded.document for loaded in documents]
    problems = [problem for loaded in documents for problem in _keysets(loaded, keysets)] if keysets is not None else []
    try:
        compiled = compile_policy([loaded.value for loaded in documents], [loaded.file for loaded in documents])
    except DocumentError as exc:
        raise DocumentError(place_problems([*problems, *exc.problems], sources)) from exc
    if problems:
        raise DocumentError(problems)
    return LoadedPolicy(tuple(documents), compiled, tuple(place_problems(compiled.warnings, sources)))


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


def _keysets(loaded: Loaded[PolicyDocument], keysets: Collection[str]) -> list[Problem]:
    complaints = []
    known = ", ".join(sorted(keysets)) or "none yet"
    for index, rule in enumerate(loaded.value.fields):
        name = rule.get("seal")
        if isinstance(name, str) and "{" not in name and name not in keysets:
            expected = f"a keyset under `keys` of the configuration ({known})"
            complaints.append(Complaint(("fields", index, "seal"), expected, name, nearest(name, keysets)))
    return loaded.document.problems(complaints)
