"""OpenAPI 3.1: the paths of a document compiled to checks. What cannot be validated is an error of the document, not a hole.

A request belongs to the concrete path that equals its own, else to the template that matches it, that with the leftmost literal segment
first. Base paths come from the document's `servers`; every reference stays inside the document.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from meshguard.validation.contract import BodyContract, Check, is_json
from meshguard.validation.parameters import Parameter, compile_parameter
from meshguard.validation.schemas import DIALECTS, Checker, SchemaBook, resolve
from meshguard.validation.violation import ContractError, Violation

__all__ = ["OpenApiContract", "compile_openapi"]

_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_NOT_KNOWN = Check(violation=Violation("path", "no such operation"))
_Segments = tuple[tuple[str, str, str], ...]  # each (before, name, after); name "": `before` is the whole segment
_Path = tuple[str | int, ...]


class _Operation:
    """The compiled rules of one operation. `template` gives the values of its path parameters."""

    __slots__ = ("body", "headers", "paths", "queries")

    def __init__(self, parameters: Sequence[Parameter], body: BodyContract | None) -> None:
        self.paths = [entry for entry in parameters if entry.location == "path"]
        self.queries = [entry for entry in parameters if entry.location == "query"]
        self.headers = [entry for entry in parameters if entry.location == "header"]
        self.body = body

    def check(self, values: Mapping[str, str], query: bytes | None) -> Check:
        try:
            for parameter in self.paths:
                parameter.judge([values[parameter.name]])
            if self.queries:
                pairs = _pairs(query or b"")
                for parameter in self.queries:
                    parameter.judge(pairs.get(parameter.name, ()))
        except Violation as violation:
            return Check(violation=violation)
        return Check(self.headers, self.body)


class OpenApiContract:
    """`deny`: operations that the document does not know are refused."""

    __slots__ = ("_concrete", "_deny", "_templates", "reports")

    def __init__(
        self, paths: Sequence[tuple[_Segments, Mapping[str, _Operation]]], bases: Sequence[str], deny: bool, reports: bool
    ) -> None:
        self._deny = deny
        self.reports = reports
        self._concrete: dict[tuple[str, ...], Mapping[str, _Operation]] = {}
        templates = []
        for base in bases:
            prefix = tuple((segment, "", "") for segment in base.split("/")[1:])
            for segments, operations in paths:
                whole = prefix + segments
                if any(name for _, name, _ in whole):
                    templates.append((whole, operations))
                else:
                    self._concrete[tuple(before for before, _, _ in whole)] = operations
        self._templates = sorted(templates, key=lambda entry: [bool(name) for _, name, _ in entry[0]])

    def check(self, method: str, path: str, query: bytes | None) -> Check | None:
        """See `Contract`. What a path and a query alone decide is decided here: plans remember it."""
        try:
            segments = tuple(unquote(segment, errors="strict") for segment in path.split("/")[1:])
        except UnicodeDecodeError:
            return Check(violation=Violation("path", "a path in UTF-8"))
        operations = self._concrete.get(segments)
        values: dict[str, str] | None = {}
        if operations is None:
            for template, candidate in self._templates:
                values = _match(template, segments)
                if values is not None:
                    operations = candidate
                    break
        operation = operations.get(method) if operations is not None else None
        if operation is None or values is None:
            return _NOT_KNOWN if self._deny else None
        return operation.check(values, query)


def _match(template: _Segments, segments: Sequence[str]) -> dict[str, str] | None:
    if len(template) != len(segments):
        return None
    values: dict[str, str] = {}
    for (before, name, after), segment in zip(template, segments, strict=True):
        if not name:
            if segment != before:
                return None
            continue
        end = len(segment) - len(after)
        if end <= len(before) or not segment.startswith(before) or not segment.endswith(after):
            return None
        values[name] = segment[len(before) : end]
    return values


def _pairs(query: bytes) -> dict[str, list[str]]:
    pairs: dict[str, list[str]] = {}
    for part in query.split(b"&"):
        if part:
            name, _, value = part.partition(b"=")
            pairs.setdefault(_decoded(name), []).append(_decoded(value))
    return pairs


def _decoded(text: bytes) -> str:
    try:
        return unquote_to_bytes(text.replace(b"+", b" ")).decode("utf-8")
    except UnicodeDecodeError:
        raise Violation("query", "a query in UTF-8") from None


# -- compiling ----------------------------------------------------------------------------------------------------------


def compile_openapi(document: object, *, deny: bool, reports: bool) -> OpenApiContract:
    """Raises ContractError with every problem of the document."""
    if not isinstance(document, Mapping) or not str(document.get("openapi", "")).startswith("3.1."):
        raise ContractError([(("openapi",) if isinstance(document, Mapping) else (), "an OpenAPI document of version 3.1")])
    dialect = document.get("jsonSchemaDialect", DIALECTS[0])
    if dialect not in DIALECTS:
        raise ContractError([(("jsonSchemaDialect",), f"{DIALECTS[0]} (the only dialect that is known)")])
    if not isinstance(document.get("paths"), Mapping) or not document["paths"]:
        raise ContractError([(("paths",), "at least one path")])
    compiler = _Compiler(document)
    paths = compiler.paths()
    bases = compiler.bases()
    if compiler.problems:
        raise ContractError(compiler.problems)
    return OpenApiContract(paths, bases, deny, reports)


class _Compiler:
    def __init__(self, document: Mapping[str, Any]) -> None:
        self._document = document
        self._book = SchemaBook(document)
        self.problems: list[tuple[_Path, str]] = []

    def bases(self) -> list[str]:
        servers = self._document.get("servers")
        bases = []
        for index, server in enumerate(servers if isinstance(servers, list) else []):
            url = server.get("url") if isinstance(server, Mapping) else None
            path = urlsplit(url).path if isinstance(url, str) else "{"
            if "{" in path:
                self.problems.append((("servers", index, "url"), "a URL whose path has no variables"))
            else:
                bases.append(unquote(path.rstrip("/")))
        return list(dict.fromkeys(bases)) or [""]

    def paths(self) -> list[tuple[_Segments, Mapping[str, _Operation]]]:
        out: list[tuple[_Segments, Mapping[str, _Operation]]] = []
        seen: set[tuple[tuple[str, bool, str], ...]] = set()
        for text in self._document["paths"]:
            if str(text).startswith("x-"):
                continue
            try:
                segments = _template(str(text))
                form = tuple((before, bool(name), after) for before, name, after in segments)
                if form in seen:
                    raise ContractError([(("paths", text), "a path that no other one equals but for the names of its parameters")])
                seen.add(form)
                out.append((segments, self._item(("paths", text), segments)))
            except ContractError as exc:
                self.problems += exc.problems
        return out

    def _item(self, at: _Path, segments: _Segments) -> dict[str, _Operation]:
        at, item = resolve(self._document, at)
        if not isinstance(item, Mapping):
            raise ContractError([(at, "a mapping of methods to operations")])
        if "servers" in item:
            raise ContractError([((*at, "servers"), "no servers here: base paths are those of the document's own `servers`")])
        operations: dict[str, _Operation] = {}
        for method in _METHODS:
            if method in item:
                try:
                    operations[method.upper()] = self._operation(at, item, (*at, method), segments)
                except ContractError as exc:
                    self.problems += exc.problems
        return operations

    def _operation(self, at: _Path, item: Mapping[str, Any], here: _Path, segments: _Segments) -> _Operation:
        operation = item[str(here[-1])]
        if not isinstance(operation, Mapping):
            raise ContractError([(here, "an operation")])
        if "servers" in operation:
            raise ContractError([((*here, "servers"), "no servers here: base paths are those of the document's own `servers`")])
        parameters: dict[tuple[str, str], Parameter] = {}
        for owner, value in ((at, item), (here, operation)):  # the operation's own replace those of the path
            listed = value.get("parameters", [])
            for index in range(len(listed)) if isinstance(listed, list) else ():
                parameter = compile_parameter(self._book, self._document, (*owner, "parameters", index))
                if parameter is not None:
                    parameters[parameter.location, parameter.name] = parameter
        names = {name for _, name, _ in segments if name}
        declared = {name for location, name in parameters if location == "path"}
        if names != declared:
            raise ContractError([(here, f"exactly the path parameters of its path ({', '.join(sorted(names)) or 'none'})")])
        return _Operation(list(parameters.values()), self._body((*here, "requestBody")) if "requestBody" in operation else None)

    def _body(self, at: _Path) -> BodyContract:
        at, body = resolve(self._document, at)
        content = body.get("content") if isinstance(body, Mapping) else None
        if not isinstance(content, Mapping) or not content:
            raise ContractError([(at, "a `content` with at least one media type")])
        media: dict[str, Checker | None] = {}
        for name, value in content.items():
            media_type = str(name).partition(";")[0].strip().lower()
            schema = value.get("schema") if isinstance(value, Mapping) else None
            if schema is None:
                media[media_type] = None
            elif is_json(media_type) or media_type in ("*/*", "application/*"):
                media[media_type] = self._book.compile((*at, "content", name, "schema"))
            else:
                raise ContractError(
                    [((*at, "content", name), "a JSON type; bodies of another type are not read: leave its schema out to let them pass")]
                )
        return BodyContract(media, body.get("required", False) is True)


def _template(text: str) -> _Segments:
    """The segments of a path: literal, or with one parameter each."""
    if not text.startswith("/"):
        raise ContractError([(("paths", text), "a path that begins with /")])
    segments = []
    for segment in text.split("/")[1:]:
        before, opened, rest = segment.partition("{")
        name, closed, after = rest.partition("}")
        if (opened and not (closed and name)) or "{" in after or "}" in after + before:
            raise ContractError([(("paths", text), "at most one {parameter} in each segment")])
        segments.append((unquote(before), name, unquote(after)))
    if len({name for _, name, _ in segments if name}) != sum(bool(name) for _, name, _ in segments):
        raise ContractError([(("paths", text), "parameters with different names")])
    return tuple(segments)
