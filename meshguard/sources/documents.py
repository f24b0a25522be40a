"""Documents on disk: which files, what they hold, and every error in them at once, each with its place.

A document is one YAML or JSON file that a pydantic model describes. `read` gives its plain values, `Document.model` the
validated model, `load_documents` both for files and directories. Errors are `model.errors.Problem`s: file, line, column, the
path in the document, what was expected in plain words.

Scalar values (not keys) may name environment variables: `${NAME}` is replaced, `${NAME:-text}` has a default for a variable
that is unset or empty, `$${` stands for a literal `${`. The result is always text to the model and never becomes structure. An unset
variable without a default is a Problem. What a Problem shows is the text of the file, never the value of a variable.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from meshguard.model.errors import DocumentError, Problem
from meshguard.sources.complaints import Complaint, Told, complaints_of, shown
from meshguard.sources.yamltext import Malformed, Place, locate, parse_json, parse_yaml

__all__ = ["MAX_DOCUMENT_BYTES", "Document", "Loaded", "find_documents", "load_documents", "place_problems", "read"]

MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
"""A policy of 100 000 rules is 11 MiB of YAML; 64 leaves room for long ones and bounds what a wrong path can make us read."""
MAX_FILES = 10_000
SUFFIXES = (".yaml", ".yml", ".json")

M = TypeVar("M", bound=BaseModel)

_VARIABLE = re.compile(r"\$\$\{|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|\$\{[^}]*\}?")
_INDEX = re.compile(r"([^.\[\]]+)|\[(\d+)\]|\[\"([^\"]*)\"\]")


@dataclass(frozen=True, slots=True)
class Loaded(Generic[M]):
    """A validated document: `file` as it is named in messages, its `value`, and the `document` it came from."""

    file: str
    value: M
    document: Document


class Document:
    """The plain `values` of the file `file` with its `text`; finds the places of values when asked."""

    __slots__ = ("file", "text", "values")

    def __init__(self, file: str, text: str, values: object) -> None:
        self.file = file
        self.text = text
        self.values = values

    def model(self, model: type[M], context: Mapping[str, object] | None = None, *, at: tuple[str | int, ...] = ()) -> M:
        """Validates the values (those at the path `at`); raises DocumentError with all problems."""
        values: object = self.values
        for part in at:
            values = values[part]  # type: ignore[index]  # the caller names a path that exists
        try:
            return model.model_validate(values, context=dict(context) if context else None)
        except ValidationError as exc:
            complaints = complaints_of(exc, model, values)
            for complaint in complaints:
                complaint.path = (*at, *complaint.path)
            raise DocumentError(self.problems(complaints)) from exc

    def problems(self, complaints: Sequence[Complaint]) -> list[Problem]:
        """Complaints as problems with their places, in the order of the document."""
        places = locate(self.text, {complaint.path for complaint in complaints})
        problems = [self._problem(item, places.get(item.path)) for item in complaints]
        return sorted(problems, key=lambda problem: (problem.line, problem.column))

    def _problem(self, item: Complaint, place: Place | None) -> Problem:
        line, column = (place.line, place.column) if place else (0, 0)
        written = place.text if place else None
        if item.value is None:
            value = ""
        elif isinstance(item.value, Told):
            value = item.value
        elif written is not None:
            value = shown(written, item.path)
            if not isinstance(item.value, str):
                value = value[1:-1] if value[:1] in "'\"" else value
        elif isinstance(item.value, str) and "${" in self.text:  # not as written: it may hold the value of a variable
            value = ""
        else:
            value = shown(item.value, item.path)
        return Problem(self.file, path_text(item.path), item.expected, line=line, column=column, value=value, nearest=item.nearest)


def path_text(path: Sequence[str | int]) -> str:
    """`listeners.inbound.routes[2].paths`; a key with a dot or bracket in it is quoted: `roles["a.b"]`."""
    out = ""
    for part in path:
        if isinstance(part, int):
            out += f"[{part}]"
        elif any(char in part for char in '.[]"'):
            out += '["' + part.replace('"', "'") + '"]'
        else:
            out += f".{part}" if out else part
    return out


def parse_path(text: str) -> tuple[str | int, ...]:
    """The inverse of `path_text`."""
    return tuple(int(index) if index else name or quoted for name, index, quoted in _INDEX.findall(text))


def substituter(environment: Mapping[str, str]) -> Callable[[str], str]:
    """A function that replaces `${NAME}` and `${NAME:-default}`; it raises ValueError, worded as an expectation."""

    def replace(match: re.Match[str]) -> str:
        if match.group() == "$${":
            return "${"
        name, default = match.group(1), match.group(2)
        if name is None:
            raise ValueError("a variable as ${NAME} or ${NAME:-default} (a literal ${ is written $${)")
        value = environment.get(name)
        if default is not None:
            return value or default
        if value is None:
            raise ValueError(f"the environment variable {name} to be set (or a default: ${{{name}:-...}})")
        return value

    return lambda text: _VARIABLE.sub(replace, text)


def _no_breath() -> None:
    pass


def read(
    path: str | Path,
    *,
    environment: Mapping[str, str] | None = None,
    max_bytes: int = MAX_DOCUMENT_BYTES,
    breathe: Callable[[], None] = _no_breath,
) -> Document:
    """Reads and parses one file. `environment` defaults to the process's own; `breathe` is called between small pieces of the work.
    Raises DocumentError."""
    file = str(path)
    try:
        # a pipe in a watched directory must not hold the reload up: opened without waiting, and refused
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if file.startswith("/dev/") else os.O_NONBLOCK))
        with open(descriptor, "rb") as stream:
            if not file.startswith("/dev/") and not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise DocumentError([Problem(file, "", "a regular file")])
            data = stream.read(max_bytes + 1)
    except OSError as exc:
        raise DocumentError([Problem(file, "", f"a readable file ({exc.strerror or exc})", unreadable=True)]) from exc
    if len(data) > max_bytes:
        raise DocumentError([Problem(file, "", f"at most {max_bytes} bytes")])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise DocumentError([Problem(file, "", "UTF-8 text", line=line, column=0, value=f"byte 0x{data[exc.start]:02x}")]) from exc
    return parse(file, text, environment=environment, breathe=breathe)


def parse(file: str, text: str, *, environment: Mapping[str, str] | None = None, breathe: Callable[[], None] = _no_breath) -> Document:
    """As `read`, for text that is at hand; JSON when the name of the file says so."""
    substitute = substituter(os.environ if environment is None else environment)
    try:
        values = (parse_json if file.endswith(".json") else parse_yaml)(text, substitute, breathe)
    except Malformed as exc:
        raise DocumentError(exc.problems(file)) from exc
    if values is None:  # an empty or truncated file must not silently drop the rules that were in it
        raise DocumentError([Problem(file, "", "a document", line=1, column=1, value="nothing but comments")])
    return Document(file, text, values)


def find_documents(paths: Iterable[str | Path]) -> list[Path]:
    """The files that `paths` name: files as they are, directories searched for *.yaml, *.yml and *.json, below too, sorted by
    name. Hidden names are skipped (a mounted ConfigMap keeps its versions in `..data`), symbolic links are followed. Raises
    DocumentError for a path that is absent and for a directory without any document."""
    found: list[Path] = []
    problems: list[Problem] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = _search(path, set())
            if not inside:
                problems.append(Problem(str(path), "", "at least one *.yaml, *.yml or *.json file in this directory"))
            found.extend(inside)
        elif path.exists():
            found.append(path)
        else:
            problems.append(Problem(str(path), "", "an existing file or directory", unreadable=True))
    if len(found) > MAX_FILES:
        problems.append(Problem(str(found[0].parent), "", f"at most {MAX_FILES} files"))
    if problems:
        raise DocumentError(problems)
    return list(dict.fromkeys(found))


def _search(directory: Path, seen: set[Path]) -> list[Path]:
    real = directory.resolve()
    if real in seen:
        return []
    seen.add(real)
    out: list[Path] = []
    for path in sorted(directory.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            out.extend(_search(path, seen))
        elif path.suffix in SUFFIXES:
            out.append(path)
    return out


def load_documents(
    paths: Iterable[str | Path | Document],
    model: type[M],
    *,
    environment: Mapping[str, str] | None = None,
    context: Mapping[str, object] | None = None,
    breathe: Callable[[], None] = _no_breath,
) -> list[Loaded[M]]:
    """Reads and validates every document that `paths` name (see `find_documents`; a Document is one that is already read), in that
    order. A model whose validation takes long finds `breathe` in its context. Raises one DocumentError with the problems of all of them."""
    loaded: list[Loaded[M]] = []
    problems: list[Problem] = []
    context = {**(context or {}), "breathe": breathe}
    found: list[Path | Document] = []
    for path in paths:
        try:
            found.extend([path] if isinstance(path, Document) else find_documents([path]))
        except DocumentError as exc:
            problems.extend(exc.problems)
    for item in dict.fromkeys(found):
        try:
            document = item if isinstance(item, Document) else read(item, environment=environment, breathe=breathe)
            loaded.append(Loaded(document.file, document.model(model, context), document))
        except DocumentError as exc:
            problems.extend(exc.problems)
    if problems:
        raise DocumentError(problems)
    return loaded


def place_problems(problems: Iterable[Problem], documents: Iterable[Document]) -> list[Problem]:
    """Problems that a pure compiler raised with a file and a path only, with line and column filled in from the documents."""
    by_file = {document.file: document for document in documents}
    wanted: dict[str, set[tuple[str | int, ...]]] = {}
    out = list(problems)
    for problem in out:
        if not problem.line and problem.file in by_file:
            wanted.setdefault(problem.file, set()).add(parse_path(problem.path))
    places = {file: locate(by_file[file].text, paths) for file, paths in wanted.items()}
    for problem in out:
        place = places.get(problem.file, {}).get(parse_path(problem.path))
        if place is not None and not problem.line:
            problem.line, problem.column = place.line, place.column
    return out
