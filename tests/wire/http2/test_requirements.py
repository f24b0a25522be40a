"""What RFC 9113 (sections 3 to 8) and RFC 7541 demand of a server, a client and an intermediary, and which test holds each demand.

`HELD` is the whole list, in our own words: (section, who, demand, tests). A test is `server:NAME`, `client:NAME` (cases of the rules of
octets), `told:NAME` (what a server tells), `request:NAME`, `answered:NAME` (heads), or `module::function`. Each has to exist. The cases
that belong to no other suite are below.
"""

from __future__ import annotations

import importlib
import inspect
from itertools import pairwise

import pytest

from meshguard.wire.http2.engine import Http2Limits
from tests.wire.http2 import test_client_rules, test_heads, test_server_rules
from tests.wire.http2.peer import (
    CLIENTS,
    GET,
    PREFACE,
    SERVERS,
    SETTINGS,
    Sink,
    block,
    client,
    data,
    feed,
    frame,
    frames,
    goaway,
    headers,
    number,
    ping,
    rst,
    sent,
    server,
    settings,
    window,
)

ASK = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: a\r\n\r\n"
OK = (b":status", b"200")
servers = pytest.mark.parametrize("kind", SERVERS)
clients = pytest.mark.parametrize("kind", CLIENTS)

RULES, CLIENT, FLOW, HEADS, HPACK, HERE = (
    "tests.wire.http2.test_server_rules", "tests.wire.http2.test_client_rules", "tests.wire.http2.test_flow_control",
    "tests.wire.http2.test_heads", "tests.wire.http2.test_hpack", "tests.wire.http2.test_requirements",
)  # fmt: skip
E2E, UPSTREAM, SMUGGLING = "tests.e2e.test_http2", "tests.e2e.test_http2_upstream", "tests.bypass.test_http2_smuggling"

HELD: list[tuple[str, str, str, list[str]]] = [
    # -- RFC 9113, 3: starting -------------------------------------------------------------------------------------------------
    (
        "3.2",
        "both",
        "over TLS, HTTP/2 is chosen by ALPN `h2`, and only then",
        [f"{E2E}::test_alpn_and_prior_knowledge", f"{UPSTREAM}::test_an_upstream_without_alpn_is_no_h2_upstream"],
    ),
    ("3.3", "server", "cleartext HTTP/2 is known by its preface", [f"{E2E}::test_alpn_and_prior_knowledge"]),
    (
        "3.4",
        "server",
        "the preface of a client is 24 octets and SETTINGS; anything else ends the connection",
        [
            f"{RULES}::test_3_4_a_wrong_preface",
            f"{RULES}::test_3_4_the_first_frame_is_settings",
            f"{E2E}::test_a_preface_that_comes_in_pieces",
        ],
    ),
    ("3.4", "both", "SETTINGS are the first frame of each side", [f"{RULES}::test_what_we_announce", f"{CLIENT}::test_the_greeting"]),
    # -- 4: frames -------------------------------------------------------------------------------------------------------------
    (
        "4.1",
        "both",
        "frames of unknown types are discarded",
        ["server:4.1 an unknown type is ignored", "server:4.1 an unknown type on stream 0 is ignored"],
    ),
    (
        "4.1",
        "both",
        "unknown flags and the reserved bit are ignored",
        ["server:4.1 unknown flags are ignored", "server:4.1 the reserved bit is ignored"],
    ),
    (
        "4.1",
        "both",
        "the reserved bit and flags without a meaning are not set in what is sent",
        [f"{HERE}::test_what_is_sent_has_no_stray_bits"],
    ),
    (
        "4.2",
        "both",
        "16384 octets are taken, more than was announced is FRAME_SIZE_ERROR",
        [
            "server:4.2 a frame at the limit",
            "server:4.2 a frame above the limit",
            "client:4.2 a frame above the limit",
            f"{RULES}::test_our_frame_limit_may_be_larger",
        ],
    ),
    ("4.2", "both", "no frame is sent that is larger than the peer takes", [f"{FLOW}::test_frames_are_as_large_as_the_peer_takes"]),
    (
        "4.3",
        "both",
        "a field block is whole and in one piece",
        [
            "server:6.10 another frame in between",
            "server:6.10 HEADERS in between",
            "client:6.10 another frame in a block",
            f"{RULES}::test_4_3_a_long_block_goes_on_in_continuation",
        ],
    ),
    (
        "4.3",
        "both",
        "a block that cannot be decoded is COMPRESSION_ERROR",
        [
            "server:4.3 a block that does not decode",
            "server:4.3 a truncated block",
            "server:4.3 trailers that do not decode",
            "client:4.3 a block that does not decode",
        ],
    ),
    (
        "4.3",
        "both",
        "blocks of streams that are refused or reset change the table all the same",
        ["server:4.3 a block of a refused stream still counts", f"{CLIENT}::test_a_reset_of_ours_ignores_what_is_late"],
    ),
    (
        "4.3.1",
        "both",
        "a smaller table is confirmed by an update at the beginning of the next block",
        [
            f"{HPACK}::test_a_smaller_table_has_to_be_acknowledged_by_a_size_update",
            f"{HERE}::test_4_3_1_our_encoder_says_that_it_has_no_table",
        ],
    ),
    # -- 5: streams ------------------------------------------------------------------------------------------------------------
    (
        "5.1",
        "both",
        "idle: only HEADERS and PRIORITY may come",
        [
            "server:6.1 on an idle stream",
            "server:6.4 on an idle stream",
            "server:6.9 on an idle stream",
            "client:5.1 HEADERS on an idle stream",
            "client:5.1 DATA on an idle stream",
            "client:5.1 RST_STREAM on an idle stream",
            "client:5.1 WINDOW_UPDATE on an idle stream",
        ],
    ),
    (
        "5.1",
        "both",
        "half-closed (remote): HEADERS and DATA are STREAM_CLOSED",
        ["server:6.1 behind END_STREAM", "server:5.1 HEADERS behind END_STREAM"],
    ),
    (
        "5.1",
        "both",
        "closed: WINDOW_UPDATE and RST_STREAM may be late, HEADERS and DATA may not",
        [
            "server:5.1 WINDOW_UPDATE behind it",
            "server:6.4 twice",
            "server:5.1 DATA behind it",
            "server:5.1 HEADERS behind it",
            "client:5.1 WINDOW_UPDATE on a closed stream",
            "client:5.1 RST_STREAM on a closed stream",
            "client:5.1 HEADERS on a closed stream",
            "client:5.1 DATA on a closed stream",
        ],
    ),
    (
        "5.1",
        "both",
        "behind a reset of ours everything that was on its way is taken, counted and ignored",
        [
            "told:nothing behind a reset of ours",
            f"{CLIENT}::test_a_reset_of_ours_ignores_what_is_late",
            f"{FLOW}::test_the_connection_gets_back_what_streams_that_are_over_took",
        ],
    ),
    ("5.1", "both", "nothing but PRIORITY is sent on a closed stream", [f"{RULES}::test_nothing_is_sent_on_a_stream_that_is_over"]),
    (
        "5.1.1",
        "both",
        "a client opens odd streams, a server even ones",
        ["server:5.1.1 an even stream", "client:5.1 HEADERS on an even stream", f"{CLIENT}::test_requests_take_odd_streams_and_count"],
    ),
    (
        "5.1.1",
        "server",
        "numbers of streams only grow; none is used twice",
        ["server:5.1.1 a stream below the last one", "server:5.1 HEADERS behind it"],
    ),
    ("5.1.1", "client", "when the numbers have run out, another connection is made", [f"{CLIENT}::test_stream_ids_run_out"]),
    (
        "5.1.2",
        "server",
        "streams above the limit are refused one by one",
        [
            f"{RULES}::test_5_1_2_streams_above_the_limit_are_refused",
            f"{RULES}::test_a_stream_that_is_half_closed_counts",
            f"{E2E}::test_too_many_streams_are_refused_one_by_one",
        ],
    ),
    (
        "5.1.2",
        "client",
        "no more streams are opened than the server allows",
        [f"{CLIENT}::test_the_peer_limits_streams", f"{UPSTREAM}::test_the_upstreams_limit_of_streams_holds"],
    ),
    ("5.2.2", "both", "frames are read whatever the windows are", [f"{FLOW}::test_a_stream_with_a_shut_window_holds_nobody_up"]),
    (
        "5.3.2",
        "both",
        "priorities are parsed and change nothing",
        ["told:padding and priority", "server:6.3 ignored on an open stream", "server:6.3 ignored on an idle stream"],
    ),
    (
        "5.4.1",
        "both",
        "after a connection error: GOAWAY, and nothing more is said or heard",
        [
            f"{RULES}::test_nothing_is_sent_after_the_end_of_the_connection",
            f"{CLIENT}::test_nothing_is_asked_after_the_end_of_the_connection",
            f"{RULES}::test_6_8_goaway_names_the_last_stream_that_was_processed",
        ],
    ),
    (
        "5.4.2",
        "both",
        "RST_STREAM is the last frame of its stream, and never answers one",
        ["server:6.4 closes", "server:6.4 twice", f"{RULES}::test_nothing_is_sent_on_a_stream_that_is_over"],
    ),
    ("5.5", "both", "an unknown frame inside a field block is an error", ["server:6.10 an unknown frame in between"]),
    # -- 6: the frames ---------------------------------------------------------------------------------------------------------
    (
        "6.1",
        "both",
        "DATA on stream 0 or with too much padding is PROTOCOL_ERROR",
        [
            "server:6.1 on stream 0",
            "server:6.1 padding as long as the payload",
            "server:6.1 padding longer than the payload",
            "server:6.1 no pad length",
        ],
    ),
    ("6.1", "both", "padding counts for flow control", [f"{FLOW}::test_padding_counts"]),
    (
        "6.2",
        "both",
        "HEADERS on stream 0 or with too much padding is PROTOCOL_ERROR",
        [
            "server:6.2 on stream 0",
            "server:6.2 padding longer than the payload",
            "server:6.2 no pad length",
            "server:6.2 no room for a priority",
        ],
    ),
    (
        "6.3",
        "both",
        "PRIORITY: not on stream 0, five octets",
        ["server:6.3 on stream 0", "server:6.3 of another length", "server:6.3 of another length, no stream"],
    ),
    (
        "6.4",
        "both",
        "RST_STREAM: not on stream 0, not on an idle one, four octets",
        [
            "server:6.4 on stream 0",
            "server:6.4 on an idle stream",
            "server:6.4 of another length",
            "server:6.4 on a stream only we could open",
        ],
    ),
    (
        "6.5",
        "both",
        "SETTINGS: on stream 0, a multiple of six octets, an acknowledgement is empty",
        ["server:6.5 on a stream", "server:6.5 of another length", "server:6.5 an acknowledgement with a payload"],
    ),
    ("6.5", "both", "unknown settings are ignored", ["server:6.5 unknown ones are ignored"]),
    ("6.5", "both", "the values of a frame are taken in their order", [f"{HERE}::test_6_5_settings_are_taken_in_order"]),
    (
        "6.5.2",
        "both",
        "ENABLE_PUSH is 0 or 1, and a server does not say 1",
        ["server:6.5.2 ENABLE_PUSH 2", "server:6.5.2 ENABLE_PUSH 0", "client:6.5.2 ENABLE_PUSH 1", "client:6.5.2 ENABLE_PUSH 0"],
    ),
    (
        "6.5.2",
        "both",
        "INITIAL_WINDOW_SIZE and MAX_FRAME_SIZE have their ranges",
        [
            "server:6.5.2 INITIAL_WINDOW_SIZE",
            "server:6.5.2 INITIAL_WINDOW_SIZE, largest",
            "server:6.5.2 MAX_FRAME_SIZE, low",
            "server:6.5.2 MAX_FRAME_SIZE, high",
            "server:6.5.2 MAX_FRAME_SIZE, largest",
        ],
    ),
    ("6.5.3", "both", "SETTINGS are acknowledged, one by one", ["server:6.5 acknowledged", f"{HERE}::test_6_5_3_each_is_acknowledged"]),
    (
        "6.5.3",
        "both",
        "our own hold once they are acknowledged",
        [f"{FLOW}::test_windows_below_the_default_hold_from_the_acknowledgement_on"],
    ),
    (
        "6.6",
        "both",
        "PUSH_PROMISE is an error: no client sends one, and ours forbids it",
        ["server:6.6 from a client", "client:6.6 PUSH_PROMISE", "client:6.6 PUSH_PROMISE on stream 0", f"{CLIENT}::test_the_greeting"],
    ),
    ("6.7", "both", "PING: on stream 0, eight octets", ["server:6.7 on a stream", "server:6.7 of another length"]),
    (
        "6.7",
        "both",
        "PING is answered with its own octets, an answer is not",
        ["server:6.7 answered", "server:6.7 an acknowledgement is not", f"{HERE}::test_6_7_the_answer_has_the_same_octets"],
    ),
    ("6.8", "both", "GOAWAY: on stream 0, at least eight octets", ["server:6.8 on a stream", "server:6.8 too short"]),
    (
        "6.8",
        "both",
        "the last stream that we name never grows",
        [f"{HERE}::test_6_8_the_last_stream_never_grows", f"{RULES}::test_6_8_an_announced_end_takes_requests_still"],
    ),
    (
        "6.8",
        "client",
        "after GOAWAY no stream is opened; those above the last one were not processed",
        [f"{CLIENT}::test_6_8_goaway_drops_what_was_not_processed", f"{UPSTREAM}::test_graceful_goaways_fail_no_request"],
    ),
    (
        "6.9",
        "both",
        "WINDOW_UPDATE: four octets, not 0",
        ["server:6.9 of another length", "server:6.9 zero on the connection", "server:6.9 zero on a stream"],
    ),
    (
        "6.9",
        "both",
        "it may come for streams that are half-closed or closed",
        ["server:6.9 half-closed takes it", "server:5.1 WINDOW_UPDATE behind it"],
    ),
    (
        "6.9.1",
        "both",
        "no DATA beyond the windows is sent; an end needs none",
        [
            f"{FLOW}::test_data_beyond_the_stream_window_waits",
            f"{FLOW}::test_data_beyond_the_connection_window_waits",
            f"{FLOW}::test_an_end_needs_no_window",
        ],
    ),
    (
        "6.9.1",
        "both",
        "DATA beyond ours is FLOW_CONTROL_ERROR",
        [f"{FLOW}::test_the_peer_stops_at_the_stream_window", f"{FLOW}::test_the_peer_stops_at_the_connection_window"],
    ),
    (
        "6.9.1",
        "both",
        "a window above 2^31-1 is FLOW_CONTROL_ERROR",
        ["server:6.9.1 above the largest, connection", "server:6.9.1 above the largest, stream", "server:6.9.1 the largest"],
    ),
    (
        "6.9.2",
        "both",
        "a changed initial window changes every stream's, also below 0",
        [f"{FLOW}::test_6_9_2_a_changed_initial_window_changes_every_stream", "server:6.9.2 above the largest by SETTINGS"],
    ),
    (
        "6.10",
        "both",
        "CONTINUATION only inside its own block",
        [
            "server:6.10 outside a block",
            "server:6.10 behind a complete block",
            "server:6.10 of another stream",
            "client:6.10 CONTINUATION outside",
        ],
    ),
    ("7", "both", "unknown error codes are nothing special", [f"{HERE}::test_7_unknown_error_codes"]),
    # -- 8: HTTP ---------------------------------------------------------------------------------------------------------------
    (
        "8.1",
        "both",
        "a message is heads, DATA, and trailers that end the stream",
        [
            "server:8.1 trailers that do not end the stream",
            "client:8.1 trailers that do not end",
            "client:8.1 an interim head that ends",
            "client:6.1 DATA before a head",
            "client:6.1 DATA behind an interim head",
        ],
    ),
    (
        "8.1",
        "client",
        "an answer that is whole is kept, though its stream is then reset with NO_ERROR",
        [f"{HERE}::test_8_1_a_whole_answer_outlives_a_reset"],
    ),
    (
        "8.1",
        "server",
        "a whole answer to an unfinished request is followed by RST_STREAM with NO_ERROR",
        [f"{E2E}::test_a_refused_body_is_stopped_and_the_connection_goes_on"],
    ),
    (
        "8.1.1",
        "both",
        "what is malformed ends its stream and is not forwarded",
        [
            "told:a malformed head is not",
            f"{HEADS}::test_malformed_requests",
            f"{HEADS}::test_malformed_responses",
            f"{UPSTREAM}::test_an_answer_that_breaks_the_rules",
        ],
    ),
    (
        "8.1.1",
        "both",
        "content-length is the sum of DATA",
        [
            "server:8.1.1 less than content-length, DATA",
            "server:8.1.1 more than content-length, DATA",
            "server:8.1.1 more than it says, later",
            "server:8.1.1 less than content-length, trailers",
            "server:8.1.1 less than content-length, HEADERS",
            "server:8.1.1 content-length 0 and DATA",
            "server:8.1.1 padding is no content",
            "client:8.1.1 less than content-length, DATA",
            "client:8.1.1 more than content-length",
            "client:8.1.1 less than content-length, trailers",
            "client:8.1.1 less than content-length, HEADERS",
            "client:8.1.1 DATA for 204",
        ],
    ),
    (
        "8.2",
        "both",
        "names are in lower case, in both directions",
        [
            "server:8.2 upper case",
            "client:8.2 upper case",
            "server:8.1 trailers with upper case",
            f"{HPACK}::test_what_we_encode_the_library_decodes",
        ],
    ),
    (
        "8.2.1",
        "both",
        "no control characters in names, no line ends or NUL in values, no white space around them",
        [
            f"{HPACK}::test_what_no_request_may_hold",
            f"{HPACK}::test_what_no_response_may_hold",
            f"{SMUGGLING}::test_nothing_in_a_field_becomes_a_line",
        ],
    ),
    (
        "8.2.2",
        "both",
        "nothing that belongs to a connection comes in or goes out; TE is `trailers`",
        [
            "server:8.2.2 connection-specific",
            "client:8.2.2 connection-specific",
            "request:te",
            "request:transfer-encoding",
            f"{HPACK}::test_what_we_encode_the_library_decodes",
            f"{SMUGGLING}::test_fields_of_a_connection_never_pass",
        ],
    ),
    (
        "8.2.3",
        "proxy",
        "cookie crumbs are joined for HTTP/1.1",
        [f"{HEADS}::test_crumbs_of_a_cookie_are_joined", f"{E2E}::test_cookies_expectations_and_request_trailers"],
    ),
    (
        "8.3",
        "both",
        "pseudo-header fields: known ones, once, first, never in trailers",
        [
            "request:unknown pseudo-header field",
            "request:path twice",
            "request:pseudo-header field behind another",
            "request:status in a request",
            "server:8.1 trailers with a pseudo-header field",
            "client:8.1 trailers with a status",
            "client:8.3.2 a request's field",
        ],
    ),
    (
        "8.3.1",
        "server",
        "a request has a method, a scheme and a path that is not empty",
        ["request:no method", "request:no scheme", "request:no path", "server:8.3.1 no path", "request:absolute path"],
    ),
    ("8.3.1", "server", "`*` is for OPTIONS", ["request:* for GET"]),
    (
        "8.3.1",
        "server",
        "Host and :authority agree, there is one, and it holds no user",
        ["answered:Host disagrees", "answered:Host twice", "answered:no authority", "tests.wire.test_authority::test_refused"],
    ),
    (
        "8.3.1",
        "proxy",
        "towards HTTP/1.1 Host is :authority; towards HTTP/2 :authority is Host",
        [f"{HEADS}::test_host_stands_in_for_the_authority", f"{HPACK}::test_a_request_head_as_the_library_reads_it"],
    ),
    ("8.3.2", "client", "an answer has one status", ["client:8.3.2 no status", f"{HEADS}::test_malformed_responses"]),
    (
        "8.5",
        "server",
        "CONNECT has an authority and no scheme or path",
        ["request:CONNECT with a path", "request:CONNECT with a scheme", "request:CONNECT without authority", "answered:CONNECT"],
    ),
    ("8.6", "both", "there is no 101", ["client:8.6 101"]),
    (
        "8.7",
        "client",
        "only what was certainly not processed is sent again, whatever its method",
        [f"{UPSTREAM}::test_what_was_not_processed_goes_elsewhere", f"{UPSTREAM}::test_an_upstream_that_dies_with_streams_under_way"],
    ),
    # -- RFC 7541 --------------------------------------------------------------------------------------------------------------
    ("7541 2.3.3", "decoder", "an index behind both tables is an error", [f"{HPACK}::test_what_is_no_hpack_is_refused"]),
    (
        "7541 4.2",
        "both",
        "a change of the table's size comes first in a block",
        [
            f"{HPACK}::test_what_is_no_hpack_is_refused",
            f"{HPACK}::test_a_smaller_table_has_to_be_acknowledged_by_a_size_update",
            f"{HERE}::test_4_3_1_our_encoder_says_that_it_has_no_table",
        ],
    ),
    ("7541 4.3", "decoder", "entries are evicted until the table fits", [f"{HPACK}::test_appendix_c"]),
    (
        "7541 4.4",
        "decoder",
        "a field larger than the table empties it; its name may be one that it evicts",
        [f"{HPACK}::test_a_field_larger_than_the_table_empties_it", f"{HPACK}::test_an_entry_may_be_named_by_one_that_it_evicts"],
    ),
    (
        "7541 5.1",
        "decoder",
        "an integer above our limit is an error",
        [f"{HPACK}::test_what_is_no_hpack_is_refused", f"{HPACK}::test_integers_of_appendix_c_1"],
    ),
    (
        "7541 5.2",
        "decoder",
        "Huffman: padding is the first bits of EOS, fewer than eight; EOS itself is an error",
        [f"{HPACK}::test_every_padding_of_every_length", f"{HPACK}::test_any_octets_decode_as_in_the_library"],
    ),
    ("7541 6.1", "decoder", "index 0 is an error", [f"{HPACK}::test_what_is_no_hpack_is_refused"]),
    (
        "7541 6.2.3",
        "proxy",
        "what must never be indexed goes on as such",
        [f"{HPACK}::test_what_a_peer_does_not_want_indexed_goes_on_as_such", f"{HPACK}::test_what_is_secret_is_never_indexed"],
    ),
    ("7541 6.3", "decoder", "a size above what we allow is an error", [f"{HPACK}::test_what_is_no_hpack_is_refused"]),
]

CASES = {
    "server": test_server_rules.RULES, "client": test_client_rules.RULES, "told": test_server_rules.TOLD,
    "request": test_heads.MALFORMED, "answered": test_heads.ANSWERED,
}  # fmt: skip


@pytest.mark.parametrize("row", HELD, ids=lambda row: f"{row[0]} {row[2]}")
def test_each_demand_has_its_tests(row: tuple[str, str, str, list[str]]) -> None:
    section, who, demand, tests = row
    assert who in ("both", "server", "client", "proxy", "decoder")
    assert all((section, demand, tests))
    for test in tests:
        module, colons, function = test.partition("::")
        if colons:
            assert inspect.isfunction(getattr(importlib.import_module(module), function, None)), test
        else:
            kind, _, name = test.partition(":")
            assert name in CASES[kind], test


def test_every_case_of_the_suites_is_in_the_list() -> None:
    """So that no case is forgotten there when it is renamed."""
    named = {test for row in HELD for test in row[3]}
    missing = [f"server:{name}" for name in test_server_rules.RULES if f"server:{name}" not in named and name[0].isdigit()]
    assert sorted(missing) == sorted(NOT_IN_THE_RFC)


NOT_IN_THE_RFC = [
    "server:4.2 a header is enough to refuse it", "server:4.2 an unknown frame above the limit",
    "server:5.3.1 a stream that depends on itself", "server:5.3.1 the same in trailers",
    "server:6.1 nothing but padding", "server:6.1 on a stream only we could open",
    "server:6.3 ignored on a stream that we refused", "server:6.3 on itself", "server:6.3 on itself, no stream",
    "server:6.8 told",
]  # fmt: skip
"""Rules of RFC 7540 that RFC 9113 has dropped, and cases beyond its words."""


# -- what belongs to no other suite -------------------------------------------------------------------------------------------

FLAGS = {"DATA": 0x1, "HEADERS": 0x5, "RST_STREAM": 0, "SETTINGS": 0x1, "PING": 0x1, "GOAWAY": 0, "WINDOW_UPDATE": 0, "CONTINUATION": 0x4}


@servers
def test_what_is_sent_has_no_stray_bits(kind: str) -> None:
    engine, _ = server(None, None, settings((3, 5)), ping(), *(headers(n, *GET) for n in (1, 3, 5)), kind=kind)
    engine.send_interim(1, 103, b"a: b\r\n")
    engine.send_head(1, 200, b"a: %b\r\n" % (b"x" * 40000), False)
    engine.send_data(1, b"x", False)
    engine.send_trailers(1, b"t: 1\r\n")
    engine.send_whole(3, 204, b"", b"")
    engine.reset(5, 8)
    engine.goaway(0)
    said = frames(engine.take())  # it asserts that no reserved bit is set
    assert {one.kind for one in said} == set(FLAGS) - {"WINDOW_UPDATE"}
    assert [str(one) for one in said if one.flags & ~FLAGS[one.kind]] == []


def test_4_3_1_our_encoder_says_that_it_has_no_table() -> None:
    """Once, at the beginning: it holds for every limit that the peer may set later."""
    engine, _ = server(None, None, headers(1, *GET), headers(3, *GET))
    engine.send_whole(1, 200, b"a: b\r\n", b"")
    feed(engine, [settings((1, 0)), settings((1, 4096))])
    engine.send_whole(3, 200, b"a: b\r\n", b"")
    first, second = [one.payload for one in frames(engine.take()) if one.kind == "HEADERS"]
    assert (first[:1], first[1:]) == (b"\x20", second)


@servers
def test_6_5_settings_are_taken_in_order(kind: str) -> None:
    engine, _ = server(None, None, settings((4, 10), (4, 0), (4, 3)), headers(1, *GET), kind=kind)
    engine.send_head(1, 200, b"", False)
    assert engine.send_data(1, b"12345", True) == 2
    assert [line for line in sent(engine) if line.startswith("DATA")] == ["DATA 1 3"]


@servers
def test_6_5_3_each_is_acknowledged(kind: str) -> None:
    engine, _ = server(None, None, settings((3, 7)), settings(), settings((4, 100)), kind=kind)
    assert sent(engine) == ["SETTINGS ACK"] * 3


@servers
def test_6_7_the_answer_has_the_same_octets(kind: str) -> None:
    engine, _ = server(None, None, ping(b"\0\xff234567"), ping(b"abcdefgh"), kind=kind)
    assert [(one.kind, one.flags, one.payload) for one in frames(engine.take())] == [("PING", 1, b"\0\xff234567"), ("PING", 1, b"abcdefgh")]


@servers
def test_6_8_the_last_stream_never_grows(kind: str) -> None:
    engine, _ = server(None, None, headers(1, *GET), kind=kind)
    for last in (None, 2**31 - 1, None):
        engine.goaway(0, last)
    feed(engine, [headers(3, *GET), window(0, 0)])
    named = [int.from_bytes(one.payload[:4], "big") for one in frames(engine.take()) if one.kind == "GOAWAY"]
    assert named[0] == 1
    assert all(after <= before for before, after in pairwise(named)), named


@servers
def test_7_unknown_error_codes(kind: str) -> None:
    engine, sink = server(None, None, headers(1, *GET, end=False), rst(1, 0xABCD), headers(3, *GET), goaway(0, 0xFFFF), kind=kind)
    assert [call[0] for call in sink.calls] == ["request", "aborted", "request", "goaway"]
    engine.send_whole(3, 200, b"", b"x")
    assert sent(engine) == ["HEADERS 3", "DATA 3 1 END_STREAM"]


@clients
def test_8_1_a_whole_answer_outlives_a_reset(kind: str) -> None:
    engine, sink = client(None, kind=kind)
    assert engine.request(POST, b"http", False) == 1
    engine.send_data(1, b"half", False)
    feed(engine, [headers(1, OK, end=False), data(1, b"early", end=True), rst(1, 0)])
    assert sink.calls == [("response", 1, 200), ("data", 1, b"early"), ("end", 1, b""), ("aborted", 1, "NO_ERROR", True)]
    assert engine.streams == 0


@servers
def test_an_engine_that_is_fresh_says_settings_first(kind: str) -> None:
    engine = SERVERS[kind](Sink(), Http2Limits(), test_server_rules.FieldRules())
    engine.start()
    engine.receive(PREFACE + SETTINGS + frame(0xB, 0, 0) + headers(1, raw=block(*GET)) + number(0, 0), 0.0)
    assert sent(engine)[0] == "SETTINGS"
