"""HTTP/2 in front, HTTP/1.1 behind: real clients, back-pressure, floods, limits, drain and living identities, for both engines."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import json
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h2.settings
import pytest

from tests.harness.client import RawClient, get
from tests.harness.http2 import H2Client
from tests.harness.mesh import SHOP, Mesh
from tests.harness.pki import now
from tests.harness.proxy import Proxy, eventually
from tests.harness.upstream import Exchange, Upstream, raw

MIB = 1 << 20
ENGINES = ("default", "reference")
engines = pytest.mark.parametrize("engine", ENGINES)
CALM = 0xB
LIMITS = {"body_idle_s": 1, "head_s": 1, "idle_s": 2, "reset_burst": 30, "reset_per_s": 1, "control_burst": 40, "control_per_s": 1}


class Place:
    """The process: for each engine an mTLS listener, one with tight limits and one without TLS that takes both protocols."""

    def __init__(self, proxy: Proxy, mesh: Mesh, directory: Path, upstream: Upstream) -> None:
        self.proxy = proxy
        self.mesh = mesh
        self.directory = directory
        self.upstream = upstream

    def dial(self, listener: str, who: str = "billing", **options: Any) -> H2Client:
        tls = None if listener.startswith("plain") else self.mesh.client(who, ("h2",))
        return H2Client(self.proxy.address(listener), tls, **options)


RULES = [
    {"id": "no-admin", "deny": "anyone", "paths": ["/admin/**"]},
    {"id": "all", "allow": "anyone", "paths": ["/**"]},
]


def listeners() -> dict[str, Any]:
    out: dict[str, Any] = {}
    for engine in ENGINES:
        out[engine] = {"tls": "mutual", "to": "app", "engine": engine}
        out[f"tight-{engine}"] = {"tls": "mutual", "to": "app", "engine": engine, "limits": LIMITS}
        out[f"plain-{engine}"] = {
            "tls": "none",
            "engine": engine,
            "protocols": ["h2", "http/1.1"],
            "routes": [{"id": f"kept-{engine}", "to": "app", "trailers": "keep"}],
        }
    return out


@pytest.fixture(scope="module")
def place(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("http2")
    config = {
        "identity": mesh.identity(directory),
        "listeners": listeners(),
        # 300 requests at once wait for their connections in one of the tests
        "clusters": {
            "app": {
                **mesh.endpoints(),
                "timeouts": {"connect_s": 5, "response_s": 8},
                "circuit": {"queue": 400, "queue_timeout_s": 8},
            }
        },
        "drain_s": 4,
    }
    with Proxy(directory, config, policies={"p.yaml": {"rules": RULES}}) as proxy:
        yield Place(proxy, mesh, directory, mesh.upstream)


# -- real clients ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(place: Place) -> dict[str, str]:
    certificate, key = place.mesh.ca.issue(SHOP + "billing", dns=["localhost"]).write(place.directory, "curl")
    return {"cert": str(certificate), "key": str(key)}


def need(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        pytest.skip(f"{tool} is not here: apt-get install {'curl' if tool == 'curl' else 'nghttp2-client'}")
    return found


@engines
def test_curl(engine: str, place: Place, files: dict[str, str]) -> None:
    upload = place.directory / "upload"
    upload.write_bytes(b"u" * 3_000_000)

    def run(path: str, *options: str) -> tuple[bytes, bytes]:
        command = [need("curl"), "-sS", "--noproxy", "*", "--insecure", "--cert", files["cert"], "--key", files["key"], "--max-time", "20"]
        done = subprocess.run(
            [*command, "-w", "\n%{http_version} %{http_code}", *options, f"https://localhost:{place.proxy.ports[engine]}{path}"],
            capture_output=True,
            timeout=30,
            check=True,
        )
        body, _, tail = done.stdout.rpartition(b"\n")
        return body, tail

    body, tail = run("/curl?x=1", "--http2")
    assert tail == b"2 200"
    assert json.loads(body)["target"] == "/curl?x=1"
    assert run("/curl", "--http1.1")[1] == b"1.1 200"
    body, tail = run("/admin/x", "--http2")
    assert tail == b"2 403"
    assert json.loads(body)["status"] == 403
    for framing in ([], ["-H", "Content-Length:"], ["-H", "Expect: 100-continue"]):
        body, tail = run("/upload", "--http2", "-T", str(upload), *framing)
        assert json.loads(body)["body_bytes"] == 3_000_000, (tail, framing)
    assert run("/head", "--http2", "-I")[1] == b"2 200"


@engines
def test_httpx_sends_many_at_a_time(engine: str, place: Place) -> None:
    import httpx

    async def go() -> list[httpx.Response]:
        context = place.mesh.client("billing", ("h2", "http/1.1"))
        async with httpx.AsyncClient(http2=True, http1=False, verify=context, trust_env=False) as client:
            url = f"https://localhost:{place.proxy.ports[engine]}"
            return await asyncio.gather(*(client.get(f"{url}/many/{n}") for n in range(50)))

    answers = asyncio.run(go())
    assert [answer.http_version for answer in answers] == ["HTTP/2"] * 50
    assert [answer.json()["target"] for answer in answers] == [f"/many/{n}" for n in range(50)]


NODE = """
const http2 = require('node:http2'), fs = require('node:fs');
const [url, cert, key] = process.argv.slice(1);
const session = http2.connect(url, {cert: fs.readFileSync(cert), key: fs.readFileSync(key), rejectUnauthorized: false});
const ask = (head, body) => new Promise((done, failed) => {
  const stream = session.request(head, {endStream: body === undefined});
  let status = 0, text = '';
  stream.setEncoding('utf8');
  stream.on('response', (fields) => { status = fields[':status']; });
  stream.on('data', (piece) => { text += piece; });
  stream.on('end', () => done([status, text]));
  stream.on('error', failed);
  if (body !== undefined) stream.end(body);
});
(async () => {
  const many = await Promise.all(Array.from({length: 150}, (_, n) => ask({':path': `/node/${n}`, cookie: `n=${n}`})));
  const upload = await ask({':method': 'POST', ':path': '/up'}, Buffer.alloc(2_000_000, 'u'));
  const denied = await ask({':path': '/admin/x'});
  const pinged = await new Promise((done) => session.ping((error) => done(error === null)));
  console.log(JSON.stringify({statuses: [...new Set(many.map((each) => each[0]))], targets: many.map((each) => JSON.parse(each[1]).target),
    uploaded: JSON.parse(upload[1]).body_bytes, denied: denied[0], pinged}));
  session.close();
})().catch((error) => { console.error(error); process.exit(1); });
"""


@engines
def test_node(engine: str, place: Place, files: dict[str, str]) -> None:
    """Node's own client: 150 requests at once on one connection (it keeps to our limit of 100 streams), an upload, a refusal, a ping."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: apt-get install nodejs")
    url = f"https://localhost:{place.proxy.ports[engine]}"
    done = subprocess.run([node, "-e", NODE, url, files["cert"], files["key"]], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told == {
        "statuses": [200],
        "targets": [f"/node/{n}" for n in range(150)],
        "uploaded": 2_000_000,
        "denied": 403,
        "pinged": True,
    }


@engines
def test_h2load_and_nghttp(engine: str, place: Place) -> None:
    port = place.proxy.ports[f"plain-{engine}"]
    done = subprocess.run(
        [need("h2load"), "-n", "600", "-c", "4", "-m", "30", f"http://127.0.0.1:{port}/load"], capture_output=True, timeout=60, check=True
    )
    assert b"600 succeeded, 0 failed, 0 errored" in done.stdout, done.stdout
    done = subprocess.run(
        [need("nghttp"), "-nv", f"http://127.0.0.1:{port}/one", f"http://127.0.0.1:{port}/two"], capture_output=True, timeout=60, check=True
    )
    assert done.stdout.count(b":status: 200") == 2, done.stdout


def asked(client: RawClient) -> Any:
    client.send(get("/x"), expect="GET")
    return client.response()


# -- the choice of a protocol ---------------------------------------------------------------------------------------------


@engines
def test_alpn_and_prior_knowledge(engine: str, place: Place) -> None:
    with place.dial(engine) as client:
        assert client.alpn == "h2"
        assert dict(client.get("/x").json["fields"])["via"] == "2 meshguard"
    with RawClient(place.proxy.address(engine), place.mesh.client("billing")) as old:  # no ALPN at all
        assert dict(asked(old).json["fields"])["via"] == "1.1 meshguard"
    with place.dial(f"plain-{engine}") as client:
        assert client.get("/x").status == 200
    with RawClient(place.proxy.address(f"plain-{engine}"), None) as old:
        assert asked(old).status == 200
    record = place.proxy.decision_where(lambda r: r["what"]["protocol"] == "h2" and r["what"]["listener"] == engine, "a record")
    assert record["what"]["protocol"] == "h2"


@engines
def test_a_preface_that_comes_in_pieces(engine: str, place: Place) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    with socket.create_connection(place.proxy.address(f"plain-{engine}"), timeout=5) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for octet in preface:
            sock.sendall(bytes([octet]))
        sock.sendall(b"\0\0\0\x04\0\0\0\0\0")
        assert sock.recv(100)[3] == 4  # SETTINGS
    with socket.create_connection(place.proxy.address(f"plain-{engine}"), timeout=5) as sock:
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 ")


# -- messages ---------------------------------------------------------------------------------------------------------------


@engines
def test_trailers_interim_answers_and_bodiless_ones(engine: str, place: Place) -> None:
    chunked = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked += b"3\r\nabc\r\n0\r\nX-End: 1\r\n\r\n"
    answers = {
        "/h2/trailers": chunked,
        "/h2/204": b"HTTP/1.1 204 No Content\r\n\r\n",
        "/h2/304": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 12\r\nETag: \"a\"\r\n\r\n",
        "/h2/empty": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "/h2/close": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end",
    }
    for path, data in answers.items():
        place.upstream.scripts[path] = raw(data, close=path.endswith("close"))
    with place.dial(f"plain-{engine}") as client:
        kept = client.get("/h2/trailers")
        assert kept.interim[0][":status"] == "103"
        assert (kept.status, bytes(kept.body), kept.trailers) == (200, b"abc", {"x-end": "1"})
        for name, status in (("204", 204), ("304", 304), ("empty", 200)):
            answer = client.get(f"/h2/{name}")
            assert (answer.status, bytes(answer.body), answer.ended) == (status, b"", True)
        assert bytes(client.get("/h2/close").body) == b"to the end"
        head = client.answer(client.request("/x", "HEAD"))
        assert (head.status, bytes(head.body)) == (200, b"")
        assert int(dict(head.fields)["content-length"]) > 0
    with place.dial(engine) as client:
        assert client.get("/h2/trailers").trailers is None  # this route drops them


@engines
def test_cookies_expectations_and_request_trailers(engine: str, place: Place) -> None:
    with place.dial(f"plain-{engine}") as client:
        stream = client.request("/x", "POST", [("cookie", "a=1"), ("cookie", "b=2"), ("expect", "100-continue")], end=False)
        client.until(lambda: client.streams[stream].interim, "100 Continue")
        client.data(stream, b"abc")
        client.h2.send_headers(stream, [("x-end", "1"), ("content-length", "9")], end_stream=True)
        client.flush()
        seen = client.answer(stream).json
        assert [value for name, value in seen["fields"] if name.lower() == "cookie"] == ["a=1; b=2"]
        assert (seen["body_bytes"], seen["trailers"]) == (3, [["x-end", "1"]])


@engines
def test_a_refused_body_is_stopped_and_the_connection_goes_on(engine: str, place: Place) -> None:
    with place.dial(engine) as client:
        stream = client.request("/admin/x", "POST", end=False)
        answer = client.answer(stream)
        assert answer.status == 403
        assert answer.ended
        client.until(lambda: answer.reset is not None, "RST_STREAM")
        assert answer.reset == 0  # NO_ERROR
        assert client.get("/x").status == 200
        assert not client.goaways


@engines
def test_malformed_and_oversized_heads(engine: str, place: Place) -> None:
    with place.dial(engine) as client:
        for fields in ([("Upper", "x")], [("connection", "close")], [("te", "gzip")], [("x", "a\r\nb: c")], [("x", " a")]):
            stream = client.answer(client.request("/x", fields=fields))
            assert (stream.head, stream.reset) == (None, 1), fields  # PROTOCOL_ERROR
        for path in ("", "x", "/a b", "/a#b"):
            assert client.answer(client.request(path)).reset == 1, path
        assert client.get("/x", fields=[("x_y", "1")]).status == 400
        assert client.get("/a/%2e%2e%2fb").status == 400
        assert client.get("/" + "a" * 9000).status == 414
        assert client.get("/x", fields=[(f"x-{n}", "a" * 500) for n in range(80)]).status == 431
        assert client.get("/x", fields=[(f"x-{n}", "a") for n in range(120)]).status == 431
        assert client.get("/x", fields=[("host", "other.example")]).status == 400
        assert client.get("/x").status == 200


@engines
def test_data_has_to_match_content_length(engine: str, place: Place) -> None:
    with place.dial(engine) as client:
        before = place.upstream.mark()
        stream = client.request("/length", "POST", [("content-length", "5")], end=False)
        client.data(stream, b"123456789", end=True)
        client.until(lambda: client.streams[stream].reset is not None or client.goaways, "an error")
        assert not [seen for seen in place.upstream.since(before) if seen.complete]


# -- flow control -----------------------------------------------------------------------------------------------------------


@engines
def test_large_bodies_both_ways(engine: str, place: Place) -> None:
    size = 20 * MIB
    block = bytes(range(256)) * 1024

    async def script(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(block)):
            await exchange.send(block)

    with place.dial(engine) as client:  # the first request loads what HTTP/2 needs, and code comes back that the start gave away
        client.get("/h2/small")
        stream = client.request("/h2/up", "POST", end=False)
        client.data(stream, b"x", end=True)
        client.answer(stream)
    before = place.proxy.rss_bytes()
    with place.upstream.on("/h2/big", script), place.dial(engine, deadline_s=30) as client:
        answer = client.get("/h2/big")
        assert hashlib.sha256(answer.body).digest() == hashlib.sha256(block * (size // len(block))).digest()
        stream = client.request("/h2/up", "POST", end=False)
        client.data(stream, block * (size // len(block)), end=True)
        assert client.answer(stream).json["body_bytes"] == size
    assert place.proxy.rss_bytes() - before < 8 * MIB


@engines
def test_an_upstream_that_does_not_read_shuts_the_clients_window(engine: str, place: Place) -> None:
    go = place.upstream.event()

    async def script(exchange: Exchange) -> None:
        exchange.connection.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await go.wait()
        exchange.connection.reader._transport.resume_reading()  # type: ignore[attr-defined]
        await exchange.read()
        await exchange.answer(200, b"done")

    with place.upstream.on("/h2/stuck", script), place.dial(f"tight-{engine}", deadline_s=12) as client:
        stream = client.request("/h2/stuck", "POST", end=False)
        sent = client.fill(stream, 64 * MIB, quiet_s=0.4)
        assert sent < 24 * MIB  # sockets on both sides, and one window
        assert client.get("/other").status == 200  # other streams are not held up
        go.set()
        client.data(stream, b"", end=True)
        assert bytes(client.answer(stream).body) == b"done"


@engines
def test_a_client_that_does_not_read_costs_little(engine: str, place: Place) -> None:
    """100 streams of 4 MiB with shut windows, three times over; others are served, and in the end everything is there."""
    size = 4 * MIB
    block = bytes(range(256)) * 256

    async def script(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(block)):
            await exchange.send(block)

    settings = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0}
    with place.upstream.on("/h2/slow", script), place.dial(engine) as good:
        good.get("/x")
        before = place.proxy.rss_bytes()
        bad = [place.dial(engine, settings=settings, frozen=True) for _ in range(3)]
        for client in bad:
            for _ in range(100):
                client.request("/h2/slow", flush=False)
            client.flush()
        for _ in range(20):
            assert good.get("/x").status == 200
        grown = place.proxy.rss_bytes() - before
        assert grown < 24 * MIB, f"{grown / MIB:.1f} MiB"
        client = bad[0]
        client.frozen = False
        client.h2.increment_flow_control_window(2**30)
        client.h2.increment_flow_control_window(size, 1)
        client.flush()
        assert hashlib.sha256(client.answer(1).body).digest() == hashlib.sha256(block * (size // len(block))).digest()
        for client in bad:
            client.sock.close()


# -- floods and limits ------------------------------------------------------------------------------------------------------


def flooded(place: Place, engine: str, frames: Callable[[H2Client], bytes]) -> tuple[int, int]:
    """What a connection with this in it ends with: (last stream, code)."""
    with place.dial(f"tight-{engine}") as client:
        client.get("/x")
        try:
            client.raw(frames(client))
        except OSError:
            pass
        client.until(lambda: client.goaways or client.closed, "GOAWAY")
        client.until_closed()
        return client.goaways[-1]


@engines
def test_rapid_reset(engine: str, place: Place) -> None:
    def frames(client: H2Client) -> bytes:
        for _ in range(200):
            stream = client.request("/x", flush=False)
            client.h2.reset_stream(stream, 8)
        return client.h2.data_to_send()

    assert flooded(place, engine, frames)[1] == CALM
    with place.dial(engine) as client:
        assert client.get("/x").status == 200


@engines
@pytest.mark.parametrize(
    "frame",
    [
        b"\0\0\x08\x06\0\0\0\0\0pingpong",
        b"\0\0\0\x04\0\0\0\0\0",
        b"\0\0\x05\x02\0\0\0\0\x01\0\0\0\0\x10",
    ],
    ids=["ping", "settings", "priority"],
)
def test_control_floods(engine: str, place: Place, frame: bytes) -> None:
    assert flooded(place, engine, lambda client: frame * 300)[1] == CALM


@engines
def test_a_flood_of_empty_data(engine: str, place: Place) -> None:
    def frames(client: H2Client) -> bytes:
        stream = client.request("/x", "POST", end=False)
        return (b"\0\0\0\0\0" + struct.pack("!I", stream)) * 300

    assert flooded(place, engine, frames)[1] == CALM


@engines
def test_too_many_streams_are_refused_one_by_one(engine: str, place: Place) -> None:
    hold = place.upstream.event()

    async def script(exchange: Exchange) -> None:
        await exchange.read()
        await hold.wait()
        await exchange.answer(200, b"late")

    with place.upstream.on("/h2/hold", script), place.dial(engine, deadline_s=15) as client:
        client.h2.remote_settings.acknowledge()
        client.h2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 1000
        client.h2.remote_settings.acknowledge()
        streams = [client.request("/h2/hold", flush=False) for _ in range(110)]
        client.flush()
        client.until(lambda: sum(client.streams[s].reset is not None for s in streams) == 10, "ten refusals")
        assert {client.streams[s].reset for s in streams[100:]} == {7}  # REFUSED_STREAM
        hold.set()
        assert {client.answer(s).status for s in streams[:100]} == {200}


# -- deadlines --------------------------------------------------------------------------------------------------------------


@engines
def test_a_body_that_stops_and_a_connection_that_idles(engine: str, place: Place) -> None:
    with place.dial(f"tight-{engine}") as client:
        stream = client.request("/x", "POST", end=False)
        client.data(stream, b"a")
        assert client.answer(stream).status == 408
        client.until(lambda: client.goaways, "GOAWAY of an idle connection")
        client.until_closed()
        assert client.goaways[-1] == (stream, 0)


# -- the end ----------------------------------------------------------------------------------------------------------------


@engines
def test_an_upstream_that_dies_in_the_middle_is_no_whole_answer(engine: str, place: Place) -> None:
    place.upstream.scripts["/h2/dies"] = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", reset=True)
    place.upstream.scripts["/h2/chunk"] = raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", close=True)
    with place.dial(engine) as client:
        for path in ("/h2/dies", "/h2/chunk"):
            answer = client.get(path)
            assert (answer.ended, answer.reset) == (False, 2), path  # INTERNAL_ERROR
        assert client.get("/x").status == 200


def small(mesh: Mesh, directory: Path, **listener: Any) -> Proxy:
    (directory / "shop.crl").write_bytes(mesh.ca.crl())
    (directory / "partner.crl").write_bytes(mesh.partner.crl())
    config = {
        "identity": mesh.identity(directory, crls=["shop.crl", "partner.crl"]),
        "listeners": {engine: {"tls": "mutual", "to": "app", "engine": engine, **listener} for engine in ENGINES},
        "clusters": {"app": {**mesh.endpoints(), "timeouts": {"response_s": 15}}},
        "drain_s": 5,
    }
    return Proxy(directory, config, policies={"p.yaml": {"rules": RULES}})


def test_drain_fails_no_request(mesh: Mesh, tmp_path: Path) -> None:
    go = mesh.upstream.event()

    async def script(exchange: Exchange) -> None:
        await exchange.read()
        await go.wait()
        await exchange.answer(200, b"in the end")

    with mesh.upstream.on("/h2/drain", script), small(mesh, tmp_path) as proxy:
        clients = [H2Client(proxy.address(engine), mesh.client("billing", ("h2",)), deadline_s=12) for engine in ENGINES]
        streams = [client.request("/h2/drain") for client in clients]
        mesh.upstream.wait(lambda: sum(s.target == "/h2/drain" and not s.aborted for s in mesh.upstream.requests) >= 2, "both requests")
        proxy.signal(signal.SIGTERM)
        for client in clients:
            client.until(lambda c=client: c.goaways, "the announcement")  # type: ignore[misc]
            assert client.goaways == [(2**31 - 1, 0)]
            assert client.get("/x").status == 200  # on its way when the announcement came
        for client, stream in zip(clients, streams, strict=True):
            client.until(lambda c=client: len(c.goaways) == 2, "the last GOAWAY")  # type: ignore[misc]
            assert client.goaways[1] == (stream + 2, 0)
        go.set()
        for client, stream in zip(clients, streams, strict=True):
            assert bytes(client.answer(stream).body) == b"in the end"
            client.until_closed(3)
        assert proxy.process is not None
        assert proxy.process.wait(5) == 0


def test_identities_and_policies_that_end(mesh: Mesh, tmp_path: Path) -> None:
    """An expired and a revoked caller lose their connection, a denied one its stream; each within its time, with the record's reason."""

    async def script(exchange: Exchange) -> None:
        await exchange.read()
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        await exchange.gone()

    with mesh.upstream.on("/h2/long", script), small(mesh, tmp_path) as proxy:
        short = mesh.ca.service("short", not_after=now() + dt.timedelta(seconds=4))
        revoked = mesh.ca.service("revoked")
        for engine in ENGINES:
            expiring = H2Client(proxy.address(engine), mesh.context(short, alpn=["h2"]))
            stream = expiring.request("/h2/long")
            expiring.until(lambda c=expiring, s=stream: c.streams[s].body == b"half", "the first half")  # type: ignore[misc]
            if engine == ENGINES[0]:
                first = expiring
            else:
                second = expiring
        losing = [H2Client(proxy.address(engine), mesh.context(revoked, alpn=["h2"])) for engine in ENGINES]
        for client in losing:
            client.request("/h2/long")
            client.until(lambda c=client: c.streams[1].body == b"half", "the first half")  # type: ignore[misc]
        (tmp_path / "fresh.crl").write_bytes(mesh.ca.crl(revoked, number=2))
        (tmp_path / "fresh.crl").replace(tmp_path / "shop.crl")
        for client in (*losing, first, second):
            client.until_closed(6)
            assert not client.streams[1].ended
            assert client.goaways
        staying = [H2Client(proxy.address(engine), mesh.client("billing", ("h2",))) for engine in ENGINES]
        for client in staying:
            client.request("/h2/long")
            client.until(lambda c=client: c.streams[1].body == b"half", "the first half")  # type: ignore[misc]
        eventually(lambda: proxy.metric("http_server_active_requests") == 2, "two under way")
        threshold = asyncio.new_event_loop()
        threshold.run_until_complete(asyncio.sleep(1.1))  # only what lasts longer than a second is judged again
        threshold.close()
        proxy.write_policy("p.yaml", {"rules": [{"id": "no-long", "deny": "anyone", "paths": ["/h2/long"]}, RULES[1]]})
        assert "reloaded" in proxy.reload()
        for client in staying:
            assert client.answer(1).reset == 8  # CANCEL
            assert client.get("/x").status == 200  # the connection goes on

        def kinds() -> list[str]:
            return [record["outcome"].get("aborted") for record in proxy.stdout.items if record["what"]["path"] == "/h2/long"]

        eventually(lambda: kinds() == ["revoked"] * 6, "six records of what was cut")


def test_changed_settings_make_clients_come_back(mesh: Mesh, tmp_path: Path) -> None:
    with small(mesh, tmp_path) as proxy:
        client = H2Client(proxy.address("default"), mesh.client("billing", ("h2",)))
        assert client.get("/x", fields=[("x-user", "me")]).status == 200
        proxy.config["listeners"]["default"]["strip_headers"] = ["x-user"]
        proxy.write_config()
        assert "reloaded" in proxy.reload()
        client.until_closed(4)
        assert client.goaways[-1][1] == 0
        with H2Client(proxy.address("default"), mesh.client("billing", ("h2",))) as fresh:
            assert "x-user" not in dict(fresh.get("/x", fields=[("x-user", "me")]).json["fields"])
