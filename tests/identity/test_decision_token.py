"""Decision tokens: what they prove, and every way to prove something else."""

from __future__ import annotations

import base64
import json
import pickle
from itertools import pairwise
from typing import Any

import pytest

from meshguard.identity.decision_token import LEEWAY_S, LIFETIME_S, MAX_HOPS, MAX_VALUE, Delegation, issue, verify
from meshguard.identity.material import Material, load_material
from meshguard.identity.signer import Signer, encode_base64url
from meshguard.identity.trust import TrustStore
from meshguard.model.errors import IdentityError
from tests.harness.pki import Authority
from tests.identity import pki

SHOP = "spiffe://shop.example/ns/prod/sa/"
CA = Authority("shop root")
PARTNER = Authority("partner root", trust_domain="partner.example")
STRANGER = Authority("shop root")
TRUST = TrustStore({"shop.example": [CA.pem], "partner.example": [PARTNER.pem]})


class Node:
    """A workload with its proxy's key."""

    def __init__(self, name: str, authority: Authority = CA) -> None:
        leaf = authority.service(name)
        self.material: Material = load_material([leaf.der], leaf.key_pem)
        self.signer = Signer(self.material)
        self.id = self.material.spiffe_id
        self.leaf = self.material.chain[0]


A, B, C, D = (Node(name) for name in ("a", "b", "c", "d"))
NOW = A.material.not_before + 3000.0  # certificates that tests make much later are valid then, too


def sent(node: Node, to: Node | str, received: Delegation | None = None, now: float = NOW) -> str:
    audience = to if isinstance(to, str) else to.id
    return issue(node.signer, audience=audience, received=received, policy="sha256:00", decision="d-1", jti="j", now=now)


def got(value: str, at: Node, frm: Node | None, now: float = NOW, trust: TrustStore = TRUST) -> Delegation:
    return verify(
        value,
        audiences=(at.id, f"spiffe://{at.material.trust_domain}"),
        judge=lambda chain: trust.verify(chain, now),
        peer=frm.leaf if frm is not None else None,
        now=now,
    )


def refused(value: str, at: Node, frm: Node | None, now: float = NOW, trust: TrustStore = TRUST) -> str:
    with pytest.raises(IdentityError) as caught:
        got(value, at, frm, now, trust)
    return caught.value.code


def test_a_chain_grows_hop_by_hop() -> None:
    first = got(sent(A, B), B, A)
    assert first.chain == (A.id,)
    second = got(sent(B, C, first), C, B)
    assert second.chain == (A.id, B.id)
    third = got(sent(C, "spiffe://shop.example", second), D, C)
    assert third.chain == (A.id, B.id, C.id)
    assert third.serials.keys() == {A.id, B.id, C.id}
    claims = _claims(third.value.split("~")[0])
    assert claims["iss"] == C.id
    assert claims["sub"] == A.id
    assert claims["act"] == {"sub": C.id, "act": {"sub": B.id}}  # RFC 8693 section 4.1: the newest is outside
    assert claims["exp"] - claims["iat"] == LIFETIME_S


def test_one_workload_with_two_proxies_is_one_member() -> None:
    """The application calls out by its own outbound proxy, which sends on by another one of the same identity."""
    once = got(sent(A, A), A, A)
    assert got(sent(A, B, once), B, A).chain == (A.id,)
    through = got(sent(B, B, got(sent(A, B), B, A)), B, B)
    assert got(sent(B, C, through), C, B).chain == (A.id, B.id)


def test_our_own_application_hands_on_what_was_addressed_to_us() -> None:
    assert got(sent(A, B), B, None).chain == (A.id,)
    assert refused(sent(A, C), B, None) == "wrong_audience"


def test_across_trust_domains() -> None:
    partner = Node("p", PARTNER)
    value = sent(B, partner, got(sent(A, B), B, A))
    assert got(value, partner, B).chain == (A.id, B.id)
    back = sent(partner, "spiffe://shop.example", got(value, partner, B))
    assert got(back, C, partner).chain == (A.id, B.id, partner.id)


@pytest.mark.parametrize(
    ("kind", "algorithm"), [("p256", "ES256"), ("p384", "ES384"), ("p521", "ES512"), ("ed25519", "EdDSA"), ("rsa2048", "PS256")]
)
def test_every_kind_of_key(kind: str, algorithm: str) -> None:
    authority = pki.Ca()
    material = authority.issue(private=pki.key(kind)).material()
    trust = TrustStore({material.trust_domain: [authority.pem]})
    signer = Signer(material)
    assert signer.algorithm == algorithm
    value = issue(signer, audience=B.id, received=None, policy="p", decision="d", jti="j", now=pki.NOW)

    def check(text: str) -> Delegation:
        return verify(text, audiences=(B.id,), judge=lambda chain: trust.verify(chain, pki.NOW), peer=material.chain[0], now=pki.NOW)

    assert check(value).chain == (material.spiffe_id,)
    head, _, signature = value.rpartition(".")
    with pytest.raises(IdentityError, match="bad_signature"):
        check(f"{head}.{'A' * 80 if signature[:80] != 'A' * 80 else 'B' * 80}{signature[80:]}")
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(signer)


def _part(token: str, number: int) -> dict[str, Any]:
    text = token.split(".")[number]
    value: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return value


def _claims(token: str) -> dict[str, Any]:
    return _part(token, 1)


def _made(node: Node, claims: dict[str, Any] | None = None, header: dict[str, Any] | None = None, value: str = "") -> str:
    """A token of `node` to B with other claims or another header, properly signed by its own key."""
    token = value or sent(node, B)
    head, body = {**_part(token, 0), **(header or {})}, {**_claims(token), **(claims or {})}
    parts = [encode_base64url(json.dumps({k: v for k, v in part.items() if v is not ...}).encode()) for part in (head, body)]
    signed = ".".join(parts)
    return f"{signed}.{encode_base64url(node.signer.sign(signed.encode()))}"


def test_the_forger_of_this_test_makes_good_tokens_too() -> None:
    assert got(_made(A), B, A).chain == (A.id,)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({"alg": "none"}, "algorithm_not_allowed"),
        ({"alg": "HS256"}, "algorithm_not_allowed"),
        ({"alg": "ES384"}, "algorithm_not_allowed"),
        ({"alg": ["ES256"]}, "algorithm_not_allowed"),
        ({"typ": "JWT"}, "wrong_type"),
        ({"typ": ...}, "malformed_token"),
        ({"x5c": []}, "malformed_token"),
        ({"x5c": ["%"]}, "malformed_token"),
        ({"x5c": ["AAAA"]}, "wrong_channel"),
        ({"crit": ["x"], "x": 1}, "malformed_token"),
        ({"jwk": {}}, "malformed_token"),
        ({"kid": "k"}, "malformed_token"),
    ],
)
def test_headers(header: dict[str, Any], code: str) -> None:
    assert refused(_made(A, header=header), B, A) == code


@pytest.mark.parametrize(
    ("claims", "code"),
    [
        ({"iss": SHOP + "b"}, "wrong_issuer"),
        ({"aud": SHOP + "c"}, "wrong_audience"),
        ({"aud": [SHOP + "b"]}, "bad_claim"),
        ({"aud": "spiffe://partner.example"}, "wrong_audience"),
        ({"aud": ...}, "bad_claim"),
        ({"jti": ...}, "bad_claim"),
        ({"policy": 1}, "bad_claim"),
        ({"exp": ...}, "bad_claim"),
        ({"exp": True}, "bad_claim"),
        ({"exp": int(NOW) + LIFETIME_S + 1}, "bad_claim"),
        ({"exp": int(NOW)}, "bad_claim"),
        ({"iat": int(NOW) + 10, "exp": int(NOW) + 20}, "issued_in_future"),
        ({"iat": int(NOW) - 100, "exp": int(NOW) - 50}, "expired"),
        ({"sub": "somebody"}, "spiffe_scheme"),
        ({"sub": SHOP + "c"}, "broken_chain"),
        ({"sub": SHOP + "c", "act": {"sub": SHOP + "a"}}, "broken_chain"),  # forged: c has signed nothing
        ({"act": {"sub": SHOP + "b"}}, "broken_chain"),
        ({"act": {"sub": SHOP + "a", "x": 1}}, "bad_claim"),
        ({"act": "a"}, "bad_claim"),
        ({"prev": "x"}, "broken_chain"),
    ],
)
def test_claims(claims: dict[str, Any], code: str) -> None:
    assert refused(_made(A, claims), B, A) == code


def test_the_channel_and_the_signature() -> None:
    value = sent(A, B)
    assert refused(value, B, C) == "wrong_channel"  # stolen, and shown by another workload
    other = Node("a")  # another certificate of the same workload: another key
    assert refused(value, B, other) == "wrong_channel"
    forged = value.rpartition(".")[0] + "." + encode_base64url(other.signer.sign(value.rpartition(".")[0].encode()))
    assert refused(forged, B, A) == "bad_signature"
    assert refused(value.rpartition(".")[0] + ".", B, A) == "bad_signature"
    assert refused(value.rpartition(".")[0] + "." + "A" * 86, B, A) == "bad_signature"
    impostor = Node("a", STRANGER)
    assert refused(sent(impostor, B), B, impostor) in ("untrusted", "signature_invalid", "chain_untrusted")
    for broken in ("", "a", "a.b", "a.b.c", value + "~", "~" + value, value + "~" + value, value + ".x"):
        refused(broken, B, A)


def test_times() -> None:
    value = sent(A, B)
    assert got(value, B, A, NOW + LIFETIME_S).expires <= NOW + LIFETIME_S + LEEWAY_S
    assert refused(value, B, A, NOW + LIFETIME_S + LEEWAY_S) == "expired"
    later = sent(B, C, got(value, B, A), NOW + 30)
    assert got(later, C, B, NOW + 30).expires <= NOW + LIFETIME_S + LEEWAY_S
    assert refused(later, C, B, NOW + LIFETIME_S + LEEWAY_S) == "expired"  # the evidence is too old, whatever the newest says


def test_what_a_hop_in_the_middle_can_do() -> None:
    """It can leave out what was before it, and cannot invent, lengthen, shorten or reorder what it keeps."""
    to_b = sent(A, B)
    honest = sent(B, C, got(to_b, B, A))
    newest, evidence = honest.split("~")
    assert got(sent(B, C), C, B).chain == (B.id,)  # left out: it stands there alone
    assert refused(newest, C, B) == "broken_chain"  # evidence stripped
    assert refused(evidence, C, B) == "wrong_channel"
    assert refused(f"{newest}~{sent(D, B)}", C, B) == "broken_chain"  # evidence exchanged
    assert refused(f"{newest}~{_made(A, {'jti': 'other'}, value=to_b)}", C, B) == "broken_chain"
    grown = _made(B, {"act": {"sub": B.id, "act": {"sub": D.id}}}, value=newest)
    assert refused(f"{grown}~{evidence}", C, B) == "broken_chain"  # a caller invented between
    began = _made(B, {"sub": D.id}, value=newest)
    assert refused(f"{began}~{evidence}", C, B) == "broken_chain"  # another one who began
    hidden = _made(B, {"sub": B.id, "act": ...}, value=newest)
    assert refused(f"{hidden}~{evidence}", C, B) == "broken_chain"
    to_d = sent(A, D)  # stolen on its way to somebody else
    stolen = issue(B.signer, audience=C.id, received=Delegation((A.id,), NOW, {}, to_d), policy="p", decision="d", jti="j", now=NOW)
    assert refused(stolen, C, B) == "wrong_audience"
    as_c = issue(C.signer, audience=D.id, received=Delegation((A.id,), NOW, {}, to_b), policy="p", decision="d", jti="j", now=NOW)
    assert refused(as_c, D, C) == "wrong_audience"


def test_a_revoked_member_breaks_the_chain() -> None:
    value = sent(B, C, got(sent(A, B), B, A))
    without = TrustStore({"partner.example": [PARTNER.pem]})
    assert refused(value, C, B, trust=without) == "trust_domain_unknown"


def test_chains_are_bounded() -> None:
    nodes = [Node(f"n{number}") for number in range(MAX_HOPS + 1)]
    received: Delegation | None = None
    for here, there in pairwise(nodes):
        value = sent(here, there, received)
        assert len(value) <= MAX_VALUE
        received = got(value, there, here)
    assert received is not None
    assert len(received.chain) == MAX_HOPS
    with pytest.raises(IdentityError, match="chain_too_long"):
        sent(nodes[-1], A, received)
    assert refused("~".join([sent(A, B)] * (MAX_HOPS + 1)), B, A) in ("chain_too_long", "token_too_large")
    assert refused("a" * (MAX_VALUE + 1), B, A) == "token_too_large"
