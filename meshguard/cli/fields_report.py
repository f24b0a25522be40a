"""`meshguard fields report`: what is protected, who reads it, which keys, what was decrypted. From the configuration, the policies and the
keyset files; no key is unwrapped and no value is seen. Decisions and metrics are counted where they are given."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from meshguard.cli.fields_clauses import CLAUSES, DISCLAIMER
from meshguard.control.settings.configuration import Configuration
from meshguard.control.settings.keys import KeysetConfig
from meshguard.control.settings.load import load_configuration
from meshguard.fields.keyset import KeyState
from meshguard.keys.keyset_file import read_keyset
from meshguard.keys.records import timestamp
from meshguard.model.errors import KeysetError
from meshguard.policy.documents import PolicyDocument
from meshguard.sources.documents import load_documents

__all__ = ["report_of", "run"]

_ACTIONS = ("seal", "encrypt", "deterministic", "tokenise", "hash", "mask", "remove")
_PLACES = ("paths", "methods", "hosts", "side", "on", "select", "form", "headers", "query", "protobuf")
_SAMPLE = re.compile(r"meshguard_field_operations_total\{([^}]*)\} ([0-9.e+]+)")


def run(options: argparse.Namespace) -> int:
    """Prints the report: Markdown, or JSON. Exit status 1 when something in it needs attention."""
    configuration = load_configuration(options.config, now=time.time(), files=False).configuration
    report = report_of(configuration, time.time(), options.decisions, options.metrics)
    sys.stdout.write(json.dumps(report, indent=1, ensure_ascii=False) + "\n" if options.json else "\n".join(_markdown(report)) + "\n")
    return 1 if report["attention"] else 0


def report_of(configuration: Configuration, now: float, decisions: Iterable[Path] = (), metrics: Path | None = None) -> dict[str, Any]:
    """The report as plain values. Raises DocumentError, OSError."""
    documents = load_documents(configuration.policies, PolicyDocument)
    roles = {name: role for document in documents for name, role in document.value.roles.items()}
    counts = _Counts()
    for path in decisions:
        counts.add_decisions(path)
    if metrics is not None:
        counts.add_metrics(metrics)
    fields = [
        _field(values, document.file, configuration.keys, roles, counts) for document in documents for values in document.value.fields
    ]
    used = {field["keyset"] for field in fields if field["keyset"]}
    keysets = {name: _keyset(name, config, now) for name, config in configuration.keys.items() if name in used}
    facts = _facts(configuration, fields, keysets)
    return {
        "generated": timestamp(now),
        "note": DISCLAIMER,
        "period": counts.period,
        "fields": fields,
        "keysets": keysets,
        "unused_keysets": sorted(set(configuration.keys) - used),
        "decisions_log": configuration.decision_log.path,
        "clauses": [clause._asdict() for clause in CLAUSES if facts[clause.fact]],
        "attention": [text for name, keyset in keysets.items() for text in keyset.pop("attention")],
    }


def _field(
    values: Mapping[str, Any], file: str, keys: Mapping[str, KeysetConfig], roles: Mapping[str, Any], counts: _Counts
) -> dict[str, Any]:
    action = next((name for name in _ACTIONS if name in values), "")
    named = values.get(action)
    keyset = named if isinstance(named, str) and named in keys else ""
    identifier = str(values["id"])
    readers = []
    for role, what in (values.get("readers") or {}).items():
        held = roles.get(role)
        readers.append({
            "role": role,
            "sees": what if isinstance(what, str) else f"mask {what.get('mask')}",
            "principals": list(held.principals) if held is not None else [role],
            "claims": dict(held.jwt) if held is not None else {},
        })  # fmt: skip
    others = values.get("others", f"mask {values['mask']}" if action == "mask" else "nothing" if action == "remove" else "ciphertext")
    return {
        "id": identifier,
        "description": values.get("description", ""),
        "file": file,
        "where": {key: values[key] for key in _PLACES if key in values},
        "action": action,
        "keyset": keyset,
        "audience": values.get("audience"),
        "tenant": values.get("tenant"),
        "readers": readers,
        "others": others if isinstance(others, str) else f"mask {others.get('mask')}",
        "counts": counts.of(identifier),
    }


def _keyset(name: str, config: KeysetConfig, now: float) -> dict[str, Any]:
    place = {
        "file": getattr(config, "kek", None),
        "vault": f"{getattr(config, 'address', '')} {getattr(config, 'mount', '')}/{getattr(config, 'key', '')}",
    }
    told: dict[str, Any] = {
        "provider": config.provider,
        "key_encryption_key": str(place.get(config.provider) or getattr(config, "key", None) or "none: the keys lie in the clear"),
        "cache_s": config.cache_s,
        "rotate_after_s": config.rotate_after,
        "retire_after_s": config.retire_after,
        "rewrap": config.rewrap,
        "attention": [],
    }
    try:
        record = read_keyset(config.path)
    except (KeysetError, OSError) as exc:
        told["attention"].append(f"keyset {name}: {exc}")
        return told | {"versions": [], "last_rotation": None, "tenancy": None, "tenants": {}, "wrapped": False}
    primary = record.primary
    if not record.provider:
        told["attention"].append(f"keyset {name}: its keys lie in the clear (provider file without kek): for development only")
    if primary is not None and config.rotate_after is not None and now - primary.created > config.rotate_after:
        told["attention"].append(f"keyset {name}: the rotation is due since {timestamp(primary.created + config.rotate_after)}")
    tenants = [tenant for tenant in record.tenants.values() if tenant.wrapped]
    return told | {
        "wrapped": bool(record.provider),
        "versions": [{"version": key.version, "state": key.state.value, "created": timestamp(key.created)} for key in record.keys],
        "last_rotation": timestamp(primary.created) if primary is not None else None,
        "tenancy": record.tenancy.value,
        "tenants": {"enabled": len(tenants), "destroyed": len(record.tenants) - len(tenants)},
    }


def _facts(configuration: Configuration, fields: list[dict[str, Any]], keysets: Mapping[str, Mapping[str, Any]]) -> dict[str, bool]:
    destroyed = any(version["state"] == KeyState.DESTROYED.value for keyset in keysets.values() for version in keyset["versions"])
    return {
        "sealed": any(field["keyset"] for field in fields),
        "masked": any("mask" in sees for field in fields for sees in (field["others"], *(reader["sees"] for reader in field["readers"]))),
        "readers": any(field["readers"] for field in fields),
        "records": bool(configuration.decision_log.path) and bool(fields),
        "wrapped": bool(keysets) and all(keyset["wrapped"] for keyset in keysets.values()),
        "rotation": bool(keysets) and all(keyset["rotate_after_s"] or len(keyset["versions"]) > 1 for keyset in keysets.values()),
        "destruction": destroyed or any(keyset["retire_after_s"] for keyset in keysets.values()),
        "tenants": any(keyset["tenancy"] == "own" for keyset in keysets.values()),
    }


class _Counts:
    """Values treated, by field: from decision logs with the readers, or from metrics."""

    def __init__(self) -> None:
        self._fields: dict[str, dict[str, Any]] = {}
        self._first = self._last = ""
        self.unreadable = 0

    @property
    def period(self) -> dict[str, str] | None:
        return {"from": self._first, "to": self._last} if self._first else None

    def of(self, field: str) -> dict[str, Any]:
        return self._fields.get(field, {"operations": {}, "opened_by": {}, "opened_with": {}})

    def add_decisions(self, path: Path) -> None:
        """The acts in a decision log. A line that is no record of one (cut off by a crash) is passed over."""
        with path.open("rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                    acts = record.get("fields", ())
                except (ValueError, AttributeError):
                    continue
                if not acts:
                    continue
                moment = str(record.get("time", ""))
                self._first = min(filter(None, (self._first, moment)), default="")
                self._last = max(self._last, moment)
                who = record.get("who", {})
                reader = " for ".join(filter(None, (who.get("principal", ""), who.get("subject", "")))) or "unidentified"
                for act in acts:
                    self._add(
                        str(act["field"]), str(act["operation"]), int(act["count"]), reader, act.get("keyset", ""), act.get("version", 0)
                    )

    def add_metrics(self, path: Path) -> None:
        """The samples of `meshguard_field_operations_total`."""
        for labels, value in _SAMPLE.findall(path.read_text("utf-8")):
            found = dict(re.findall(r'(\w+)="([^"]*)"', labels))
            self._add(found.get("field", ""), found.get("operation", ""), int(float(value)))

    def _add(self, field: str, operation: str, count: int, reader: str = "", keyset: str = "", version: int = 0) -> None:
        told = self._fields.setdefault(field, {"operations": {}, "opened_by": {}, "opened_with": {}})
        told["operations"][operation] = told["operations"].get(operation, 0) + count
        if operation in ("open", "mask") and version and reader:
            told["opened_by"][reader] = told["opened_by"].get(reader, 0) + count
            name = f"{keyset}:{version}"
            told["opened_with"][name] = told["opened_with"].get(name, 0) + count


def _markdown(report: Mapping[str, Any]) -> Iterator[str]:
    yield from ("# Protected fields", "", f"Generated {report['generated']}. {report['note']}", "")
    if report["period"]:
        yield from (f"Counts are of {report['period']['from']} to {report['period']['to']}.", "")
    if report["attention"]:
        yield from ("## Needs attention", "", *(f"- {_cell(text)}" for text in report["attention"]), "")
    yield from ("## Fields", "", "| field | where | keyset | readers | others see | opened | sealed |", "|---|---|---|---|---|---|---|")
    for field in report["fields"]:
        where = field["where"]
        places = "; ".join(f"{key}: {_words(where[key])}" for key in where)
        readers = "; ".join(f"{reader['role']}: {reader['sees']}" for reader in field["readers"]) or "nobody"
        counts = field["counts"]["operations"]
        cells = (
            field["id"],
            places,
            field["keyset"] or field["action"],
            readers,
            field["others"],
            counts.get("open", 0),
            counts.get("seal", 0),
        )
        yield "| " + " | ".join(_cell(cell) for cell in cells) + " |"
    yield from ("", "## Readers", "", "| role | who |", "|---|---|")
    shown: set[str] = set()
    for field in report["fields"]:
        for reader in field["readers"]:
            if reader["role"] not in shown:
                shown.add(reader["role"])
                claims = [f"{claim} = {_words(values)}" for claim, values in reader["claims"].items()]
                yield f"| {_cell(reader['role'])} | {_cell('; '.join([*reader['principals'], *claims]))} |"
    opened = [(field["id"], who, count) for field in report["fields"] for who, count in field["counts"]["opened_by"].items()]
    if opened:
        yield from ("", "## Decryptions", "", "| field | for whom | values |", "|---|---|---|")
        yield from (f"| {_cell(field)} | {_cell(who)} | {count} |" for field, who, count in opened)
    yield from (
        "",
        "## Keys",
        "",
        "| keyset | provider | key-encryption key | versions | last rotation | rotates after | tenants |",
        "|---|---|---|---|---|---|---|",
    )
    for name, keyset in report["keysets"].items():
        versions = ", ".join(f"{version['version']} {version['state']}" for version in keyset["versions"]) or "unknown"
        after = f"{keyset['rotate_after_s'] / 86400:g} days" if keyset["rotate_after_s"] else "by hand"
        tenants = f"{keyset['tenancy']} {_words(keyset['tenants'])}" if keyset["tenancy"] == "own" else keyset["tenancy"]
        cells = (name, keyset["provider"], keyset["key_encryption_key"], versions, keyset["last_rotation"], after, tenants)
        yield "| " + " | ".join(_cell(cell) for cell in cells) + " |"
    yield from ("", "## Clauses", "", "| standard | clause | about |", "|---|---|---|")
    yield from (f"| {clause['standard']} | {clause['clause']} | {clause['about']} |" for clause in report["clauses"])


def _words(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items())
    return ", ".join(map(_words, value)) if isinstance(value, list | tuple) else str(value)


def _cell(value: object) -> str:
    """Text for a table: nothing in it ends the cell or the line."""
    return str(value if value is not None else "").replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
