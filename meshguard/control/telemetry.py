"""Puts telemetry together for one process: metrics, decision log, spans, and the counters of the control plane itself."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from meshguard.control.recording import bounded, digests
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
    from meshguard.control.inputs import Inputs
    from meshguard.policy.compiled import CompiledPolicy
    from meshguard.sources.bundles import BundleKeeper
    from meshguard.storage.gate import Gate
    from meshguard.telemetry.controls import Citations

__all__ = ["Telemetry"]

log = logging.getLogger(__name__)

_CLOSE_S = 3.0


class Telemetry:
    """Everything that is told about requests. `registry` outlives reloads."""

    def __init__(self, configuration: Configuration, registry: Registry) -> None:
        self.registry = registry
        self.gate: Gate | None = None  # the ledger, set before the first listener opens
        self._told: tuple[object, ...] = ("", "", 0.0)
        self._controls: Mapping[str, object] | None = None
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

    def event(self, event: str, data: Mapping[str, Any]) -> None:
        """Puts an event on record, where there is a ledger."""
        if self.gate is not None:
            self.gate.event(event, bounded(data))

    def cite(self, controls: Citations | None, shadow: CompiledPolicy | None) -> None:
        """The controls and the candidate policy by which requests are judged from now on; how the configuration stands to the controls is
        told when it changes."""
        self.request_metrics.shadow.begin(shadow.digest if shadow is not None else "")
        self.decisions.controls = controls
        summary = controls.summary if controls is not None else None
        if summary != self._controls:
            self._controls = summary
            log.info("control packs", extra={"data": summary or {}})
            self.event("controls", summary or {})

    def taken_over(self, why: str, revision: int, inputs: Inputs) -> None:
        """A change is in force: counted, and on record."""
        self.reloads.value += 1
        self.event("reload", {"outcome": "accepted", "why": why, "revision": revision, **digests(inputs)})

    def refused(self, why: str, error: str, policy_digest: str, bundles: BundleKeeper | None) -> None:
        """A change was refused: counted, and on record with what goes on instead."""
        self.reload_failures.value += 1
        self.event("reload", {"outcome": "refused", "why": why, "error": error, "policy_digest": policy_digest})
        if bundles is not None and bundles.refusal is not None:
            self.event("bundle", {"outcome": "refused", **bundles.refusal})

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
