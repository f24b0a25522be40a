"""The cast of the process tests: trust domains, workloads, client contexts, one recording upstream."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from tests.harness.pki import Authority, Certificate, client_context
from tests.harness.upstream import Upstream

SHOP = "spiffe://shop.example/ns/prod/sa/"


class Mesh:
    """Two trust domains (`shop.example`, federated `partner.example`), a stranger's CA, and the upstream."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = Authority("shop root")
        self.partner = Authority("partner root", trust_domain="partner.example")
        self.stranger = Authority("shop root")  # the same name, another key
        self.upstream = Upstream()
        self._contexts: dict[tuple[str | None, tuple[str, ...]], ssl.SSLContext] = {}
        self._services: dict[str, Certificate] = {}

    def close(self) -> None:
        self.upstream.close()

    def service(self, name: str) -> Certificate:
        if name not in self._services:
            self._services[name] = self.ca.service(name)
        return self._services[name]

    def client(self, name: str | None, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
        """A cached client context of workload `name` of shop.example (None: without a certificate)."""
        key = (name, alpn)
        if key not in self._contexts:
            leaf = self.service(name) if name else None
            self._contexts[key] = client_context(self.ca, leaf, self.directory, alpn=list(alpn), name=name or "nobody")
        return self._contexts[key]

    def context(self, leaf: Certificate | None, **options: Any) -> ssl.SSLContext:
        """A fresh client context for an arbitrary leaf."""
        return client_context(self.ca, leaf, self.directory, **options)

    def identity(self, directory: Path, **more: Any) -> dict[str, Any]:
        """The `identity` section of a process of this mesh, its files written to `directory`."""
        self.service("meshguard").write(directory, "svid")
        (directory / "shop.pem").write_bytes(self.ca.pem)
        (directory / "partner.pem").write_bytes(self.partner.pem)
        files = {
            "certificate": "svid.pem",
            "key": "svid.key",
            "bundles": {"shop.example": "shop.pem", "partner.example": "partner.pem"},
            **more,
        }
        return {"trust_domain": "shop.example", "files": files}

    def endpoints(self, upstream: Upstream | None = None) -> dict[str, Any]:
        return {"endpoints": [f"127.0.0.1:{(upstream or self.upstream).port}"]}
