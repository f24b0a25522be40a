"""From a file to a configuration: read, fill by profile, validate, cross-check, complete."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from meshguard.control.settings.configuration import Configuration
from meshguard.control.settings.crosscheck import crosscheck
from meshguard.control.settings.fleet import fleet_notes
from meshguard.control.settings.limits import EDGE_HEAD_S, LimitsConfig
from meshguard.control.settings.listeners import ListenerConfig
from meshguard.control.settings.profiles import fill
from meshguard.model.errors import DocumentError, Problem
from meshguard.sources.complaints import complaints_of
from meshguard.sources.documents import Document, parse, read

__all__ = ["MAX_CONFIGURATION_BYTES", "LoadedConfiguration", "configuration_from", "default_configuration", "load_configuration"]

MAX_CONFIGURATION_BYTES = 4 * 1024 * 1024
BUILTIN = Path(__file__).parent / "builtin"


@dataclass(frozen=True, slots=True)
class LoadedConfiguration:
    """A valid configuration with the document it came from. `said` is what the document says, `filled` that and what its profile
    adds; `notes` name each relaxation in force, for people: the start and `meshguard check` show them."""

    configuration: Configuration
    document: Document
    base: Path
    said: Mapping[str, Any]
    filled: Mapping[str, Any]
    notes: tuple[str, ...]


def load_configuration(
    path: str | Path, *, now: float, environment: Mapping[str, str] | None = None, files: bool = True
) -> LoadedConfiguration:
    """Loads the configuration at `path`; relative paths in it are relative to its directory. `now` is epoch seconds (end dates are
    judged by it). With `files=False` the files it names need not exist. Raises DocumentError with every problem."""
    document = read(path, environment=environment, max_bytes=MAX_CONFIGURATION_BYTES)
    return configuration_from(document, Path(path).resolve().parent, now=now, environment=environment, files=files)


def configuration_from(
    document: Document, base: Path, *, now: float, environment: Mapping[str, str] | None = None, files: bool = True
) -> LoadedConfiguration:
    """As `load_configuration`, for a document that is already read."""
    said = document.values
    if not isinstance(said, Mapping):
        raise DocumentError([Problem(document.file, "", "a mapping (key: value)", line=1, column=1)])
    filled = fill(said, os.environ if environment is None else environment)
    complaints = []
    configuration: Configuration | None = None
    try:
        configuration = Configuration.model_validate(filled, context={"base": base})
    except ValidationError as exc:
        complaints = complaints_of(exc, Configuration, filled)
    told = {complaint.path for complaint in complaints}
    complaints += [complaint for complaint in crosscheck(filled, base, now, files=files) if complaint.path not in told]
    if complaints or configuration is None:
        raise DocumentError(document.problems(complaints))
    configuration = _complete(configuration)
    return LoadedConfiguration(configuration, document, base, said, filled, tuple(_notes(configuration)))


def default_configuration(
    *, now: float, base: Path | None = None, environment: Mapping[str, str] | None = None, overrides: Mapping[str, Any] | None = None
) -> LoadedConfiguration:
    """The built-in configuration of `meshguard serve` without `--config`: profile development, inbound on 127.0.0.1:8443, upstream
    127.0.0.1:8080, admin on 127.0.0.1:9901, a policy from the package. `base` (default: the working directory) is where the
    development CA's directory `identity` is made. `overrides` replaces whole sections."""
    file = BUILTIN / "configuration.yaml"
    document = parse(str(file), file.read_text("utf-8"), environment=environment)
    values = dict(document.values) if isinstance(document.values, Mapping) else {}
    values["policies"] = [str(BUILTIN / name) for name in values["policies"]]
    values.update(overrides or {})
    document = Document(document.file, document.text, values)
    return configuration_from(document, (base or Path.cwd()).resolve(), now=now, environment=environment)


def _complete(configuration: Configuration) -> Configuration:
    listeners = {name: _with_limits(listener, configuration.limits) for name, listener in configuration.listeners.items()}
    return configuration.model_copy(update={"listeners": listeners})


def _with_limits(listener: ListenerConfig, shared: LimitsConfig) -> ListenerConfig:
    """The listener with every limit in place: its own, else the shared one that was said, else the default (of an edge)."""
    update: dict[str, Any] = {name: getattr(shared, name) for name in shared.model_fields_set}
    if listener.tls == "server":
        update.setdefault("head_s", EDGE_HEAD_S)
    update.update({name: getattr(listener.limits, name) for name in listener.limits.model_fields_set})
    return listener.model_copy(update={"limits": listener.limits.model_copy(update=update)})


def _notes(configuration: Configuration) -> list[str]:
    notes = [f"profile {configuration.profile}: not for production"] if configuration.profile == "development" else []
    for name, listener in configuration.listeners.items():
        if listener.permissive_until is not None:
            notes.append(f"listeners.{name}: plaintext is accepted until {_text(listener.permissive_until)}")
    for name, cluster in configuration.clusters.items():
        remote = [str(endpoint) for endpoint in cluster.endpoints if not endpoint.is_loopback]
        if cluster.tls is None and remote:
            notes.append(f"clusters.{name}: plaintext leaves this machine, to {', '.join(remote)}")
    for name, cluster in configuration.clusters.items():
        if not cluster.endpoints and cluster.tls is None:
            notes.append(f"clusters.{name}: plaintext leaves this machine, to destinations that the requests name")
    notes += fleet_notes(configuration.fleet)
    if not configuration.admin.address.is_loopback:
        notes.append(f"admin: reachable from other machines at {configuration.admin.address}")
    return notes


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
