"""Configuration of the process that the bypass suites attack: for each engine one listener for each stance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.harness.mesh import SHOP, Mesh

ENGINES = ("default", "reference")

SMALL_LIMITS = {
    "head_bytes": 4096,
    "fields": 20,
    "request_line_bytes": 1024,
    "body_bytes": 4096,
    "chunk_line_bytes": 256,
    "chunk_extension_bytes": 2048,
    "handshake_s": 1,
    "head_s": 1,
    "body_idle_s": 1,
    "body_total_s": 2,
    "idle_s": 2,
}


def arena_config(mesh: Mesh, directory: Path) -> dict[str, Any]:
    listeners: dict[str, Any] = {}
    for engine in ENGINES:
        listeners[engine] = {"tls": "mutual", "to": "app", "engine": engine}
        listeners[f"plain-{engine}"] = {"tls": "none", "to": "app", "engine": engine}
        listeners[f"hosts-{engine}"] = {"tls": "mutual", "to": "app", "engine": engine, "authorities": ["shop.example", "api.shop.example"]}
        listeners[f"small-{engine}"] = {"tls": "mutual", "to": "app", "engine": engine, "limits": dict(SMALL_LIMITS)}
        listeners[f"proxied-{engine}"] = {"tls": "mutual", "to": "app", "engine": engine, "trusted_proxies": [SHOP + "edge"]}
        listeners[f"stripped-{engine}"] = {
            "tls": "mutual",
            "to": "app",
            "engine": engine,
            "strip_headers": ["x-user-id", "x-roles"],
            "underscores": "allow",
        }
        listeners[f"dropping-{engine}"] = {
            "tls": "mutual",
            "to": "app",
            "engine": engine,
            "underscores": "drop",
            "strip_headers": ["x-user-id"],
        }
        listeners[f"trailers-{engine}"] = {
            "tls": "mutual",
            "engine": engine,
            "strip_headers": ["x-user-id"],
            "routes": [{"id": f"kept-{engine}", "paths": ["/**"], "to": "app", "trailers": "keep"}],
        }
        listeners[f"patient-{engine}"] = {"tls": "mutual", "to": "patient", "engine": engine}
    return {
        "profile": "strict",
        "identity": mesh.identity(directory),
        "listeners": listeners,
        "clusters": {
            "app": {**mesh.endpoints(), "timeouts": {"connect_s": 1, "response_s": 2, "idle_s": 30}, "circuit": {"max_connections": 64}},
            "patient": {**mesh.endpoints(), "timeouts": {"connect_s": 1, "response_s": 15, "idle_s": 30}},
        },
        "limits": {"body_bytes": 64 << 20},
        "drain_s": 2,
    }


def arena_policies() -> dict[str, Any]:
    return {
        "main.yaml": {
            "roles": {
                "billing": {"principals": [SHOP + "billing"]},
                "edge": {"principals": [SHOP + "edge"]},
                "admins": {"principals": [SHOP + "admin"]},
            },
            "rules": [
                {"id": "no-admin", "deny": "anyone", "paths": ["/admin", "/admin/**"]},
                {"id": "only-admins", "allow": ["admins"], "paths": ["/internal/**"]},
                {"id": "no-internal", "deny": ["billing"], "paths": ["/internal/**"]},
                {"id": "no-debug", "deny": "anyone", "paths": ["/**"], "headers": {"x-debug": "on"}},
                {"id": "everything", "allow": "anyone", "paths": ["/**"]},
            ],
        }
    }
