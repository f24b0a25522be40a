"""The admin API: a small HTTP/1.1 server on a port of its own, for probes, scrapes and the preStop hook.

    GET  /healthz     200 while the event loop turns
    GET  /readyz      200 or 503, JSON: {"ready", "reasons"}; callers on loopback also get the detail (policy, identity, clusters)
    GET  /metrics     Prometheus text 0.0.4, or OpenMetrics where it is asked for
    GET  /version     meshguard's and Python's version
    GET  /snapshot    digest, revision and time of the policy in force
    POST /drain       from loopback only: stop taking new work; ?wait=SECONDS answers when it is done, or after that time

Other parts add paths with `extend`. Those that change or disclose something are *guarded*: they take the bearer token of
`admin.token_file`, because a port on loopback is open to every process beside this one, also to the workload it protects.

It is kept boring: one request a connection, small bodies and only where one is expected, a deadline for each step, a bound on
connections. What is unknown is 404, another method 405. Browsers are kept out: a Host that is a name (other than localhost and the
configured ones) is refused, because that is what DNS rebinding looks like, and so is every request that carries an Origin or comes from
another site. /drain changes state, so it is no GET (RFC 9110 9.2.1): a link, an image or a prefetch cannot drain a proxy.

Everything shown comes from callables given at construction: this module knows no pipeline.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import os
import platform
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import h11
import orjson

from meshguard import __version__
from meshguard.control.operations import MAX_BODY_BYTES, AdminRequest, Operation, OperationError
from meshguard.control.status import EndpointStatus, ListenerStatus, Status, WorkersStatus
from meshguard.telemetry.metrics import Family
from meshguard.telemetry.prometheus import content_type, render
from meshguard.telemetry.redaction import Redactor

__all__ = ["AdminServer", "EndpointStatus", "ListenerStatus", "Providers", "Status", "WorkersStatus"]

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 32
MAX_HEAD_BYTES = 8192
HEAD_S = 5.0
WRITE_S = 10.0
CLOSE_S = 1.0
MAX_DRAIN_WAIT_S = 600.0

_GET = ("GET", "HEAD")
_JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Providers:
    """What the admin API shows and does.

    `families` is asked at each scrape. `start_drain` must be harmless when called again; `drained` waits until no request is left.
    `refresh` gathers what `status` and `families` then tell, where that takes asking others.
    """

    status: Callable[[], Status]
    families: Callable[[], Iterable[Family]]
    start_drain: Callable[[], None]
    drained: Callable[[], Awaitable[None]]
    refresh: Callable[[], Awaitable[None]] | None = None


class _Answer:
    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes | Iterator[str], media_type: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        self.status = status
        self.body = body
        self.headers = [("content-type", media_type), ("cache-control", "no-store"), ("x-content-type-options", "nosniff"), *headers]


class AdminServer:
    """The server. `hosts` are further names that a Host field may carry (lower case, without port)."""

    def __init__(
        self,
        providers: Providers,
        *,
        hosts: Collection[str] = (),
        redactor: Redactor | None = None,
        now: Callable[[], float] = time.time,
        token: Callable[[], bytes] | None = None,
    ) -> None:
        """`token` gives the bearer token of guarded operations, each time anew (empty: none, and then they are refused)."""
        self._providers = providers
        self._token = token or (lambda: b"")
        self._operations: dict[str, Operation] = {}
        self._hosts = frozenset(hosts) | {"localhost"}
        self._redactor = redactor or Redactor()
        self._now = now
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}
        self._routes: dict[str, tuple[tuple[str, ...], Callable[[h11.Request, str, bool], Awaitable[_Answer]]]] = {
            "/healthz": (_GET, self._healthz),
            "/readyz": (_GET, self._readyz),
            "/metrics": (_GET, self._metrics),
            "/version": (_GET, self._version),
            "/snapshot": (_GET, self._snapshot),
            "/drain": (("POST",), self._drain),
        }

    def extend(self, path: str, operation: Operation) -> None:
        """Serves `operation` at `path`. Raises ValueError for a path that is taken."""
        if path in self._routes or path in self._operations:
            raise ValueError(f"{path} is taken")
        self._operations[path] = operation

    async def start(self, host: str = "127.0.0.1", port: int = 9901, given: socket.socket | None = None) -> tuple[str, int]:
        """Listen, on the socket that another process has `given` or by binding. Returns the address in use (port 0 takes a free one).
        Raises OSError when it cannot be bound."""
        place: dict[str, Any] = {"host": host, "port": port} if given is None else {"sock": given}
        self._server = await asyncio.start_server(self._serve, **place, limit=MAX_HEAD_BYTES, backlog=MAX_CONNECTIONS)
        name = self._server.sockets[0].getsockname()
        return str(name[0]), int(name[1])

    @property
    def descriptor(self) -> int:
        """Of the listening socket, for a process that takes over; -1 when there is none."""
        return self._server.sockets[0].fileno() if self._server is not None and self._server.sockets else -1

    def stop_listening(self) -> None:
        """Another process answers from now on; what was asked here is still answered."""
        if self._server is not None:
            self._server.close()

    async def close(self) -> None:
        """Stop listening and end open connections."""
        if self._server is None:
            return
        self._server.close()
        for writer in list(self._connections):
            writer.transport.abort()
        tasks = [task for task in self._connections.values() if task is not None]
        if tasks:  # they see the end of their connection; one that waits for the drain is ended here
            _, waiting = await asyncio.wait(tasks, timeout=CLOSE_S)
            for task in waiting:
                task.cancel()
        await self._server.wait_closed()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        self._connections[writer] = asyncio.current_task()
        try:
            await self._exchange(reader, writer)
        except (TimeoutError, OSError, h11.LocalProtocolError):
            pass  # a slow or vanished client
        except Exception:  # outermost loop of a connection
            _log.exception("an admin request failed")
        finally:
            del self._connections[writer]
            writer.close()
            # a client that reads nothing must not keep the connection: what is still buffered is dropped then
            asyncio.get_running_loop().call_later(WRITE_S, writer.transport.abort)

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        request: h11.Request | None = None
        body = b""
        try:
            async with asyncio.timeout(HEAD_S):
                while True:
                    event = connection.next_event()
                    if event is h11.NEED_DATA:
                        connection.receive_data(await reader.read(MAX_HEAD_BYTES))
                    elif isinstance(event, h11.Request):
                        request = event
                        if request.target.partition(b"?")[0].decode("latin-1") not in self._operations:
                            break  # nothing here takes a body
                    elif isinstance(event, h11.Data) and len(body) + len(event.data) <= MAX_BODY_BYTES:
                        body += event.data
                    elif isinstance(event, h11.Data):
                        await self._send(connection, writer, request, _problem(413, f"a body of more than {MAX_BODY_BYTES} octets"))
                        return
                    elif isinstance(event, h11.EndOfMessage):
                        break
                    else:
                        return  # closed before a request
        except h11.RemoteProtocolError as exc:
            await self._send(connection, writer, None, _problem(exc.error_status_hint, "the request is malformed"))
            return
        if request is not None:
            await self._send(connection, writer, request, await self._answer(request, body, writer))

    async def _answer(self, request: h11.Request, body: bytes, writer: asyncio.StreamWriter) -> _Answer:
        fields: dict[str, str] = {}
        for name, value in request.headers:
            key = name.decode("ascii")
            fields[key] = f"{fields[key]},{value.decode('latin-1')}" if key in fields else value.decode("latin-1")
        if not self._host_allowed(fields.get("host", "")):
            return _problem(421, "the Host field names neither an address nor a configured name")
        if "origin" in fields or fields.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return _problem(403, "requests from web pages are not served")
        path, _, query = request.target.decode("latin-1").partition("?")
        operation = self._operations.get(path)
        if operation is not None:
            return await self._operate(operation, path, request.method.decode("latin-1"), query, body, fields.get("authorization", ""))
        if fields.get("content-length", "0").strip("0") or "transfer-encoding" in fields:
            return _problem(413, "a request body is not accepted")
        route = self._routes.get(path)
        if route is None:
            return _problem(404, "there is nothing at this path")
        methods, handler = route
        if request.method.decode("latin-1") not in methods:
            answer = _problem(405, "the method is not allowed here")
            answer.headers.append(("allow", ", ".join(methods)))
            return answer
        try:
            return await handler(request, query, _is_loopback(writer))
        except Exception:  # a provider failed: the probe gets an answer, the log the reason
            _log.exception("the admin API cannot answer %s", path)
            return _problem(500, "an internal error occurred")

    async def _operate(self, operation: Operation, path: str, method: str, query: str, body: bytes, authorization: str) -> _Answer:
        if method not in operation.methods:
            answer = _problem(405, "the method is not allowed here")
            answer.headers.append(("allow", ", ".join(operation.methods)))
            return answer
        if operation.guarded:
            token = self._token()
            if not token:
                return _problem(403, "admin.token_file is not configured: guarded operations are off")
            scheme, _, given = authorization.partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), token):
                answer = _problem(401, "a bearer token is needed, that of admin.token_file")
                answer.headers.append(("www-authenticate", "Bearer"))
                return answer
        try:
            parameters = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=32))
            status, value = await operation.handle(AdminRequest(method, parameters, body))
        except OperationError as exc:
            return _problem(exc.status, exc.title)
        except ValueError as exc:
            return _problem(400, str(exc))
        except Exception:  # a provider failed: the caller gets an answer, the log the reason
            _log.exception("the admin API cannot answer %s", path)
            return _problem(500, "an internal error occurred")
        return _json(status, value)

    async def _send(self, connection: h11.Connection, writer: asyncio.StreamWriter, request: h11.Request | None, answer: _Answer) -> None:
        body = answer.body
        headers = [*answer.headers, ("connection", "close")]
        if isinstance(body, bytes):
            headers.append(("content-length", str(len(body))))
        writer.write(_wire(connection.send(h11.Response(status_code=answer.status, headers=headers))))
        async with asyncio.timeout(WRITE_S):
            if request is not None and request.method == b"HEAD":
                body = b""
            for piece in (body,) if isinstance(body, bytes) else body:
                data = piece if isinstance(piece, bytes) else piece.encode("utf-8", "backslashreplace")
                if data:
                    writer.write(_wire(connection.send(h11.Data(data=data))))
                    await writer.drain()
                    await asyncio.sleep(0)  # a large exposition must not hold up the requests
            writer.write(_wire(connection.send(h11.EndOfMessage())))
            await writer.drain()

    def _host_allowed(self, host: str) -> bool:
        name = host.strip().lower()
        if name.startswith("["):
            name, bracket, port = name[1:].partition("]")
            port_ok = bool(bracket) and (not port or (port[0] == ":" and port[1:].isdecimal()))
        else:
            name, colon, port = name.partition(":")
            port_ok = not colon or port.isdecimal()
        if not port_ok:
            return False
        if name in self._hosts:
            return True
        try:
            ipaddress.ip_address(name)  # an address cannot be rebound
        except ValueError:
            return False
        return True

    async def _refresh(self) -> None:
        if self._providers.refresh is not None:
            await self._providers.refresh()

    async def _healthz(self, request: h11.Request, query: str, loopback: bool) -> _Answer:
        return _json(200, {"status": "ok"})

    async def _readyz(self, request: h11.Request, query: str, loopback: bool) -> _Answer:
        await self._refresh()
        status = self._providers.status()
        now = self._now()
        reasons = status.not_ready(now)
        told: dict[str, object] = {"ready": not reasons, "reasons": reasons}
        if loopback:  # addresses and names of the mesh are nobody else's business
            told["policy"] = self._policy(status) | {"reload_error": self._redactor.text(status.reload_error) or None}
            if status.identity_not_after is not None:
                told["identity"] = {
                    "spiffe_id": status.identity,
                    "not_after": _rfc3339(status.identity_not_after),
                    "expires_in_s": int(status.identity_not_after - now),
                }
            told["listeners"] = [
                {"name": listener.name, "address": listener.address, "listening": listener.listening} for listener in status.listeners
            ]
            told["clusters"] = {
                name: [
                    {"address": endpoint.address, "healthy": endpoint.healthy, **({"reason": endpoint.reason} if endpoint.reason else {})}
                    for endpoint in endpoints
                ]
                for name, endpoints in status.clusters.items()
            }
            if status.keys:
                told["keys"] = {name: {key: self._shown(value) for key, value in items.items()} for name, items in status.keys.items()}
            if status.fleet:
                told["fleet"] = {key: self._shown(value) for key, value in status.fleet.items()}
            told["draining"] = status.draining
            told["active"] = status.active
            told["pid"] = os.getpid()
        if status.workers is not None:
            told["workers"] = status.workers.told(loopback)
        return _json(503 if reasons else 200, told)

    async def _metrics(self, request: h11.Request, query: str, loopback: bool) -> _Answer:
        await self._refresh()
        accept = b",".join(value for name, value in request.headers if name == b"accept").decode("latin-1")
        media_type = content_type(accept)
        return _Answer(200, render(self._providers.families(), media_type), media_type)

    async def _version(self, request: h11.Request, query: str, loopback: bool) -> _Answer:
        return _json(
            200, {"meshguard": __version__, "python": platform.python_version(), "implementation": platform.python_implementation()}
        )

    async def _snapshot(self, request: h11.Request, query: str, loopback: bool) -> _Answer:
        return _json(200, self._policy(self._providers.status()))

    async def _drain(self, request: h11.Request, query: str, loopback: bool) -> _Answer:
        if not loopback:
            return _problem(403, "draining can be asked for on this machine only")
        wait_s = 0.0
        if query:
            name, _, text = query.partition("=")
            whole, _, fraction = text.partition(".")
            if name != "wait" or not (whole + fraction).isdecimal() or not text.isascii() or len(text) > 10:
                return _problem(400, "the only parameter is wait, in seconds")
            wait_s = min(float(text), MAX_DRAIN_WAIT_S)
        _log.info("draining was asked for over the admin API")
        self._providers.start_drain()
        drained = self._providers.status().active == 0
        if not drained and wait_s:
            try:
                async with asyncio.timeout(wait_s):
                    await self._providers.drained()
                drained = True
            except TimeoutError:
                drained = self._providers.status().active == 0
        return _json(200, {"draining": True, "drained": drained, "active": self._providers.status().active})

    def _shown(self, value: object) -> object:
        return self._redactor.text(value) if isinstance(value, str) else value

    def _policy(self, status: Status) -> dict[str, object]:
        return {
            "digest": status.policy_digest or None,
            "revision": status.policy_revision,
            "since": _rfc3339(status.policy_since) if status.policy_digest else None,
        }


def _json(status: int, value: object) -> _Answer:
    return _Answer(status, orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE), _JSON)


def _problem(status: int, title: str) -> _Answer:
    """RFC 9457 problem details."""
    return _Answer(status, orjson.dumps({"status": status, "title": title}, option=orjson.OPT_APPEND_NEWLINE), "application/problem+json")


def _wire(data: bytes | None) -> bytes:
    return data or b""


def _is_loopback(writer: asyncio.StreamWriter) -> bool:
    peer = writer.get_extra_info("peername")
    if not isinstance(peer, tuple):
        return False
    address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped.is_loopback
    return address.is_loopback


def _rfc3339(when: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))
