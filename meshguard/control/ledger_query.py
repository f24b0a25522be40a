"""The ledger over the admin API: `GET /ledger/query` and `/ledger/stats`, answered by a child process.

The parameters are the long options of `meshguard audit query`; `cursor` of an answer asks for the next page. The index is brought up to
date in the child: none of that work shares an interpreter with the traffic. At most CHILDREN at a time, each within DEADLINE_S.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import orjson

from meshguard.control.operations import AdminRequest, Operation, OperationError

__all__ = ["CHILDREN", "DEADLINE_S", "ledger_operations"]

CHILDREN = 2
DEADLINE_S = 20.0
MAX_LIMIT = 1000
_MAX_OUTPUT = 32 * 1024 * 1024
_FILTERS = (
    *("principal", "path", "method", "verdict", "rule", "reason", "route", "status", "id", "trace", "since", "until", "where"),
    "event",
)


def ledger_operations(directory: Path) -> dict[str, Operation]:
    """Path and operation of each."""
    children = asyncio.Semaphore(CHILDREN)

    async def query(request: AdminRequest) -> tuple[int, object]:
        limit = request.query.get("limit", "100")
        if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit) <= MAX_LIMIT:
            raise OperationError(400, f"limit: 1 to {MAX_LIMIT}")
        known = {*_FILTERS, "limit", "cursor", "events"}
        arguments = ["query", "--format=page", f"--limit={limit}", *_options(request, known)]
        if "cursor" in request.query:
            arguments.append(f"--cursor={request.query['cursor']}")
        return 200, await _ask(children, directory, arguments)

    async def stats(request: AdminRequest) -> tuple[int, object]:
        return 200, await _ask(children, directory, ["stats", "--json", *_options(request, {*_FILTERS} - {"where"})])

    return {"/ledger/query": Operation(("GET",), query), "/ledger/stats": Operation(("GET",), stats)}


def _options(request: AdminRequest, known: set[str]) -> list[str]:
    unknown = set(request.query) - known
    if unknown:
        raise OperationError(400, f"unknown parameter {min(unknown)[:40]!r}; known: {', '.join(sorted(known))}")
    options = [f"--{name}={request.query[name]}" for name in _FILTERS if name in request.query]
    if request.query.get("events", "") not in ("", "0", "false"):
        options.append("--events")
    return options


async def _ask(children: asyncio.Semaphore, directory: Path, arguments: list[str]) -> object:
    if children.locked():
        raise OperationError(503, "other questions to the ledger are being answered")
    async with children:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "meshguard", "audit", *arguments, f"--ledger={directory}"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_MAX_OUTPUT,
        )
        try:
            async with asyncio.timeout(DEADLINE_S):
                out, problems = await process.communicate()
        except TimeoutError as exc:
            raise OperationError(504, f"no answer within {DEADLINE_S:g} s; ask for less, or by the command line") from exc
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode:
        text = problems.decode("utf-8", "replace").strip().rpartition("\n")[2].removeprefix("meshguard: ")
        raise OperationError(400, text[:300] or "the question could not be answered")
    made: object = orjson.loads(out)
    return made
