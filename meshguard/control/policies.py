"""The policy of a configuration: its documents read, validated, compiled, and checked against the keysets that exist.

Used by the start, by each reload and by `meshguard check`, so what check accepts is what serve loads.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meshguard.control.pacing import Breathe, all_parts, unpaced
from meshguard.fields.keyset import Keyset, is_keyset_name
from meshguard.model.errors import DocumentError, Problem
from meshguard.policy.compile import compile as compile_policy
from meshguard.policy.compiled import CompiledPolicy
from meshguard.policy.documents import PolicyDocument, RoleDocument
from meshguard.policy.principals import parse_principal
from meshguard.sources.documents import Document, Loaded, load_documents, place_problems

if TYPE_CHECKING:
    from meshguard.fields.compile import CompiledFields
    from meshguard.fields.protobuf_schema import Schema
    from meshguard.policy.bodies import Messages

__all__ = ["LoadedPolicy", "load_policy"]


@dataclass(frozen=True, slots=True)
class LoadedPolicy:
    """The documents of a policy, in order, what they compile to (`fields` None: no body is looked at), and what is worth a look in
    them but no error."""

    documents: tuple[Loaded[PolicyDocument], ...]
    compiled: CompiledPolicy
    fields: CompiledFields | None
    warnings: tuple[Problem, ...]

    def documents_parts(self) -> list[object]:
        """What its documents consist of, for `pacing.let_go` once they are not needed any more."""
        return all_parts(*(_parts(loaded) for loaded in self.documents))


def _parts(loaded: Loaded[PolicyDocument]) -> list[object]:
    values = loaded.document.values
    rules = values.get("rules") if isinstance(values, dict) else None
    return [*loaded.value.rules, *(rules if isinstance(rules, list) else ())]


def load_policy(
    paths: Sequence[str | Path | Document],
    *,
    keysets: Mapping[str, Keyset] | Collection[str] | None = None,
    environment: Mapping[str, str] | None = None,
    read: Read | None = None,
    breathe: Breathe = unpaced,
) -> LoadedPolicy:
    """Loads the policy in `paths` (files and directories). `keysets` are those that field rules may seal with; where only names are
    given (a check, away from the keys) the compiled fields can seal nothing, with None any name will do. `read` gives the files that
    documents name, None: those beside them; `breathe` is called all the time (`pacing`). Raises DocumentError with every problem of
    all documents."""
    with _without_collections():
        return _load(paths, keysets, environment, read or _beside, breathe)


def _load(
    paths: Sequence[str | Path | Document],
    keysets: Mapping[str, Keyset] | Collection[str] | None,
    environment: Mapping[str, str] | None,
    read: Read,
    breathe: Breathe,
) -> LoadedPolicy:
    documents = load_documents(paths, PolicyDocument, environment=environment, breathe=breathe)
    sources = [loaded.document for loaded in documents]
    problems: list[Problem] = []
    compiled: CompiledPolicy | None = None
    fields: CompiledFields | None = None
    readers = _principal_readers(documents, problems)
    try:
        values, files = [loaded.value for loaded in documents], [loaded.file for loaded in documents]
        compiled = compile_policy([*values, *readers], [*files, *(files[:1] * len(readers))], _Sets(read), breathe)
    except DocumentError as exc:
        problems += exc.problems
    if any(loaded.value.fields for loaded in documents):
        from meshguard.fields.compile import compile_fields

        if not isinstance(keysets, Mapping):
            names = _sealed_with(documents) if keysets is None else keysets
            keysets = {name: Keyset(name, ()) for name in names}
        roles = [name for loaded in documents for name in loaded.value.roles]
        try:
            fields = compile_fields(documents, roles, keysets, read)
        except DocumentError as exc:
            problems += exc.problems
    if problems or compiled is None:
        raise DocumentError(place_problems(problems, sources))
    return LoadedPolicy(tuple(documents), compiled, fields, tuple(place_problems(compiled.warnings, sources)))


_WITH_KEYSET = ("encrypt", "seal", "deterministic", "tokenise", "hash")


def _principal_readers(documents: Sequence[Loaded[PolicyDocument]], problems: list[Problem]) -> list[PolicyDocument]:
    """A document with a role for each SPIFFE ID or pattern that field rules name as a reader: held by whom it matches, and called like it,
    which no role of a document can be."""
    roles: dict[str, RoleDocument] = {}
    for loaded in documents:
        for number, rule in enumerate(loaded.value.fields):
            readers = rule.get("readers")
            for name in readers if isinstance(readers, Mapping) else ():
                if not isinstance(name, str) or not name.startswith("spiffe:"):
                    continue
                try:
                    parse_principal(name)
                except ValueError as exc:
                    problems.append(Problem(loaded.file, f"fields[{number}].readers.{name}", str(exc), value=repr(name)))
                    continue
                roles[name] = RoleDocument(principals=[name])
    return [PolicyDocument.model_construct(roles=roles)] if roles else []


Read = Callable[[str, str], bytes]
"""The octets of a file by (the policy document that names it, the name). Raises OSError."""


def _beside(file: str, name: str) -> bytes:
    """A file that the policy document `file` names, relative to it."""
    return (Path(file).parent / name).read_bytes()


class _Sets:
    """The descriptor sets by which rules read bodies, each parsed once."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._schemas: dict[tuple[str, str], Schema] = {}

    def __call__(self, file: str, name: str, message: str | None) -> Messages:
        from meshguard.fields.protobuf_messages import BodyMessages
        from meshguard.fields.protobuf_schema import Schema
        from meshguard.policy.bodies import Entries, Repeated

        schema = self._schemas.get((file, name))
        if schema is None:
            try:
                schema = self._schemas[file, name] = Schema(self._read(file, name))
            except OSError as exc:
                raise ValueError(f"a file that can be read ({exc.strerror or 'not found'})") from None
        return BodyMessages(schema, message, Repeated, Entries)


def _sealed_with(documents: Sequence[Loaded[PolicyDocument]]) -> set[str]:
    names = {rule.get(action) for loaded in documents for rule in loaded.value.fields for action in _WITH_KEYSET}
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
            gc.freeze()  # what was made stays: the next collection, perhaps on the loop, need not look at all of it
            gc.enable()
