"""meshguard as a candidate: its configuration and policy documents, made from the rules that all candidates share."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import install, pki
from benchmarks.bench import Bench
from benchmarks.candidates import Plan
from benchmarks.documents import KEYSET, field_rules
from benchmarks.held import SOCKETS
from benchmarks.reloads import write_policy
from benchmarks.rules import GRPC, ORDERS, Rule, make
from meshguard.control.ledger_key import make_key

__all__ = ["SUBJECTS", "Variant", "configuration", "policy", "policy_text"]

HELD_RULES: list[dict[str, Any]] = [
    {"id": "streams", "allow": [pki.CLIENT, pki.OTHER], "methods": ["POST"], "paths": [GRPC + "/**"]},
    {"id": "sockets", "allow": [pki.CLIENT, pki.OTHER], "methods": ["GET"], "paths": [SOCKETS + "/**"]},
    {"id": "others", "allow": [pki.OTHER], "methods": ["GET"], "paths": [ORDERS + "/**"]},
]
"""What the callers of the rows with open streams may do."""

YAML_UP_TO = 1000
"""Rules written as YAML, as people write them; more come out of a generator, which writes JSON."""


def policy(rules: list[Rule], plain_port: int) -> dict[str, Any]:
    """The policy document: each rule allows one caller; on the plaintext port, which knows no callers, anyone may read orders."""
    allowed: list[dict[str, Any]] = [
        {"id": rule.id, "allow": [rule.principal], "methods": [rule.method], "paths": [rule.prefix + "/**"]} for rule in rules
    ]
    allowed.append({"id": "plain", "allow": "anyone", "methods": ["GET"], "paths": [ORDERS + "/**"], "ports": [plain_port]})
    return {"rules": allowed}


def policy_text(document: dict[str, Any]) -> tuple[str, str]:
    """File name and text: YAML with one rule a line, or JSON where there are many."""
    if len(document["rules"]) > YAML_UP_TO + 1:
        return "bench.json", json.dumps(document)
    return "bench.yaml", "rules:\n" + "".join(f"  - {json.dumps(rule)}\n" for rule in document["rules"])


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to run meshguard; called to write its documents. `rules` None: as many as the run says. `log`: whether the decision
    log goes to a file or to the null device. `pinned`: to the core that all candidates are measured on."""

    rules: int | None = None
    engine: str = "default"
    log: bool = True
    traces: bool = True
    ledger: str = ""  # its durability
    workers: int = 1
    fields: bool = False  # the field rules of `documents`, with a keyset
    pinned: bool = True
    held: bool = False  # for rows that hold streams open: their upstreams, a policy of several documents, the operations of the admin API

    def __call__(self, bench: Bench, directory: Path) -> Plan:
        mtls, plain, admin = (bench.ports.port() for _ in range(3))
        count = self.rules or bench.options.rules
        document = policy(make(count), plain)
        (directory / "policies").mkdir(exist_ok=True)
        if self.held:
            document["rules"] += HELD_RULES
            write_policy(directory / "policies", document)
        else:
            name, text = policy_text(document)
            (directory / "policies" / name).write_text(text)
        if self.fields:
            (directory / "policies" / "fields.yaml").write_text(yaml.safe_dump({"fields": field_rules()}))
        log = directory / "decisions.log" if self.log else None
        config = directory / "meshguard.yaml"
        numbers = {"inbound": mtls, "plain": plain, "admin": admin, "upstream": bench.up_h1, "http2": bench.up_h2}
        settings = configuration(self, bench.certs, numbers, log)
        if self.fields:
            settings["keys"] = {KEYSET: {"provider": "file", "path": str(_keyset(directory))}}
        if self.ledger:
            key = directory / "checkpoint.key"
            make_key(key)
            settings["ledger"] = {"directory": str(directory / "ledger"), "durability": self.ledger, "checkpoints": {"key": str(key)}}
        around = {"admin": admin}
        if self.held:
            around |= {"echo": bench.ports.port(), "sockets": bench.ports.port()}
            hold(settings, around, directory)
        config.write_text(yaml.safe_dump(settings, sort_keys=False))
        command = [sys.executable, "-m", "meshguard", "serve", "--config", config]
        ports = {"h1-mtls": mtls, "h1-plain": plain, "h2-mtls": mtls, "grpc": mtls}
        return Plan(
            command, ports, policy=True, log=log, around=around, cwd=install.ROOT, ready_timeout_s=20 + count / 500, pinned=self.pinned
        )


def _keyset(directory: Path) -> Path:
    """A keyset in the clear, as `meshguard keys create` makes it."""
    (directory / "keys").mkdir(mode=0o700, exist_ok=True)
    path = directory / "keys" / f"{KEYSET}.json"
    command = [sys.executable, "-m", "meshguard", "keys", "create", path, "--name", KEYSET]
    subprocess.run(list(map(str, command)), check=True, cwd=install.ROOT, timeout=30, capture_output=True)
    return path


def configuration(variant: Variant, certs: Path, ports: dict[str, int], log: Path | None) -> dict[str, Any]:
    """The configuration document. `ports`: inbound (mTLS), plain, admin, upstream, http2 (the upstream's for gRPC). The upstream's port
    also swallows the traces."""
    routes = [{"id": "calls", "paths": [GRPC + "/**"], "to": "calls"}, {"id": "app", "to": "app"}]
    bundles = {pki.TRUST_DOMAIN: str(certs / "ca.pem")}
    files = {"certificate": str(certs / "server.pem"), "key": str(certs / "server.key"), "bundles": bundles}
    settings: dict[str, Any] = {
        "profile": "strict",
        "identity": {"trust_domain": pki.TRUST_DOMAIN, "files": files},
        "listeners": {
            "inbound": {"address": f"127.0.0.1:{ports['inbound']}", "tls": "mutual", "routes": routes, "engine": variant.engine},
            "plain": {"address": f"127.0.0.1:{ports['plain']}", "tls": "none", "to": "app", "engine": variant.engine},
        },
        "clusters": {
            "app": {"endpoints": [f"127.0.0.1:{ports['upstream']}"]},
            "calls": {"endpoints": [f"127.0.0.1:{ports['http2']}"], "protocol": "h2"},
        },
        "policies": ["policies/"],
        "decision_log": {"path": str(log or "/dev/null")},
        "admin": {"address": f"127.0.0.1:{ports['admin']}"},
        "drain_s": 1,
    }
    if variant.workers > 1:
        settings["workers"] = variant.workers
    if variant.traces:
        # Every request carries a traceparent, so the caller's flag decides which ones are traced.
        settings["telemetry"] = {"otlp": f"http://127.0.0.1:{ports['upstream']}", "sample": 0.01}
    return settings


def hold(settings: dict[str, Any], around: dict[str, int], directory: Path) -> None:
    """Adds what the rows with open streams need. `around`: admin, echo (streams), sockets."""
    clusters = settings["clusters"]
    clusters["calls"] |= {"endpoints": [f"127.0.0.1:{around['echo']}"], "circuit": {"max_in_flight": 4096}}
    clusters["sockets"] = {"endpoints": [f"127.0.0.1:{around['sockets']}"]}
    settings["listeners"]["inbound"]["routes"].insert(0, {"id": "sockets", "paths": [SOCKETS + "/**"], "to": "sockets"})
    settings["admin"]["token_file"] = str(directory / "admin.token")
    settings["quarantine"] = {"path": str(directory / "quarantine.json")}


SUBJECTS: dict[str, Variant] = {
    "meshguard": Variant(),
    "meshguard-reference": Variant(engine="reference"),
    "meshguard-10-rules": Variant(rules=10),
    "meshguard-many-rules": Variant(rules=100_000),
    "meshguard-held": Variant(rules=10_000, held=True),
    "meshguard-no-log": Variant(log=False),
    "meshguard-ledger": Variant(ledger="batch"),
    "meshguard-ledger-request": Variant(ledger="request"),
    "meshguard-fields": Variant(fields=True),
    "meshguard-two-workers": Variant(workers=2),
    "meshguard-any-core": Variant(pinned=False),
    "meshguard-two-workers-any-core": Variant(workers=2, pinned=False),
}
"""Every variant by its name as a candidate."""
