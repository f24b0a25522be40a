"""Shipping to S3 (moto) and to NATS: everything once, in order, whatever is interrupted, and nothing that was not shipped expires."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from meshguard.control import ledger_ship_nats, ledger_ship_s3
from meshguard.control.ledger_ship_nats import NatsCarrier
from meshguard.control.ledger_ship_s3 import UPLOAD, S3Carrier
from meshguard.control.ledger_shipping import Marks, ShippingFailed, carriers_of
from meshguard.control.settings.ledger import NatsConfig, S3Config, ShipConfig
from meshguard.storage.audit import verify_ledger
from meshguard.storage.retention import compress
from meshguard.storage.shard_reader import ShardReader
from tests.harness.jetstream import NatsServer, nats_server
from tests.harness.proxy import eventually, free_port
from tests.storage.ledgers import SIGNER, closed, commit, entry, opened, written

NAME = SIGNER.verifier.name
_MOTO = all(importlib.util.find_spec(name) for name in ("moto", "flask", "flask_cors", "py_partiql_parser"))
needs_moto = pytest.mark.skipif(not _MOTO, reason="moto with what its S3 needs is not installed")
needs_nats = pytest.mark.skipif(
    importlib.util.find_spec("nats") is None or nats_server() is None, reason="nats-py or the NATS server is not installed"
)


class Bucket:
    """S3 of moto, spoken to without signatures."""

    def __init__(self) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        eventually(self._answers, "moto", 30.0)
        assert self.call("PUT", "/archive")[0] == 200

    def call(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            scope = "AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=x"
            connection.request(method, path, body, {"authorization": scope})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def names(self, prefix: str) -> list[str]:
        listed = self.call("GET", f"/archive?list-type=2&prefix={prefix}")[1].decode()
        return sorted(re.findall(r"<Key>([^<]+)</Key>", listed))

    def fetch(self, prefix: str, target: Path) -> None:
        """All objects, as a ledger's directory has them."""
        for name in self.names(prefix):
            path = target / "/".join(name.split("/")[-2:])
            path.parent.mkdir(parents=True, exist_ok=True)
            status, data = self.call("GET", f"/archive/{name}")
            assert status == 200
            path.write_bytes(data)
        for place in target.iterdir():
            notes = b"".join(path.read_bytes() for path in sorted(place.glob("*.checkpoint")))
            (place / "checkpoints").write_bytes(notes)

    def _answers(self) -> bool:
        try:
            return self.call("GET", "/moto-api/")[0] == 200
        except OSError:
            return False

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    made = Bucket()
    yield made
    made.stop()


@pytest.fixture
def carrier(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Carrier:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return S3Carrier(
        S3Config(bucket="archive", prefix=tmp_path.name, region="us-east-1", endpoint=f"http://127.0.0.1:{bucket.port}"), NAME, 0
    )


@pytest.fixture
def reader(tmp_path: Path) -> ShardReader:
    return ShardReader(0, written(tmp_path / "ledger", 200))


def shipped(carrier: Any, reader: ShardReader, mark: int, signed: int = 200, marks: list[int] | None = None) -> list[int]:
    marks = [] if marks is None else marks
    asyncio.run(_shipped(carrier, reader, mark, signed, marks))
    return marks


async def _shipped(carrier: Any, reader: ShardReader, mark: int, signed: int, marks: list[int]) -> None:
    try:
        await carrier.ship(reader, mark, signed, marks.append)
    finally:
        await carrier.close()


@needs_moto
def test_s3_has_every_complete_segment_once_and_it_verifies(
    bucket: Bucket, carrier: S3Carrier, reader: ShardReader, tmp_path: Path
) -> None:
    compress(reader, 200)
    ends = [part.end for part in reader.parts() if part.end is not None]
    assert shipped(carrier, reader, 0) == ends
    mine = bucket.names(tmp_path.name)
    assert len(mine) == 3 * len(ends)
    assert shipped(carrier, reader, 0) == ends  # the mark was lost: everything is recognised
    assert bucket.names(tmp_path.name) == mine
    assert shipped(carrier, reader, ends[-1] or 0) == []
    bucket.fetch(tmp_path.name, tmp_path / "fetched")
    report = verify_ledger(tmp_path / "fetched", [SIGNER.verifier])
    assert report.good, report
    assert report.shards[0].size == report.shards[0].signed == ends[-1]


@needs_moto
def test_s3_overwrites_nothing(carrier: S3Carrier, bucket: Bucket, reader: ShardReader, tmp_path: Path) -> None:
    first = reader.parts()[0]
    assert bucket.call("PUT", f"/archive/{tmp_path.name}/{NAME.replace('/', '_')}/shard-0/{first.hashes.name}", b"other")[0] == 200
    with pytest.raises(ShippingFailed, match="another size"):
        shipped(carrier, reader, 0)


@needs_moto
def test_s3_goes_on_with_an_upload_that_was_interrupted(
    bucket: Bucket, carrier: S3Carrier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment of three parts; the sender ends after the second. Only the third is sent then."""
    monkeypatch.setattr(ledger_ship_s3, "PART_BYTES", 5 << 20)
    ledger = opened(tmp_path / "ledger", segment_bytes=11 << 20)
    for number in range(12):
        ledger.shard.append(entry(number, path="/" + "x" * 1_000_000))
        assert commit(ledger.shard) is None
    for number in range(12, 14):
        ledger.shard.append(entry(number))
        assert commit(ledger.shard) is None
    closed(ledger)
    reader = ShardReader(0, tmp_path / "ledger" / "shard-0")
    end = reader.parts()[0].end
    assert end is not None
    calls: list[tuple[str, str]] = []
    real = carrier._call

    async def call(method: str, name: str, query: str = "", *more: Any, **fields: Any) -> Any:
        calls.append((method, query.partition("&")[0]))
        if query.startswith("partNumber=3") and len(calls) < 10:
            raise ShippingFailed("cut")
        return await real(method, name, query, *more, **fields)

    monkeypatch.setattr(carrier, "_call", call)
    with pytest.raises(ShippingFailed, match="cut"):
        shipped(carrier, reader, 0, end)
    assert (reader.directory / UPLOAD).exists()
    calls += [("", "")] * 10
    assert shipped(carrier, reader, 0, end) == [end]
    assert [query for _, query in calls if query.startswith("partNumber")] == [f"partNumber={number}" for number in (1, 2, 3, 3)]
    assert not (reader.directory / UPLOAD).exists()
    name = f"{tmp_path.name}/{NAME.replace('/', '_')}/shard-0/{reader.parts()[0].first:020d}.segment"
    path = reader.parts()[0].path
    assert path is not None
    assert bucket.call("GET", f"/archive/{name}")[1] == path.read_bytes()


@needs_moto
def test_s3_that_is_away_or_refuses_is_said(carrier: S3Carrier, bucket: Bucket, reader: ShardReader) -> None:
    with pytest.raises(ShippingFailed, match=r"no answer|refused|Connect call failed"):
        shipped(S3Carrier(S3Config(bucket="archive", region="us-east-1", endpoint="http://127.0.0.1:1"), NAME, 0), reader, 0)
    absent = S3Carrier(S3Config(bucket="absent", region="us-east-1", endpoint=f"http://127.0.0.1:{bucket.port}"), NAME, 0)
    with pytest.raises(ShippingFailed, match="NoSuchBucket"):
        shipped(absent, reader, 0)


def test_s3_needs_a_region(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ShippingFailed, match="AWS_REGION"):
        S3Carrier(S3Config(bucket="archive"), NAME, 0)


def test_marks_outlive_the_process_and_may_be_lost(tmp_path: Path) -> None:
    marks = Marks(tmp_path)
    marks.set("a", 5)
    marks.set("b", 7)
    assert (Marks(tmp_path).get("a"), Marks(tmp_path).get("b"), Marks(tmp_path).get("c")) == (5, 7, 0)
    (tmp_path / "shipped").write_bytes(b"{")
    assert Marks(tmp_path).get("a") == 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    made = NatsServer(tmp_path / "nats").start()
    yield made
    made.stop()


def to_nats(server: NatsServer) -> NatsCarrier:
    return NatsCarrier(NatsConfig(servers=[server.url]), NAME, 0)


def streamed(server: NatsServer) -> tuple[list[bytes], list[str]]:
    """The entries and the checkpoints in the stream, in its order."""
    return asyncio.run(_streamed(server))


async def _streamed(server: NatsServer) -> tuple[list[bytes], list[str]]:
    import nats

    client = await nats.connect(server.url)
    try:
        stream = client.jetstream()
        state = (await stream.stream_info("MESHGUARD_LEDGER")).state
        found: list[bytes] = []
        notes: list[str] = []
        for sequence in range(state.first_seq, state.last_seq + 1):
            message = await stream.get_msg("MESHGUARD_LEDGER", sequence)
            if message.subject.endswith(".checkpoint"):
                notes.append(message.data.decode())
                continue
            lines = message.data.split(b"\n")
            assert message.headers["Meshguard-First"] == str(len(found))
            found += lines
            assert message.headers["Meshguard-End"] == str(len(found))
        return found, notes
    finally:
        await client.close()


@needs_nats
@pytest.mark.parametrize("packed", [False, True])
def test_nats_has_every_entry_once_in_order(server: NatsServer, reader: ShardReader, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_ship_nats, "MESSAGE_BYTES", 1500)
    if packed:
        compress(reader, 200)
    carrier = to_nats(server)
    assert shipped(carrier, reader, 0, 90)[-1] == 90
    assert shipped(carrier, reader, 90, 90) == []
    assert shipped(carrier, reader, 90, 200)[-1] == 200
    found, notes = streamed(server)
    assert found == [entry(number) for number in range(200)]
    assert len(notes) == 2
    assert notes[-1].split("\n")[1] == "200"


@needs_nats
def test_nats_is_asked_where_to_go_on(server: NatsServer, reader: ShardReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks that are lost, a sender that ended before it had an answer, and two senders at once: each entry is there once."""
    monkeypatch.setattr(ledger_ship_nats, "MESSAGE_BYTES", 1500)
    marks: list[int] = []

    def cut(index: int) -> None:
        marks.append(index)
        if len(marks) == 3:
            raise ShippingFailed("cut before the mark was written")

    class Cut(list[int]):
        append = staticmethod(cut)  # type: ignore[assignment]

    with pytest.raises(ShippingFailed, match="cut"):
        shipped(to_nats(server), reader, 0, 200, Cut())
    server.stop()
    with pytest.raises(ShippingFailed):
        shipped(to_nats(server), reader, 0, 200)
    server.start()

    async def both() -> None:
        first, second = to_nats(server), to_nats(server)
        results = await asyncio.gather(*(_shipped(each, reader, 0, 200, []) for each in (first, second)), return_exceptions=True)
        assert all(result is None or isinstance(result, ShippingFailed) for result in results), results

    asyncio.run(both())
    shipped(to_nats(server), reader, 0, 200)
    found, _ = streamed(server)
    assert found == [entry(number) for number in range(200)]


@needs_nats
def test_nats_is_not_given_what_is_not_there_any_more(server: NatsServer, reader: ShardReader) -> None:
    first = reader.parts()[0]
    assert first.path is not None
    os.unlink(first.path)
    with pytest.raises(ShippingFailed, match="have expired"):
        shipped(to_nats(server), reader, 0)


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nats", None)
    with pytest.raises(ShippingFailed, match=r"meshguard\[nats\]"):
        carriers_of(ShipConfig(nats=NatsConfig(servers=["nats://127.0.0.1:4222"])), NAME, 0)


def test_a_ship_section_leads_somewhere() -> None:
    with pytest.raises(ValueError, match="leave the section out"):
        ShipConfig()


@pytest.mark.parametrize("wrong", [{"stream": "a b"}, {"stream": ""}, {"subject": "a..b"}, {"subject": "a.>"}, {"servers": ["http://x:1"]}])
def test_names_of_streams_are_plain(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"letters, digits|a URL such as"):
        NatsConfig(**{"servers": ["nats://127.0.0.1:4222"], **wrong})


def test_names_of_buckets_are_plain() -> None:
    for wrong in ({"bucket": "a?b"}, {"bucket": "ab"}, {"bucket": "abc", "prefix": "a b"}, {"bucket": "abc", "region": "eu&"}):
        with pytest.raises(ValueError, match=r"letters, digits|at least 3"):
            S3Config(**wrong)
