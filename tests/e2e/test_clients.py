"""Real clients over mTLS, and over a plain listener: curl, http.client, httpx, an h11 state machine."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import h11
import httpx
import pytest

from tests.e2e.conftest import Town


@pytest.fixture(scope="module")
def files(town: Town, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    directory = tmp_path_factory.mktemp("files")
    certificate, key = town.mesh.ca.issue("spiffe://shop.example/ns/prod/sa/billing", dns=["localhost"]).write(directory, "c")
    (directory / "ca.pem").write_bytes(town.mesh.ca.pem)
    return {"cert": str(certificate), "key": str(key), "ca": str(directory / "ca.pem"), "dir": str(directory)}


@pytest.fixture
def curl(town: Town, engine: str, files: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not here: apt-get install curl")

    def run(path: str, *options: str, scheme: str = "https") -> subprocess.CompletedProcess[bytes]:
        port = town.proxy.ports[engine]
        return subprocess.run(
            [
                "curl",
                "-sS",
                "--noproxy",
                "*",
                "--http1.1",
                "--insecure",
                "--cert",
                files["cert"],
                "--key",
                files["key"],
                "--max-time",
                "20",
                *options,
                f"{scheme}://localhost:{port}{path}",
            ],
            capture_output=True,
            timeout=30,
            check=False,
        )

    return run


def test_curl_get(curl: Callable[..., subprocess.CompletedProcess[bytes]]) -> None:
    done = curl("/open/curl?x=1", "-w", "\n%{http_code} %{num_connects}")
    body, _, tail = done.stdout.rpartition(b"\n")
    assert tail == b"200 1", done
    assert json.loads(body)["target"] == "/open/curl?x=1"


def test_curl_upload_with_expect(curl: Callable[..., subprocess.CompletedProcess[bytes]], files: dict[str, str]) -> None:
    path = Path(files["dir"]) / "upload"
    path.write_bytes(b"u" * 3_000_000)
    for options in (
        ["-T", str(path)],
        ["-T", str(path), "-H", "Transfer-Encoding: chunked"],
        ["--data-binary", f"@{path}", "-H", "Expect: 100-continue"],
    ):
        done = curl("/open/upload", *options)
        assert json.loads(done.stdout)["body_bytes"] == 3_000_000, done


def test_curl_denied(curl: Callable[..., subprocess.CompletedProcess[bytes]]) -> None:
    done = curl("/admin/x", "-w", "\n%{http_code} %{content_type}")
    body, _, tail = done.stdout.rpartition(b"\n")
    assert tail == b"403 application/problem+json"
    assert json.loads(body)["status"] == 403


def test_curl_path_as_is(curl: Callable[..., subprocess.CompletedProcess[bytes]]) -> None:
    done = curl("/open/../admin/x", "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}")
    assert done.stdout == b"403"


def test_curl_keeps_connections(curl: Callable[..., subprocess.CompletedProcess[bytes]], town: Town, engine: str) -> None:
    port = town.proxy.ports[engine]
    done = curl(
        "/open/1",
        "-o",
        "/dev/null",
        "-w",
        "%{num_connects} ",
        f"https://localhost:{port}/open/2",
        "-o",
        "/dev/null",
        f"https://localhost:{port}/open/3",
        "-o",
        "/dev/null",
    )
    assert sorted(done.stdout.split()) == [b"0", b"0", b"1"]


def test_curl_without_certificate(town: Town, engine: str) -> None:
    done = subprocess.run(
        [
            "curl",
            "-sS",
            "--noproxy",
            "*",
            "--insecure",
            "--max-time",
            "10",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            f"https://localhost:{town.proxy.ports[engine]}/open/x",
        ],
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert done.stdout in (b"000", b"403")


def test_curl_plain_http_to_tls(curl: Callable[..., subprocess.CompletedProcess[bytes]]) -> None:
    done = curl("/open/x", "-o", "/dev/null", "-w", "%{http_code}", scheme="http")
    assert done.stdout in (b"000", b"400")


def test_http_client(town: Town, engine: str) -> None:
    connection = http.client.HTTPSConnection("localhost", town.proxy.ports[engine], context=town.mesh.client("billing"), timeout=10)
    try:
        for i in range(5):
            connection.request("POST", f"/open/hc/{i}", body=b"x" * i)
            answer = connection.getresponse()
            assert answer.status == 200
            assert json.loads(answer.read())["body_bytes"] == i
        connection.request(
            "POST", "/open/hc/chunked", body=iter([b"ab", b"cd"]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
        )
        assert json.loads(connection.getresponse().read())["body_bytes"] == 4
        connection.request("HEAD", "/open/hc/head")
        assert connection.getresponse().read() == b""
    finally:
        connection.close()


def test_httpx(town: Town, engine: str) -> None:
    with httpx.Client(
        verify=town.mesh.client("billing"), base_url=f"https://localhost:{town.proxy.ports[engine]}", trust_env=False, timeout=10
    ) as client:
        assert (
            client.get("/open/httpx", params={"a": "b c"}).json()["target"] == "/open/httpx?a=b%20c"
            or client.get("/open/httpx", params={"a": "b c"}).json()["target"] == "/open/httpx?a=b+c"
        )
        assert client.post("/open/httpx", content=iter([b"a", b"bc"])).json()["body_bytes"] == 3
        denied = client.get("/admin/httpx")
        assert denied.status_code == 403
        assert denied.json()["status"] == 403
        with client.stream("GET", "/open/stream") as stream:
            assert stream.status_code == 200
            assert b"".join(stream.iter_bytes())


def test_h11_judges_every_byte(town: Town, engine: str) -> None:
    """h11's client state machine accepts every kind of answer that meshguard writes."""
    with (
        socket.create_connection(("localhost", town.proxy.ports[engine]), timeout=10) as raw,
        town.mesh.client("billing").wrap_socket(raw) as sock,
    ):
        connection = h11.Connection(h11.CLIENT)
        for method, path, body, status in (
            ("GET", "/open/h11", b"", 200),
            ("POST", "/open/h11", b"abc", 200),
            ("HEAD", "/open/h11", b"", 200),
            ("GET", "/admin/h11", b"", 403),
            ("HEAD", "/admin/h11", b"", 403),
            ("GET", "/nowhere", b"", 403),
            ("OPTIONS", "/open/h11", b"", 200),
        ):
            headers = [("Host", "localhost"), ("Content-Length", str(len(body)))]
            sock.sendall(connection.send(h11.Request(method=method, target=path, headers=headers)))
            sock.sendall((connection.send(h11.Data(data=body)) if body else b"") + connection.send(h11.EndOfMessage()))
            got = None
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    connection.receive_data(sock.recv(65536))
                elif isinstance(event, h11.Response):
                    got = event.status_code
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    assert isinstance(event, h11.Data | h11.InformationalResponse), event
            assert got == status, (method, path)
            connection.start_next_cycle()


def test_identity_of_the_proxy_is_shown(town: Town, engine: str, files: dict[str, str]) -> None:
    """The server certificate is the proxy's own SVID, and openssl verifies it under the bundle."""
    done = subprocess.run(
        [
            "openssl",
            "s_client",
            "-connect",
            f"localhost:{town.proxy.ports[engine]}",
            "-cert",
            files["cert"],
            "-key",
            files["key"],
            "-CAfile",
            files["ca"],
            "-verify_return_error",
            "-brief",
        ],
        input=b"",
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert b"Verification: OK" in done.stderr + done.stdout, done
