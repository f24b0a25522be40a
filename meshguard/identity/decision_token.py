"""Decision tokens: who called whom on the way to this request, each step signed by the proxy that took it (E6).

A value is one token for each hop, the newest first, joined by `~`. A token is a JWS (RFC 7515) in compact form; its claims (RFC 7519,
RFC 8693 section 4.1) are

    iss     the SPIFFE ID of the proxy's workload, which signs with its SVID key; `x5c` in the header shows the certificates
    aud     the SPIFFE ID of the next hop, or that of its trust domain
    sub     who it all began with; `act` the later callers, the newest outside: together they are the chain
    iat, exp, jti     it lives LIFETIME_S
    policy, decision  the digest of the policy and the id of the decision that let the request go on
    prev    SHA-256 of the token before it, which is then the next one of the value

INVARIANT: a chain is as long as its evidence: each member has signed, and a token adds nothing but its own workload to what the token
before it says. So a hop in the middle can leave out what was before it, and cannot invent it. Who shows a value on a connection must
own the key of its newest token.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Collection, Mapping, Sequence

from meshguard.identity.jose import decode_base64url, parse_object
from meshguard.identity.jwk import certified_key
from meshguard.identity.signer import Signer, encode_base64url
from meshguard.identity.spiffe import parse_spiffe_id
from meshguard.identity.svid import load_certificate, public_key
from meshguard.model.errors import IdentityError
from meshguard.model.principal import Principal

__all__ = ["LIFETIME_S", "MAX_HOPS", "MAX_VALUE", "Delegation", "issue", "verify"]

LIFETIME_S = 60
LEEWAY_S = 5.0
"""Seconds by which clocks of one mesh may differ."""
MAX_HOPS = 8
MAX_VALUE = 16 * 1024
"""Octets of a value. A token with a certificate of usual size has 1.6 KiB."""
_MAX_CERTIFICATES = 4
_TYPE = "meshguard-decision+jwt"
_HEADER = frozenset(("alg", "typ", "x5c"))
_TEXTS = ("iss", "aud", "sub", "jti", "policy", "decision")


class Delegation:
    """What a verified value proves: `chain` (SPIFFE IDs, who it began with first, the direct caller last), `expires` (epoch seconds, of the
    token that ends first), the `serials` of those whose certificates were seen, by SPIFFE ID, and the `value` itself."""

    __slots__ = ("chain", "expires", "serials", "value")

    def __init__(self, chain: tuple[str, ...], expires: float, serials: Mapping[str, str], value: str) -> None:
        self.chain = chain
        self.expires = expires
        self.serials = serials
        self.value = value


def issue(signer: Signer, *, audience: str, received: Delegation | None, policy: str, decision: str, jti: str, now: float) -> str:
    """The value for the next hop, behind what was `received` with the request. Raises IdentityError(`chain_too_long`)."""
    chain = received.chain if received is not None else ()
    if not chain or chain[-1] != signer.spiffe_id:
        chain = (*chain, signer.spiffe_id)
    claims: dict[str, object] = {
        "iss": signer.spiffe_id,
        "aud": audience,
        "sub": chain[0],
        "iat": int(now),
        "exp": int(now) + LIFETIME_S,
        "jti": jti,
        "policy": policy,
        "decision": decision,
    }
    actor: dict[str, object] | None = None
    for member in chain[1:]:
        actor = {"sub": member, "act": actor} if actor is not None else {"sub": member}
    if actor is not None:
        claims["act"] = actor
    if received is not None:
        claims["prev"] = _digest(received.value.partition("~")[0])
    header = {"alg": signer.algorithm, "typ": _TYPE, "x5c": signer.x5c}
    signed = f"{_part(header)}.{_part(claims)}"
    token = f"{signed}.{encode_base64url(signer.sign(signed.encode('ascii')))}"
    value = f"{token}~{received.value}" if received is not None else token
    if value.count("~") >= MAX_HOPS or len(value) > MAX_VALUE:
        raise IdentityError("chain_too_long", f"more than {MAX_HOPS} hops or {MAX_VALUE} octets")
    return value


def verify(
    value: str,
    *,
    audiences: Collection[str],
    judge: Callable[[Sequence[bytes]], Principal],
    peer: bytes | None,
    now: float,
) -> Delegation:
    """What `value` proves at `now` (epoch seconds). `audiences` are our own SPIFFE ID and that of our trust domain; `judge` proves a chain
    of certificates (leaf first, DER) by the trust store; `peer` is the certificate of the connection, None where the own workload hands
    on what was addressed to it.

    Raises IdentityError: token_too_large, chain_too_long, malformed_token, wrong_type, algorithm_not_allowed, wrong_issuer, wrong_audience,
    wrong_channel, expired, issued_in_future, bad_claim, broken_chain, bad_signature, and what `judge` raises."""
    if len(value) > MAX_VALUE:
        raise IdentityError("token_too_large")
    tokens = value.split("~")
    if len(tokens) > MAX_HOPS:
        raise IdentityError("chain_too_long")
    serials: dict[str, str] = {}
    expires = now + LIFETIME_S
    accepted = audiences
    above: tuple[str, ...] = ()  # the chain of the token that was built on this one, without its own workload
    newest: tuple[str, ...] = ()
    for place, token in enumerate(tokens):
        claims, signer = _verified(token, judge, peer if place == 0 else None)
        if claims["aud"] not in accepted:
            raise IdentityError("wrong_audience")
        chain = _chain(claims)
        if place == 0:
            newest = chain
        elif chain != above:
            raise IdentityError("broken_chain", "a token that says more than the one before it")
        expires = min(expires, _judge_times(claims, now))
        own = str(claims["iss"])
        if chain[-1] != own:
            raise IdentityError("broken_chain", "a chain that does not end with its signer")
        serials[own] = signer.serial
        previous = claims.get("prev")
        last = place == len(tokens) - 1
        if (previous is None) != last:
            raise IdentityError("broken_chain", "a token without the one before it, or one too many")
        if last:
            if len(chain) > 1:
                raise IdentityError("broken_chain", "callers without evidence")
        elif previous != _digest(tokens[place + 1]):
            raise IdentityError("broken_chain", "another token than the one it was built on")
        # the token before may have been issued by the same workload's other proxy: then this one has added nothing
        above = chain if _same_workload(tokens, place, own) else chain[:-1]
        accepted = (own, f"spiffe://{signer.trust_domain}")
    return Delegation(newest, expires, serials, value)


def _same_workload(tokens: Sequence[str], place: int, own: str) -> bool:
    if place + 1 >= len(tokens):
        return False
    try:
        return parse_object(decode_base64url(tokens[place + 1].split(".")[1])).get("iss") == own
    except (ValueError, IndexError):
        return False  # it is judged next, and refused


def _verified(token: str, judge: Callable[[Sequence[bytes]], Principal], peer: bytes | None) -> tuple[dict[str, object], Principal]:
    """Claims whose signature holds, and who signed."""
    parts = token.split(".")
    if len(parts) != 3:
        raise IdentityError("malformed_token", "not three parts")
    try:
        header = parse_object(decode_base64url(parts[0]))
        claims = parse_object(decode_base64url(parts[1]))
        signature = decode_base64url(parts[2])
        certificates = _certificates(header)
    except (ValueError, Base64Error) as exc:
        raise IdentityError("malformed_token", str(exc)) from exc
    if header["typ"] != _TYPE:
        raise IdentityError("wrong_type")
    if peer is not None and certificates[0] != peer:
        raise IdentityError("wrong_channel", "signed by another workload than the one that shows it")
    principal = judge(certificates)
    key = certified_key(public_key(load_certificate(certificates[0])))
    algorithm = header["alg"]
    if not isinstance(algorithm, str) or algorithm not in key.algorithms:
        raise IdentityError("algorithm_not_allowed")
    key.verify(algorithm, signature, f"{parts[0]}.{parts[1]}".encode("ascii"))
    if not all(isinstance(claims.get(name), str) for name in _TEXTS):
        raise IdentityError("bad_claim", "a claim that is missing or no text")
    if claims["iss"] != principal.spiffe_id:
        raise IdentityError("wrong_issuer")
    return claims, principal


def _certificates(header: Mapping[str, object]) -> list[bytes]:
    if header.keys() != _HEADER:
        raise ValueError("another header than alg, typ and x5c")
    listed = header["x5c"]
    if not isinstance(listed, list) or not 1 <= len(listed) <= _MAX_CERTIFICATES or not all(isinstance(item, str) for item in listed):
        raise ValueError("no list of certificates")
    return [b64decode(item, validate=True) for item in listed]


def _judge_times(claims: Mapping[str, object], now: float) -> float:
    issued, expires = claims.get("iat"), claims.get("exp")
    if isinstance(issued, bool) or isinstance(expires, bool) or not isinstance(issued, int) or not isinstance(expires, int):
        raise IdentityError("bad_claim", "iat or exp")
    if not 0 < expires - issued <= LIFETIME_S:
        raise IdentityError("bad_claim", f"a life of more than {LIFETIME_S} s")
    if now < issued - LEEWAY_S:
        raise IdentityError("issued_in_future")
    if now >= expires + LEEWAY_S:
        raise IdentityError("expired")
    return expires + LEEWAY_S


def _chain(claims: Mapping[str, object]) -> tuple[str, ...]:
    chain = [claims["sub"]]
    actor = claims.get("act")
    later: list[object] = []
    while actor is not None:
        if not isinstance(actor, Mapping) or not actor.keys() <= {"sub", "act"} or len(later) > MAX_HOPS:
            raise IdentityError("bad_claim", "act")
        later.append(actor.get("sub"))
        actor = actor.get("act")
    chain += reversed(later)
    return tuple(parse_spiffe_id(member).uri if isinstance(member, str) else _no_member() for member in chain)


def _no_member() -> str:
    raise IdentityError("bad_claim", "a caller without a name")


def _digest(token: str) -> str:
    return encode_base64url(hashlib.sha256(token.encode("ascii")).digest())


def _part(value: Mapping[str, object]) -> str:
    return encode_base64url(json.dumps(value, separators=(",", ":")).encode("utf-8"))
