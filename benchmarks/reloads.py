"""The row `reloads`: a constant load and open streams, while the policy of 10 000 rules changes again and again, and while it does not.

The policy is ten documents; each reload replaces one of them, with one rule that was not there before. What makes a sample invalid: a bad
or lost answer, a stream or WebSocket that ended or whose echo does not come, a change that is not in force at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks import procs
from benchmarks.candidates import Candidate
from benchmarks.held import Caller, Echo, WebSocketEcho, client_context, open_callers, until
from benchmarks.load import Sample, read

__all__ = ["DOCUMENTS", "measure", "write_policy"]

DOCUMENTS = 10
_CONNECTIONS, _STREAMS, _SOCKETS = 2, 50, 8
_EVERY_S = 1.0  # each stream says something
_IN_FORCE_S = 30.0
_ECHO_S = 10.0
_MARK = '  - {"id": "mark-%d", "allow": ["authenticated"], "paths": ["/revision/%d"]}\n'


def write_policy(directory: Path, document: dict[str, Any], documents: int = DOCUMENTS) -> None:
    """The rules as `documents` files of one rule a line."""
    rules = document["rules"]
    size = -(-len(rules) // documents)
    for number in range(documents):
        part = rules[number * size : (number + 1) * size]
        (directory / f"part-{number}.yaml").write_text("rules:\n" + "".join(f"  - {json.dumps(rule)}\n" for rule in part))


class _Changes:
    """Replaces one document after the other, each time with a rule of its own, and knows from the log what is in force."""

    def __init__(self, candidate: Candidate) -> None:
        home = candidate.bench.work / candidate.name
        self._files = sorted((home / "policies").glob("part-*.yaml"))
        self._log = home / "out.log"
        self._texts = [file.read_text() for file in self._files]
        self.revision = max((text.count("mark-") and int(text.rsplit("mark-", 1)[1].split('"')[0]) for text in self._texts), default=0)

    def reloads(self) -> int:
        """How often the proxy said that it has taken over a change."""
        return self._log.read_bytes().count(b'"reloaded"')

    def next(self) -> None:
        self.revision += 1
        place = self.revision % len(self._files)
        plain = "".join(line for line in self._texts[place].splitlines(keepends=True) if "mark-" not in line)
        self._texts[place] = plain + _MARK % (self.revision, self.revision)
        fresh = self._files[place].with_name(".fresh")
        fresh.write_text(self._texts[place])
        os.replace(fresh, self._files[place])


async def _changing(candidate: Candidate, changes: _Changes, count: int) -> Sample:
    """Makes so many changes, the next when the one before is in force. Growth is of the resident size from a quarter of them to the end:
    open streams may hold the policy that let them in beside the one in force."""
    began = time.monotonic()
    sizes = []
    for _ in range(count):
        before = changes.reloads()
        changes.next()
        if not await until(lambda before=before: changes.reloads() > before, _IN_FORCE_S):  # type: ignore[misc]
            return {"error": f"revision {changes.revision} was not taken over in {_IN_FORCE_S:g} s"}
        sizes.append(procs.memory_kib(candidate.pids())["rss"] * 1024 / 1e6)
    return {"reload_s": (time.monotonic() - began) / count, "reloads": count, "growth_mb": sizes[-1] - sizes[count // 4]}


async def _saying(held: list[Caller | WebSocketEcho]) -> None:
    while True:
        for each in held:
            each.say(_STREAMS)
            await asyncio.sleep(_EVERY_S / len(held))


async def _run(candidate: Candidate, load: list[str], count: int, secs: float, warm: float) -> tuple[dict[str, Any], Sample]:
    """The load generator's report, and what was seen beside it."""
    assert candidate.plan is not None
    bench, ports, around = candidate.bench, candidate.plan.ports, candidate.plan.around
    loop = asyncio.get_running_loop()
    from benchmarks import websocket
    from benchmarks.held import MESSAGE

    servers = [
        await loop.create_server(Echo, "127.0.0.1", around["echo"]),
        await loop.create_server(lambda: websocket.Echo(MESSAGE), "127.0.0.1", around["sockets"]),
    ]
    held: list[Caller | WebSocketEcho] = []
    try:
        held += await open_callers(ports["h2-mtls"], client_context(bench.certs, "client", "h2"), "c", _CONNECTIONS, _STREAMS)
        context = client_context(bench.certs, "client", "http/1.1")
        for _ in range(_SOCKETS):
            _, socket = await loop.create_connection(WebSocketEcho, "127.0.0.1", ports["h1-mtls"], ssl=context)
            await socket.ready
            held.append(socket)
        changes = _Changes(candidate)
        seen: Sample = {}
        process = await asyncio.create_subprocess_exec(*load, stdout=subprocess.PIPE)
        talk = asyncio.create_task(_saying(held))
        try:
            await asyncio.sleep(warm + 0.2)
            if count:
                seen = await _changing(candidate, changes, count)
            else:
                await asyncio.sleep(secs)
        finally:
            talk.cancel()
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            output, _ = await process.communicate()
        report = json.loads(output.splitlines()[-1]) if output else {"fatal": "the load said nothing"}
        await until(lambda: not any(each.waiting for each in held), _ECHO_S)
        lost = sum((each.lost for each in held), start=type(held[0].lost)())
        if lost or any(each.waiting for each in held):
            seen["error"] = f"streams: {dict(lost)}, {sum(each.waiting for each in held)} echoes missing"
        if count:
            answer = await asyncio.to_thread(candidate.ask, "h1-mtls", f"/revision/{changes.revision}")
            if answer != 200:
                seen["error"] = f"revision {changes.revision} is not in force: {answer}"
        return report, seen
    finally:
        for each in held:
            each.close()
        for server in servers:
            server.close()
        Echo.abort_all()
        await asyncio.sleep(0.1)  # what was aborted is closed in the next turns of the loop


def measure(candidate: Candidate, kind: str, secs: float, warm: float = 0.3, *, reloads: bool = False) -> Sample:
    """A fixed rate of Poisson arrivals, latency from the scheduled time. With `reloads` as long as this round's share of them takes; a
    round that only warms up (a short `warm`) makes three."""
    options = candidate.bench.options
    count = 0 if not reloads else 3 if warm < 0.3 else max(1, options.reloads // options.rounds)
    port = candidate.port("h1-mtls")
    assert port is not None
    words = {"mode": "rate", "rate": options.reload_rate, "conns": 32, "warm": warm, "secs": max(secs, count * _IN_FORCE_S)}
    command = candidate.bench.load_command(port, True, pids=",".join(map(str, candidate.pids())), **words)
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {options.load_core})
    try:
        report, seen = asyncio.run(_run(candidate, command, count, secs, warm))
    except (OSError, TimeoutError, ConnectionError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        os.sched_setaffinity(0, before)
    sample = read(report, options.reload_rate)
    return seen | sample | ({"error": seen["error"]} if "error" in seen else {})
