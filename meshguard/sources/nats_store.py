"""A connection to the store of a fleet: NATS with JetStream, by nats-py, which is loaded when the first connection is made.

One connection is one life: it is opened, used, and when anything is wrong with it, it is closed and whoever keeps it makes another. So
nothing of the client's own reconnecting is used, and no state of an earlier connection is left over. Every wait has a deadline.

The client believes what the server says about TLS before the handshake: credentials are therefore given only once TLS is there, and a
connection that was asked to be TLS and is not is closed before it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from meshguard.model.errors import MeshguardError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext
    from nats.js.kv import KeyValue

__all__ = ["Access", "Bucket", "Entry", "Store", "StoreError", "keyed", "load_client", "open_store"]

log = logging.getLogger(__name__)

T = TypeVar("T")
_WRONG_SEQUENCE = (10071, 10164)
_PING_S = 20
_CLOSE_S = 1.0
_PENDING_BYTES = 8 << 20


class StoreError(MeshguardError):
    """The store cannot be used. `code`: away (nobody answers), slow (not within the deadline), refused (login, permission), missing (no
    such bucket), conflict (somebody else was faster), size (more than the server takes), tls, lost (a watch has ended), client (nats-py is
    not installed)."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"fleet store {code}: {detail}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Access:
    """How the store is reached. `context` makes a TLS context for each connection (certificates change), None: plaintext, on loopback
    only. `login` gives ("user", user, password), ("token", token) or ()."""

    servers: tuple[str, ...]
    name: str
    context: Callable[[], Awaitable[ssl.SSLContext | None]]
    server_name: str | None
    login: Callable[[], tuple[str, ...]]
    connect_s: float
    answer_s: float


@dataclass(frozen=True, slots=True)
class Entry:
    """What a key holds: `value` None where it was deleted. `revision` is the store's number of this change, `created` epoch seconds."""

    key: str
    value: bytes | None
    revision: int
    created: float


def load_client() -> Any:
    """Imports nats-py (0.6 s: not on the loop). Raises StoreError(client)."""
    try:
        import nats.aio.client
    except ImportError as exc:
        raise StoreError("client", "nats-py is not installed: pip install 'meshguard[fleet]'") from exc
    return nats.aio.client.Client


async def open_store(access: Access) -> Store:
    """Connects to the first server that takes us, in a random order. Raises StoreError, of the last one."""
    make = await asyncio.to_thread(load_client)
    context = await access.context()
    failure = StoreError("away", "no server is configured")
    for server in random.sample(access.servers, len(access.servers)):
        try:
            return await _connect(make(), server, context, access)
        except StoreError as exc:
            failure = exc
    raise failure


async def _connect(client: Client, server: str, context: ssl.SSLContext | None, access: Access) -> Store:
    host = urlsplit(server).netloc
    store = Store(client, server, access.answer_s)
    options: dict[str, Any] = {}
    if context is not None:
        options |= {"tls": context, "tls_hostname": access.server_name or urlsplit(server).hostname}
    login = access.login()

    def secret(value: str) -> Callable[[], str]:
        def give() -> str:
            if context is not None and not _is_tls(client):
                raise StoreError("tls", f"{host} does not speak TLS: no credentials for it")
            return value

        return give

    if login and login[0] == "user":
        options |= {"user": secret(login[1]), "password": secret(login[2])}
    elif login:
        options["token"] = secret(login[1])
    try:
        async with asyncio.timeout(access.connect_s):
            await client.connect(
                [server],
                name=access.name,
                allow_reconnect=False,
                connect_timeout=max(1, int(access.connect_s)),
                ping_interval=_PING_S,
                max_outstanding_pings=2,
                pending_size=_PENDING_BYTES,
                flush_timeout=access.answer_s,
                error_cb=store.tell,
                closed_cb=store.closed,
                **options,
            )
        if context is not None and not _is_tls(client):
            raise StoreError("tls", f"{host} does not speak TLS")
    except BaseException as exc:
        await _end(client)
        if isinstance(exc, Exception):
            raise _said(exc, host) from exc
        raise
    return store


async def _end(client: Client) -> None:
    """Closes a connection in whatever state it is: the client waits for the end of a transport whose handshake has failed."""
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_CLOSE_S):
            await client.close()
    for name in ("_io_writer", "_bare_io_writer"):
        writer = getattr(client._transport, name, None)
        if writer is not None:
            writer.transport.abort()


def _is_tls(client: Client) -> bool:
    transport: Any = client._transport
    writer = getattr(transport, "_io_writer", None)
    return writer is not None and writer.get_extra_info("ssl_object") is not None


def _said(exc: Exception, what: str) -> StoreError:
    """One of our own errors for whatever the client raises."""
    if isinstance(exc, StoreError):
        return exc
    text = str(exc).removeprefix("nats: ") or type(exc).__name__
    kind = type(exc).__name__
    if isinstance(exc, TimeoutError) or kind in ("TimeoutError", "FlushTimeoutError"):
        return StoreError("slow", f"{what}: no answer in time")
    if isinstance(exc, ssl.SSLError):
        return StoreError("tls", f"{what}: {text}")
    if "uthoriz" in text or "ermission" in text or "uthentic" in text:
        return StoreError("refused", f"{what}: {text}")
    if kind in ("NoStreamResponseError", "BucketNotFoundError", "NotFoundError", "KeyNotFoundError"):
        return StoreError("missing", f"{what}: not there; `meshguard fleet init` makes the buckets")
    if kind == "KeyWrongLastSequenceError" or getattr(exc, "err_code", None) in _WRONG_SEQUENCE:
        return StoreError("conflict", f"{what}: somebody else has changed it")
    if kind == "MaxPayloadError":
        return StoreError("size", f"{what}: more than the server takes (max_payload)")
    return StoreError("away", f"{what}: {text}")


class Store:
    """An open connection. `ended` is set when it is over, whoever ended it."""

    def __init__(self, client: Client, server: str, answer_s: float) -> None:
        self.server = server
        self.answer_s = answer_s
        self.ended = asyncio.Event()
        self.trouble = ""
        self._client = client
        self._jetstream: JetStreamContext | None = None

    async def tell(self, exc: Exception) -> None:
        """Called by the client for what nobody waits for."""
        self.trouble = str(exc) or type(exc).__name__

    async def closed(self) -> None:
        """Called by the client at the end of the connection."""
        self.ended.set()

    async def wait(self, work: Awaitable[T], what: str) -> T:
        """`work` within the deadline. Raises StoreError."""
        self.trouble = ""
        try:
            async with asyncio.timeout(self.answer_s):
                return await work
        except Exception as exc:
            said = _said(exc, what)
            if said.code == "slow" and "ermission" in self.trouble:  # the server tells that beside the answers, and answers nothing
                said = StoreError("refused", f"{what}: {self.trouble}")
            raise said from exc

    @property
    def jetstream(self) -> JetStreamContext:
        if self._jetstream is None:
            self._jetstream = self._client.jetstream(timeout=self.answer_s)
        return self._jetstream

    @property
    def max_payload(self) -> int:
        """Octets that the server takes in one message."""
        return self._client.max_payload

    async def bucket(self, name: str) -> Bucket:
        """Raises StoreError(missing)."""
        return Bucket(self, name, await self.wait(self.jetstream.key_value(name), f"bucket {name}"))

    async def make_bucket(self, name: str, *, history: int = 1, ttl_s: float = 0.0, replicas: int = 1) -> bool:
        """Makes a bucket; False where it was there already (and stays as it is). Raises StoreError."""
        try:
            await self.bucket(name)
        except StoreError as exc:
            if exc.code != "missing":
                raise
        else:
            return False
        making = self.jetstream.create_key_value(bucket=name, history=history, ttl=ttl_s or None, replicas=replicas)
        await self.wait(making, f"bucket {name}")
        return True

    async def answers(self) -> None:
        """A round trip. Raises StoreError."""
        await self.wait(self._client.flush(timeout=max(1, int(self.answer_s))), "ping")

    async def publish(self, subject: str, data: bytes) -> None:
        """To whoever listens now; nothing is kept. Raises StoreError."""
        await self.wait(self._client.publish(subject, data), subject)

    async def listen(self, subject: str, take: Callable[[bytes], None], *, one_of: str = "", pending: int = 1024) -> None:
        """Calls `take` for each message until the connection is over; with `one_of` only one listener of that name gets each. Of
        more than `pending` that wait, the newest are dropped."""

        async def arrived(message: Any) -> None:
            take(message.data)

        await self.wait(self._client.subscribe(subject, queue=one_of, cb=arrived, pending_msgs_limit=pending), subject)
        await self.ended.wait()
        raise StoreError("away", self.trouble or "the connection is over")

    async def close(self) -> None:
        """Ends the connection. Raises nothing."""
        await _end(self._client)
        self.ended.set()


class Bucket:
    """A bucket of keys."""

    def __init__(self, store: Store, name: str, values: KeyValue) -> None:
        self.name = name
        self._store = store
        self._values = values

    async def get(self, key: str) -> Entry | None:
        """The newest value; None where there is none, or it was deleted. Raises StoreError."""
        try:
            found = await self._store.wait(self._values.get(key), f"{self.name}/{key}")
        except StoreError as exc:
            if exc.code == "missing":
                return None
            raise
        return Entry(key, found.value, found.revision or 0, 0.0)

    async def put(self, key: str, value: bytes) -> int:
        """Its revision. Raises StoreError."""
        self._check(key, value)
        return await self._store.wait(self._values.put(key, value), f"{self.name}/{key}")

    async def replace(self, key: str, value: bytes, revision: int) -> int:
        """Only where the newest revision is `revision` (0: there is none). Raises StoreError(conflict)."""
        self._check(key, value)
        if not revision:
            return await self._store.wait(self._values.create(key, value), f"{self.name}/{key}")
        return await self._store.wait(self._values.update(key, value, last=revision), f"{self.name}/{key}")

    async def delete(self, key: str) -> None:
        """Raises StoreError."""
        await self._store.wait(self._values.delete(key), f"{self.name}/{key}")

    def _check(self, key: str, value: bytes) -> None:
        if len(value) > self._store.max_payload:
            limit = self._store.max_payload
            raise StoreError("size", f"{self.name}/{key}: {len(value)} octets, the server takes {limit} (its max_payload)")

    async def all(self, keys: str = ">") -> list[Entry]:
        """What the keys of a pattern hold now. Raises StoreError."""
        found, told, wanted = [], 0, -1
        async with self._watching(keys) as watcher:
            while told != wanted:
                entry = await self._store.wait(watcher.updates(timeout=self._store.answer_s), self.name)
                if entry is not None:
                    told += 1
                    if entry.operation is None:
                        found.append(_entry(entry))
                    continue
                # the client may say "this was all" before what the server has sent is here
                info = await self._store.wait(watcher._sub.consumer_info(), self.name)
                wanted = info.delivered.consumer_seq if info.delivered is not None else 0
        newest = {each.key: each for each in found}
        return list(newest.values())

    async def watch(self, keys: str, take: Callable[[Entry | None], Awaitable[None]], check_s: float) -> None:
        """Awaits `take` for what the keys of a pattern hold now, then once with None, then for each change, until cancelled. Every
        `check_s` seconds the store is asked whether the watch lives and has told everything. Raises StoreError when it has not."""
        async with self._watching(keys) as watcher, asyncio.TaskGroup() as group:
            checking = group.create_task(self._check_watch(watcher, check_s))
            try:
                async for entry in watcher:
                    await take(None if entry is None else _entry(entry))
            finally:
                checking.cancel()

    async def _check_watch(self, watcher: Any, check_s: float) -> None:
        behind = -1
        while True:
            await asyncio.sleep(check_s)
            info = await self._store.wait(watcher._sub.consumer_info(), f"watch of {self.name}")
            delivered = info.delivered.stream_seq if info.delivered is not None else 0
            if info.num_pending and delivered == behind:
                raise StoreError("lost", f"watch of {self.name}: {info.num_pending} changes were not told")
            behind = delivered

    @contextlib.asynccontextmanager
    async def _watching(self, keys: str) -> AsyncIterator[Any]:
        watcher: Any = await self._store.wait(self._values.watch(keys), f"watch of {self.name}")
        try:
            yield watcher
        finally:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(self._store.answer_s):
                    await watcher.stop()


def _entry(entry: Any) -> Entry:
    value = entry.value if entry.operation is None else None
    return Entry(entry.key, value, entry.revision or 0, entry.created.timestamp() if entry.created is not None else 0.0)


def keyed(*parts: str) -> str:
    """A key of several names: characters that keys cannot have become `_`."""
    return ".".join("".join(char if (char.isalnum() and char.isascii()) or char in "-_=" else "_" for char in part) for part in parts)
