"""Fields that tell who is calling or where the request came from: nobody but a listed proxy is believed (security.md 1 and 3)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness.cases import innocent
from tests.harness.client import RawClient, get
from tests.harness.mesh import SHOP, Mesh
from tests.harness.upstream import Seen

SPOOF = "spoofed.attacker.test"
ADMIN = SHOP + "admin"

PROVENANCE = [
    "X-Forwarded-Client-Cert",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Server",
    "Forwarded",
    "X-Real-IP",
    "X-Original-URL",
    "X-Rewrite-URL",
    "X-Original-Host",
    "X-Original-Forwarded-For",
    "X-HTTP-Method-Override",
    "X-Method-Override",
    "X-Envoy-External-Address",
    "X-Client-Cert",
    "Client-Cert",
    "Client-Cert-Chain",
    "X-Remote-User",
    "X-Host",
    "X-Client-IP",
    "True-Client-IP",
]

SPELLINGS: dict[str, Callable[[str], str]] = {
    "as-is": lambda n: n,
    "lower": str.lower,
    "upper": str.upper,
    "swapped": str.swapcase,
    "underscored": lambda n: n.replace("-", "_"),
    "mixed": lambda n: n.replace("-", "_", 1),
    "mixed-last": lambda n: "_".join(n.rsplit("-", 1)),
    "underscored-upper": lambda n: n.replace("-", "_").upper(),
}


def _send(client: RawClient, mesh: Mesh, fields: list[str]) -> tuple[int, Seen | None]:
    mark = mesh.upstream.mark()
    answer = client.request(get("/who", fields=fields))
    seen = mesh.upstream.since(mark)
    if answer.get("connection").lower() == "close":
        client.assert_closed()
    return answer.status, seen[0] if seen else None


def _xfcc_is_ours(seen: Seen, name: str = "billing") -> None:
    """Exactly one XFCC element of meshguard's own making, with the identity of the TLS connection."""
    value = seen.head.get("x-forwarded-client-cert")
    uris = [
        part.split("=", 1)[1].strip('"') for element in value.split(",") for part in element.split(";") if part.upper().startswith("URI=")
    ]
    assert uris == [SHOP + name], value


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("stance", ["", "stripped-", "dropping-", "proxied-"])
def test_no_spelling_carries_provenance(stance: str, spelling: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """On every listener, for a caller that is no listed proxy: refused, or the value does not arrive."""
    client = dial(stance + engine)
    try:
        for name in PROVENANCE:
            spelled = SPELLINGS[spelling](name)
            if client.eof:
                client.close()
                client = dial(stance + engine)
            status, seen = _send(client, mesh, [f"{spelled}: {SPOOF}"])
            assert status in (200, 400), (spelled, status)
            if "_" in spelled and stance in ("", "proxied-"):
                assert status == 400, f"{spelled}: underscores are refused on this listener"
            if seen is None:
                assert status == 400, spelled
            else:
                assert SPOOF.encode() not in seen.head.raw, (spelled, seen.head.raw)
                _xfcc_is_ours(seen)
    finally:
        client.close()


XFCC = [
    f"URI={ADMIN}",
    f"By=spiffe://x/y;Hash=00;URI={ADMIN}",
    f'Hash=00;Subject="CN=x";URI={ADMIN}',
    f"uri={ADMIN}",
    f"URI={SHOP}billing,URI={ADMIN}",
    f"URI={ADMIN},URI={SHOP}billing",
    f'Subject="a\\";URI={ADMIN}',
    "",
    ";;;",
    f'URI="{ADMIN}"',
    f'Chain="x";URI={ADMIN}',
    f"URI={ADMIN};URI={ADMIN}",
]


@pytest.mark.parametrize("value", XFCC)
def test_xfcc_of_an_ordinary_caller_is_replaced(value: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    for lines in (
        [f"X-Forwarded-Client-Cert: {value}"],
        [f"X-Forwarded-Client-Cert: {value}", f"x-forwarded-client-cert: {value}"],
        [f"Connection: x-forwarded-client-cert\r\nX-Forwarded-Client-Cert: {value}"],
    ):
        for stance in ("", "proxied-"):
            with dial(stance + engine) as client:
                status, seen = _send(client, mesh, lines)
                assert status == 200
                assert seen is not None
                assert ADMIN.encode() not in seen.head.raw, seen.head.raw
                _xfcc_is_ours(seen)


def test_xfcc_decides_nothing(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """/internal is for `admin` only: no field makes billing an admin, and the edge may carry but not become one."""
    for listener, who in ((engine, "billing"), (f"proxied-{engine}", "billing"), (f"plain-{engine}", None)):
        for value in XFCC:
            mark = mesh.upstream.mark()
            with dial(listener, who) as client:
                answer = client.request(
                    get(
                        "/internal/x",
                        fields=[
                            f"X-Forwarded-Client-Cert: {value}",
                            f"X-Forwarded-For: {value}",
                            f"Forwarded: for={ADMIN}" if value else "X: y",
                        ],
                    )
                )
            if who == "billing":
                assert answer.status == 403, answer
                assert mesh.upstream.since(mark) == []
            else:
                assert not [s for s in mesh.upstream.since(mark) if ADMIN.encode() in s.head.raw]


def test_a_listed_proxy_is_believed_and_appended_to(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    inner = f"By=spiffe://shop.example/ns/prod/sa/edge;Hash=aa;URI={SHOP}customer"
    with dial(f"proxied-{engine}", "edge") as client:
        status, seen = _send(client, mesh, [f"X-Forwarded-Client-Cert: {inner}", "X-Forwarded-For: 192.0.2.7", "X-Forwarded-Proto: https"])
    assert status == 200
    assert seen is not None
    value = ",".join(seen.head.all("x-forwarded-client-cert"))
    assert value.startswith(inner), value
    assert f"URI={SHOP}edge" in value.rsplit(",", 1)[1], value
    assert seen.head.get("x-forwarded-for").split(",")[0].strip() == "192.0.2.7"
    assert seen.head.get("x-forwarded-for").split(",")[-1].strip() == "127.0.0.1"


def test_an_unlisted_service_on_the_same_listener_is_not(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    for name in ("edge2", "EDGE", "edge-x", "customer"):
        with dial(f"proxied-{engine}", name) as client:
            status, seen = _send(client, mesh, [f"X-Forwarded-Client-Cert: URI={ADMIN}", f"X-Forwarded-For: {SPOOF}"])
        assert status == 200
        assert seen is not None
        assert ADMIN.encode() not in seen.head.raw
        assert SPOOF.encode() not in seen.head.raw


@pytest.mark.parametrize(
    "element",
    ['Subject="CN=\\"x,y;URI=spiffe://shop.example/ns/prod/sa/fake\\""', 'Subject="unterminated', "Hash", "=", 'URI="a,b"', "a=b=c"],
)
def test_odd_elements_of_a_listed_proxy_cannot_hide_its_own(element: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """Whatever the edge sends, what is read last (after an honest quoted split) is the edge itself; or the request is refused."""
    with dial(f"proxied-{engine}", "edge") as client:
        status, seen = _send(client, mesh, [f"X-Forwarded-Client-Cert: {element}"])
    assert status in (200, 400)
    if seen is not None:
        lines = seen.head.all("x-forwarded-client-cert")
        last = _split_quoted(",".join(lines))[-1]
        assert f"URI={SHOP}edge" in last, lines


def _split_quoted(value: str) -> list[str]:
    out, current, quoted, escaped = [], "", False, False
    for char in value:
        if escaped:
            escaped = False
        elif char == "\\" and quoted:
            escaped = True
        elif char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            out.append(current)
            current = ""
            continue
        current += char
    assert not quoted, f"an open quote swallows the last element: {value!r}"
    return [*out, current]


@pytest.mark.parametrize("spelled", ["x-user-id", "X-User-Id", "x_user_id", "X_User_Id", "x-user_id", "X_USER-ID", "x-roles", "X_ROLES"])
def test_configured_names_are_stripped_in_every_spelling(spelled: str, engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    with dial(f"stripped-{engine}") as client:
        status, seen = _send(client, mesh, [f"{spelled}: {SPOOF}", "x_fine: kept"])
    assert status == 200
    assert seen is not None
    assert SPOOF.encode() not in seen.head.raw
    assert seen.head.get("x_fine") == "kept"


def test_underscore_stances(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    for listener, status, arrives in ((engine, 400, False), (f"dropping-{engine}", 200, False), (f"stripped-{engine}", 200, True)):
        with dial(listener) as client:
            got, seen = _send(client, mesh, ["x_a: 1", "X-B: 2"])
        assert got == status, listener
        assert bool(seen and seen.head.all("x_a")) is arrives, listener
        if seen:
            assert seen.head.get("x-b") == "2"


def test_without_identity_nothing_is_claimed(engine: str, dial: Callable[..., RawClient], mesh: Mesh) -> None:
    """On a plaintext listener there is no caller to name: no XFCC at all, whatever was sent."""
    with dial(f"plain-{engine}") as client:
        status, seen = _send(client, mesh, [f"X-Forwarded-Client-Cert: URI={ADMIN}"])
    assert status in (200, 403)
    if seen is not None:
        assert seen.head.all("x-forwarded-client-cert") == []
    innocent(lambda: dial(f"plain-{engine}"), mesh.upstream)
