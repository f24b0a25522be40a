"""Metrics of finished requests: one dictionary look-up and a few additions for each, projected to named metrics when they are read.

A *row* counts the requests that agree in listener, protocol, method, route, cluster, status, verdict and reason. Every value in it comes
from configuration or a closed list, except the method (see `_new_row`) and the status, and the number of rows is capped.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

from meshguard.model.reasons import Reason
from meshguard.model.record import PlanFacts, RequestRecord, WebSocketFacts
from meshguard.model.verdicts import Denial, Permit
from meshguard.telemetry.metrics import OVERFLOW, SERIES_CAP, Family, HistogramValue, Kind, Labels, Registry, Slot
from meshguard.telemetry.outcome import error_type, grpc_status, method_name, protocol_version, verdict_name
from meshguard.telemetry.shadow import WOULD, ShadowCounts

__all__ = ["DURATION_BOUNDS_S", "SIZE_BOUNDS_BYTES", "RequestMetrics"]

DURATION_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Buckets of http.server.request.duration and http.client.request.duration (OpenTelemetry semantic conventions, HTTP metrics)."""
SIZE_BOUNDS_BYTES = (0, 128, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216)
"""Buckets of the body sizes; the conventions advise none. 1 MiB is the default limit of an inspected body."""

_PRIVATE = 3000
_ENDPOINTS_CAP = 64  # series of client durations within one row: endpoints come from DNS, which can churn

# Layout of a row's numbers: one flat list, because an index costs less than an attribute of a nested object.
_COUNT = 0
_SERVER_SUM = 1
_SERVER = 2
_REQUEST_SUM = _SERVER + len(DURATION_BOUNDS_S) + 1
_REQUEST = _REQUEST_SUM + 1
_RESPONSE_SUM = _REQUEST + len(SIZE_BOUNDS_BYTES) + 1
_RESPONSE = _RESPONSE_SUM + 1
_WIDTH = _RESPONSE + len(SIZE_BOUNDS_BYTES) + 1

_CLIENT_WIDTH = 1 + len(DURATION_BOUNDS_S) + 1  # sum, buckets

# listener, ALPN, TLS version, method, route id, route template, cluster, status, class of the verdict, reason, aborted
_Key = tuple[str, str, str, str, str, str, str, int, type[Permit | Denial] | type[None], Reason | None, str]

_REQUEST_LABELS = ("listener", "route", "cluster", "code", "verdict", "reason", "aborted")
_SERVER_LABELS = (
    "http.request.method",
    "http.response.status_code",
    "http.route",
    "url.scheme",
    "network.protocol.version",
    "error.type",
    "meshguard.listener",
)
_CLIENT_LABELS = ("http.request.method", "http.response.status_code", "server.address", "server.port", "error.type", "meshguard.cluster")
_SIZE_LABELS = ("http.request.method", "http.response.status_code", "http.route", "url.scheme")


class _Row:
    __slots__ = ("clients", "values")

    def __init__(self) -> None:
        self.values: list[float] = [0] * _WIDTH
        self.clients: dict[str, list[float]] = {}


class RequestMetrics:
    """A consumer of finished requests (`telemetry.observe`) and a source of metric families. `cap` bounds the number of rows."""

    def __init__(self, registry: Registry, *, cap: int = SERIES_CAP) -> None:
        self._cap = cap
        self._rows: dict[_Key, _Row] = {}
        self._overflow: _Row | None = None
        self._active = registry.up_down(
            "http.server.active_requests", "Requests that are being handled", "{request}", ("meshguard.listener",), cap
        )
        self._operations = registry.counter(
            "meshguard.field.operations",
            "Values of protected fields by what was done to them",
            "{value}",
            ("field", "operation", "keyset"),
            cap,
        )
        self._shadow = registry.counter(
            "meshguard.shadow.decisions", "What rules in shadow mode would have done", "{decision}", ("rule", "effect"), cap
        )
        self.shadow = ShadowCounts()
        self._candidate = registry.counter(
            "meshguard.shadow.candidate", "Decisions of the candidate policy beside the live one", "{decision}", ("effect",), cap
        )
        self._violations = registry.counter(
            "meshguard.control.violations", "Requests that violated a control of a configured pack", "{request}", ("control",), cap
        )
        self._closes = registry.counter(
            "meshguard.websocket.closes", "WebSockets by how they ended", "{connection}", ("listener", "code", "by"), cap
        )
        self._grpc = registry.counter(
            "meshguard.grpc.requests",
            "Finished gRPC calls by their status",
            "{request}",
            ("listener", "route", "cluster", "rpc.grpc.status_code"),
            cap,
        )
        registry.collect(self.families)

    def active(self, listener: str) -> Slot:
        """The gauge of requests in progress on this listener: the owner adds and takes away 1 at its `value`."""
        return self._active.labels(listener)

    def consume(self, records: Sequence[RequestRecord], clock_offset: float) -> None:
        """Count these requests. A record that cannot be read harms no other; its error is raised at the end."""
        rows = self._rows
        find = rows.get
        none = type(None)
        broken: Exception | None = None
        bisect = bisect_left
        for record in records:
            try:
                peer = record.peer
                plan = record.plan
                verdict = record.verdict
                if plan is None:
                    head = record.head
                    method = head.method.decode("latin-1") if head is not None else ""
                    route = template = cluster = ""
                else:
                    method = plan.method
                    route = plan.route
                    template = plan.template
                    cluster = plan.cluster
                key: _Key = (
                    peer.listener,
                    peer.protocol,
                    peer.tls_version,
                    method,
                    route,
                    template,
                    cluster,
                    record.status,
                    none if verdict is None else verdict.__class__,
                    record.refusal,
                    record.aborted,
                )
                row = find(key)
                if row is None:
                    row = self._new_row(key)
                values = row.values
                ended = record.ended
                elapsed = ended - record.started
                values[_COUNT] += 1
                values[_SERVER_SUM] += elapsed
                values[_SERVER + bisect(DURATION_BOUNDS_S, elapsed)] += 1
                size = record.request_bytes
                if size:
                    values[_REQUEST_SUM] += size
                    values[_REQUEST + bisect(SIZE_BOUNDS_BYTES, size)] += 1
                else:  # most requests have no body
                    values[_REQUEST] += 1
                size = record.response_bytes
                values[_RESPONSE_SUM] += size
                values[_RESPONSE + bisect(SIZE_BOUNDS_BYTES, size)] += 1
                forwarded = record.forwarded
                if forwarded:
                    client = row.clients.get(record.upstream)
                    if client is None:
                        client = self._new_client(row, record.upstream)
                    elapsed = ended - forwarded
                    client[0] += elapsed
                    client[1 + bisect(DURATION_BOUNDS_S, elapsed)] += 1
                if verdict is not None and verdict.shadow:
                    for result in verdict.shadow:
                        self._shadow.labels(result.rule_id, result.effect).value += 1
                        self.shadow.rule(record, result.rule_id, result.effect, record.started + clock_offset)
                if plan is not None and plan.extra:
                    self._count_extras(record, plan, record.started + clock_offset)
                if record.websocket is not None and record.websocket.opened:
                    self._closed(record, record.websocket)
                if record.grpc_end:
                    self._grpc.labels(peer.listener, route, cluster, str(grpc_status(record.grpc_end))).value += 1
                if record.operations:
                    for act in record.operations:
                        self._operations.labels(act.field, act.operation, act.keyset).value += act.count
                        if act.operation[:6] == WOULD:
                            self.shadow.field(record, act.field, act.operation, act.count, record.started + clock_offset)
            except Exception as exc:  # costs nothing while nothing is raised
                broken = exc
        if broken is not None:
            raise broken

    def _count_extras(self, record: RequestRecord, plan: PlanFacts, when: float) -> None:
        """What only some configurations have: a candidate policy, controls of packs."""
        compared = getattr(record, "candidate", None) if plan.candidate is not None else None  # None: refused before any decision
        if compared is not None:
            self._candidate.labels(compared.effect).value += 1
            self.shadow.compared(record, compared, when)
        if plan.controls is not None:
            for control in plan.controls.cite(record).violated:
                self._violations.labels(control).value += 1

    def _closed(self, record: RequestRecord, websocket: WebSocketFacts) -> None:
        code = websocket.close_code
        named = str(code) if code < _PRIVATE else "private"  # codes from 3000 on are the peers' own words
        self._closes.labels(record.peer.listener, named if code else "none", websocket.closed_by or record.aborted).value += 1

    def flush(self) -> None:
        """Nothing is held back here."""

    def families(self) -> Iterator[Family]:
        """The rows of this moment as metrics. May be called from another thread: each row is copied in one step."""
        rows: list[tuple[_Key | None, _Row]] = list(self._rows.items())
        if self._overflow is not None:
            rows.append((None, self._overflow))
        requests: dict[Labels, float] = {}
        server = _Projection()
        client = _Projection()
        request_sizes = _Projection()
        response_sizes = _Projection()
        for key, row in rows:
            values = row.values.copy()
            on_server, on_client, on_sizes, counted = _labels(key)
            requests[counted] = requests.get(counted, 0) + values[_COUNT]
            server.add(on_server, values[_SERVER_SUM], values[_SERVER:_REQUEST_SUM])
            request_sizes.add(on_sizes, values[_REQUEST_SUM], values[_REQUEST:_RESPONSE_SUM])
            response_sizes.add(on_sizes, values[_RESPONSE_SUM], values[_RESPONSE:])
            for upstream, numbers in list(row.clients.items()):
                numbers = numbers.copy()
                client.add(_client_labels(on_client, upstream), numbers[0], numbers[1:])
        yield Family("meshguard.requests", Kind.COUNTER, "Finished requests", "{request}", _REQUEST_LABELS, list(requests.items()))
        yield server.family("http.server.request.duration", "Duration of HTTP server requests", "s", _SERVER_LABELS, DURATION_BOUNDS_S)
        yield client.family("http.client.request.duration", "Duration of HTTP client requests", "s", _CLIENT_LABELS, DURATION_BOUNDS_S)
        yield request_sizes.family("http.server.request.body.size", "Size of HTTP request bodies", "By", _SIZE_LABELS, SIZE_BOUNDS_BYTES)
        yield response_sizes.family("http.server.response.body.size", "Size of HTTP response bodies", "By", _SIZE_LABELS, SIZE_BOUNDS_BYTES)

    def _new_row(self, key: _Key) -> _Row:
        # The method is the client's word: the raw one becomes a key only where it is a known one, so the rows cannot be flooded by it.
        method = method_name(key[3])
        if method != key[3]:
            key = (*key[:3], method, *key[4:])
            row = self._rows.get(key)
            if row is not None:
                return row
        if len(self._rows) >= self._cap:
            if self._overflow is None:
                self._overflow = _Row()
            return self._overflow
        row = self._rows[key] = _Row()
        return row

    def _new_client(self, row: _Row, upstream: str) -> list[float]:
        if len(row.clients) >= _ENDPOINTS_CAP:
            upstream = ""
        return row.clients.setdefault(upstream, [0] * _CLIENT_WIDTH)


class _Projection:
    """Sums histograms of rows that share the labels of one metric."""

    __slots__ = ("_series",)

    def __init__(self) -> None:
        self._series: dict[Labels, tuple[list[float], list[float]]] = {}

    def add(self, labels: Labels, total: float, counts: Iterable[float]) -> None:
        found = self._series.get(labels)
        if found is None:
            self._series[labels] = ([total], list(counts))
            return
        found[0][0] += total
        for index, count in enumerate(counts):
            found[1][index] += count

    def family(self, name: str, help: str, unit: str, label_names: tuple[str, ...], bounds: tuple[float, ...]) -> Family:
        return Family(
            name,
            Kind.HISTOGRAM,
            help,
            unit,
            label_names,
            [(labels, HistogramValue(bounds, counts, total[0])) for labels, (total, counts) in self._series.items()],
        )


def _labels(key: _Key | None) -> tuple[Labels, Labels, Labels, Labels]:
    """Labels of a row on the server's, the client's, the sizes' and the plain request metric."""
    if key is None:
        return OVERFLOW, OVERFLOW, OVERFLOW, OVERFLOW
    listener, protocol, tls_version, method, route, template, cluster, status, verdict, refusal, aborted = key
    method = method or method_name("")  # a head that could not be read has none
    code = status or ""
    scheme = "https" if tls_version else "http"
    error = error_type(status, refusal, aborted)
    # the upstream's status is known only when its answer was passed on
    client_code, client_error = (code, str(status) if status >= 400 else "") if refusal is None else ("", refusal.code)
    return (
        (method, code, template, scheme, protocol_version(protocol), error, listener),
        (method, client_code, client_error or error, cluster),
        (method, code, template, scheme),
        (listener, route, cluster, code, verdict_name(verdict, refusal), refusal.code if refusal is not None else "", aborted),
    )


def _client_labels(labels: Labels, upstream: str) -> Labels:
    if not labels:
        return OVERFLOW
    method, code, error, cluster = labels
    host, _, port = upstream.rpartition(":")
    return (method, code, host.strip("[]"), int(port) if port.isdigit() else "", error, cluster)
