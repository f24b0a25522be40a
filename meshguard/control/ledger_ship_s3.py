"""Complete segments to S3: `PREFIX/NAME/shard-N/FIRST.segment.gz`, its `.hashes`, and `FIRST.checkpoint`, which signs its end.

An object is made once (`If-None-Match: *`); one that is there must have the size of ours. A large file goes up in parts, and the id of that
upload with the tags of its parts is kept beside the segments, so that an interrupted one goes on where it was.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from html import unescape
from pathlib import Path
from time import time
from urllib.parse import quote

import orjson

from meshguard.control.ledger_shipping import ShippingFailed
from meshguard.control.settings.ledger import S3Config
from meshguard.keys.aws_credentials import CredentialChain
from meshguard.keys.aws_signature import signed_fields
from meshguard.keys.http import Answer, HttpClient
from meshguard.keys.provider import KekError
from meshguard.storage.disk import Disk
from meshguard.storage.shard_reader import ShardReader

__all__ = ["PART_BYTES", "UPLOAD", "S3Carrier"]

LOOK_S = 30.0
CALL_S = 60.0
"""Deadline of one call, a part of PART_BYTES included."""
PART_BYTES = 8 << 20
"""Of a file that goes up in parts; at least 5 MiB (S3), and what is held in memory."""
UPLOAD = "shipping-s3"
"""What is known of the upload under way, in the shard's directory."""


class S3Carrier:
    """See `control.ledger_shipping.Carrier`."""

    def __init__(self, config: S3Config, name: str, number: int) -> None:
        region = config.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if not region:
            raise ShippingFailed("ledger.ship.s3: say the region, or set AWS_REGION")
        self.look_s = LOOK_S
        endpoint = (config.endpoint or f"https://s3.{region}.amazonaws.com").rstrip("/")
        prefix = f"{config.prefix.strip('/')}/" if config.prefix.strip("/") else ""
        folder = quote(f"{prefix}{name.replace('/', '_')}/shard-{number}", safe="/-_.~")
        self._base = f"{endpoint}/{config.bucket}/{folder}"
        self.place = f"s3 {self._base}"
        self._region = region
        self._http = HttpClient(CALL_S, config.ca)
        self._credentials = CredentialChain(self._http, region)

    async def close(self) -> None:
        """Nothing is held open."""

    async def ship(self, reader: ShardReader, mark: int, signed: int, done: Callable[[int], None]) -> None:
        for part in await asyncio.to_thread(reader.parts):
            if part.path is None or part.end is None or part.end <= mark or part.end > signed:
                continue
            stem = f"{part.first:020d}"
            await self._put_file(f"{stem}.hashes", part.hashes, reader)
            await self._put_file(part.path.name, part.path, reader)
            note = await asyncio.to_thread(reader.note_at, part.end)
            if note:
                await self._put(f"{stem}.checkpoint", note.encode())
            done(part.end)

    async def _put_file(self, name: str, path: Path, reader: ShardReader) -> None:
        size = (await asyncio.to_thread(path.stat)).st_size
        if size <= PART_BYTES:
            await self._put(name, await asyncio.to_thread(path.read_bytes))
        elif not await self._is_there(name, size):
            await self._put_parts(name, path, size, reader.directory / UPLOAD)

    async def _put(self, name: str, body: bytes) -> None:
        answer = await self._call("PUT", name, body=body, fields={"if-none-match": "*"})
        if answer.status not in (200, 409, 412) or (answer.status != 200 and not await self._is_there(name, len(body))):
            raise _refused(name, answer)

    async def _is_there(self, name: str, size: int) -> bool:
        answer = await self._call("HEAD", name)
        if answer.status == 404:
            return False
        if answer.status != 200:
            raise _refused(name, answer)
        if answer.fields.get("content-length") != str(size):
            raise ShippingFailed(f"{name}: an object of another size is there; nothing is overwritten")
        return True

    async def _put_parts(self, name: str, path: Path, size: int, state: Path) -> None:
        upload, tags = await asyncio.to_thread(_kept, state, name, size)
        if not upload:
            upload = _element(await self._expect("POST", name, "uploads="), "UploadId", name)
        count = -(-size // PART_BYTES)
        for number in range(len(tags) + 1, count + 1):
            body = await asyncio.to_thread(_read, path, (number - 1) * PART_BYTES)
            answer = await self._call("PUT", name, f"partNumber={number}&uploadId={quote(upload, safe='')}", body)
            if answer.status == 404:  # the upload was ended by somebody: from the beginning, at the next look
                await asyncio.to_thread(state.unlink, True)
            if answer.status != 200:
                raise _refused(name, answer)
            tags.append(answer.fields.get("etag", ""))
            told = orjson.dumps({"name": name, "size": size, "tags": tags, "upload": upload})
            await asyncio.to_thread(Disk().replace, str(state), told)
        listed = "".join(f"<Part><PartNumber>{place}</PartNumber><ETag>{tag}</ETag></Part>" for place, tag in enumerate(tags, 1))
        body = f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()
        answer = await self._call("POST", name, f"uploadId={quote(upload, safe='')}", body, {"if-none-match": "*"})
        await asyncio.to_thread(state.unlink, True)
        if (answer.status != 200 or b"<Error>" in answer.body) and not await self._is_there(name, size):
            raise _refused(name, answer)

    async def _expect(self, method: str, name: str, query: str) -> Answer:
        answer = await self._call(method, name, query)
        if answer.status != 200:
            raise _refused(name, answer)
        return answer

    async def _call(self, method: str, name: str, query: str = "", body: bytes = b"", fields: Mapping[str, str] | None = None) -> Answer:
        url = f"{self._base}/{name}" + (f"?{query}" if query else "")
        said = {**(fields or {}), "x-amz-content-sha256": sha256(body).hexdigest()}
        try:
            credentials = await self._credentials.get()
            said |= signed_fields(method, url, said, body, credentials, self._region, "s3", time())
            answer = await self._http.exchange(method, url, said, body)
        except KekError as exc:
            raise ShippingFailed(str(exc)) from exc
        if answer.status in (401, 403):
            self._credentials.forget()
        return answer


def _refused(name: str, answer: Answer) -> ShippingFailed:
    code = re.search(rb"<Code>([A-Za-z0-9]{1,64})</Code>", answer.body)
    return ShippingFailed(f"{name}: S3 answered {answer.status}{f' {code[1].decode()}' if code else ''}")


def _element(answer: Answer, name: str, what: str) -> str:
    found = re.search(rf"<{name}>([^<]+)</{name}>", answer.body.decode("utf-8", "replace"))
    if found is None:
        raise ShippingFailed(f"{what}: the answer of S3 has no {name}")
    return unescape(found[1])


def _kept(state: Path, name: str, size: int) -> tuple[str, list[str]]:
    """The upload of this file that is under way: its id and the tags of the parts that are there."""
    try:
        told = orjson.loads(state.read_bytes())
        if told["name"] == name and told["size"] == size:
            return str(told["upload"]), [str(tag) for tag in told["tags"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none, or not of this file
    return "", []


def _read(path: Path, offset: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(PART_BYTES)
