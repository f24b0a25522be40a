"""TLS and identity (security.md 3): who is not proven by a verified SVID of a trusted domain reaches nothing, at any time."""

from __future__ import annotations

import datetime as dt
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.harness.cases import innocent
from tests.harness.client import NoAnswer, RawClient, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.pki import Authority, Certificate, now, usage
from tests.harness.proxy import Proxy, eventually
from tests.harness.strict import Truncated, Violation

HOUR = dt.timedelta(hours=1)


def _attempt(address: tuple[str, int], context: ssl.SSLContext | None, **options: Any) -> list[int]:
    """Statuses that a request with these credentials gets; [] when there is no connection or no answer."""
    try:
        with RawClient(address, context, deadline_s=4.0, **options) as client:
            client.send(get("/tls/attempt"))
            return [a.status for a in client.rest()]
    except (ssl.SSLError, OSError, Truncated):
        return []


def _ca_like(mesh: Mesh) -> dict[str, Callable[[], Certificate | None]]:
    ca, uri = mesh.ca, SHOP + "billing"
    encipher_only = x509.KeyUsage(False, False, True, False, False, False, False, False, False)

    def middle(parent: Authority, **options: Any) -> Authority:
        # names differ: a self-issued certificate does not count against a path length (RFC 5280 6.1.4)
        return Authority(f"middle under {parent.certificate.serial_number}", parent=parent, **options)

    return {
        "none": lambda: None,
        "self-signed": lambda: Authority("self").issue(uri),
        "same-name-other-key": lambda: mesh.stranger.issue(uri),
        "expired": lambda: ca.issue(uri, not_before=now() - 2 * HOUR, not_after=now() - HOUR),
        "just-expired": lambda: ca.issue(uri, not_before=now() - 2 * HOUR, not_after=now() - dt.timedelta(seconds=2)),
        "not-yet": lambda: ca.issue(uri, not_before=now() + HOUR, not_after=now() + 2 * HOUR),
        "two-uris": lambda: ca.issue([uri, SHOP + "admin"]),
        "two-uris-http": lambda: ca.issue([uri, "https://shop.example/x"]),
        "same-uri-twice": lambda: ca.issue([uri, uri]),
        "no-san": lambda: ca.issue(None),
        "dns-only": lambda: ca.issue(None, dns=["billing.shop.example"]),
        "cn-is-id": lambda: ca.issue(None, common_name=uri),
        "dns-is-id": lambda: ca.issue(None, dns=["spiffe://shop.example/ns/prod/sa/billing"]),
        "ca-leaf": lambda: ca.issue(uri, ca=True),
        "ca-leaf-signing": lambda: ca.issue(uri, ca=True, key_usage=usage(cert_sign=True)),
        "key-cert-sign": lambda: ca.issue(uri, key_usage=usage(cert_sign=True)),
        "crl-sign": lambda: ca.issue(uri, key_usage=usage(crl_sign=True)),
        "no-key-usage": lambda: ca.issue(uri, key_usage=None),
        "key-usage-not-critical": lambda: ca.issue(uri, usage_critical=False),
        "no-digital-signature": lambda: ca.issue(uri, key_usage=encipher_only),
        "eku-server-only": lambda: ca.issue(uri, eku=[ExtendedKeyUsageOID.SERVER_AUTH]),
        "eku-client-only": lambda: ca.issue(uri, eku=[ExtendedKeyUsageOID.CLIENT_AUTH]),
        "eku-other": lambda: ca.issue(uri, eku=[ExtendedKeyUsageOID.CODE_SIGNING]),
        "root-path": lambda: ca.issue("spiffe://shop.example"),
        "root-path-slash": lambda: ca.issue("spiffe://shop.example/"),
        "trailing-slash": lambda: ca.issue(uri + "/"),
        "empty-segment": lambda: ca.issue("spiffe://shop.example/ns//sa/billing"),
        "dot-segment": lambda: ca.issue("spiffe://shop.example/ns/./billing"),
        "dots-segment": lambda: ca.issue("spiffe://shop.example/ns/x/../prod/sa/billing"),
        "percent": lambda: ca.issue("spiffe://shop.example/ns/prod/sa/%62illing"),
        "query": lambda: ca.issue(uri + "?x"),
        "fragment": lambda: ca.issue(uri + "#x"),
        "port": lambda: ca.issue("spiffe://shop.example:443/ns/prod/sa/billing"),
        "user": lambda: ca.issue("spiffe://u@shop.example/ns/prod/sa/billing"),
        "upper-domain": lambda: ca.issue("spiffe://SHOP.example/ns/prod/sa/billing"),
        "upper-scheme": lambda: ca.issue("SPIFFE://shop.example/ns/prod/sa/billing"),
        "other-scheme": lambda: ca.issue("https://shop.example/ns/prod/sa/billing"),
        "space": lambda: ca.issue("spiffe://shop.example/ns/prod/sa/bil ling"),
        "nul": lambda: ca.issue("spiffe://shop.example/ns/prod/sa/billing\0.evil"),
        "lf": lambda: ca.issue("spiffe://shop.example/ns/prod/sa/billing\n"),
        "long": lambda: ca.issue("spiffe://shop.example/" + "a" * 2100),
        "local-ca-mints-partner": lambda: ca.issue("spiffe://partner.example/ns/prod/sa/billing"),
        "local-ca-mints-unknown": lambda: ca.issue("spiffe://elsewhere.example/ns/prod/sa/billing"),
        "partner-mints-local": lambda: mesh.partner.issue(uri),
        "partner-mints-local-admin": lambda: mesh.partner.issue(SHOP + "admin"),
        "partner-middle-mints-local": lambda: middle(mesh.partner).issue(uri),
        "leaf-as-issuer": lambda: _leaf_issued(mesh, uri),
        "path-length": lambda: middle(middle(ca, path_length=0)).issue(uri),
        "expired-middle": lambda: middle(ca, not_after=now() - dt.timedelta(minutes=1)).issue(uri),
        "stranger-middle": lambda: middle(mesh.stranger).issue(uri),
    }


def _leaf_issued(mesh: Mesh, uri: str) -> Certificate:
    """A workload uses its own leaf as if it were a CA."""
    false_ca = Authority("x", parent=mesh.ca)
    leaf = mesh.ca.issue(SHOP + "mallory", common_name="mallory")
    false_ca.key, false_ca.certificate, false_ca.name = leaf.key, leaf.certificate, leaf.certificate.subject
    return false_ca.issue(uri)


BROKEN_NAMES = [
    "none",
    "self-signed",
    "same-name-other-key",
    "expired",
    "just-expired",
    "not-yet",
    "two-uris",
    "two-uris-http",
    "same-uri-twice",
    "no-san",
    "dns-only",
    "cn-is-id",
    "dns-is-id",
    "ca-leaf",
    "ca-leaf-signing",
    "key-cert-sign",
    "crl-sign",
    "no-key-usage",
    "key-usage-not-critical",
    "no-digital-signature",
    "eku-server-only",
    "eku-client-only",
    "eku-other",
    "root-path",
    "root-path-slash",
    "trailing-slash",
    "empty-segment",
    "dot-segment",
    "dots-segment",
    "percent",
    "query",
    "fragment",
    "port",
    "user",
    "upper-domain",
    "upper-scheme",
    "other-scheme",
    "space",
    "nul",
    "lf",
    "long",
    "local-ca-mints-partner",
    "local-ca-mints-unknown",
    "partner-mints-local",
    "partner-mints-local-admin",
    "partner-middle-mints-local",
    "leaf-as-issuer",
    "path-length",
    "expired-middle",
    "stranger-middle",
]


@pytest.fixture(scope="module")
def broken(mesh: Mesh) -> dict[str, Callable[[], Certificate | None]]:
    made = _ca_like(mesh)
    assert set(made) == set(BROKEN_NAMES)
    return made


@pytest.mark.parametrize("name", BROKEN_NAMES)
def test_broken_identity_reaches_nothing(
    name: str, engine: str, arena: Proxy, mesh: Mesh, broken: dict[str, Callable[[], Certificate | None]], dial: Callable[..., RawClient]
) -> None:
    """No handshake, or 403 and the end; both TLS versions."""
    leaf = broken[name]()
    mark = mesh.upstream.mark()
    for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
        context = mesh.context(leaf)
        context.maximum_version = version
        assert _attempt(arena.address(engine), context) in ([], [403]), (name, version)
    assert mesh.upstream.since(mark) == []
    innocent(lambda: dial(f"plain-{engine}"), mesh.upstream)


@pytest.mark.parametrize("kind", ["dns-too", "intermediate", "partner", "no-eku", "other-case-path", "rsa-free"])
def test_good_identities(kind: str, engine: str, arena: Proxy, mesh: Mesh) -> None:
    leaf = {
        "dns-too": lambda: mesh.ca.issue(SHOP + "billing", dns=["billing", "billing.shop.example"]),
        "intermediate": lambda: Authority("good middle", parent=mesh.ca, path_length=0).issue(SHOP + "billing"),
        "partner": lambda: mesh.partner.issue("spiffe://partner.example/ns/prod/sa/billing"),
        "no-eku": lambda: mesh.ca.issue(SHOP + "billing", eku=None),
        "other-case-path": lambda: mesh.ca.issue(SHOP + "Billing"),
        "rsa-free": lambda: mesh.ca.issue(SHOP + "b_i.l-l1ng"),
    }[kind]()
    assert _kept(arena.address(engine), mesh.context(leaf)) == 200


def _kept(address: tuple[str, int], context: ssl.SSLContext) -> int:
    with RawClient(address, context) as client:
        return client.request(get("/tls/good")).status


def test_ids_are_compared_byte_for_byte(engine: str, arena: Proxy, mesh: Mesh) -> None:
    """The partner's admin is the partner's; a service whose name differs in case is another one (deny rule `no-internal` names billing)."""
    for name, status in {"billing": 403, "Billing": 200, "billing2": 200, "billin": 200}.items():
        with RawClient(arena.address(engine), mesh.context(mesh.ca.service(name))) as client:
            assert client.request(get("/internal/x")).status == status, name
    with RawClient(arena.address(engine), mesh.context(mesh.partner.service("admin"))) as client:
        answer = client.request(get("/who"))
    assert answer.status == 200
    xfcc = {k.lower(): v for k, v in answer.json["fields"]}["x-forwarded-client-cert"]
    assert "URI=spiffe://partner.example/ns/prod/sa/admin" in xfcc


# ---- bytes that are no proper TLS


@pytest.mark.parametrize(
    "data",
    [
        get("/tls/plain"),
        b"\x16\x03\x01\x00\x05hello",
        b"\x80\x2e\x01\x00\x02" + b"\0" * 43,
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\x17\x03\x03\x00\x05hello",
        b"\0" * 5000,
        b"\xff" * 70_000,
        b"SSH-2.0-x\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\xff\xff" + b"x" * 70_000,
    ],
    ids=["plain-http", "bad-hello", "sslv2", "alert", "data-first", "zeros", "ones", "ssh", "h2", "giant-record"],
)
def test_no_tls(data: bytes, engine: str, arena: Proxy, mesh: Mesh, dial: Callable[..., RawClient]) -> None:
    """At most an alert or a plain 400; the connection ends and nothing is forwarded."""
    mark = mesh.upstream.mark()
    for parts in ([data], [data[:1], data[1:]], [data[:4], data[4:]]):
        with RawClient(arena.address(engine), deadline_s=4.0) as client:
            client.send(parts)
            try:
                assert [a.status for a in client.rest()] in ([], [400])
            except (Violation, Truncated):
                assert client.received < 100  # an alert record
    assert mesh.upstream.since(mark) == []
    innocent(lambda: dial(f"plain-{engine}"), mesh.upstream)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_old_versions(version: str, engine: str, arena: Proxy, mesh: Mesh) -> None:
    context = mesh.context(mesh.service("billing"))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    assert _attempt(arena.address(engine), context) == []


@pytest.mark.parametrize(
    "cipher", ["aNULL:eNULL:@SECLEVEL=0", "AES128-SHA:@SECLEVEL=0", "AES256-GCM-SHA384:@SECLEVEL=0", "ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"]
)
def test_weak_ciphers(cipher: str, engine: str, arena: Proxy, mesh: Mesh) -> None:
    context = mesh.context(mesh.service("billing"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(cipher)
    assert _attempt(arena.address(engine), context) == []


@pytest.mark.parametrize("alpn", [["http/1.1"], [], ["h2", "http/1.1"], ["http/1.1", "h2"], ["http/1.0", "http/1.1"]])
def test_alpn_offers_of_http1(alpn: list[str], engine: str, arena: Proxy, mesh: Mesh) -> None:
    with RawClient(arena.address(engine), mesh.context(mesh.service("billing"), alpn=alpn)) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        chosen = client.sock.selected_alpn_protocol()
        assert chosen in ((None,) if not alpn else ("http/1.1", "h2"))
        if chosen != "h2":
            assert client.request(get("/alpn")).status == 200


@pytest.mark.parametrize("alpn", [["ftp"], ["xmpp-client"], ["acme-tls/1"], ["spdy/3"]])
def test_alpn_offers_of_others(alpn: list[str], engine: str, arena: Proxy, mesh: Mesh) -> None:
    """No common protocol: the handshake fails (RFC 7301 3.2) or nothing is chosen; never the other protocol (ALPACA)."""
    try:
        with RawClient(arena.address(engine), mesh.context(mesh.service("billing"), alpn=alpn)) as client:
            assert isinstance(client.sock, ssl.SSLSocket)
            assert client.sock.selected_alpn_protocol() is None
    except (ssl.SSLError, OSError):
        return


def test_renegotiation_and_tickets(engine: str, arena: Proxy, mesh: Mesh) -> None:
    """TLS 1.2 and 1.3 without session tickets on an mTLS listener: a resumed session would skip verification."""
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = mesh.context(mesh.service("billing"))
        context.maximum_version = version
        with RawClient(arena.address(engine), context) as client:
            assert isinstance(client.sock, ssl.SSLSocket)
            assert client.request(get("/ticket")).status == 200
            session = client.sock.session
        resumable = session is not None and session.has_ticket
        with RawClient(arena.address(engine), context, session=session) as client:
            assert isinstance(client.sock, ssl.SSLSocket)
            assert client.request(get("/ticket")).status == 200
            assert not (resumable and client.sock.session_reused), "a session was resumed on an mTLS listener"


# ---- identities that end while connected


def test_an_svid_that_expires_on_a_kept_connection(engine: str, arena: Proxy, mesh: Mesh) -> None:
    """Valid for three seconds: works, then within a second of its end the connection is closed or the request refused; and a resumed
    session does not bring it back."""
    end = now() + dt.timedelta(seconds=3)
    context = mesh.context(mesh.ca.issue(SHOP + "billing", not_after=end.replace(microsecond=0)))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with RawClient(arena.address(engine), context) as client, RawClient(arena.address(engine), context) as idle:
        assert isinstance(client.sock, ssl.SSLSocket)
        assert client.request(get("/expiring")).status == 200
        session = client.sock.session
        idle_closed = threading.Event()
        gone: list[float] = []

        def watch() -> None:
            idle.assert_closed()
            gone.append(now().timestamp())
            idle_closed.set()

        watcher = threading.Thread(target=watch)
        watcher.start()

        def refused() -> bool:
            if client.eof:
                return True
            try:
                answer = client.request(get("/expiring"))
            except Truncated:
                return True
            assert answer.status in (200, 403), answer
            return answer.status == 403

        eventually(refused, "the end of the identity", 6)
        assert now().timestamp() >= end.timestamp() - 1.1, "refused while it was valid"
        assert now().timestamp() <= end.timestamp() + 1.0, "served after its end"
        assert idle_closed.wait(3), "an idle connection of an expired identity stays open"
        assert gone[0] <= end.timestamp() + 1.5
        watcher.join()
    mark = mesh.upstream.mark()
    assert _attempt(arena.address(engine), context, session=session) in ([], [403])
    assert mesh.upstream.since(mark) == []


def _mesh_config(mesh: Mesh, directory: Path, **files: Any) -> dict[str, Any]:
    directory.mkdir(parents=True, exist_ok=True)
    return {
        "identity": mesh.identity(directory, **files),
        "listeners": {e: {"tls": "mutual", "to": "app", "engine": e} for e in ("default", "reference")},
        "clusters": {"app": mesh.endpoints()},
        "drain_s": 1,
    }


ANY = {"p.yaml": {"rules": [{"id": "all", "allow": "authenticated", "paths": ["/**"]}]}}


@pytest.fixture(scope="module")
def revoking(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, Certificate, Path]]:
    """A process with CRLs of both domains; one certificate is revoked from the start."""
    directory = tmp_path_factory.mktemp("revoking")
    revoked = mesh.ca.service("revoked")
    (directory / "shop.crl").write_bytes(mesh.ca.crl(revoked))
    (directory / "partner.crl").write_bytes(mesh.partner.crl())
    with Proxy(directory / "p", _mesh_config(mesh, directory / "p", crls=["../shop.crl", "../partner.crl"]), policies=ANY) as proxy:
        yield proxy, revoked, directory


def test_revoked_from_the_start(engine: str, revoking: tuple[Proxy, Certificate, Path], mesh: Mesh) -> None:
    proxy, revoked, _ = revoking
    mark = mesh.upstream.mark()
    assert _attempt(proxy.address(engine), mesh.context(revoked)) in ([], [403])
    assert mesh.upstream.since(mark) == []
    assert _kept(proxy.address(engine), mesh.context(mesh.ca.service("fine"))) == 200


def test_revoked_while_connected(engine: str, revoking: tuple[Proxy, Certificate, Path], mesh: Mesh) -> None:
    """The CRL file is replaced: within a second the connection of the revoked identity is cut, others live on; no resumption."""
    proxy, revoked, directory = revoking
    victim = mesh.ca.service("victim")
    context = mesh.context(victim)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        RawClient(proxy.address(engine), context) as client,
        RawClient(proxy.address(engine), mesh.context(mesh.ca.service("fine"))) as other,
    ):
        assert isinstance(client.sock, ssl.SSLSocket)
        assert client.request(get("/v")).status == other.request(get("/v")).status == 200
        session = client.sock.session
        fresh = directory / "fresh.crl"
        fresh.write_bytes(mesh.ca.crl(revoked, victim, number=2 + (engine == "reference")))
        changed = now()
        fresh.replace(directory / "shop.crl")
        client.sock.settimeout(3)
        client.assert_closed()
        assert now() - changed < dt.timedelta(seconds=1.5)
        assert other.request(get("/v")).status == 200
    assert _attempt(proxy.address(engine), context, session=session) in ([], [403])
    assert _attempt(proxy.address(engine), mesh.context(victim)) in ([], [403])


def test_a_removed_ca_is_gone_within_a_second(engine: str, mesh: Mesh, tmp_path: Path) -> None:
    """Two CAs in the bundle, one is taken out: its open connections are cut, resumption included, the others stay."""
    old = Authority("old root")
    with Proxy(tmp_path / "p", _mesh_config(mesh, tmp_path / "p"), policies=ANY) as proxy:
        bundle = proxy.directory / "shop.pem"
        fresh = proxy.directory / "fresh.pem"
        fresh.write_bytes(mesh.ca.pem + old.pem)
        fresh.replace(bundle)
        context = mesh.context(old.service("leaving"))
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        eventually(lambda: _attempt_one(proxy.address(engine), context) == 200, "the added CA is trusted")
        with (
            RawClient(proxy.address(engine), context) as client,
            RawClient(proxy.address(engine), context) as idle,
            RawClient(proxy.address(engine), mesh.client("billing")) as other,
        ):
            assert isinstance(client.sock, ssl.SSLSocket)
            assert client.request(get("/o")).status == other.request(get("/o")).status == 200
            session = client.sock.session
            fresh.write_bytes(mesh.ca.pem)
            changed = now()
            fresh.replace(bundle)
            for each in (client, idle):
                each.sock.settimeout(3)
                each.assert_closed()
            assert now() - changed < dt.timedelta(seconds=1.5)
            assert other.request(get("/o")).status == 200
        mark = mesh.upstream.mark()
        assert _attempt(proxy.address(engine), context, session=session) in ([], [403])
        assert _attempt(proxy.address(engine), context) in ([], [403])
        assert mesh.upstream.since(mark) == []


def _attempt_one(address: tuple[str, int], context: ssl.SSLContext) -> int:
    try:
        with RawClient(address, context, deadline_s=2.0) as client:
            return client.request(get("/tls/attempt")).status
    except (ssl.SSLError, OSError, Truncated, NoAnswer):
        return 0


def test_a_damaged_bundle_keeps_the_last_good_one(mesh: Mesh, tmp_path: Path) -> None:
    with Proxy(tmp_path / "p", _mesh_config(mesh, tmp_path / "p"), policies=ANY) as proxy:
        for damage in (b"", b"nonsense", mesh.ca.pem[:200]):
            fresh = proxy.directory / "fresh.pem"
            fresh.write_bytes(damage)
            since = len(proxy.stderr.items)
            fresh.replace(proxy.directory / "shop.pem")
            proxy.stderr.wait(lambda line: "shop.pem" in line or "bundle" in line.lower(), "a report of the damaged bundle", since=since)
            assert _kept(proxy.address("default"), mesh.client("billing")) == 200
            assert _attempt(proxy.address("default"), mesh.context(mesh.stranger.service("billing"))) in ([], [403])


@pytest.mark.parametrize("kind", ["missing", "stale", "other-issuer", "damaged"])
def test_a_crl_that_cannot_be_used_fails_closed(kind: str, mesh: Mesh, tmp_path: Path) -> None:
    """Refuses to start and says so, or starts and refuses the callers it cannot check; never serves them unchecked."""
    directory = tmp_path / "p"
    config = _mesh_config(mesh, directory, crls=["shop.crl"])
    data = {
        "stale": mesh.ca.crl(next_update=now() - HOUR / 12),
        "other-issuer": mesh.stranger.crl(),
        "damaged": b"-----BEGIN X509 CRL-----\nxx\n-----END X509 CRL-----\n",
    }
    if kind != "missing":
        (directory / "shop.crl").write_bytes(data[kind])
    proxy = Proxy(directory, config, policies=ANY).start(ready=False)
    try:
        assert proxy.process is not None
        ended = lambda: proxy.process.poll() is not None  # type: ignore[union-attr]  # noqa: E731
        eventually(lambda: ended() or _listening(proxy), "an end or a listener", 8)
        if ended():
            proxy.stderr._thread.join(5)
            assert "crl" in proxy.stderr_text.lower()
        else:
            assert _attempt(proxy.address("default"), mesh.client("billing")) in ([], [403])
    finally:
        proxy.stop()


def _listening(proxy: Proxy) -> bool:
    try:
        RawClient(proxy.address("default"), deadline_s=1.0).close()
    except OSError:
        return False
    return True


# ---- permissive and plaintext


def test_permissive_takes_plaintext_as_nobody(mesh: Mesh, tmp_path: Path) -> None:
    until = (now() + dt.timedelta(days=30)).date().isoformat()
    config = {
        "profile": "migration",
        "identity": mesh.identity(tmp_path),
        "clusters": {"app": mesh.endpoints()},
        "listeners": {e: {"tls": "permissive", "permissive_until": until, "to": "app", "engine": e} for e in ("default", "reference")},
    }
    policies = {
        "p.yaml": {
            "rules": [
                {"id": "known", "allow": "authenticated", "paths": ["/known/**"]},
                {"id": "open", "allow": "anyone", "paths": ["/open/**"]},
            ]
        }
    }
    with Proxy(tmp_path, config, policies=policies) as proxy:
        for engine in ("default", "reference"):
            with RawClient(proxy.address(engine)) as plain:
                assert plain.request(get("/open/x")).status == 200
                assert plain.request(get("/known/x", fields=[f"X-Forwarded-Client-Cert: URI={SHOP}billing"])).status == 403
            with RawClient(proxy.address(engine), mesh.client("billing")) as known:
                assert known.request(get("/known/x")).status == 200
            stranger = mesh.context(mesh.stranger.service("billing"))
            mark = mesh.upstream.mark()
            assert _attempt(proxy.address(engine), stranger) in ([], [403])
            assert mesh.upstream.since(mark) == []
