"""The opening handshake of WebSocket (RFC 6455 section 4), each hop's own: the client's request is checked strictly, ours to the upstream
is written anew with a key of ours, and only an answer that fits both opens a tunnel.

permessage-deflate (RFC 7692) is the one extension that is passed on, between the two ends: what it does to a frame can be checked without
inflating anything. Others are not offered to the upstream.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable

from meshguard.model.errors import RequestError, UpstreamError
from meshguard.model.messages import NO_BODY, RequestHead, ResponseHead
from meshguard.model.reasons import UPSTREAM_MALFORMED, WEBSOCKET_HANDSHAKE
from meshguard.wire.fields import split_block

__all__ = ["Agreement", "Offer", "accept_of", "read_answer", "read_offer", "without_websocket_fields"]

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_VERSION = b"13"
_MOST = 16
"""Subprotocols or extensions of one offer."""
_PREFIX = b"sec-websocket-"

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_KEY = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==").fullmatch  # 16 octets (section 4.1)
_IS_TOKEN = re.compile(_TOKEN).fullmatch
_PARAMETER = rb"[ \t]*+;[ \t]*+(" + _TOKEN + rb")(?:[ \t]*+=[ \t]*+(?:\"(" + _TOKEN + rb")\"|(" + _TOKEN + rb")))?+"
_EXTENSION = re.compile(rb"(" + _TOKEN + rb")((?:" + _PARAMETER + rb")*+)").fullmatch
_EACH_PARAMETER = re.compile(_PARAMETER).finditer
_WINDOW = re.compile(rb"[89]|1[0-5]").fullmatch

_DEFLATE = b"permessage-deflate"
_SERVER_PLAIN, _CLIENT_PLAIN = b"server_no_context_takeover", b"client_no_context_takeover"
_SERVER_BITS, _CLIENT_BITS = b"server_max_window_bits", b"client_max_window_bits"

Parameters = dict[bytes, bytes]
"""Of one permessage-deflate element: name -> value, empty where it has none."""


class Offer:
    """What a client asks for. `key` is empty where the protocol has none (RFC 8441 section 5)."""

    __slots__ = ("deflates", "key", "protocols")

    def __init__(self, key: bytes, protocols: tuple[bytes, ...], deflates: tuple[Parameters, ...]) -> None:
        self.key = key
        self.protocols = protocols
        self.deflates = deflates

    def lines(self) -> bytes:
        """The fields of our own handshake, without the key."""
        lines = b"sec-websocket-version: 13\r\n"
        if self.protocols:
            lines += b"sec-websocket-protocol: %b\r\n" % b", ".join(self.protocols)
        if self.deflates:
            lines += b"sec-websocket-extensions: %b\r\n" % b", ".join(map(_written, self.deflates))
        return lines


class Agreement:
    """What both ends have agreed on. `compression`: permessage-deflate is in use."""

    __slots__ = ("_deflate", "compression", "protocol")

    def __init__(self, protocol: bytes, deflate: Parameters | None) -> None:
        self.protocol = protocol
        self._deflate = deflate
        self.compression = deflate is not None

    def lines(self) -> bytes:
        """The fields of the answer to the client, without the proof that its key was read."""
        lines = b""
        if self.protocol:
            lines += b"sec-websocket-protocol: %b\r\n" % self.protocol
        if self._deflate is not None:
            lines += b"sec-websocket-extensions: %b\r\n" % _written(self._deflate)
        return lines


def accept_of(key: bytes) -> bytes:
    """The proof that a server has read the key (section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def without_websocket_fields(block: bytes) -> bytes:
    """The block without the fields of the handshake, also where they are spelled with `_`."""
    return b"".join(
        b"%b: %b\r\n" % (name, value)
        for name, value in split_block(block)
        if not name.lower().replace(b"_", b"-").startswith(_PREFIX)
    )


def read_offer(head: RequestHead, *, keyed: bool = True) -> Offer:
    """What the client offers in a request with `Upgrade: websocket`; `keyed` false: by extended CONNECT, which has neither key nor upgrade
    fields (RFC 8441 section 5). Raises RequestError(WEBSOCKET_HANDSHAKE)."""
    if head.method != b"GET" or head.length != NO_BODY or head.minor == 0:
        raise RequestError(WEBSOCKET_HANDSHAKE, "not a GET without body")
    if keyed:
        upgrades = [value for name, value in head.specials if name == b"upgrade"]
        if len(upgrades) != 1 or upgrades[0].lower() != b"websocket":
            raise RequestError(WEBSOCKET_HANDSHAKE, "not the only upgrade")
        if (b"connection", b"upgrade") not in head.specials:
            raise RequestError(WEBSOCKET_HANDSHAKE, "upgrade not named in Connection")
    said = _said(head.block)
    if said.get(b"version") != [_VERSION]:
        raise RequestError(WEBSOCKET_HANDSHAKE, "version")
    keys = said.get(b"key", [])
    if keyed and (len(keys) != 1 or _KEY(keys[0]) is None):
        raise RequestError(WEBSOCKET_HANDSHAKE, "key")
    if b"accept" in said:
        raise RequestError(WEBSOCKET_HANDSHAKE, "an answer's field")
    protocols = _listed(said.get(b"protocol", ()))
    if len(protocols) > _MOST or len(set(protocols)) != len(protocols) or not all(map(_IS_TOKEN, protocols)):
        raise RequestError(WEBSOCKET_HANDSHAKE, "subprotocols")
    try:
        extensions = _extensions(said.get(b"extensions", ()))
    except ValueError as exc:
        raise RequestError(WEBSOCKET_HANDSHAKE, str(exc)) from exc
    offered = [parameters for name, parameters in extensions if name == _DEFLATE and parameters is not None]
    deflates = tuple(parameters for parameters in offered if _understood(parameters, offered=True))
    return Offer(keys[0] if keyed else b"", tuple(protocols), deflates)


def read_answer(head: ResponseHead, offer: Offer, key: bytes) -> Agreement:
    """What the upstream agreed to in a 101 to our handshake with `key` (empty: the answer to an extended CONNECT).
    Raises UpstreamError(UPSTREAM_MALFORMED) for whatever was not offered or does not fit (section 4.1, the client's list)."""
    said = _said(head.block)
    if key:
        upgrades = [value.lower() for name, value in head.specials if name == b"upgrade"]
        if upgrades != [b"websocket"] or (b"connection", b"upgrade") not in head.specials:
            raise UpstreamError(UPSTREAM_MALFORMED, "the 101 does not upgrade to websocket")
        if said.get(b"accept") != [accept_of(key)]:
            raise UpstreamError(UPSTREAM_MALFORMED, "Sec-WebSocket-Accept")
    protocols = said.get(b"protocol", [])
    if len(protocols) > 1 or not set(protocols) <= set(offer.protocols):
        raise UpstreamError(UPSTREAM_MALFORMED, "Sec-WebSocket-Protocol was not offered")
    try:
        extensions = _extensions(said.get(b"extensions", ()))
    except ValueError as exc:
        raise UpstreamError(UPSTREAM_MALFORMED, str(exc)) from exc
    if not extensions:
        return Agreement(protocols[0] if protocols else b"", None)
    name, parameters = extensions[0]
    if (
        len(extensions) > 1
        or name != _DEFLATE
        or parameters is None
        or not _understood(parameters, offered=False)
        or not any(_fits(offered, parameters) for offered in offer.deflates)
    ):
        raise UpstreamError(UPSTREAM_MALFORMED, "Sec-WebSocket-Extensions was not offered")
    return Agreement(protocols[0] if protocols else b"", parameters)


def _said(block: bytes) -> dict[bytes, list[bytes]]:
    """The handshake's fields by the rest of their name, every line of each."""
    said: dict[bytes, list[bytes]] = {}
    for name, value in split_block(block):
        lower = name.lower()
        if lower.startswith(_PREFIX):
            said.setdefault(lower[len(_PREFIX) :], []).append(value)
    return said


def _listed(values: Iterable[bytes]) -> list[bytes]:
    """The elements of a list, case kept (subprotocols are compared as they are); empty ones stay, so that they are refused."""
    return [part.strip(b" \t") for value in values for part in value.split(b",")]


def _extensions(values: Iterable[bytes]) -> list[tuple[bytes, Parameters | None]]:
    """(name, parameters) of each extension (section 9.1); parameters None where one is repeated. A quoted value is a token when its quotes
    are taken off, so a comma always separates. Raises ValueError."""
    found: list[tuple[bytes, Parameters | None]] = []
    for element in _listed(values):
        match = _EXTENSION(element)
        if match is None or len(found) >= _MOST:
            raise ValueError("Sec-WebSocket-Extensions")
        parameters: Parameters | None = {}
        for parameter in _EACH_PARAMETER(match[2]):
            name = parameter[1].lower()
            if parameters is None or name in parameters:
                parameters = None
                break
            parameters[name] = parameter[2] or parameter[3] or b""
        found.append((match[1].lower(), parameters))
    return found


def _understood(parameters: Parameters, *, offered: bool) -> bool:
    """RFC 7692 section 7.1: nothing but its four parameters, each with the value that it has to have."""
    for name, value in parameters.items():
        if name in (_SERVER_PLAIN, _CLIENT_PLAIN):
            if value:
                return False
        elif name in (_SERVER_BITS, _CLIENT_BITS):
            if _WINDOW(value) is None and not (offered and name == _CLIENT_BITS and not value):
                return False
        else:
            return False
    return True


def _fits(offered: Parameters, agreed: Parameters) -> bool:
    """Whether `agreed` accepts `offered` (RFC 7692 sections 7.1.1 and 7.1.2)."""
    if _SERVER_PLAIN in offered and _SERVER_PLAIN not in agreed:
        return False
    most = offered.get(_SERVER_BITS)
    if most is not None and int(agreed.get(_SERVER_BITS, b"16")) > int(most):
        return False
    if _CLIENT_BITS in agreed:
        if _CLIENT_BITS not in offered:
            return False
        return int(agreed[_CLIENT_BITS]) <= int(offered[_CLIENT_BITS] or b"15")
    return True


def _written(parameters: Parameters) -> bytes:
    return b"; ".join((_DEFLATE, *(b"%b=%b" % pair if pair[1] else pair[0] for pair in parameters.items())))
