"""The decision record: what it says, what it never says, and that no text of a client can forge one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.model.principal import Principal
from meshguard.model.reasons import AMBIGUOUS_TARGET, MALFORMED_REQUEST, NO_RULE, POLICY_DENIED, UPSTREAM_TIMEOUT
from meshguard.model.record import FieldOperation
from meshguard.model.verdicts import Denial, NearMiss, Permit, ShadowResult
from meshguard.telemetry.decision_log import MAX_DETAIL, MAX_PATH, DecisionLog, gap_line
from meshguard.telemetry.metrics import Registry
from meshguard.telemetry.span_ids import SpanIds
from tests.telemetry.records import BILLING, DIGEST, Peer, Plan, Record, head

OFFSET = 1_700_000_000.0


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.data = b""
        self.count = 0

    def write(self, lines: bytes, count: int) -> None:
        self.data += lines
        self.count += count


def written(records: Iterable[Record], spans: SpanIds | None = None) -> bytes:
    sink = Kept()
    log = DecisionLog(sink, Registry(), spans)
    made = list(records)
    log.consume(made, OFFSET)
    log.flush()
    assert sink.count == len(made)
    return sink.data


def one(record: Record, spans: SpanIds | None = None) -> dict[str, Any]:
    data = written([record], spans)
    assert data.count(b"\n") == 1
    assert data.endswith(b"\n")
    line: dict[str, Any] = json.loads(data)
    return line


def test_an_allowed_request_is_told_in_full() -> None:
    assert one(Record(number=0x2A, subject="user-7")) == {
        "schema": "meshguard.decision/1",
        "id": "5f1c2a9e-2a",
        "time": "2023-11-14T22:30:00.000000Z",
        "who": {
            "principal": "spiffe://shop.example/ns/prod/sa/billing",
            "svid": {"trust_domain": "shop.example", "serial": "1f2e3d", "thumbprint": "cd" * 32},
            "subject": "user-7",
            "address": "10.1.2.3",
            "port": 51234,
        },
        "what": {
            "method": "GET",
            "host": "orders.shop.example",
            "path": "/orders/7",
            "route": "orders",
            "cluster": "app",
            "listener": "inbound",
            "protocol": "http/1.1",
            "tls": "TLSv1.3",
            "port": 8443,
            "request_bytes": 0,
            "response_bytes": 480,
            "query_bytes": 21,
        },
        "why": {"verdict": "allow", "rule": "read-orders", "policy_digest": DIGEST, "policy_revision": 3},
        "outcome": {"status": 200, "upstream": "127.0.0.1:8080", "attempts": 1, "duration_us": 1499, "upstream_us": 1000},
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    }


def test_a_denial_names_the_rule_or_the_nearest_miss() -> None:
    near = NearMiss("read-orders", "method", "POST is not in GET")
    line = one(
        Record(verdict=Denial(NO_RULE, DIGEST, near_miss=near), refusal=NO_RULE, status=403, upstream="", forwarded=0.0, answered=0.0)
    )
    assert line["why"] == {
        "verdict": "deny",
        "reason": "no_rule",
        "near_miss": {"rule": "read-orders", "condition": "method", "detail": "POST is not in GET"},
        "policy_digest": DIGEST,
        "policy_revision": 3,
    }
    assert "upstream" not in line["outcome"]
    line = one(Record(verdict=Denial(POLICY_DENIED, DIGEST, rule_id="no-admin"), refusal=POLICY_DENIED, status=403))
    assert (line["why"]["verdict"], line["why"]["rule"]) == ("deny", "no-admin")


def test_shadow_results_errors_and_aborts_are_told() -> None:
    shadowed = Permit("read-orders", DIGEST, (ShadowResult("strict", "would_deny"),))
    assert one(Record(verdict=shadowed))["why"]["shadow"] == [{"rule": "strict", "effect": "would_deny"}]
    line = one(Record(refusal=UPSTREAM_TIMEOUT, status=504, answered=0.0, detail="no answer in 15 s", aborted="deadline"))
    assert (line["why"]["verdict"], line["why"]["reason"], line["why"]["detail"]) == ("error", "upstream_timeout", "no answer in 15 s")
    assert line["why"]["rule"] == "read-orders"
    assert line["outcome"]["aborted"] == "deadline"
    assert "upstream_us" not in line["outcome"]
    assert one(Record(attempts=2))["outcome"]["attempts"] == 3


def test_field_operations_are_told_without_values() -> None:
    line = one(Record(operations=[FieldOperation("open", "card-number", "orders-pii", 3, 2), FieldOperation("mask", "ssn")]))
    assert line["fields"] == [
        {"operation": "open", "field": "card-number", "count": 2, "keyset": "orders-pii", "version": 3},
        {"operation": "mask", "field": "ssn", "count": 1},
    ]


def test_a_head_that_could_not_be_read_leaves_a_record() -> None:
    line = one(
        Record(
            head=None, plan=None, verdict=None, refusal=MALFORMED_REQUEST, status=400, trace_id=b"", upstream="", peer=Peer(principal=None)
        )
    )
    assert line["why"] == {"verdict": "refuse", "reason": "malformed_request"}
    assert line["who"] == {"address": "10.1.2.3", "port": 51234}
    assert (line["what"]["method"], line["what"]["path"]) == ("", "")
    assert "trace_id" not in line


def test_a_refused_target_is_told_as_sent_without_query_and_credentials() -> None:
    sent = head(b"http://user:hunter22@shop.example/a%2f..;x?token=sesame#frag")
    sent.authority = b"user:hunter22@shop.example"
    line = one(Record(head=sent, plan=None, verdict=None, refusal=AMBIGUOUS_TARGET, status=400))
    assert line["what"]["path"] == "http://shop.example/a%2f..;x"
    assert line["what"]["host"] == "shop.example"
    data = json.dumps(line)
    for secret in ("hunter22", "sesame", "frag"):
        assert secret not in data


@pytest.mark.parametrize("query", [b"?ssn=123-45-6789", b"?123-45-6789", b"?a=1&123-45-6789", b"?123-45-6789=1", b"?%31%32%33-45-6789"])
def test_nothing_of_a_query_is_told(query: bytes) -> None:
    data = written([Record(head=head(b"/orders/7" + query))])
    assert b"45-6789" not in data
    assert json.loads(data)["what"]["query_bytes"] == len(query) - 1


def test_text_of_the_client_is_capped_and_marked() -> None:
    plan = Plan(method="M" * 500, path="/" + "p" * 5000, host="h" * 500)
    near = NearMiss("r", "header", "d" * 5000)
    line = one(Record(plan=plan, subject="s" * 5000, detail="x" * 5000, verdict=Denial(NO_RULE, DIGEST, near_miss=near), refusal=NO_RULE))
    for text, limit in (
        (line["what"]["method"], 32),
        (line["what"]["path"], MAX_PATH),
        (line["what"]["host"], 255),
        (line["who"]["subject"], 256),
        (line["why"]["detail"], MAX_DETAIL),
        (line["why"]["near_miss"]["detail"], MAX_DETAIL),
    ):
        assert len(text) == limit
        assert text.endswith("…")
    raw = head(b"/" + b"q" * 9000, method=b"M" * 99)
    raw.authority = b"h" * 999
    line = one(Record(head=raw, plan=None, verdict=None, refusal=AMBIGUOUS_TARGET))
    assert (len(line["what"]["path"]), len(line["what"]["method"]), len(line["what"]["host"])) == (MAX_PATH, 32, 255)


EVIL = '"}\n{"schema":"meshguard.decision/1","id":"forged"}\r\n\u2028\x00\x1b[2J\ud800\\'


def test_no_text_can_forge_a_record() -> None:
    principal = Principal(EVIL, EVIL, EVIL, 0.0, 0.0, EVIL, EVIL)
    evil = Record(
        peer=Peer(listener=EVIL, client_address=EVIL, principal=principal, protocol=EVIL, tls_version=EVIL),
        plan=Plan(method=EVIL, path=EVIL, host=EVIL, route=EVIL, cluster=EVIL),
        verdict=Permit(EVIL, EVIL, (ShadowResult(EVIL, EVIL),)),
        detail=EVIL,
        upstream=EVIL,
        aborted=EVIL,
        subject=EVIL,
        operations=[FieldOperation(EVIL, EVIL, EVIL)],
        trace_id=b"\xff\n\x00",
    )
    data = written([evil, Record(), evil])
    lines = data.split(b"\n")
    assert len(lines) == 4
    assert lines[3] == b""
    for line in lines[:3]:
        assert json.loads(line)["id"] == "5f1c2a9e-1"
        assert not re.search(rb"[\x00-\x1f]", line)


@settings(deadline=None)  # a shared machine is slow at times
@given(
    target=st.binary(max_size=60),
    method=st.binary(max_size=40),
    authority=st.binary(max_size=40),
    text=st.text(st.characters(codec=None), max_size=40),
)
def test_any_bytes_make_exactly_one_line(target: bytes, method: bytes, authority: bytes, text: str) -> None:
    sent = head(target, method)
    sent.authority = authority
    refused = Record(head=sent, plan=None, verdict=None, refusal=AMBIGUOUS_TARGET, detail=text, subject=text)
    planned = Record(head=sent, plan=Plan(path=text, method=text, host=text), detail=text)
    assert len([json.loads(line) for line in written([refused, planned]).splitlines()]) == 2


def test_a_record_that_breaks_the_log_still_leaves_a_line() -> None:
    registry = Registry()
    sink = Kept()
    log = DecisionLog(sink, registry)
    broken = Record(number=5)
    del broken.operations
    log.consume([broken, Record(number=6)], OFFSET)
    log.flush()
    first, second = map(json.loads, sink.data.splitlines())
    assert first == {"schema": "meshguard.decision/1", "id": "5f1c2a9e-5", "time": "2023-11-14T22:30:00.000000Z", "reduced": True}
    assert second["id"] == "5f1c2a9e-6"
    assert next(f for f in registry.families() if f.name == "meshguard.decision_log.reduced").samples == [((), 1)]


def test_span_ids_are_told_where_spans_are_recorded() -> None:
    ids = SpanIds(0x1234, ("denials",))
    assert "span_id" not in one(Record(), ids)
    line = one(Record(sampled=True), ids)
    assert (line["span_id"], line["sampled"]) == (ids.server_span_id(Record()).decode(), True)
    line = one(Record(verdict=Denial(NO_RULE, DIGEST), refusal=NO_RULE, status=403, client_span_id=b"", trace_id=b""), ids)
    assert re.fullmatch("[0-9a-f]{16}", line["span_id"])
    assert re.fullmatch("[0-9a-f]{32}", line["trace_id"])
    assert line["sampled"] is False


def test_large_batches_are_handed_over_in_pieces() -> None:
    sink = Kept()
    log = DecisionLog(sink, Registry())
    log.consume([Record()] * 20, OFFSET)
    assert sink.count == 0  # held back until there is enough, or `flush`
    log.consume([Record()] * 100, OFFSET)
    assert sink.count == 120


def test_caches_do_not_grow_without_bound() -> None:
    sink = Kept()
    log = DecisionLog(sink, Registry())
    records = [
        Record(
            number=n,
            peer=Peer(principal=Principal(BILLING.spiffe_id, "shop.example", "/x", 0.0, 0.0, "1", f"{n:x}")),
            verdict=Permit(f"rule-{n}", DIGEST),
        )
        for n in range(3000)
    ]
    log.consume(records, OFFSET)
    log.flush()
    lines = [json.loads(line) for line in sink.data.splitlines()]
    assert [line["why"]["rule"] for line in lines] == [f"rule-{n}" for n in range(3000)]
    assert [line["who"]["svid"]["thumbprint"] for line in lines] == [f"{n:x}" for n in range(3000)]
    assert max(len(value) for value in vars(log).values() if isinstance(value, dict)) <= 1024


def test_a_gap_is_a_line_of_its_own() -> None:
    assert json.loads(gap_line(7, OFFSET, OFFSET + 1.5)) == {
        "schema": "meshguard.decision/1",
        "gap": 7,
        "since": "2023-11-14T22:13:20.000000Z",
        "time": "2023-11-14T22:13:21.500000Z",
    }


_WORDS = st.sampled_from(["", "app", "a" * 40, "ü", 'quo"te', "a\\b", "/x/\u2028", "x" * 256, "\ud800"])


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_short_way_tells_what_the_long_way_tells(data: st.DataObject) -> None:
    """Records of every kind, through a log that has seen others on the same connections and plans."""
    draw = data.draw
    peers = [Peer(client_address=draw(st.sampled_from(["10.1.2.3", "::1", ""])), protocol=draw(st.sampled_from(["h2", "http/1.1"])),
                  tls_version=draw(st.sampled_from(["", "TLSv1.3"])), outbound=draw(st.booleans()), listener=draw(_WORDS),
                  principal=draw(st.sampled_from([None, BILLING]))) for _ in range(2)]  # fmt: skip
    plans = [Plan(method=draw(_WORDS), path=draw(_WORDS), host=draw(_WORDS), route=draw(_WORDS), cluster=draw(_WORDS)) for _ in range(2)]
    permits = [
        Permit(draw(_WORDS), DIGEST),
        Permit("other", DIGEST),
        Permit("r", DIGEST, shadow=(ShadowResult("s", "deny"),)),
        Denial(NO_RULE, DIGEST),
        None,
    ]
    spans = draw(st.sampled_from([None, SpanIds(7), SpanIds(7, ("errors",))]))
    log = DecisionLog(Kept(), Registry(), spans)
    for _ in range(draw(st.integers(1, 5))):
        record = Record(
            number=draw(st.integers(0, 1 << 40)),
            peer=draw(st.sampled_from(peers)),
            plan=draw(st.sampled_from(plans)),
            head=draw(st.sampled_from([None, head(), head(b"/plain")])),
            verdict=draw(st.sampled_from(permits)),
            refusal=draw(st.sampled_from([None, None, UPSTREAM_TIMEOUT])),
            detail=draw(st.sampled_from(["", "", "why"])),
            status=draw(st.sampled_from([0, 200, 503])),
            started=draw(st.floats(1, 1e6)),
            answered=draw(st.sampled_from([0.0, 1e6])),
            ended=draw(st.sampled_from([0.0, 1e6 + 0.5])),
            forwarded=1e6 - 1,
            upstream=draw(st.sampled_from(["", "10.0.0.1:80", "[::1]:80"])),
            attempts=draw(st.integers(0, 3)),
            aborted=draw(st.sampled_from(["", "", "client"])),
            trace_id=draw(st.sampled_from([b"", b"4bf92f3577b34da6a3ce929d0e0e4736"])),
            sampled=draw(st.booleans()),
            subject=draw(st.sampled_from(["", "", "user"])),
            chain=draw(st.sampled_from([(), (), ("a", "b")])),
            grpc_end=draw(st.sampled_from([None, None, b"grpc-status: 0\r\n"])),
            operations=draw(st.sampled_from([(), (), (FieldOperation("seal", "card"),)])),
        )
        record.body_judged = draw(st.sampled_from([False, False, True]))
        when = record.started + OFFSET
        told = log.tell(record, OFFSET)
        assert told == log._line(record, int((when - int(when)) * 1e6))
        assert told == orjson.dumps(orjson.loads(told), option=orjson.OPT_SORT_KEYS)
