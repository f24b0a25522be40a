"""TLS contexts, with real handshakes between them and with peers that misbehave, over memory."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshguard.identity.trust import TrustStore
from meshguard.model.errors import IdentityError
from meshguard.net import tls
from meshguard.net.tls import build_client_context, build_server_context, peer_chain, peer_leaf, worn_out
from tests.identity.pki import Ca, Issued, key, name

# OpenSSL reads the clock itself: these certificates are valid now.
NOW = time.time()
TIMES: dict[str, Any] = {"start": NOW - 3600, "end": NOW + 3600}


def ca(domain: str = "shop.example", **changes: Any) -> Ca:
    return Ca(domain, **{"start": NOW - 3600, "end": NOW + 86400, **changes})


SHOP = ca()
PARTNER = ca("partner.example")
STORE = TrustStore({"shop.example": [SHOP.der], "partner.example": [PARTNER.der]})
ANCHORS = STORE.anchors("shop.example")
SERVER = SHOP.issue("/server", names=[x509.DNSName("localhost")], **TIMES)
CLIENT = SHOP.issue("/client", **TIMES)


class Pair:
    """A handshake over memory: `server` and `client` are SSLObjects once `run` is through."""

    def __init__(self, server: ssl.SSLContext, client: ssl.SSLContext, *, hostname: str | None = None, session: Any = None) -> None:
        self.to_server, self.to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = server.wrap_bio(self.to_server, self.to_client, server_side=True)
        self.client = client.wrap_bio(self.to_client, self.to_server, server_hostname=hostname, session=session)

    def run(self) -> Pair:
        waiting = {self.client: True, self.server: True}
        for _ in range(10):
            for side in waiting:
                if waiting[side]:
                    try:
                        side.do_handshake()
                        waiting[side] = False
                    except ssl.SSLWantReadError:
                        pass
            if not any(waiting.values()):
                # TLS 1.3: the client is done before the server has judged its certificate; one round of data settles it.
                self.server.write(b"x")
                assert self.client.read(1) == b"x"
                return self
        raise AssertionError("the handshake does not end")


def server_context(leaf: Issued = SERVER, **more: Any) -> ssl.SSLContext:
    return build_server_context(leaf.material(), ANCHORS, **more)


def client_context(leaf: Issued | None = CLIENT, **more: Any) -> ssl.SSLContext:
    return build_client_context(leaf.material() if leaf else None, more.pop("anchors", ANCHORS), **more)


def bare_client(leaf: Issued | None = CLIENT, tmp_path: Path | None = None) -> ssl.SSLContext:
    """A client that a stranger has set up: none of our checks."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if leaf is not None:
        assert tmp_path is not None
        path = tmp_path / "leaf.pem"
        path.write_bytes(
            leaf.pem + b"".join(x509.load_der_x509_certificate(d).public_bytes(Encoding.PEM) for d in leaf.above) + leaf.key_pem
        )
        context.load_cert_chain(path)
    return context


def test_mutual() -> None:
    pair = Pair(server_context(), client_context()).run()
    assert pair.server.version() == pair.client.version() == "TLSv1.3"
    assert STORE.verify(peer_chain(pair.server), NOW).spiffe_id == "spiffe://shop.example/client"
    assert STORE.verify(peer_chain(pair.client), NOW).spiffe_id == "spiffe://shop.example/server"
    assert peer_leaf(pair.server) == CLIENT.der


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_chain_with_intermediates_reaches_the_peer(version: ssl.TLSVersion) -> None:
    client = SHOP.intermediate(**TIMES).intermediate(**TIMES).issue("/deep", **TIMES)
    context = client_context(client)
    context.maximum_version = version
    pair = Pair(server_context(), context).run()
    assert pair.server.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
    assert peer_chain(pair.server) == client.chain
    assert STORE.verify(peer_chain(pair.server), NOW).path == "/deep"


def test_root_is_never_sent() -> None:
    pair = Pair(server_context(), client_context()).run()
    for side in (pair.server, pair.client):
        assert SHOP.der not in peer_chain(side)
        assert set(peer_chain(side)) == {peer_leaf(side)}


def test_alpn() -> None:
    server = server_context(alpn=("h2", "http/1.1"))
    assert Pair(server, client_context(alpn=("http/1.1",))).run().server.selected_alpn_protocol() == "http/1.1"
    assert Pair(server, client_context(alpn=("http/1.1", "h2"))).run().server.selected_alpn_protocol() == "h2"
    assert Pair(server, client_context(alpn=())).run().server.selected_alpn_protocol() is None


def test_no_client_certificate() -> None:
    with pytest.raises(ssl.SSLError):
        Pair(server_context(), client_context(None)).run()


def test_optional() -> None:
    pair = Pair(server_context(mode="optional"), client_context(None)).run()
    assert peer_leaf(pair.server) is None
    assert peer_chain(pair.server) == []
    with pytest.raises(IdentityError):
        STORE.verify(peer_chain(pair.server), NOW)
    pair = Pair(server_context(mode="optional"), client_context()).run()
    assert peer_leaf(pair.server) == CLIENT.der


def test_optional_refuses_a_bad_certificate(tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLError):
        Pair(server_context(mode="optional"), bare_client(ca().issue("/x", **TIMES), tmp_path)).run()


def test_server_mode_does_not_ask() -> None:
    pair = Pair(server_context(mode="server"), client_context()).run()
    assert peer_leaf(pair.server) is None


@pytest.mark.parametrize(
    ("what", "leaf"),
    [
        ("unknown CA", ca().issue("/x", **TIMES)),
        ("expired", SHOP.issue("/x", start=NOW - 7200, end=NOW - 60)),
        ("not yet", SHOP.issue("/x", start=NOW + 3600, end=NOW + 7200)),
        ("leaf as a CA", Issued(SHOP.issue("/y", subject=name("y"), **TIMES).certificate, key())),
    ],
)
def test_openssl_refuses(what: str, leaf: Issued, tmp_path: Path) -> None:
    if what == "leaf as a CA":
        from tests.identity.pki import mint

        above = SHOP.issue("/y", subject=name("y"), **TIMES)
        certificate = mint(name("y"), above.key, subject=name("x"), private=key("p256", 90), uris=["spiffe://shop.example/x"], **TIMES)
        leaf = Issued(certificate, key("p256", 90), [above.der])
    with pytest.raises(ssl.SSLError):
        Pair(server_context(), bare_client(leaf, tmp_path)).run()


def test_federated_client_is_let_in_by_openssl_and_judged_by_the_store(tmp_path: Path) -> None:
    """The reason for the second look: a partner's CA mints a local identity, and OpenSSL has no objection."""
    minted = PARTNER.issue(uris=["spiffe://shop.example/admin"], **TIMES)
    pair = Pair(server_context(), bare_client(minted, tmp_path)).run()
    with pytest.raises(IdentityError) as caught:
        STORE.verify(peer_chain(pair.server), NOW)
    assert caught.value.code == "foreign_authority"


def test_imitated_ca_does_not_disturb_local_handshakes() -> None:
    ours = ca(common="same")
    evil = Ca(
        "partner.example",
        common="same",
        key_ids=False,
        extra=[
            (x509.SubjectKeyIdentifier.from_public_key(ours.key.public_key()), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(ours.key.public_key()), False),
        ],
        start=NOW - 3600,
        end=NOW + 86400,
    )
    store = TrustStore({"shop.example": [ours.der], "partner.example": [evil.der]})
    anchors = store.anchors("shop.example")
    server = build_server_context(ours.issue("/s", **TIMES).material(), anchors)
    client = build_client_context(ours.issue("/c", **TIMES).material(), anchors)
    pair = Pair(server, client).run()
    assert store.verify(peer_chain(pair.server), NOW).path == "/c"


# --- what is not spoken ---


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
def test_old_versions(version: ssl.TLSVersion, tmp_path: Path) -> None:
    context = bare_client(CLIENT, tmp_path)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = version
    context.maximum_version = version
    with pytest.raises(ssl.SSLError) as caught:
        Pair(server_context(), context).run()
    assert "PROTOCOL" in (caught.value.reason or "") or "VERSION" in (caught.value.reason or "")


@pytest.mark.parametrize(
    "suite",
    [
        "AES128-SHA",
        "AES128-GCM-SHA256",
        "AES256-SHA256",
        "ECDHE-RSA-AES128-SHA",
        "ECDHE-RSA-AES128-SHA256",
        "ECDHE-RSA-AES256-SHA384",
        "DHE-RSA-AES128-GCM-SHA256",
    ],
)
def test_other_suites(suite: str, tmp_path: Path) -> None:
    rsa = SHOP.issue("/rsa", private=key("rsa2048"), **TIMES)
    context = bare_client(CLIENT, tmp_path)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(suite)
    with pytest.raises(ssl.SSLError) as caught:
        Pair(server_context(rsa), context).run()
    assert caught.value.reason == "NO_SHARED_CIPHER"


def test_suites_that_are_spoken(tmp_path: Path) -> None:
    for leaf, suite in (
        (SERVER, "ECDHE-ECDSA-AES128-GCM-SHA256"),
        (SHOP.issue(private=key("rsa2048"), **TIMES), "ECDHE-RSA-AES128-GCM-SHA256"),
    ):
        context = bare_client(CLIENT, tmp_path)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        cipher = Pair(server_context(leaf), context).run().server.cipher()
        assert cipher is not None
        assert cipher[0] == suite
    for context in (server_context(), client_context()):
        for item in context.get_ciphers():
            assert item["aead"], item["name"]
            assert item["protocol"] == "TLSv1.3" or "ECDHE" in item["name"]


def test_options() -> None:
    for context in (server_context(), client_context(), client_context(None, server_name=True)):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
        for option in (ssl.OP_NO_TICKET, ssl.OP_NO_COMPRESSION, ssl.OP_NO_RENEGOTIATION):
            assert context.options & option
        assert context.verify_flags & ssl.VERIFY_X509_STRICT
        assert context.verify_flags & ssl.VERIFY_X509_PARTIAL_CHAIN
    assert server_context().num_tickets == 0


# --- resumption ---


def test_no_resumption_in_tls_1_3() -> None:
    server, client = server_context(), client_context()
    pair = Pair(server, client).run()
    session = pair.client.session
    assert session is None or not session.has_ticket
    again = Pair(server, client, session=session).run() if session is not None else Pair(server, client).run()
    assert not again.server.session_reused


def test_session_id_resumption_of_tls_1_2_shows_the_chain_to_verify_again() -> None:
    """The one kind that Python cannot turn off: the old certificate is there, and the *current* store judges it."""
    leaf = SHOP.intermediate(**TIMES).issue("/client", **TIMES)
    server, client = server_context(), client_context(leaf)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    first = Pair(server, client).run()
    assert first.client.session is not None
    assert not first.client.session.has_ticket
    second = Pair(server, client, session=first.client.session).run()
    assert second.server.session_reused
    assert peer_leaf(second.server) == leaf.der
    assert peer_chain(second.server) == leaf.chain
    # Revoked, expired, or its CA removed between the two connections: the resumed one is refused like a new one.
    for crls, bundle, now in (
        ([], PARTNER.der, NOW),
        ([], SHOP.der, NOW + 7200),
        ([SHOP.crl(start=NOW - 60, end=NOW + 60)], SHOP.der, NOW),
    ):
        with pytest.raises(IdentityError):
            TrustStore({"shop.example": [bundle]}, crls).verify(peer_chain(second.server), now)
    # A rotation makes a new context, which knows no old session.
    assert not Pair(server_context(), client, session=first.client.session).run().server.session_reused


@pytest.mark.parametrize(("version", "expected"), [(ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, False)])
def test_sessions_in_memory_are_counted(version: ssl.TLSVersion, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "MAX_SESSIONS", 5)
    server, client = server_context(), client_context()
    client.maximum_version = version
    for _ in range(5):
        assert not worn_out(server)
        pair = Pair(server, client).run()
        for side in (pair.client, pair.server, pair.client):
            with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
                side.unwrap()
    assert worn_out(server) is expected


# --- towards upstreams ---


def test_client_checks_the_chain(tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        Pair(server_context(), client_context(anchors=[PARTNER.der])).run()


def test_client_with_server_name() -> None:
    client = client_context(server_name=True)
    assert Pair(server_context(), client, hostname="localhost").run()
    with pytest.raises(ssl.SSLCertVerificationError):
        Pair(server_context(), client, hostname="other.example").run()


def test_common_name_does_not_count() -> None:
    server = SHOP.issue("/cn", subject=name("localhost"), **TIMES)
    with pytest.raises(ssl.SSLCertVerificationError):
        Pair(server_context(server), client_context(server_name=True), hostname="localhost").run()


def test_client_with_a_spiffe_id_does_not_look_at_host_names() -> None:
    server = SHOP.issue("/only-spiffe", **TIMES)
    pair = Pair(server_context(server), client_context(), hostname="whatever.example").run()
    assert STORE.verify(peer_chain(pair.client), NOW).path == "/only-spiffe"


def test_system_cas_only_with_a_name() -> None:
    with pytest.raises(IdentityError):
        build_client_context(None, None)
    context = build_client_context(None, None, server_name=True)
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED


# --- making contexts ---


def test_no_anchors() -> None:
    for mode in ("mutual", "optional"):
        with pytest.raises(IdentityError) as caught:
            build_server_context(SERVER.material(), [], mode=mode)  # type: ignore[arg-type]
        assert caught.value.code == "tls_context"
    with pytest.raises(IdentityError):
        build_client_context(None, [])
    assert build_server_context(SERVER.material(), [], mode="server")


def test_anchor_that_is_none() -> None:
    with pytest.raises(IdentityError):
        build_client_context(None, [b"junk"])


def test_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    server_context()
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.mark.parametrize("lacks", ["memfd", "proc"])
def test_without_anonymous_memory(lacks: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[str] = []
    real = tempfile.mkstemp

    def mkstemp(**arguments: Any) -> tuple[int, str]:
        descriptor, path = real(prefix=arguments["prefix"], dir=tmp_path)
        made.append(path)
        assert os.stat(path).st_mode & 0o777 == 0o600
        return descriptor, path

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    if lacks == "memfd":
        monkeypatch.delattr(os, "memfd_create")
    else:
        monkeypatch.setattr(tls.os.path, "exists", lambda path: False)
    context = server_context()
    assert len(made) == 1
    assert not os.listdir(tmp_path)
    monkeypatch.undo()
    assert Pair(context, client_context()).run()


def test_rotation() -> None:
    """A new context for new handshakes; what was begun with the old one goes on."""
    old = server_context()
    pair = Pair(old, client_context()).run()
    renewed = SHOP.issue("/server", **TIMES)
    new = server_context(renewed)
    assert peer_leaf(Pair(new, client_context()).run().client) == renewed.der
    pair.server.write(b"still here")
    assert pair.client.read() == b"still here"
    newer_ca = ca()
    rotated = build_server_context(newer_ca.issue("/server", **TIMES).material(), [newer_ca.der])
    with pytest.raises(ssl.SSLError):
        Pair(rotated, client_context()).run()


# --- other implementations ---


@pytest.fixture
def listening() -> Iterator[tuple[int, list[list[bytes]]]]:
    """A server of ours on a port, which answers each connection with one line; the chains that it saw."""
    context = server_context(mode="optional", alpn=("http/1.1",))
    seen: list[list[bytes]] = []
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)

    def serve() -> None:
        try:
            connection, _ = listener.accept()
            connection.settimeout(10)
            with context.wrap_socket(connection, server_side=True) as secured:
                seen.append(peer_chain(secured))
                secured.recv(1000)
                secured.sendall(b"HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\nok\n")
                secured.unwrap()
        except (OSError, ssl.SSLError):
            pass

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1], seen
    listener.close()
    thread.join(10)


@pytest.mark.parametrize(
    "tool",
    [
        pytest.param(tool, marks=pytest.mark.skipif(shutil.which(tool) is None, reason=f"no {tool}"))
        for tool in ("curl", "openssl", "gnutls-cli")
    ],
)
def test_other_clients_accept_our_chain(tool: str, listening: tuple[int, list[list[bytes]]], tmp_path: Path) -> None:
    """Our lone leaf is its own companion in the chain (see `_load`): the clients of others verify it all the same."""
    port, seen = listening
    (tmp_path / "ca.pem").write_bytes(SHOP.pem)
    (tmp_path / "leaf.pem").write_bytes(CLIENT.pem)
    (tmp_path / "leaf.key").write_bytes(CLIENT.key_pem)
    root, cert, private = (str(tmp_path / item) for item in ("ca.pem", "leaf.pem", "leaf.key"))
    quiet = ["openssl", "s_client", "-quiet", "-verify_return_error", "-x509_strict"]
    commands = {
        "curl": ["curl", "-sS", "--cacert", root, "--cert", cert, "--key", private, f"https://localhost:{port}/"],
        "openssl": [*quiet, "-CAfile", root, "-cert", cert, "-key", private, "-connect", f"127.0.0.1:{port}"],
        "gnutls-cli": ["gnutls-cli", "--x509cafile", root, "--x509certfile", cert, "--x509keyfile", private, "-p", str(port), "localhost"],
    }  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    result = subprocess.run(
        commands[tool], input="GET / HTTP/1.0\r\n\r\n", capture_output=True, text=True, timeout=20, check=False, env=environment
    )
    assert "ok" in result.stdout.splitlines(), result.stdout + result.stderr
    assert seen
    assert seen[0][0] == CLIENT.der
