"""Entries to a JetStream stream, soon after they are under a checkpoint: JSON lines, some hundreds in a message, each entry once.

    subject    SUBJECT.NAME.shard-N              and, for the newest checkpoint, SUBJECT.NAME.shard-N.checkpoint
    headers    Meshguard-Origin, Meshguard-First, Meshguard-End (exclusive), Nats-Msg-Id (origin/first)

Where to go on is asked of the stream: the last message of the subject says how far it is. Each message expects that one to be the last
(`Nats-Expected-Last-Subject-Sequence`), so neither a lost answer nor a second sender can bring an entry twice or out of order.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable
from typing import Any

from meshguard.control.ledger_shipping import ShippingFailed
from meshguard.control.settings.ledger import NatsConfig
from meshguard.ledger.frame import HEADER, Damage, records
from meshguard.storage.ledger import shard_origin
from meshguard.storage.segments import Header
from meshguard.storage.shard_reader import ShardReader

__all__ = ["MESSAGE_BYTES", "NatsCarrier"]

LOOK_S = 1.0
CONNECT_S = 5.0
CALL_S = 10.0
MESSAGE_BYTES = 256 * 1024
"""Of entries in a message, and less where the server takes less."""
_AT_ONCE = 16
"""Messages that are read ahead."""


class NatsCarrier:
    """See `control.ledger_shipping.Carrier`. Raises ShippingFailed where nats-py is not installed."""

    def __init__(self, config: NatsConfig, name: str, number: int) -> None:
        try:
            import nats
        except ImportError as exc:
            raise ShippingFailed("ledger.ship.nats needs nats-py: install meshguard[nats]") from exc
        self._nats: Any = nats
        self._config = config
        self._origin = shard_origin(name, number)
        self.look_s = LOOK_S
        self._subject = f"{config.subject}.{re.sub(r'[^A-Za-z0-9_-]', '_', name)}.shard-{number}"
        self.place = f"nats {config.stream} {self._subject}"
        self._client: Any = None
        self._sequence = 0  # of the last message of the subject
        self._place = (-1, -1, 0)  # index, segment, offset: where reading goes on

    async def ship(self, reader: ShardReader, mark: int, signed: int, done: Callable[[int], None]) -> None:
        if mark >= signed:
            return
        try:
            async with asyncio.timeout(CONNECT_S + CALL_S):
                if self._client is None:
                    await self._connect()
                mark = await self._where(mark)
            stream = self._client.jetstream(timeout=CALL_S)
            limit = min(MESSAGE_BYTES, self._client.max_payload // 2)
            if mark:
                done(mark)
            while mark < signed:
                messages = await asyncio.to_thread(self._read, reader, mark, signed, limit)
                if not messages:
                    raise ShippingFailed(f"entries from {mark} on are not there any more")
                for first, end, payload in messages:
                    answer = await stream.publish(self._subject, payload, stream=self._config.stream, headers=self._headers(first, end))
                    if answer.duplicate:  # it was there after all: the stream says how far
                        raise ShippingFailed("a message had arrived before; the stream is asked again")
                    self._sequence, mark = answer.seq, end
                    done(end)
            note = await asyncio.to_thread(reader.note_at, signed)
            if note:
                headers = {"Nats-Msg-Id": f"{self._origin}/checkpoint/{signed}"}
                await stream.publish(f"{self._subject}.checkpoint", note.encode(), stream=self._config.stream, headers=headers)
        except (self._nats.errors.Error, TimeoutError, OSError) as exc:
            await self.close()
            raise ShippingFailed(f"{type(exc).__name__}: {exc}") from exc
        except ShippingFailed:
            await self.close()
            raise

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            try:
                async with asyncio.timeout(CONNECT_S):
                    await client.close()
            except (TimeoutError, OSError, self._nats.errors.Error):
                pass  # it is gone

    async def _connect(self) -> None:
        config = self._config
        context = None
        if any(server.startswith("tls:") for server in config.servers):
            context = await asyncio.to_thread(ssl.create_default_context, cafile=str(config.ca) if config.ca is not None else None)
        self._client = await self._nats.connect(
            servers=list(config.servers),
            name=f"meshguard ledger {self._origin}",
            tls=context,
            user_credentials=str(config.credentials) if config.credentials is not None else None,
            connect_timeout=CONNECT_S,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            error_cb=_quiet,
        )

    async def _where(self, mark: int) -> int:
        """How far the stream has this shard, `mark` where it has nothing of it (any more); makes the stream where there is none."""
        stream, errors = self._client.jetstream(timeout=CALL_S), self._nats.js.errors
        try:
            last = await stream.get_last_msg(self._config.stream, self._subject)
        except errors.NotFoundError:
            self._sequence = 0
            try:
                await stream.stream_info(self._config.stream)
            except errors.NotFoundError:
                await stream.add_stream(name=self._config.stream, subjects=[f"{self._config.subject}.>"])
            return mark
        self._sequence = last.seq
        headers = last.headers or {}
        try:
            if headers["Meshguard-Origin"] != self._origin:
                raise ValueError
            return int(headers["Meshguard-End"])
        except (KeyError, ValueError) as exc:
            raise ShippingFailed(f"the last message on {self._subject} is not of this ledger") from exc

    def _headers(self, first: int, end: int) -> dict[str, str]:
        return {
            "Meshguard-End": str(end),
            "Meshguard-First": str(first),
            "Meshguard-Origin": self._origin,
            "Nats-Expected-Last-Subject-Sequence": str(self._sequence),
            "Nats-Msg-Id": f"{self._origin}/{first}",
        }

    def _read(self, reader: ShardReader, start: int, stop: int, limit: int) -> list[tuple[int, int, bytes]]:
        """(first, end, entries as lines) from `start` on, in the thread. Raises ShippingFailed, OSError."""
        made: list[tuple[int, int, bytes]] = []
        index, first, lines, size = start, start, list[bytes](), 0
        for part in reader.parts():
            if part.path is None or (part.end is not None and part.end <= start) or index >= stop or len(made) >= _AT_ONCE:
                continue
            if part.first > index:
                raise ShippingFailed(f"entries {index} to {part.first} have expired")
            with reader.octets(part) as data:
                at, segment, offset = self._place
                if at != index or segment != part.first:
                    at, (_, offset) = part.first, Header.parse(data[: 1 << 17])
                try:
                    for begin, end in records(data, offset):
                        if at >= stop or (part.end is not None and at >= part.end):
                            break
                        at += 1
                        if at <= index:
                            continue  # on the way to where it goes on
                        if lines and size + end - begin > limit:
                            made.append((first, index, b"\n".join(lines)))
                            first, size = index, 0
                            lines.clear()
                            if len(made) >= _AT_ONCE:
                                break
                        lines.append(data[begin + HEADER : end])
                        size += end - begin
                        index, self._place = at, (at, part.first, end)
                except Damage as damage:
                    raise ShippingFailed(f"entry {index}: {damage.what}; see `meshguard audit verify`") from None
        if lines:
            made.append((first, index, b"\n".join(lines)))
        return made


async def _quiet(_: Exception) -> None:
    """What goes wrong comes back from the calls."""
