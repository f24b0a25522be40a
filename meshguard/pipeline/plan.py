"""What is derived from (method, authority, target) for one identity on one listener under one snapshot.

A plan is a pure function of those, so equal requests share it: canonical path, decision or its conditions, route, and the start of
the upstream's request head. The memo is bounded: clients choose the keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from meshguard.model.errors import RequestError
from meshguard.model.principal import Principal
from meshguard.model.reasons import AMBIGUOUS_AUTHORITY, MISDIRECTED, MOVED, NO_ROUTE, REDIRECTED, Reason
from meshguard.model.verdicts import Denial, Permit
from meshguard.pipeline.max_forwards import MaxForwards
from meshguard.pipeline.routes import HeaderOperations, Redirect, Route
from meshguard.wire.authority import parse_authority
from meshguard.wire.target import STRICT, PathOptions, Target, canonicalise

if TYPE_CHECKING:
    from meshguard.fields.compile import RoutePlan
    from meshguard.net.cluster.cluster import Cluster
    from meshguard.net.cluster.settings import ClusterSettings
    from meshguard.net.destinations import Destination
    from meshguard.pipeline.candidate import Outlook
    from meshguard.pipeline.delegation import TokenReader, TokenWriter
    from meshguard.pipeline.fallback import Fallback
    from meshguard.pipeline.rate_limits import Limits
    from meshguard.pipeline.snapshot import ListenerView, Snapshot
    from meshguard.policy.decision import Binding, Conditional
    from meshguard.telemetry.controls import Citations
    from meshguard.validation.contract import Check

__all__ = ["Plan", "Table"]

_PLANS = 4096
"""Plans kept per table; then the memo starts anew (the clients' choice of targets may not fill memory)."""


_REMEMBERED = 512
"""Octets of target and authority up to which a plan is kept: longer ones are rare, and a memo of them would hold 100 MB."""


class Plan:
    """See `model.record.PlanFacts`. `outlook` is the decision, final or conditional; `variants` are (route, template) pairs with header
    conditions to try in order (empty: `route` is final)."""

    __slots__ = (
        "answer",
        "attempts",
        "body_bytes",
        "candidate",
        "cluster",
        "cluster_object",
        "conditions",
        "contract",
        "controls",
        "destination",
        "extra",
        "fallback",
        "fields",
        "host",
        "inspects_request",
        "inspects_response",
        "keep_trailers",
        "line",
        "location",
        "method",
        "outlook",
        "path",
        "policy_revision",
        "port",
        "query",
        "rate_limits",
        "readings",
        "refusal",
        "refusal_detail",
        "reports_place",
        "request_operations",
        "response_operations",
        "response_s",
        "route",
        "template",
        "token_reader",
        "token_writer",
        "told",
        "total_s",
        "variants",
        "websocket",
    )

    outlook: Permit | Denial | Conditional
    cluster_object: Cluster | None  # None on a dynamic cluster: `destination` finds it
    destination: Destination | None
    fields: RoutePlan | None

    def __init__(self, method: str, host: str, target: Target, revision: int) -> None:
        self.method = method
        self.host = host
        self.path = target.path
        self.port = 0  # of the authority; 0: none was given
        self.query = target.query
        self.readings = target.readings
        self.told: tuple[Any, ...] | None = None
        self.policy_revision = revision
        self.route = ""
        self.template = ""
        self.cluster = ""
        self.cluster_object = None
        self.destination = None
        self.refusal: Reason | None = None
        self.refusal_detail = ""
        self.variants: tuple[Plan, ...] = ()
        self.conditions: Route | None = None
        self.contract: Check | None = None  # what the request is validated by
        self.controls: Citations | None = None
        self.candidate: Outlook | None = None
        self.fallback: Fallback | None = None
        self.extra = False  # one of the last three is there: a request without them asks once
        self.reports_place = False
        self.token_reader: TokenReader | None = None
        self.token_writer: TokenWriter | None = None
        self.fields = None
        self.inspects_request = False
        self.inspects_response = False
        self.keep_trailers = False
        self.websocket = True
        self.request_operations: HeaderOperations | MaxForwards | None = None
        self.response_operations: HeaderOperations | None = None
        self.response_s = 15.0
        self.total_s = 0.0
        self.line = b""
        self.rate_limits: Limits | None = None
        self.answer: Reason | None = None  # what is answered before any decision (a redirect)
        self.location = b""
        self.body_bytes = 0
        self.attempts: int | None = None  # retries, where the route says so


class Table:
    """The plans of one identity on one listener under one snapshot."""

    __slots__ = ("binding", "plans", "principal", "shadow", "snapshot", "view")

    def __init__(self, snapshot: Snapshot, view: ListenerView, principal: Principal | None) -> None:
        self.snapshot = snapshot
        self.view = view
        self.principal = principal
        self.binding: Binding = snapshot.policy.bind(principal)
        self.shadow: Binding | None = None  # of the candidate policy
        if snapshot.shadow is not None:
            from meshguard.pipeline.candidate import bound

            self.shadow = bound(snapshot.shadow, principal)
        self.plans: dict[tuple[bytes, bytes, bytes], Plan] = {}

    def make(self, method: bytes, authority: bytes, target: bytes, local_port: int) -> Plan:
        """Works the plan out and remembers it. Raises RequestError for an ambiguous authority or target."""
        plans = self.plans
        plan = self._work_out(method.decode("ascii"), authority, target, local_port)
        for each in (plan, *plan.variants):
            each.extra = each.controls is not None or each.candidate is not None or each.fallback is not None
        if len(target) + len(authority) <= _REMEMBERED:
            if len(plans) >= _PLANS:
                plans.clear()
            plans[method, authority, target] = plan
        return plan

    def _work_out(self, method: str, authority: bytes, raw: bytes, local_port: int) -> Plan:
        snapshot, routes = self.snapshot, self.view.routes
        sent_authority, host = parse_authority(authority) if authority else (b"", "")
        principal = self.principal.spiffe_id if self.principal is not None else None
        target, options = self._canonical(raw, host, method, principal)
        plan = Plan(method, host, target, snapshot.revision)
        plan.port = int(sent_authority[len(host) + 1 :] or 0)
        plan.outlook = self.binding.outlook(method, target.path, target.readings, host, local_port)
        plan.controls = snapshot.controls
        if self.shadow is not None:
            from meshguard.pipeline.candidate import outlook_of

            plan.candidate = outlook_of(self.shadow, plan, local_port)
        plan.rate_limits = self.view.limiter.of("") if self.view.limiter is not None else None
        plan.body_bytes = self.view.limits.body_bytes
        plan.token_reader = self.view.token_reader
        if routes.serves is not None and not routes.serves(host):
            plan.refusal = MISDIRECTED
        if self.view.redirect is not None:
            self._redirect(plan, self.view.redirect, _sent_target(target))
        if plan.refusal is not None:
            return plan
        found = routes.candidates(host, target.path, method, principal, lambda route: _takes(route, raw, target, options))
        if not found:
            plan.refusal = NO_ROUTE
            return plan
        if snapshot.fields is not None:
            plan.fields = snapshot.fields.plan(method, target.path, target.readings, host, self.view.outbound)
        line = b"%b %b HTTP/1.1\r\n" % (method.encode("ascii"), _sent_target(target))
        if sent_authority:
            line += b"host: %b\r\n" % sent_authority
        plan.line = line
        if found[-1][0].headers:  # every candidate has header conditions: none may match
            plan.refusal = NO_ROUTE
        else:
            self._follow(plan, *found[-1])
        if len(found) > 1 or found[0][0].headers:
            plan.variants = tuple(self._variant(plan, route, template) for route, template in found if route.headers)
        return plan

    def _variant(self, base: Plan, route: Route, template: str) -> Plan:
        plan = Plan(base.method, base.host, Target(base.path, base.query, base.readings), base.policy_revision)
        plan.outlook, plan.fields, plan.line = base.outlook, base.fields, base.line
        plan.token_reader, plan.controls, plan.candidate = base.token_reader, base.controls, base.candidate
        plan.conditions, plan.port, plan.body_bytes = route, base.port, self.view.limits.body_bytes
        self._follow(plan, route, template)
        return plan

    def _follow(self, plan: Plan, route: Route, template: str) -> None:
        plan.route = route.id
        plan.rate_limits = self.view.limiter.of(route.id) if self.view.limiter is not None else None
        plan.template = template or getattr(plan.outlook, "template", "")
        plan.cluster = route.cluster
        cluster = plan.cluster_object = self.snapshot.clusters.get(route.cluster)
        plan.keep_trailers = route.keep_trailers
        plan.websocket = route.websocket
        plan.request_operations = MaxForwards(route.request_operations) if plan.method == "OPTIONS" else route.request_operations
        plan.response_operations = route.response_operations
        settings = self._direct(plan, route.cluster) if cluster is None else cluster.settings
        plan.response_s = route.response_s if route.response_s is not None else settings.timeouts.response_s
        plan.total_s = route.total_s
        plan.attempts = route.attempts
        if route.body_bytes is not None:
            plan.body_bytes = route.body_bytes
        plan.token_writer = route.token_writer
        plan.fallback = route.fallback
        if route.contract is not None:
            plan.contract = route.contract.check(plan.method, plan.path, plan.query)
            plan.reports_place = route.contract.reports
        if not plan.host and b"\r\nhost:" not in plan.line:
            plan.line += b"host: %b\r\n" % route.cluster.encode("ascii")  # HTTP/1.0 without Host; HTTP/1.1 needs one
        fields = plan.fields
        if fields is not None:
            plan.inspects_request = fields.request is not None
            plan.inspects_response = fields.reads_response or (fields.shadow is not None and fields.shadow.reads_response)

    def _redirect(self, plan: Plan, redirect: Redirect, target: bytes) -> None:
        if not plan.host:
            plan.refusal = AMBIGUOUS_AUTHORITY  # HTTP/1.0 without Host: there is no address to send the client to
        elif plan.refusal is None:
            plan.location = redirect.location(plan.host, target)
            plan.refusal = MOVED if redirect.status == 301 and plan.method in ("GET", "HEAD") else REDIRECTED
        plan.answer = plan.refusal

    def _direct(self, plan: Plan, cluster: str) -> ClusterSettings:
        """A dynamic cluster: the request's authority is the destination, if it may be one."""
        destinations = self.snapshot.destinations[cluster]
        try:
            plan.destination = destinations.judge(plan.host, plan.port)
        except RequestError as error:
            plan.refusal, plan.refusal_detail = error.reason, error.detail
        return destinations.settings.cluster

    def _canonical(self, raw: bytes, host: str, method: str, principal: str | None) -> tuple[Target, PathOptions]:
        """Strict; what strict refuses, the first route that asks for the spelling and matches the result may still take."""
        try:
            return canonicalise(raw), STRICT
        except RequestError as refused:
            for route in self.view.routes.lenient:
                try:
                    target = canonicalise(raw, route.options)
                except RequestError:
                    continue
                if route.could_match(host, target.path, method, principal) is not None:
                    return target, route.options
            raise refused


def _takes(route: Route, raw: bytes, target: Target, options: PathOptions) -> bool:
    """One lenient route loosens no other: where the target needed options, a route must itself read it in the same way."""
    if options is STRICT or route.options is options:
        return True
    try:
        return canonicalise(raw, route.options).path == target.path
    except RequestError:
        return False


def _sent_target(target: Target) -> bytes:
    path = target.path.encode("ascii")
    return path if target.query is None else b"%b?%b" % (path, target.query)
