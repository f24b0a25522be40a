"""Key sets over real sockets: fetch, validators, redirects, limits, failures, and how often an issuer is asked."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from joserfc.jwk import ECKey

from meshguard.identity.jwk import KeySet
from meshguard.model.errors import IdentityError
from meshguard.sources.jwks import MAX_OCTETS, MAX_REFRESH_S, MIN_REFRESH_S, UNKNOWN_KEY_S, JwksSource


def key_set(*kids: str) -> bytes:
    return json.dumps({"keys": [ECKey.generate_key("P-256", {"kid": kid}, private=True).as_dict(private=False) for kid in kids]}).encode()


def answer(body: bytes = b"", status: str = "200 OK", **fields: str) -> bytes:
    lines = [
        f"HTTP/1.1 {status}",
        f"content-length: {len(body)}",
        *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Issuer:
    """A server that gives scripted answers, the last one again and again, and keeps the requests."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[str] = []
        self.asked = asyncio.Condition()
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            scripted = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            async with self.asked:
                self.requests.append(request.decode())
                self.asked.notify_all()
            if scripted is None:
                await reader.read()  # never answers
            else:
                writer.write(scripted)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(10), self.asked:
            await self.asked.wait_for(lambda: len(self.requests) >= count)


@asynccontextmanager
async def served(*answers: bytes | None, context: ssl.SSLContext | None = None) -> AsyncGenerator[Issuer, None]:
    issuer = Issuer(*answers)
    server = await asyncio.start_server(issuer.handle, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    issuer.url = f"{'https' if context else 'http'}://127.0.0.1:{port}/jwks.json?v=1"
    try:
        yield issuer
    finally:
        server.close()
        await server.wait_closed()


class Published(list[KeySet]):
    """Every key set that a source published."""


def run(check: Callable[[], object]) -> None:
    asyncio.run(check())  # type: ignore[arg-type]


async def failure(source: JwksSource) -> IdentityError:
    with pytest.raises(IdentityError) as caught:
        await source.refresh()
    return caught.value


def test_a_key_set_is_fetched_and_then_only_asked_about() -> None:
    async def check() -> None:
        body = key_set("a")
        async with served(
            answer(body, etag='"v1"', cache_control="max-age=120"), answer(status="304 Not Modified"), answer(key_set("b"))
        ) as issuer:
            published = Published()
            source = JwksSource(issuer.url, published.append)
            assert await source.refresh() == 120
            assert [len(keys) for keys in published] == [1]
            assert "if-none-match" not in issuer.requests[0].lower()
            assert issuer.requests[0].startswith("GET /jwks.json?v=1 HTTP/1.1\r\n")
            await source.refresh()
            assert 'if-none-match: "v1"' in issuer.requests[1].lower()
            assert len(published) == 1
            await source.refresh()
            assert len(published) == 2
            assert published[1].find("b", "ES256").kid == "b"

    run(check)


@pytest.mark.parametrize(
    ("cache_control", "expected"),
    [
        ("max-age=5", MIN_REFRESH_S),
        ("max-age=100", 100),
        ("public, max-age=100, must-revalidate", 100),
        ('max-age="100"', 100),
        ("max-age=99999999", MAX_REFRESH_S),
        ("no-store", MIN_REFRESH_S),
        ("no-cache, max-age=3600", MIN_REFRESH_S),
        ("", 300),
        ("s-maxage=7000", 300),
        ("max-age=x", 300),
        ("max-age=-1", 300),
    ],
)
def test_freshness_is_bounded(cache_control: str, expected: float) -> None:
    async def check() -> None:
        async with served(answer(key_set("a"), cache_control=cache_control)) as issuer:
            assert await JwksSource(issuer.url, Published().append).refresh() == expected

    run(check)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (answer(b"nonsense"), "bad_key_set"),
        (answer(b'{"keys":[]}'), "no usable key"),
        (answer(status="500 Oops"), "status 500"),
        (answer(status="404 Not Found"), "status 404"),
        (answer(status="304 Not Modified"), "status 304"),
        (answer(status="302 Found"), "status 302"),
        (answer(key_set("a"), content_encoding="gzip"), "content coding"),
        (answer(b"x" * (MAX_OCTETS + 1)), "more than"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}", "key_set_unavailable"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}", "key_set_unavailable"),
        (b"SSH-2.0-x\r\n\r\n", "key_set_unavailable"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 100_000, "key_set_unavailable"),
        (b"", "key_set_unavailable"),
    ],
)
def test_what_goes_wrong_keeps_the_last_good_set(reply: bytes, words: str) -> None:
    async def check() -> None:
        async with served(answer(key_set("a")), reply, answer(key_set("b"))) as issuer:
            published = Published()
            source = JwksSource(issuer.url, published.append)
            await source.refresh()
            assert words in str(await failure(source))
            assert len(published) == 1
            assert source.failures == 1
            assert words in source.problem
            await source.refresh()
            assert len(published) == 2
            assert (source.failures, source.problem) == (0, "")

    run(check)


def test_a_silent_issuer_meets_the_deadline() -> None:
    async def check() -> None:
        async with served(None) as issuer:
            source = JwksSource(issuer.url, Published().append, fetch_s=0.2)
            assert "no answer in 0.2 s" in str(await failure(source))

    run(check)


def test_an_issuer_that_is_not_there() -> None:
    async def check() -> None:
        async with served(b"") as issuer:
            url = issuer.url
        assert (await failure(JwksSource(url, Published().append))).code == "key_set_unavailable"

    run(check)


def test_redirects_stay_on_their_origin() -> None:
    async def check() -> None:
        async with served(answer(status="307 Temporary Redirect", location="/moved"), answer(key_set("a"))) as issuer:
            published = Published()
            await JwksSource(issuer.url, published.append).refresh()
            assert issuer.requests[1].startswith("GET /moved HTTP/1.1")
            assert len(published) == 1
        async with served(answer(key_set("evil"))) as evil:
            for location in (
                evil.url,
                "https://127.0.0.1/x",
                "//127.0.0.2:1/x",
                "http://example.com/x",
                "file:///etc/passwd",
                "http://user@127.0.0.1/",
            ):
                async with served(answer(status="302 Found", location=location)) as issuer:
                    published = Published()
                    assert (await failure(JwksSource(issuer.url, published.append))).code == "key_set_unavailable"
                    assert published == []
            assert evil.requests == []
        async with served(answer(status="301 Moved", location="/again")) as issuer:
            assert "too many redirects" in str(await failure(JwksSource(issuer.url, Published().append)))
            assert len(issuer.requests) == 4

    run(check)


@pytest.mark.parametrize(
    "url",
    [
        "http://id.example/jwks",
        "http://10.0.0.1/jwks",
        "ftp://127.0.0.1/x",
        "https://",
        "https:///x",
        "https://user:secret@id.example/",
        "https://id.example/#f",
        "https://id.example/\u00e9",
        "https://id.example:99999/",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        JwksSource(url, Published().append)


def certificate() -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "id")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.public_bytes(serialization.Encoding.PEM), private


def test_tls_is_verified(tmp_path: Path) -> None:
    public, private = certificate()
    (tmp_path / "c.pem").write_bytes(public + private)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "c.pem")
    trusting = ssl.create_default_context(cadata=public.decode())

    async def check() -> None:
        async with served(answer(key_set("a")), context=server) as issuer:
            published = Published()
            await JwksSource(issuer.url, published.append, context=trusting).refresh()
            assert len(published) == 1
            assert "CERTIFICATE_VERIFY_FAILED" in str(await failure(JwksSource(issuer.url, published.append)))
            assert len(published) == 1

    run(check)


def test_a_file_is_read_anew_when_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "jwks.json"

    async def check() -> None:
        published = Published()
        source = JwksSource(str(file), published.append)
        assert (await failure(source)).code == "key_set_unavailable"
        file.write_bytes(key_set("a"))
        assert await source.refresh() == MIN_REFRESH_S
        await source.refresh()
        assert len(published) == 1
        file.write_bytes(key_set("a", "b"))
        await source.refresh()
        assert [len(keys) for keys in published] == [1, 2]
        file.write_bytes(b"x" * (MAX_OCTETS + 1))
        assert "more than" in str(await failure(source))

    run(check)


def test_unknown_kids_cause_at_most_one_fetch_in_a_while() -> None:
    now = [1000.0]

    async def check() -> None:
        async with served(answer(key_set("a"))) as issuer:
            source = JwksSource(issuer.url, Published().append, clock=lambda: now[0])
            async with asyncio.TaskGroup() as group:
                task = group.create_task(source.run())
                await issuer.until(1)
                for _ in range(100):
                    source.unknown_key()
                await issuer.until(2)
                for _ in range(100):
                    source.unknown_key()
                now[0] += UNKNOWN_KEY_S - 1
                source.unknown_key()
                await asyncio.sleep(0.1)  # what must not happen has no event to wait for
                assert len(issuer.requests) == 2
                now[0] += 1
                source.unknown_key()
                await issuer.until(3)
                task.cancel()

    run(check)


def test_running_goes_on_after_failures_and_backs_off() -> None:
    jittered: list[float] = []

    def jitter() -> float:
        jittered.append(1.0)
        return 0.0

    async def check() -> None:
        async with served(answer(status="500 Oops"), answer(status="500 Oops"), answer(key_set("a"))) as issuer:
            good = asyncio.Event()
            source = JwksSource(issuer.url, lambda keys: good.set(), jitter=jitter)
            async with asyncio.TaskGroup() as group:
                task = group.create_task(source.run())
                await issuer.until(3)
                async with asyncio.timeout(5):
                    await good.wait()
                task.cancel()
            assert len(jittered) == 2

    run(check)
