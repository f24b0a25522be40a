"""The row `quarantine`: how long an identity's octets still come through after the admin API was told to cut it out.

The node carries 1000 open streams of the identity over ten connections, each of which says and hears something all the time, beside them
streams of another identity and its HTTP/1.1 load. The clock starts before the first octet of the request to the admin API and ends with
the last octet of the identity that arrived anywhere: at the upstream, or at the caller itself. Then the identity is let in again.
A stream or a request of the others that fails makes the sample invalid, and so does a connection of the identity that is not cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import ssl
import subprocess
import time
import urllib.parse
from pathlib import Path
from typing import Any

from benchmarks import pki
from benchmarks.candidates import Candidate
from benchmarks.compare import median
from benchmarks.held import Caller, Echo, client_context, open_callers, until
from benchmarks.load import Sample, read

__all__ = ["measure"]

_CONNECTIONS, _STREAMS = 10, 100
_OTHERS = 2  # connections of as many streams
_RATE = 100.0  # requests a second of the others
_SAYS_EVERY_S = 0.02  # each connection says something on its next stream
_HEARD = 20  # echoes of each connection before the command
_CUT_S = 5.0
_SETTLE_S = 0.3  # after the last connection is cut: what comes now is late


async def _told(port: int, token: str, method: str, target: str, body: bytes = b"") -> float:
    """One request to the admin API; when its first octet was about to leave. Raises OSError for another answer than 200."""
    link_in, link_out = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n"
        began = time.monotonic()
        link_out.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = await link_in.read()
    finally:
        link_out.close()
    if not answer.startswith(b"HTTP/1.1 200"):
        raise OSError(f"the admin API answered {answer[:60]!r}")
    return began


async def _talking(callers: list[Caller]) -> None:
    while True:
        for each in callers:
            each.say(1)
            await asyncio.sleep(_SAYS_EVERY_S / len(callers))


async def _trial(port: int, context: ssl.SSLContext, admin: int, token: str) -> float:
    """Seconds from the command to the last octet of the identity."""
    callers = await open_callers(port, context, "v", _CONNECTIONS, _STREAMS)
    talk = asyncio.create_task(_talking(callers))
    cut = False
    try:
        if not await until(lambda: all(each.echoed >= _HEARD for each in callers), _CUT_S):
            raise TimeoutError(f"the streams do not carry what is said: {[(each.sent, each.echoed, dict(each.lost)) for each in callers]}")
        body = json.dumps({"target": pki.CLIENT, "reason": "bench", "by": "bench"}).encode()
        began = await _told(admin, token, "POST", "/quarantine", body)
        cut = True
        if not await until(lambda: all(each.lost["connection lost"] for each in callers), _CUT_S):
            raise TimeoutError(f"{sum(not each.lost['connection lost'] for each in callers)} connections were not cut")
        await asyncio.sleep(_SETTLE_S)
        return max(began, Echo.last[ord("v")], *(each.last for each in callers)) - began
    finally:
        talk.cancel()
        for each in callers:
            each.close()
        if cut:
            await _told(admin, token, "DELETE", "/quarantine?" + urllib.parse.urlencode({"target": pki.CLIENT}))


async def _run(candidate: Candidate, load: list[str], token: str, trials: int) -> tuple[dict[str, Any], Sample]:
    assert candidate.plan is not None
    bench, ports, around = candidate.bench, candidate.plan.ports, candidate.plan.around
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", around["echo"])
    others: list[Caller] = []
    try:
        others = await open_callers(ports["h2-mtls"], client_context(bench.certs, "other", "h2"), "o", _OTHERS, _STREAMS)
        process = await asyncio.create_subprocess_exec(*load, stdout=subprocess.PIPE)
        talk = asyncio.create_task(_talking(others))
        context = client_context(bench.certs, "client", "h2")
        try:
            took = [await _trial(ports["h2-mtls"], context, around["admin"], token) for _ in range(trials)]
        finally:
            talk.cancel()
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            output, _ = await process.communicate()
        went_on = await until(lambda: not any(each.waiting for each in others), _CUT_S)
        lost = sum((each.lost for each in others), start=type(others[0].lost)())
        ordered = sorted(took)
        seen: Sample = {
            "cut_ms": median(took) * 1e3,
            "cut_p99_ms": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1e3,
            "trials": trials,
            "others_echoes": sum(each.echoed for each in others),
        }
        if lost or not went_on:
            seen["error"] = f"the others' streams: {dict(lost)}, {sum(each.waiting for each in others)} echoes missing"
        return json.loads(output.splitlines()[-1]) if output else {"fatal": "the load said nothing"}, seen
    finally:
        for each in others:
            each.close()
        server.close()
        Echo.abort_all()
        await asyncio.sleep(0.1)  # what was aborted is closed in the next turns of the loop


def measure(candidate: Candidate, kind: str, secs: float, warm: float = 0.3) -> Sample:
    """One sample has all trials; a round that only warms up (a short `warm`) has one."""
    options = candidate.bench.options
    trials = 1 if warm < 0.3 else options.trials
    port = candidate.port("h1-mtls")
    assert port is not None
    words = {"cert": candidate.bench.certs / "other.both.pem", "mode": "rate", "rate": _RATE, "conns": 8, "warm": 0.1, "secs": 30 * trials}
    command = candidate.bench.load_command(port, True, pids=",".join(map(str, candidate.pids())), **words)
    command.remove(f"cert={candidate.bench.certs / 'client.both.pem'}")
    token = Path(candidate.bench.work / candidate.name / "admin.token").read_text().strip()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {options.load_core})
    try:
        report, seen = asyncio.run(_run(candidate, command, token, trials))
    except (OSError, TimeoutError, ConnectionError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        os.sched_setaffinity(0, before)
    sample = read(report)
    return seen | sample | ({"error": seen["error"]} if "error" in seen else {})
