"""Puts telemetry together for one process: metrics, decision log, spans, and the counters of the control plane itself."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from meshguard.control.settings.configuration import Configuration
from meshguard.telemetry.decision_log import DecisionLog, gap_line
from meshguard.telemetry.line_writer import LineWriter
from meshguard.telemetry.live import LiveCounts
from meshguard.telemetry.metrics import Family, Registry
from meshguard.telemetry.observe import Consumer, Observer
from meshguard.telemetry.otlp import OtlpExporter
from meshguard.telemetry.request_metrics import RequestMetrics
from meshguard.telemetry.resource import resource_attributes
from meshguard.telemetry.span_ids import SpanIds
from meshguard.telemetry.spans import SpanRecorder

if TYPE_CHECKING:
    from meshguard.storage.gate import Gate

__all__ = ["Telemetry"]

log = logging.getLogger(__name__)

_CLOSE_S = 3.0


class Telemetry:
    """Everything that is told about requests. `registry` outlives reloads."""

    def __init__(self, configuration: Configuration, registry: Registry) -> None:
        self.registry = registry
        self.gate: Gate | None = None  # the ledger, set before the first listener opens
        self._told: tuple[object, ...] = ("", "", 0.0)
        self.request_metrics = RequestMetrics(registry)
        self._writer = LineWriter(
            configuration.decision_log.path,
            registry,
            name="meshguard.decision_log",
            capacity=configuration.decision_log.queue,
            gap=gap_line,
        )
        telemetry = configuration.telemetry
        ids = SpanIds(secrets.randbits(64), telemetry.always)
        self._exporter: OtlpExporter | None = None
        self.live = LiveCounts()
        consumers: list[Consumer] = [self.request_metrics, self.live]
        if telemetry.otlp is not None:
            service = telemetry.service_name if "service_name" in telemetry.model_fields_set else None
            instance = secrets.token_hex(8)
            self._exporter = OtlpExporter(
                telemetry.otlp, registry, lambda: resource_attributes(service, instance), families=registry.families
            )
            consumers.append(SpanRecorder(self._exporter, ids, _scheme_of(configuration)))
        spans = ids if self._exporter is not None else None
        self.decisions = DecisionLog(self._writer, registry, spans, fed=configuration.ledger is not None)
        consumers.append(self.decisions)
        self.observer = Observer(consumers, registry)
        self.reload_failures = registry.counter("meshguard.reload.failures", "Changes that were refused", "{change}").labels()
        self.reloads = registry.counter("meshguard.reload.done", "Changes that were taken over", "{change}").labels()
        self._handshakes = registry.counter(
            "meshguard.handshake.failures", "TLS handshakes that failed", "{handshake}", ("listener", "error.type")
        )

    def start(self) -> None:
        if self._exporter is not None:
            self._exporter.start()

    def handshake_failed(self, listener: str, reason: str) -> None:
        """Counted and, because it may be an attack or a misconfigured peer, logged; the text is OpenSSL's constant, never the peer's."""
        kind = reason.removeprefix("tls: ").lower() or "closed"
        self._handshakes.labels(listener, kind).value += 1
        log.info("handshake failed", extra={"data": {"listener": listener, "error": kind}})

    def collect(self, families: Callable[[], Iterable[Family]]) -> None:
        """Adds families that are worked out at each scrape."""
        self.registry.collect(families)

    def changed(self, revision: int, policy_digest: str, identity: str, not_after: float) -> None:
        """Puts on record which policy and identity are in force from now on (E8)."""
        gate = self.gate
        if gate is None:
            return
        before, self._told = self._told, (policy_digest, identity, not_after)
        if before[0] != policy_digest:
            gate.event("policy", {"digest": policy_digest, "revision": revision})
        if before[1:] != self._told[1:] and identity:
            gate.event("identity", {"not_after": int(not_after), "spiffe_id": identity})

    def keys_changed(self, event: Mapping[str, Any]) -> None:
        """Puts on record what became of the versions and tenants of a keyset (`key_history`)."""
        if self.gate is not None:
            self.gate.event("keys", event)

    def reopen(self) -> None:
        """After a rotation of the log file."""
        self._writer.reopen()

    def share(self, descriptor: int) -> None:
        """Other processes write to the same decision log: lines must not mix."""
        self._writer.share(descriptor)

    def close(self) -> None:
        """Hands on everything that is pending, bounded in time."""
        self.observer.close()
        lost = self._writer.close(_CLOSE_S)
        if lost:
            log.error("decision records were lost", extra={"data": {"count": lost}})
        if self._exporter is not None:
            self._exporter.close(_CLOSE_S)


def _scheme_of(configuration: Configuration) -> Callable[[str], str]:
    secure = frozenset(name for name, cluster in configuration.clusters.items() if cluster.tls is not None)
    return lambda cluster: "https" if cluster in secure else "http"
