"""Process logs: one line each, no secret, never in the way; and the planted values that must not appear in any sink of telemetry."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshguard.model.reasons import AMBIGUOUS_TARGET
from meshguard.model.record import FieldOperation
from meshguard.telemetry.decision_log import DecisionLog, gap_line
from meshguard.telemetry.line_writer import LineWriter
from meshguard.telemetry.logs import LineHandler, LogFormat, configure, default_format
from meshguard.telemetry.metrics import Registry
from meshguard.telemetry.observe import Observer
from meshguard.telemetry.otlp import OtlpExporter
from meshguard.telemetry.prometheus import render
from meshguard.telemetry.redaction import MAX_TEXT, REDACTED, Redactor
from meshguard.telemetry.request_metrics import RequestMetrics
from meshguard.telemetry.span_ids import SpanIds
from meshguard.telemetry.spans import SpanRecorder
from tests.telemetry.collector import Collector
from tests.telemetry.records import Record, head

log = logging.getLogger("meshguard.test")


@pytest.fixture
def _logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def started(path: Path, log_format: LogFormat = "json", redactor: Redactor | None = None, level: str = "info") -> LineHandler:
    return configure(level, log_format, Registry(), redactor or Redactor(), target=str(path))


@pytest.mark.usefixtures("_logging")
def test_a_line_is_json_with_ids_and_data(tmp_path: Path) -> None:
    handler = started(tmp_path / "log")
    log.debug("not shown")
    log.info("reloaded %s", "policy", extra={"data": {"revision": 3, "files": ["a.yaml"]}})
    log.warning("odd", extra={"trace_id": b"4bf92f3577b34da6a3ce929d0e0e4736", "decision_id": "5f-1"})
    try:
        raise ValueError("broken\nvalue")
    except ValueError:
        log.exception("failed")
    handler.close_within(10)
    first, second, third = (json.loads(line) for line in (tmp_path / "log").read_bytes().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", first.pop("time"))
    assert first == {
        "level": "info",
        "logger": "meshguard.test",
        "message": "reloaded policy",
        "data": {"revision": 3, "files": ["a.yaml"]},
    }
    assert (second["trace_id"], second["decision_id"]) == ("4bf92f3577b34da6a3ce929d0e0e4736", "5f-1")
    assert third["level"] == "error"
    assert "ValueError: broken\nvalue" in third["exception"]


@pytest.mark.usefixtures("_logging")
def test_text_is_for_people_and_terminals_are_safe(tmp_path: Path) -> None:
    handler = started(tmp_path / "log", "text")
    log.info("got \x1b[2J\r\n2026-01-01 forged %s", "\x9b\u2028", extra={"trace_id": "a\nb"})
    try:
        raise ValueError("a\x1bb")
    except ValueError:
        log.exception("failed")
    handler.close_within(10)
    text = (tmp_path / "log").read_text()
    first, second, *trace = text.splitlines()
    assert re.fullmatch(r"\S+Z info    meshguard\.test: got \\x1b\[2J\\r\\n2026-01-01 forged \\x9b\\u2028 trace_id=a\\nb", first)
    assert second.endswith("error   meshguard.test: failed")
    assert all(line.startswith("    | ") for line in trace)
    assert "ValueError: a\\x1bb" in trace[-1]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)


@pytest.mark.usefixtures("_logging")
def test_nothing_that_is_logged_can_raise_or_forge(tmp_path: Path) -> None:
    class Nasty:
        def __str__(self) -> str:
            raise RuntimeError("no text")

        __repr__ = __str__

    handler = started(tmp_path / "log")
    log.info("%s %s", "too few")
    log.info("%d", "hunter2secret")
    log.info("%s", Nasty())
    log.info("x", extra={"data": {"n": 2**80, "s": "\ud800", "o": Nasty(), "deep": [[[[[[1]]]]]]}})
    log.info("x", extra={"data": {"n": 2**80, ("a", 1): {1, 2}, "raw": b"keykeykey"}})
    log.info("\ud800\n\u2028")
    handler.close_within(10)
    data = (tmp_path / "log").read_bytes()
    lines = data.splitlines()
    assert len(lines) == 6
    for line in lines:
        json.loads(line)
    assert b"hunter2secret" not in data
    assert b"keykeykey" not in data
    assert json.loads(lines[4])["data"]["raw"] == "<9 bytes>"


@pytest.mark.usefixtures("_logging")
def test_logging_never_waits_for_a_reader() -> None:
    read_end, write_end = os.pipe()
    handler = configure("info", "json", Registry(), Redactor(), target=write_end)
    began = time.monotonic()
    for _ in range(5000):
        log.info("x" * 1000)
    assert time.monotonic() - began < 20
    os.close(read_end)
    handler.close_within(0.2)
    os.close(write_end)


@pytest.mark.usefixtures("_logging")
def test_libraries_do_not_log_their_buffers(tmp_path: Path) -> None:
    handler = started(tmp_path / "log", level="debug")
    logging.getLogger("asyncio").debug("buffer %r", b"plaintext-body")
    log.debug("ours")
    handler.close_within(10)
    data = (tmp_path / "log").read_bytes()
    assert b"plaintext-body" not in data
    assert b"ours" in data


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="'loud'"):
        configure("loud", "json", Registry(), Redactor())


def test_a_pipe_is_no_terminal(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w") as stream:
        assert default_format(stream) == "json"


SECRETS = {
    "a private key": "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIPLANTED1\n-----END EC PRIVATE KEY-----",
    "a private key that is cut off": "-----BEGIN PRIVATE KEY-----\nMHcCAQEEIPLANTED1",
    "a bearer token": "Authorization: Bearer PLANTED1.abc-def",
    "a bearer token in a list": "[(b'authorization', b'Bearer PLANTED1abcdef')]",
    "basic credentials": "header was Basic UExBTlRFRDE6UExBTlRFRDE=PLANTED1",
    "a cookie": "cookie: a=b; session=PLANTED1",
    "a set-cookie": "Set-Cookie: sid=PLANTED1; Secure",
    "a token": "failed with eyJhbGciOiJFUzI1NiJ9.PLANTED1eyJzdWIi.c2ln",
    "an envelope": "value eyJhbGciOiJkaXIifQ..PLANTED1.abc.def left",
    "a password": "password=PLANTED1 for user",
    "a quoted password": 'db_password: "PLANTED1 with spaces"',
    "a secret in json": '{"client_secret": "PLANTED1"}',
    "an api key": "X-Api-Key: PLANTED1",
    "a vault token": "token hvs.PLANTED1abcdefgh was refused",
    "an aws key": "AKIAPLANTED123456789 is unknown",
    "a url": "cannot reach https://user:PLANTED1@vault:8200/v1",
    "a query": "GET https://shop.example/orders?card=PLANTED1 failed",
}


@pytest.mark.parametrize("kind", list(SECRETS))
def test_shapes_of_secrets_are_redacted(kind: str) -> None:
    told = Redactor().text(f"before {SECRETS[kind]}\nafter")
    assert "PLANTED1" not in told
    assert told.startswith("before ")
    assert REDACTED in told


@pytest.mark.parametrize(
    "text",
    [
        "reloaded policies/orders.yaml: revision 3, digest sha256:abcdef0123456789",
        "listener inbound on 0.0.0.0:8443 is ready",
        "spiffe://shop.example/ns/prod/sa/billing expires in 300 s",
        "cluster app: 127.0.0.1:8080 is ejected (5 failures)",
        "cannot fetch https://keys.example/jwks.json: 503",
    ],
)
def test_what_operators_need_is_left(text: str) -> None:
    assert Redactor().text(text) == text


def test_values_told_to_be_protected_never_come_out() -> None:
    redactor = Redactor()
    redactor.protect("abcdef")
    redactor.protect("abcdefgh")
    redactor.protect("abc")  # too short to be told from ordinary text
    assert redactor.text("xabcdefghy abcdef abc") == f"x{REDACTED}y {REDACTED} abc"
    assert "abcdef" not in repr(redactor)
    assert redactor.value({"note": ["abcdefgh"], "token": 5, "n": 1}) == {"note": [REDACTED], "token": REDACTED, "n": 1}


@settings(deadline=None)  # a shared machine is slow at times
@given(st.text(max_size=300))
def test_redaction_bounds_every_text(text: str) -> None:
    assert len(Redactor().text(text * 200)) <= MAX_TEXT * len(REDACTED)


@pytest.mark.parametrize(
    "text", ["a-" * 50_000, "password" * 20_000, "eyJ" + "a" * 100_000, "://" * 40_000, "x:" * 50_000, "-----BEGIN " * 10_000]
)
def test_redaction_is_quick_on_hostile_text(text: str) -> None:
    before = time.process_time()
    Redactor().text(text)
    assert time.process_time() - before < 1.0


@pytest.mark.usefixtures("_logging")
def test_a_planted_value_is_in_no_sink(tmp_path: Path) -> None:
    """F9: a card number in the query, the credentials, a cookie and a protected field; looked for in log, metrics, spans, process log."""
    planted = b"4929717153781234"
    specials = [(b"authorization", b"Bearer eyJhbGciOiJFUzI1NiJ9." + planted + b".c2ln"), (b"cookie", b"card=" + planted)]
    registry = Registry()
    redactor = Redactor()
    handler = configure("debug", "json", registry, redactor, target=str(tmp_path / "process.log"))
    writer = LineWriter(str(tmp_path / "decisions.jsonl"), registry, name="meshguard.decision_log", gap=gap_line)

    async def scenario(endpoint: str) -> None:
        exporter = OtlpExporter(
            endpoint,
            registry,
            dict,
            families=registry.families,
            headers={"authorization": f"Bearer {planted.decode()}"},
            delay_s=0.02,
        )
        ids = SpanIds(7, ("denials", "errors"))
        observer = Observer([RequestMetrics(registry), DecisionLog(writer, registry, ids), SpanRecorder(exporter, ids)], registry)
        for target in (
            b"/orders/7?card=%b" % planted,
            b"/orders?%b" % planted,
            b"http://u:%b@h/orders;a?x=%b#%b" % (planted, planted, planted),
        ):
            sent = head(target, block=b"x-card: %b\r\nuser-agent: t\r\n" % planted)
            sent.specials = specials
            sent.authority = b"user:%b@shop.example" % planted
            operations = [FieldOperation("open", "card-number", "orders-pii", 1)]
            observer.finished(Record(head=sent, sampled=True, operations=operations))
            observer.finished(Record(head=sent, plan=None, verdict=None, refusal=AMBIGUOUS_TARGET, status=400))
            broken = Record(head=sent)
            del broken.attempts
            observer.finished(broken)
            log.debug("exchange %r %r", sent, exporter)
            log.info("specials %s", specials)
        observer.close()
        exporter.close(10)

    with Collector() as collector:
        asyncio.run(scenario(collector.endpoint))
    writer.close(10)
    handler.close_within(10)
    sinks = {
        "decision log": (tmp_path / "decisions.jsonl").read_bytes(),
        "process log": (tmp_path / "process.log").read_bytes(),
        "metrics": "".join(render(registry.families())).encode(),
        "spans": b"".join(request.SerializeToString() for request in collector.traces),
        "otlp metrics": b"".join(request.SerializeToString() for request in collector.metrics),
    }
    for name, data in sinks.items():
        assert len(data) > 200, name
        assert planted not in data, name
