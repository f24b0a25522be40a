"""The journey of a request, in one table. Whoever wants to know who looks at a request, and in which order, reads `STAGES`.

Each stage takes the exchange and returns None to go on; it raises RequestError to refuse; `HOLD` says that it waits for something
(a body that has to be whole) and will call `Journey.resume` itself. Whatever a stage raises, the request is not forwarded.
"""

from __future__ import annotations

from collections.abc import Callable
from random import getrandbits
from time import monotonic, time
from typing import TYPE_CHECKING, Final

from meshguard.model.errors import IdentityError, RequestError
from meshguard.model.messages import CHUNKED, NO_BODY, RequestHead, ResponseHead
from meshguard.model.reasons import (
    BODY_TOO_LARGE,
    DRAINING,
    IDENTITY_EXPIRED,
    IDENTITY_REQUIRED,
    IDENTITY_REVOKED,
    INTERNAL_ERROR,
    LEDGER_UNAVAILABLE,
    MISDIRECTED,
    OVERLOADED,
    QUARANTINED,
    UPSTREAM_QUARANTINED,
)
from meshguard.model.verdicts import Denial, Permit
from meshguard.net.server_names import names_of
from meshguard.net.tls import peer_chain
from meshguard.pipeline.callers import caller_of, exchange_of
from meshguard.pipeline.exchange import Exchange
from meshguard.pipeline.facts import RequestFacts, judge_again
from meshguard.pipeline.grpc import is_grpc, names_grpc, with_deadline
from meshguard.pipeline.inspection_budget import InspectionBudget
from meshguard.pipeline.peer import Peer, forwarded_lines
from meshguard.policy.decision import Conditional
from meshguard.policy.quarantine import NOBODY, Entry, Quarantine
from meshguard.wire.serialise import CHUNKED_LINE
from meshguard.wire.trace_context import begin as begin_trace

if TYPE_CHECKING:
    from meshguard.net.channel import Channel
    from meshguard.net.listener import ServerDoor
    from meshguard.net.stream import Downstream, Stream
    from meshguard.pipeline.plan import Plan
    from meshguard.pipeline.snapshot import Snapshot
    from meshguard.storage.gate import Gate
    from meshguard.telemetry.metrics import Slot
    from meshguard.telemetry.observe import Observer

__all__ = ["HOLD", "STAGES", "Journey"]

HOLD: Final = object()
LONG_S = 1.0
"""From this age on an exchange is a stream that a change of policy may end."""
Stage = Callable[["Journey", Exchange], object]


class Journey:
    """The journey on one listener. `snapshot` is the current one: replaced by one assignment, read once per request."""

    __slots__ = (
        "active",
        "boot_id",
        "budget",
        "connections",
        "crowded",
        "draining",
        "isolated",
        "ledger",
        "listener",
        "next_number",
        "observer",
        "on_handshake_failure",
        "on_quiet",
        "quarantine",
        "shedding",
        "snapshot",
    )

    def __init__(
        self,
        listener: str,
        snapshot: Snapshot,
        observer: Observer,
        active: Slot,
        boot_id: str,
        next_number: Callable[[], int],
        budget: InspectionBudget,
        on_handshake_failure: Callable[[str, str], None],
        ledger: Gate | None = None,
    ) -> None:
        self.listener = listener
        self.snapshot = snapshot
        self.observer = observer
        self.boot_id = boot_id
        self.next_number = next_number
        self.connections: set[ServerDoor] = set()
        self.active = active  # gauge of requests under way
        self.budget = budget
        self.on_handshake_failure = on_handshake_failure
        self.draining = False
        self.crowded = False  # no connection is kept alive
        self.shedding = False  # new requests are refused
        self.ledger = ledger
        self.quarantine: Quarantine = NOBODY
        self.isolated: Entry | None = None  # this workload itself is quarantined
        self.on_quiet: Callable[[], None] | None = None  # called when the last connection has ended

    # -- doors (net.stream.Handler) -------------------------------------------------------------------------------------

    def welcome(self, door: ServerDoor, channel: Channel) -> Peer:
        """Identifies a new connection, once."""
        snapshot = self.snapshot
        view = snapshot.listeners[self.listener]
        peer = Peer(self.listener, view.limits, channel.peer, channel.local)
        if view.capture != "none":
            from meshguard.net.original import original_destination  # listeners that nothing is redirected to do not pay for it

            peer.original = original_destination(channel.transport.get_extra_info("socket"), view.capture, view.address)
            peer.local_address, peer.local_port = view.address  # what rules name as `ports`, whatever the client had wanted
        peer.protocol = door.protocol
        tls = channel.tls
        if tls is not None:
            peer.tls_version = tls.version() or ""
            peer.chain = peer_chain(tls)
            peer.serves = names_of(tls)
        self.identify_peer(peer, snapshot)
        return peer

    def identify_peer(self, peer: Peer, snapshot: Snapshot) -> None:
        """Judges the peer's certificates under `snapshot`; a failure leaves it without identity and with the reason."""
        view = snapshot.listeners[self.listener]
        peer.principal = None
        peer.refusal = None
        peer.expires = float("inf")
        if view.outbound:
            # the own workload: who it is says our SVID, and nothing that it sends; its network namespace is what binds it to us
            peer.outbound = True
            peer.principal = snapshot.own
            if snapshot.own is None:
                peer.refusal = IDENTITY_REQUIRED
            else:
                peer.expires = snapshot.own.not_after
        elif peer.chain and snapshot.trust is not None:
            try:
                peer.principal = principal = snapshot.trust.verify(peer.chain, time())
                peer.expires = principal.not_after
                if self.quarantine:
                    peer.judge_again(self.quarantine)
            except IdentityError as exc:
                peer.refusal = IDENTITY_EXPIRED if exc.code in ("expired", "not_yet_valid") else IDENTITY_REVOKED
        elif view.requires_identity:
            peer.refusal = IDENTITY_REQUIRED
        elif view.plaintext_until and not peer.tls_version:
            peer.expires = view.plaintext_until
        peer.trusted_proxy = peer.principal is not None and view.trusts is not None and view.trusts(peer.principal.spiffe_id)
        forwarding = view.forwarding
        if forwarding is None:
            peer.lines, peer.forwarding = forwarded_lines(peer, snapshot.own_id), None
        else:
            peer.lines = forwarding.lines(peer, snapshot.own_id)
            peer.forwarding = forwarding if forwarding.trusts(peer) else None
        peer.callers = {} if view.speaks and peer.trusted_proxy else None
        peer.answer_lines = view.answer_lines
        peer.limits = view.limits
        peer.table = snapshot.table(view, peer.principal)

    def contain(self, quarantine: Quarantine, isolated: Entry | None) -> None:
        """Puts a quarantine in force (C6): connections and streams of those in it are cut now, all where this workload itself is."""
        self.quarantine = quarantine
        self.isolated = isolated
        for door in list(self.connections):
            peer: Peer | None = door.peer
            if peer is None:
                continue
            if isolated is not None:
                door.cut(QUARANTINED.code)
            elif peer.refusal is QUARANTINED:
                self.identify_peer(peer, self.snapshot)  # it may have ended
            elif peer.principal is not None and peer.refusal is None and (quarantine or peer.callers):
                peer.judge_again(quarantine)
                if peer.refusal is QUARANTINED:
                    door.cut(QUARANTINED.code)
                elif peer.callers is not None:
                    peer.callers = {}  # those that it speaks for are judged again: their next requests, and what is under way
                    door.recall(lambda stream: exchange_of(stream).peer.judge_again(quarantine))

    def begin(self, door: Downstream, peer: Peer, head: RequestHead) -> None:
        exchange = Exchange(self, door, peer, head, self.next_number())
        door.stream = exchange
        self.active.value += 1
        self.run(exchange, STAGES)

    def overstays(self, stream: Stream, snapshot: Snapshot) -> bool:
        """Judges a long exchange again under `snapshot`, once: streams do not outlive the rule that let them in (E2). A short one is
        answered by the decision it began under: a change drops no request."""
        exchange = exchange_of(stream)
        plan, peer = exchange.plan, exchange.peer
        if exchange.judged == snapshot.revision or (monotonic() - exchange.started < LONG_S and exchange is stream):
            return False
        exchange.judged = snapshot.revision
        if plan is None or type(exchange.verdict) is not Permit or plan.policy_revision == snapshot.revision:
            return False
        outlook = snapshot.policy.bind(peer.principal).outlook(plan.method, plan.path, plan.readings, plan.host, peer.local_port)
        try:
            verdict = judge_again(exchange, plan, outlook) if isinstance(outlook, Conditional) else outlook
            if exchange.websocket is not None and not exchange.websocket.still_allowed(exchange, snapshot):
                return True
        except RequestError:
            return True
        return not isinstance(verdict, Permit)

    def run(self, exchange: Exchange, stages: tuple[Stage, ...]) -> None:
        try:
            for stage in stages:
                if stage(self, exchange) is HOLD:
                    return
        except RequestError as error:
            exchange.refuse(error.reason, error.detail)
        except Exception as exc:
            # the outermost loop of a request: refused, recorded, never forwarded
            exchange.fail(exc)

    def resume(self, exchange: Exchange, after: Stage) -> None:
        """Goes on behind the stage that held."""
        if not exchange.ended:
            self.run(exchange, STAGES[STAGES.index(after) + 1 :])

    def refuse_head(self, door: Downstream, peer: Peer, error: RequestError) -> None:
        exchange = Exchange(self, door, peer, None, self.next_number())
        door.stream = exchange
        self.active.value += 1
        if names_grpc(error.content_type):
            exchange.grpc_end = b""
        exchange.refuse(error.reason, error.detail)

    def forgo(self, door: Downstream, peer: Peer, head: RequestHead, why: str, kind: str) -> None:
        exchange = Exchange(self, door, peer, head, self.next_number())
        self.active.value += 1
        exchange.client_gone(why, kind)

    def farewell(self, door: ServerDoor, peer: Peer | None, reason: str) -> None:
        self.connections.discard(door)
        if not self.connections and self.on_quiet is not None:
            self.on_quiet()
        if peer is None:
            self.on_handshake_failure(self.listener, reason)

    def finished(self, exchange: Exchange) -> None:
        self.active.value -= 1
        self.observer.finished(exchange)

    def inspect_response(self, exchange: Exchange, head: ResponseHead, block: bytes) -> bool:
        """Gathers a response that a field rule has to read; True when the inspection has taken it over."""
        inspection = exchange.inspection(self)
        try:
            return inspection.begin_response(exchange, head, block)
        except RequestError as error:
            exchange.upstream_failed(error.reason, error.detail)
            return True


# -- the stages ---------------------------------------------------------------------------------------------------------


def identify(journey: Journey, exchange: Exchange) -> object:
    """Is the connection's identity still good, now and under the newest trust? (E2)"""
    peer = exchange.peer
    snapshot = journey.snapshot
    table = peer.table
    if table is None or table.snapshot is not snapshot:
        journey.identify_peer(peer, snapshot)
        exchange.principal = peer.principal
    if peer.forwarding is not None and exchange.head is not None:
        exchange.client, exchange.lines = peer.forwarding.judge(peer, exchange.head.specials)
        if peer.callers is not None and peer.refusal is None:
            peer = exchange.peer = caller_of(peer, exchange.head.specials, snapshot, journey.quarantine)
            exchange.principal = peer.principal
    if peer.refusal is not None:
        raise RequestError(peer.refusal)
    if time() >= peer.expires:
        raise RequestError(IDENTITY_EXPIRED)
    if journey.isolated is not None:
        raise RequestError(QUARANTINED if peer.outbound else UPSTREAM_QUARANTINED, "this workload is quarantined")
    if exchange.has_begun:
        return None
    if journey.draining:
        raise RequestError(DRAINING)
    if journey.shedding:
        raise RequestError(OVERLOADED)
    if journey.ledger is not None and journey.ledger.refusing:
        raise RequestError(LEDGER_UNAVAILABLE)
    return None


def locate(journey: Journey, exchange: Exchange) -> object:
    """Canonical target, decision outlook and route, from the memo where an equal request was seen."""
    head, table = exchange.head, exchange.peer.table
    if head is None or table is None:
        raise RequestError(INTERNAL_ERROR, "no head or no table")
    plan = table.plans.get((head.method, head.authority, head.target))
    if plan is None:
        plan = table.make(head.method, head.authority, head.target, exchange.peer.local_port)
    if plan.variants:
        for variant in plan.variants:
            if variant.conditions is not None and variant.conditions.headers_match(head.block):
                plan = variant
                break
    exchange.plan = plan
    if plan.answer is not None:
        raise RequestError(plan.answer)
    serves = exchange.peer.serves
    if serves is not None and not serves(plan.host):
        raise RequestError(MISDIRECTED, "the connection was made for another server name")
    if plan.body_bytes and head.length > plan.body_bytes:
        raise RequestError(BODY_TOO_LARGE, f"content-length {head.length}")
    return None


def trace(journey: Journey, exchange: Exchange) -> object:
    """W3C trace context: the caller's trace goes on, or a new one begins (P7)."""
    head, table = exchange.head, exchange.peer.table
    if head is None or table is None:
        raise RequestError(INTERNAL_ERROR, "no head or no table")
    exchange.trace_id, exchange.parent_id, exchange.client_span_id, sampled, exchange.trace_lines = begin_trace(
        head.specials, table.snapshot.sampling, getrandbits
    )
    exchange.sampled = sampled
    return None


def decide(journey: Journey, exchange: Exchange) -> object:
    """The policy's answer, and rate limits around it. Nothing has been sent, and without a Permit nothing will be."""
    plan = exchange.plan
    if plan is None:
        raise RequestError(INTERNAL_ERROR, "no plan")
    outlook, limits, facts = plan.outlook, plan.rate_limits, None
    verdict: Permit | Denial | None
    if limits is not None and limits.early:
        limits.before_decision(exchange)
    if plan.token_reader is not None:
        exchange.delegation = plan.token_reader.read(exchange, journey.quarantine)
    if isinstance(outlook, Conditional):
        facts = RequestFacts(exchange, time())
        verdict = outlook.without_body(facts) if outlook.needs_body or outlook.shadow_body else outlook.decide(facts)
        exchange.subject, exchange.issuer = facts.subject, facts.issuer
        if verdict is None:
            return HOLD if exchange.inspection(journey).begin_decision(exchange, facts) else judge(journey, exchange)
        if outlook.shadow_body and isinstance(verdict, Permit):
            held = exchange.inspection(journey).begin_shadow(exchange, facts)
            if held is not None:
                return HOLD if held else judge(journey, exchange)
    else:
        verdict = outlook
    return _settle(exchange, plan, verdict, facts)


def judge(journey: Journey, exchange: Exchange) -> object:
    """The answer that had to wait for the body (E3). Still nothing has been sent."""
    plan, facts = exchange.plan, exchange.inspection(journey).facts
    if plan is None:
        raise RequestError(INTERNAL_ERROR, "no plan")
    facts.now = time()
    verdict = plan.outlook.decide(facts) if isinstance(plan.outlook, Conditional) else plan.outlook
    exchange.body_judged = True
    return _settle(exchange, plan, verdict, facts)


def _settle(exchange: Exchange, plan: Plan, verdict: Permit | Denial, facts: RequestFacts | None) -> object:
    limits = plan.rate_limits
    exchange.verdict = verdict
    if plan.candidate is not None:
        from meshguard.pipeline.candidate import compare

        exchange.candidate = compare(plan.candidate, verdict, exchange)
    if isinstance(verdict, Denial):
        raise RequestError(verdict.reason)
    if plan.refusal is not None:
        raise RequestError(plan.refusal, plan.refusal_detail)
    if limits is not None and limits.late:
        limits.after_decision(exchange, facts)
    return None


def inspect(journey: Journey, exchange: Exchange) -> object:
    """Contracts and field rules: a body that one of them has to read is gathered, bounded, judged (E5) and rewritten (F1)."""
    plan = exchange.plan
    if plan is None or (plan.fields is None and plan.contract is None):
        return None
    inspection = exchange.inspection(journey)
    judged = plan.contract is not None and inspection.judge(exchange, plan.contract)
    if plan.fields is not None:
        inspection.prepare(exchange)
    if (plan.inspects_request or judged) and exchange.head is not None and exchange.head.length != NO_BODY:
        return HOLD if inspection.begin_request(exchange) else None
    return None


def forward(journey: Journey, exchange: Exchange) -> object:
    """Serialises the request anew, from what was judged, and hands it to the cluster."""
    head, plan, peer, verdict = exchange.head, exchange.plan, exchange.peer, exchange.verdict
    if head is None or plan is None or type(verdict) is not Permit:
        raise RequestError(INTERNAL_ERROR, "not decided")
    cluster = plan.cluster_object
    if cluster is None:
        if plan.destination is None:
            raise RequestError(INTERNAL_ERROR, "no cluster")
        cluster = plan.destination.cluster(peer.original)
    block = head.block if exchange.block is None else exchange.block
    lines = exchange.lines or peer.lines
    framing = b""
    if plan.request_operations is not None:
        block = plan.request_operations.apply(block)
    if plan.token_writer is not None:
        lines += plan.token_writer.line(exchange, verdict)
    if head.specials:
        for name, value in head.specials:
            if (name == b"upgrade" and b"websocket" in value.lower()) or name == b":protocol":
                from meshguard.pipeline.upgrade import WebSocket  # loaded by the first who asks for it

                exchange.websocket = websocket = WebSocket(head, plan)
                block, framing = websocket.request(block)
                break
    length = exchange.request_length
    if length == CHUNKED:
        framing = CHUNKED_LINE
    elif length or head.method in _WITH_BODY:
        framing = b"content-length: %d\r\n" % length
    exchange.most = plan.attempts
    if head.minor == 2 and is_grpc(head):
        exchange.grpc_end = b""
        exchange.deadline, block = with_deadline(block, exchange.started)
        block += b"te: trailers\r\n"
    if head.expect and not plan.inspects_request and not exchange.request_complete:
        exchange.send_continue()
    line = plan.line if exchange.line is None else exchange.line
    exchange.forward(verdict, cluster, b"%b%b%b%b%b\r\n" % (line, block, lines, exchange.trace_lines, framing))
    return None


_WITH_BODY = frozenset((b"POST", b"PUT", b"PATCH"))
STAGES: tuple[Stage, ...] = (identify, locate, trace, decide, inspect, forward)
BODY_STAGES: tuple[Stage, ...] = (identify, locate, judge, inspect, forward)
"""What follows when `decide` has waited for the body: under the identity and the policy that are in force by then (E2)."""
