"""The effective configuration for people: every value in force and where it comes from.

What the document says stands bare; the rest carries `# profile NAME`, `# default`, or what it follows from. Limits of a listener
are shown where they differ from the common ones. Header values with names of credentials are hidden. Otherwise the text is itself
a configuration that means the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from meshguard.control.settings.load import LoadedConfiguration
from meshguard.sources.complaints import is_secret

__all__ = ["effective_text", "effective_values"]

_PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*\Z")
_WORDS = frozenset({"null", "true", "false", "Null", "True", "False", "NULL", "TRUE", "FALSE"})

Path = tuple[str | int, ...]


def effective_values(loaded: LoadedConfiguration) -> dict[str, Any]:
    """Every value in force as plain JSON values; what is absent is left out, credentials are `(hidden)`."""
    values = loaded.configuration.model_dump(mode="json")
    for listener in values["listeners"].values():  # only where a listener differs from the common limits
        listener["limits"] = {name: value for name, value in listener["limits"].items() if value != values["limits"][name]}
    present = _present(values, ())
    return present if isinstance(present, dict) else {}


def _present(value: object, path: Path) -> object:
    if isinstance(value, dict):
        inner = {key: _present(item, (*path, key)) for key, item in value.items() if item is not None}
        return {key: item for key, item in inner.items() if item != {}}
    if isinstance(value, list):
        return [_present(item, (*path, index)) for index, item in enumerate(value)]
    return "(hidden)" if isinstance(value, str) and _in_headers(path) and is_secret(path[-1:]) else value


def _in_headers(path: Path) -> bool:
    return any(part in ("request_headers", "response_headers", "headers") for part in path)


def effective_text(loaded: LoadedConfiguration) -> str:
    """As YAML with the origin of each value."""
    lines = _mapping(effective_values(loaded), (), loaded, 0)
    return "\n".join(lines) + "\n"


def _mapping(values: Mapping[str, Any], path: Path, loaded: LoadedConfiguration, indent: int) -> Iterator[str]:
    space = "  " * indent
    for key, value in values.items():
        here = (*path, key)
        if isinstance(value, dict):
            yield f"{space}{_scalar(key)}:"
            yield from _mapping(value, here, loaded, indent + 1)
        elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
            yield f"{space}{_scalar(key)}:"
            for index, item in enumerate(value):
                first, *rest = list(_mapping(item, (*here, index), loaded, indent + 2))
                yield f"{space}  - {first.lstrip()}"
                yield from rest
        else:
            text = "[" + ", ".join(map(_scalar, value)) + "]" if isinstance(value, list) else _scalar(value)
            origin = _origin(here, loaded)
            yield f"{space}{_scalar(key)}: {text}" + (f"  # {origin}" if origin else "")


def _origin(path: Path, loaded: LoadedConfiguration) -> str:
    if _has(loaded.said, path):
        return ""
    if not _has(loaded.filled, path):
        return "default"
    if path == ("identity", "workload_api"):
        return "SPIFFE_ENDPOINT_SOCKET"
    return "follows the endpoints" if path[-1] == "resolve" else f"profile {loaded.configuration.profile}"


def _has(values: object, path: Path) -> bool:
    for part in path:
        if (isinstance(values, Mapping) and part in values) or (isinstance(values, list) and isinstance(part, int) and part < len(values)):
            values = values[part]  # type: ignore[index]  # the line above tells the kinds apart
        else:
            return False
    return True


def _scalar(value: object) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    if _PLAIN.match(value) and value not in _WORDS:
        return value
    return json.dumps(value.replace("${", "$${"), ensure_ascii=False)
