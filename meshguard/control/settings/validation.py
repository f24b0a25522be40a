"""Requests against their contract: the section `validation` of a route or a listener."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, ValidationInfo, WithJsonSchema

from meshguard.control.settings.values import Section, Size, document_path
from meshguard.sources.complaints import Complaint, Told

__all__ = ["ValidationConfig", "validation_complaints", "validation_files"]

IN_BUNDLE = "bundle:"
"""Begins the name of a document that the signed bundle in force carries."""
_DOCUMENTS = ("openapi", "json_schema", "protobuf")


def _contract_path(value: object, info: ValidationInfo) -> object:
    if not isinstance(value, str) or not value.startswith(IN_BUNDLE):
        return document_path(value, info)
    name = value.removeprefix(IN_BUNDLE)
    if not name or name.startswith((".", "/")) or ".." in name.split("/"):
        raise ValueError(f"{IN_BUNDLE} and the name of a file in it, such as {IN_BUNDLE}contracts/shop.yaml")
    return Path(value)


ContractPath = Annotated[Path, BeforeValidator(_contract_path), PlainSerializer(str), WithJsonSchema({"type": "string"})]


class ValidationConfig(Section):
    """Requests are judged by one document before anything of them goes on. Say one of `openapi`, `json_schema` and `protobuf`."""

    openapi: ContractPath | None = Field(default=None, description="An OpenAPI 3.1 document, YAML or JSON.")
    json_schema: ContractPath | None = Field(default=None, description="A JSON Schema (draft 2020-12) for the body of every request.")
    protobuf: ContractPath | None = Field(
        default=None, description="A descriptor set with the gRPC services of the route (protoc --include_imports --descriptor_set_out)."
    )
    on: Literal["request"] = Field(default="request", description="Which messages are judged.")
    report: Literal["none", "path"] = Field(default="none", description="path: a refused client is told where in its request the fault is.")
    unknown_operations: Literal["deny", "allow"] = Field(
        default="deny", description="Requests whose method and path are not in the OpenAPI document or the descriptor set."
    )
    unknown_fields: Literal["deny", "allow"] = Field(
        default="deny", description="Fields of protobuf messages that the descriptor set does not know."
    )
    max_message_bytes: Size | None = Field(default=None, description="Of a protobuf message; at most limits.inspect_body_bytes.")

    @property
    def document(self) -> Path | None:
        """The one document."""
        return self.openapi or self.json_schema or self.protobuf

    @property
    def in_bundle(self) -> str | None:
        """The name of the document in the bundle, where it is one of the bundle."""
        text = str(self.document)
        return text.removeprefix(IN_BUNDLE) if text.startswith(IN_BUNDLE) else None


def validation_complaints(values: Mapping[str, Any]) -> Iterator[Complaint]:
    """What must agree in these sections; works on the plain values, as `crosscheck` does."""
    for at, section in _sections(values):
        said = [key for key in _DOCUMENTS if section.get(key) is not None]
        if len(said) != 1:
            yield Complaint(at, "exactly one of openapi, json_schema and protobuf", Told(" and ".join(said) or "none of them"))
        elif said == ["json_schema"] and "unknown_operations" in section:
            yield Complaint((*at, "unknown_operations"), "no such key here: only OpenAPI documents and descriptor sets know operations")
        for key in said:
            if str(section[key]).startswith(IN_BUNDLE) and values.get("bundle") is None:
                yield Complaint((*at, key), "a file: there is no `bundle` that could carry it", Told(str(section[key])))
        for key in ("unknown_fields", "max_message_bytes"):
            if key in section and said != ["protobuf"]:
                yield Complaint((*at, key), "no such key here: it is one of protobuf")


def validation_files(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], object]]:
    """(place, path) of the files that they name."""
    for at, section in _sections(values):
        for key in _DOCUMENTS:
            if not str(section.get(key)).startswith(IN_BUNDLE):
                yield (*at, key), section.get(key)


def _sections(values: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], Mapping[str, Any]]]:
    listeners = values.get("listeners")
    for name, listener in listeners.items() if isinstance(listeners, Mapping) else ():
        if not isinstance(listener, Mapping):
            continue
        at: tuple[str | int, ...] = ("listeners", str(name))
        if isinstance(listener.get("validation"), Mapping):
            yield (*at, "validation"), listener["validation"]
        routes = listener.get("routes")
        for index, route in enumerate(routes if isinstance(routes, list) else ()):
            if isinstance(route, Mapping) and isinstance(route.get("validation"), Mapping):
                yield (*at, "routes", index, "validation"), route["validation"]
