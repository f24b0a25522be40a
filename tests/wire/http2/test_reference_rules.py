"""What the h2 library leaves to its user, held by the reference engine too: bodies against content-length, and what counts as a field."""

from __future__ import annotations

import pytest

from meshguard.model.reasons import HEAD_TOO_LARGE
from meshguard.wire.http2.engine import Http2Limits
from meshguard.wire.http2.reference import ReferenceClient, ReferenceServer
from meshguard.wire.semantics import FieldRules
from tests.wire.http2.peer import GET, PREFACE, SETTINGS, Sink, data, headers

LENGTH = (b"content-length", b"3")
ENDINGS = {
    "trailers": headers(1, (b"x-end", b"1")),
    "DATA": data(1, b"", end=True),
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("body", "good"), [(b"", False), (b"ab", False), (b"abc", True)])
def test_a_request_has_the_octets_that_it_declared(ending: str, body: bytes, good: bool) -> None:
    sink = Sink()
    engine = ReferenceServer(sink, Http2Limits(), FieldRules())
    engine.start()
    engine.receive(PREFACE + SETTINGS, 0.0)
    engine.receive(headers(1, *GET, LENGTH, end=False) + (data(1, body) if body else b""), 0.0)
    engine.receive(ENDINGS[ending], 0.0)
    assert ("end" in [event[0] for event in sink.calls]) is good


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("body", "good"), [(b"ab", False), (b"abc", True)])
def test_a_response_has_the_octets_that_it_declared(ending: str, body: bytes, good: bool) -> None:
    sink = Sink()
    engine = ReferenceClient(sink, Http2Limits())
    engine.start()
    engine.receive(SETTINGS, 0.0)
    assert engine.request(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"http", True) == 1
    engine.receive(headers(1, (b":status", b"200"), LENGTH, end=False) + data(1, body), 0.0)
    engine.receive(ENDINGS[ending], 0.0)
    assert ("end" in [event[0] for event in sink.calls]) is good


def test_crumbs_of_a_cookie_count_one_by_one() -> None:
    sink = Sink()
    engine = ReferenceServer(sink, Http2Limits(fields=20), FieldRules())
    engine.start()
    engine.receive(PREFACE + SETTINGS + headers(1, *GET, *[(b"cookie", b"a=%d" % number) for number in range(18)]), 0.0)
    (event,) = [event for event in sink.calls if event[0] in ("request", "refused")]
    assert event[0] == "refused"
    assert HEAD_TOO_LARGE.code in repr(event)
