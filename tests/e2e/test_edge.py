"""An edge gateway: certificates by name, end users, forwarded fields, redirects, limits of single routes."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from tests.harness.client import RawClient, Response, chunked, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.pki import Certificate, client_context
from tests.harness.ports import Refusing
from tests.harness.proxy import Proxy

LOGIN, OTHER = "https://login.shop.example", "https://other.example"


class Edge:
    """The process, its certificates and the issuers' keys."""

    def __init__(self, proxy: Proxy, mesh: Mesh, keys: dict[str, ECKey], directory: Path) -> None:
        self.proxy = proxy
        self.mesh = mesh
        self.keys = keys
        self.directory = directory
        self.context = ssl.create_default_context(cadata=mesh.ca.pem.decode())  # compares names

    def open(self, listener: str, name: str | None = "api.shop.example") -> RawClient:
        return RawClient(self.proxy.address(listener), self.context, server_name=name)

    def ask(self, listener: str, path: str = "/open", *fields: str, host: str = "api.shop.example", method: str = "GET") -> Response:
        tls = None if listener.startswith("plain") else self.context
        with RawClient(self.proxy.address(listener), tls, server_name="api.shop.example" if tls else None) as client:
            return client.request(get(path, host=host, fields=fields, method=method))

    def sent(self, listener: str, *fields: str) -> tuple[dict[str, list[str]], dict[str, Any]]:
        """What the upstream is told, and the record, of a request with these fields."""
        mark, since = self.mesh.upstream.mark(), self.proxy.mark()
        assert self.ask(listener, "/open", *fields).status == 200
        (seen,) = self.mesh.upstream.since(mark)
        told: dict[str, list[str]] = {}
        for name, value in seen.head.fields:
            told.setdefault(name.lower(), []).append(value)
        return told, self.proxy.decision_where(lambda r: r["what"]["listener"] == listener, "the record", since)["who"]

    def token(self, issuer: str, subject: str) -> str:
        claims = {"iss": issuer, "aud": "shop", "sub": subject, "exp": int(time.time()) + 300}
        return "authorization: Bearer " + jwt.encode({"alg": "ES256", "kid": "k"}, claims, self.keys[issuer])


def _web(mesh: Mesh, directory: Path, file: str, *names: str) -> Certificate:
    made = mesh.ca.issue(None, dns=list(names))
    made.write(directory, file)
    return made


@pytest.fixture(scope="module")
def edge(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    directory = tmp_path_factory.mktemp("edge")
    keys = {issuer: ECKey.generate_key("P-256", {"kid": "k"}) for issuer in (LOGIN, OTHER)}
    for issuer, key in keys.items():
        (directory / f"{issuer[8:13]}.json").write_bytes(orjson.dumps({"keys": [key.as_dict(private=False)]}))
    _web(mesh, directory, "api", "api.shop.example", "login.shop.example")
    _web(mesh, directory, "wild", "*.apps.example", "apps.example")
    certificates = [
        {"certificate": "api.pem", "key": "api.key"},
        {"names": ["*.apps.example"], "certificate": "wild.pem", "key": "wild.key"},
    ]
    server = {"tls": "server", "certificate": "api.pem", "key": "api.key", "to": "app"}
    dead = Refusing()
    config: dict[str, Any] = {
        "identity": mesh.identity(directory),
        "jwt": [{"issuer": issuer, "audiences": ["shop"], "jwks": f"{issuer[8:13]}.json", "algorithms": ["ES256"]} for issuer in keys],
        "listeners": {
            "named": {"tls": "server", "certificates": certificates, "to": "app"},
            "lenient": {"tls": "server", "certificates": certificates, "unknown_names": "default", "to": "app"},
            "plain-redirect": {"tls": "none", "redirect": "https", "authorities": ["api.shop.example", "*.apps.example"]},
            "plain-moved": {"tls": "none", "redirect": {"to": "https", "port": 8443, "status": 301}},
            "strict": {**server, "hsts": {"max_age_s": 600, "include_subdomains": True}},
            "hops": {**server, "trusted_hops": 2},
            "ranges": {**server, "trusted_addresses": ["127.0.0.0/8", "10.0.0.0/8", "fd00::/8"]},
            "outside": {**server, "trusted_addresses": ["10.0.0.0/8"]},
            "standard": {**server, "forwarded": "rfc7239"},
            "standard-ranges": {**server, "forwarded": "rfc7239", "trusted_addresses": ["127.0.0.1"]},
            "silent": {**server, "forwarded": "none"},
            "chained": {"tls": "mutual", "to": "app", "trusted_proxies": [SHOP + "billing"], "forwarded": "rfc7239"},
            "limits": {
                **{key: value for key, value in server.items() if key != "to"},
                "limits": {"body_bytes": 1000},
                "routes": [
                    {"id": "small", "paths": ["/small"], "to": "app", "limits": {"body_bytes": 10}},
                    {"id": "large", "paths": ["/large"], "to": "app", "limits": {"body_bytes": "1MiB"}},
                    {"id": "endless", "paths": ["/endless"], "to": "app", "limits": {"body_bytes": 0}},
                    {"id": "again", "paths": ["/again"], "to": "flaky", "retries": {"attempts": 5}},
                    {"id": "once", "paths": ["/once"], "to": "flaky", "retries": {"attempts": 0}},
                    {"id": "open", "to": "app"},
                ],
            },
        },
        "clusters": {
            "app": mesh.endpoints(),
            "flaky": {
                "endpoints": [dead.address, f"127.0.0.1:{mesh.upstream.port}"],
                "balance": "round_robin",
                "ejection": {"consecutive_failures": 0},
                "retries": {"attempts": 0, "budget_percent": 100},
            },
        },
    }
    rules = [
        {"id": "alice", "allow": [f"jwt:{LOGIN}#alice"], "paths": ["/alice"]},
        {"id": "users", "allow": [f"jwt:{LOGIN}#*"], "paths": ["/users"]},
        {"id": "open", "allow": "anyone", "paths": ["/open", "/small", "/large", "/endless", "/again", "/once"]},
    ]
    with dead, Proxy(directory, config, policies={"p.yaml": {"rules": rules}}) as proxy:
        yield Edge(proxy, mesh, keys, directory)


# -- certificates by name ----------------------------------------------------------------------------------------------------------


def test_each_name_gets_its_certificate(edge: Edge) -> None:
    for name in ("api.shop.example", "login.shop.example", "a.apps.example", "B.Apps.Example"):
        with edge.open("named", name) as client:  # the client compares the certificate with the name
            assert client.request(get("/open", host=name)).status == 200


@pytest.mark.parametrize("name", ["www.shop.example", "apps.example", "a.b.apps.example", None])
def test_an_unknown_name_is_refused_or_gets_the_default(name: str | None, edge: Edge) -> None:
    lax = client_context(edge.mesh.ca, None, edge.directory)
    with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized[ _]name"):
        RawClient(edge.proxy.address("named"), lax, server_name=name)
    with RawClient(edge.proxy.address("lenient"), lax, server_name=name) as client:
        assert client.sock.getpeercert()["subjectAltName"][0] == ("DNS", "api.shop.example")  # type: ignore[attr-defined]
        assert client.request(get("/open", host="api.shop.example")).status == 200


def test_a_connection_serves_only_the_hosts_of_its_certificate(edge: Edge) -> None:
    mark = edge.mesh.upstream.mark()
    with edge.open("named") as client:
        for host in ("a.apps.example", "www.shop.example", "127.0.0.1", "apps.example"):
            answer = client.request(get("/open", host=host))
            assert (answer.status, answer.problem["code"]) == (421, "misdirected")
        assert edge.mesh.upstream.since(mark) == []
        assert client.request(get("/open", host="login.shop.example:443")).status == 200  # another name of the same certificate


def test_certificates_are_taken_up_when_their_files_change(edge: Edge) -> None:
    def serial() -> str:
        with edge.open("named", "a.apps.example") as client:
            return str(client.sock.getpeercert()["serialNumber"])  # type: ignore[attr-defined]

    before = serial()
    since = len(edge.proxy.stderr.items)
    with edge.open("named", "a.apps.example") as old:
        made = _web(edge.mesh, edge.directory, "wild", "*.apps.example")
        # two files change one after the other: a look between them is refused, the next one is taken over
        edge.proxy.stderr.wait(lambda line: "reloaded" in line, "the new certificate", since=since)
        assert int(serial(), 16) == made.certificate.serial_number != int(before, 16)
        assert old.request(get("/open", host="a.apps.example")).status == 200
    _web(edge.mesh, edge.directory, "wild", "other.example")  # is not for the name it is configured for
    line = edge.proxy.reload()
    assert "refused" in line
    assert "certificate_names" in line
    assert int(serial(), 16) == made.certificate.serial_number
    made.write(edge.directory, "wild")
    assert "reloaded" in edge.proxy.reload()


# -- end users ---------------------------------------------------------------------------------------------------------------------


def test_rules_name_end_users_of_one_issuer(edge: Edge) -> None:
    since = edge.proxy.mark()
    assert edge.ask("named", "/alice", edge.token(LOGIN, "alice")).status == 200
    record = edge.proxy.decision_where(lambda r: r["what"]["path"] == "/alice", "the record", since)
    assert (record["who"]["user"], record["who"]["subject"]) == (f"jwt:{LOGIN}#alice", "alice")
    assert record["why"]["rule"] == "alice"
    assert edge.ask("named", "/alice", edge.token(OTHER, "alice")).status == 403
    assert edge.ask("named", "/alice", edge.token(LOGIN, "bob")).status == 403
    assert edge.ask("named", "/users", edge.token(LOGIN, "bob")).status == 200
    assert edge.ask("named", "/users", edge.token(OTHER, "bob")).status == 403
    assert edge.ask("named", "/alice").status == 401


# -- forwarded fields --------------------------------------------------------------------------------------------------------------

CLAIMS = [
    "x-forwarded-for: 6.6.6.6",
    "x-forwarded-proto: http",
    "x-forwarded-host: evil.example",
    "forwarded: for=6.6.6.6;host=evil.example",
]


def test_nobody_is_believed_by_default(edge: Edge) -> None:
    told, who = edge.sent("strict", *CLAIMS)
    assert told["x-forwarded-for"] == ["127.0.0.1"]
    assert told["x-forwarded-proto"] == ["https"]
    assert "forwarded" not in told
    assert "x-forwarded-host" not in told
    assert who["address"] == "127.0.0.1"
    assert "via" not in who
    told, who = edge.sent("outside", *CLAIMS)  # the peer is not in the range
    assert told["x-forwarded-for"] == ["127.0.0.1"]
    assert who["address"] == "127.0.0.1"


def test_the_client_stands_behind_the_trusted_hops(edge: Edge) -> None:
    claims = [
        "x-forwarded-for: 6.6.6.6, 203.0.113.9",
        "x-forwarded-for: 10.0.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: a.example",
    ]
    told, who = edge.sent("hops", *claims, "forwarded: for=6.6.6.6")
    assert told["x-forwarded-for"] == ["203.0.113.9, 10.0.0.1, 127.0.0.1"]
    assert told["x-forwarded-proto"] == ["http"]
    assert told["x-forwarded-host"] == ["a.example"]
    assert "forwarded" not in told
    assert (who["address"], who["via"]) == ("203.0.113.9", "127.0.0.1")


def test_the_client_is_the_first_untrusted_address(edge: Edge) -> None:
    told, who = edge.sent("ranges", "x-forwarded-for: 6.6.6.6, [2001:db8::9]:443, fd00::1, 10.0.0.1")
    assert told["x-forwarded-for"] == ["2001:db8::9, fd00::1, 10.0.0.1, 127.0.0.1"]
    assert (who["address"], who["via"]) == ("2001:db8::9", "127.0.0.1")
    told, who = edge.sent("ranges", "x-forwarded-for: 203.0.113.9, garbage, 10.0.0.1")
    assert told["x-forwarded-for"] == ["10.0.0.1, 127.0.0.1"]
    assert who["address"] == "10.0.0.1"
    told, who = edge.sent("ranges", f"x-forwarded-client-cert: By=x;URI={SHOP}admin")  # an address proves no certificate
    assert "x-forwarded-client-cert" not in told


def test_the_standard_field(edge: Edge) -> None:
    told, who = edge.sent("standard", *CLAIMS)
    assert told["forwarded"] == ["for=127.0.0.1;proto=https"]
    assert who["address"] == "127.0.0.1"
    assert not [name for name in told if name.startswith("x-forwarded")]
    told, who = edge.sent(
        "standard-ranges", 'forwarded: for=6.6.6.6, for="[2001:db8::9]:5";proto=https;host="a.example:8443"', "x-forwarded-for: 1.1.1.1"
    )
    assert told["forwarded"] == ['for="[2001:db8::9]";proto=https;host="a.example:8443", for=127.0.0.1;proto=https']
    assert who["address"] == "2001:db8::9"
    assert "x-forwarded-for" not in told


def test_no_forwarded_field_at_all(edge: Edge) -> None:
    told, _ = edge.sent("silent", *CLAIMS)
    assert not [name for name in told if "forwarded" in name]
    assert told["via"] == ["1.1 meshguard"]


def test_an_authenticated_proxy_is_believed(edge: Edge) -> None:
    mark, since = edge.mesh.upstream.mark(), edge.proxy.mark()
    with RawClient(edge.proxy.address("chained"), edge.mesh.client("billing")) as client:
        said = ["forwarded: for=203.0.113.9;proto=https", f"x-forwarded-client-cert: By=x;URI={SHOP}web", "x-forwarded-for: 6.6.6.6"]
        assert client.request(get("/open", fields=said)).status == 200
    (seen,) = edge.mesh.upstream.since(mark)
    assert seen.head.get("forwarded") == "for=203.0.113.9;proto=https, for=127.0.0.1;proto=https"
    assert seen.head.get("x-forwarded-client-cert").startswith(f"By=x;URI={SHOP}web,By=")
    assert not seen.head.get("x-forwarded-for")
    assert edge.proxy.decision_where(lambda r: r["what"]["listener"] == "chained", "the record", since)["who"]["address"] == "203.0.113.9"


# -- redirects and strict transport ------------------------------------------------------------------------------------------------


def test_plain_http_is_sent_to_https(edge: Edge) -> None:
    mark = edge.mesh.upstream.mark()
    since = edge.proxy.mark()
    answer = edge.ask("plain-redirect", "/a/../b//c?x=%41&y", host="API.shop.example:8080")
    assert (answer.status, answer.get("location")) == (308, "https://api.shop.example/b/c?x=%41&y")
    record = edge.proxy.decision_where(lambda r: r["what"]["path"] == "/b/c", "the record", since)
    assert (record["why"]["reason"], record["outcome"]["status"]) == ("redirected", 308)
    with RawClient(edge.proxy.address("plain-redirect")) as client:
        posted = client.request(get("/b", host="api.shop.example", method="POST", body=b"secret"))
        assert (posted.status, posted.get("location")) == (308, "https://api.shop.example/b")
        assert client.request(get("/b", host="api.shop.example")).status == 308  # the connection goes on
    assert edge.ask("plain-redirect", "/", host="evil.example").status == 421
    for target in ("//evil.example/%2e%2e", "/\\evil.example", "/%0d%0ax: y"):
        answer = edge.ask("plain-redirect", target)
        assert answer.status == 400 or answer.get("location").startswith("https://api.shop.example/"), target
    with RawClient(edge.proxy.address("plain-redirect")) as client:
        assert client.request(b"GET / HTTP/1.0\r\n\r\n", "GET").status in (400, 421)
    assert edge.mesh.upstream.since(mark) == []


def test_moved_permanently_only_for_reading(edge: Edge) -> None:
    for method, status in (("GET", 301), ("HEAD", 301), ("POST", 308), ("DELETE", 308)):
        answer = edge.ask("plain-moved", "/x", method=method, host="h.example")
        assert (answer.status, answer.get("location")) == (status, "https://h.example:8443/x")


def test_strict_transport_on_every_answer(edge: Edge) -> None:
    wanted = "max-age=600; includeSubDomains"
    assert edge.ask("strict").get("strict-transport-security") == wanted
    denied = edge.ask("strict", "/nothing")
    assert denied.status == 403
    assert denied.get("strict-transport-security") == wanted
    assert not edge.ask("hops").get("strict-transport-security")
    assert not edge.ask("plain-redirect").get("strict-transport-security")  # RFC 6797 section 7.2


# -- limits and retries of a route -------------------------------------------------------------------------------------------------


def test_the_body_limit_of_a_route_replaces_the_listener_s(edge: Edge) -> None:
    def post(path: str, size: int, how: str) -> int:
        data = b"x" * size
        head = f"POST {path} HTTP/1.1\r\nHost: api.shop.example\r\n"
        framing = f"Content-Length: {size}\r\n\r\n" if how == "length" else "Transfer-Encoding: chunked\r\n\r\n"
        body = data if how == "length" else chunked(data)
        with edge.open("limits") as client:
            return client.request(head.encode() + framing.encode() + body, "POST").status

    for how in ("length", "chunked"):
        found = {(path, size): post(path, size, how) for path in ("/small", "/large", "/endless", "/open") for size in (10, 11, 1000, 1001)}
        assert found == {(path, size): 413 if size > {"/small": 10, "/open": 1000}.get(path, 1 << 20) else 200 for path, size in found}, how


def test_the_retries_of_a_route_replace_the_cluster_s(edge: Edge) -> None:
    """One of two endpoints is dead and takes turns with the other one."""
    assert [edge.ask("limits", "/again").status for _ in range(4)] == [200] * 4
    assert sorted({edge.ask("limits", "/once").status for _ in range(4)}) == [200, 502]
