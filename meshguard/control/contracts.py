"""The documents that requests are validated by: read and compiled with everything else that comes from files, in the reload's thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from meshguard.model.errors import DocumentError, Problem

if TYPE_CHECKING:
    from meshguard.control.settings.configuration import Configuration
    from meshguard.control.settings.validation import ValidationConfig
    from meshguard.fields.protobuf_schema import MessageType
    from meshguard.validation.contract import Contract
    from meshguard.validation.protobuf import Judge

__all__ = ["Contracts", "contract_files", "load_contracts"]

MAX_CONTRACT_BYTES = 16 * 1024 * 1024

Contracts = Mapping["ValidationConfig", "Contract"]


def contract_files(configuration: Configuration) -> list[Path]:
    """The files to watch."""
    named = (config.document for config in _configs(configuration) if config.in_bundle is None)
    return list(dict.fromkeys(path for path in named if path is not None))


def load_contracts(configuration: Configuration, carried: Mapping[str, bytes] | None) -> Contracts:
    """The compiled contract of each `validation` section; equal sections share one. `carried` are the files of the bundle in force, None
    where it is not at hand: then the contracts in it are left out. Raises DocumentError with every problem."""
    contracts: dict[ValidationConfig, Contract] = {}
    problems: list[Problem] = []
    for config in dict.fromkeys(_configs(configuration)):
        if config.in_bundle is not None and carried is None:
            continue
        try:
            contracts[config] = _load(config, carried or {})
        except DocumentError as exc:
            problems += exc.problems
    if problems:
        raise DocumentError(list({str(problem): problem for problem in problems}.values()))
    return contracts


def _configs(configuration: Configuration) -> Iterator[ValidationConfig]:
    for listener in configuration.listeners.values():
        if listener.validation is not None:
            yield listener.validation
        for route in listener.routes:
            if route.validation is not None:
                yield route.validation


def _load(config: ValidationConfig, carried: Mapping[str, bytes]) -> Contract:
    from meshguard.sources.complaints import Complaint
    from meshguard.sources.documents import Document
    from meshguard.validation.contract import SchemaContract
    from meshguard.validation.openapi import compile_openapi
    from meshguard.validation.schemas import SchemaBook
    from meshguard.validation.violation import ContractError

    path = config.document
    if path is None:
        raise ValueError("a validation without a document")
    file = str(path)
    data = _octets(path) if config.in_bundle is None else carried.get(config.in_bundle)
    if data is None:
        raise DocumentError([Problem(file, "", "a file that the bundle carries (meshguard bundle build --include)")])
    if config.protobuf is not None:
        return _load_messages(config, file, data)
    text, values = _parse(file, data)
    reports = config.report == "path"
    try:
        if config.openapi is not None:
            return compile_openapi(values, deny=config.unknown_operations == "deny", reports=reports)
        if not isinstance(values, Mapping | bool):
            raise ContractError([((), "a JSON Schema: an object, true or false")])
        return SchemaContract(SchemaBook(values).compile(()), reports)
    except ContractError as exc:
        raise DocumentError(Document(file, text, values).problems([Complaint(at, expected) for at, expected in exc.problems])) from None
    except ImportError:
        raise DocumentError(
            [Problem(file, "", "the package jsonschema-rs, to validate by it (pip install 'meshguard[validation]')")]
        ) from None


def _load_messages(config: ValidationConfig, file: str, data: bytes) -> Contract:
    from meshguard.fields.protobuf_descriptor import DescriptorError
    from meshguard.fields.protobuf_schema import Schema
    from meshguard.validation.protobuf import ProtobufContract

    try:
        methods = Schema(data).methods
    except DescriptorError as exc:
        raise DocumentError([Problem(file, "", str(exc))]) from None
    if not methods:
        raise DocumentError([Problem(file, "", "a descriptor set with services")])
    return ProtobufContract(
        {name: (_judge(method.request, unknown=config.unknown_fields == "allow"), method.many) for name, method in methods.items()},
        deny=config.unknown_operations == "deny",
        reports=config.report == "path",
        limit=config.max_message_bytes or 0,
    )


def _judge(of: MessageType, *, unknown: bool) -> Judge:
    """One type's judge: packages of one floor know nothing of each other, so what the reader says is worded for the contract here."""
    from meshguard.fields.protobuf_values import MessageError, read_message
    from meshguard.validation.violation import Violation, pointer

    def judge(message: bytes) -> None:
        try:
            read_message(message, of, unknown=unknown, strict=True)
        except MessageError as exc:
            raise Violation("body" + pointer(exc.path), exc.rule) from None

    return judge


def _octets(path: Path) -> bytes:
    file = str(path)
    try:
        if not path.is_file():
            raise DocumentError([Problem(file, "", "a regular file")])
        with path.open("rb") as stream:
            data = stream.read(MAX_CONTRACT_BYTES + 1)
    except OSError as exc:
        raise DocumentError([Problem(file, "", f"a readable file ({exc.strerror or exc})")]) from exc
    if len(data) > MAX_CONTRACT_BYTES:
        raise DocumentError([Problem(file, "", f"at most {MAX_CONTRACT_BYTES} bytes")])
    return data


def _parse(file: str, data: bytes) -> tuple[str, object]:
    """Text and values. A contract is somebody else's document: nothing in it names environment variables."""
    from meshguard.sources.yamltext import Malformed, parse_json, parse_yaml

    try:
        text = data.decode("utf-8-sig")
        return text, (parse_json if file.endswith(".json") else parse_yaml)(text)
    except UnicodeDecodeError:
        raise DocumentError([Problem(file, "", "UTF-8 text")]) from None
    except Malformed as exc:
        raise DocumentError(exc.problems(file)) from exc
