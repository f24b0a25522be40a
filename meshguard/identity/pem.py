"""Certificates and revocation lists as files and messages carry them (PEM, DER, DER after DER), read as lists of DER."""

from __future__ import annotations

import base64
import binascii
import re

from meshguard.model.errors import IdentityError

__all__ = ["encode_certificates", "read_certificates", "read_crls", "split_der"]

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----[ \t]*\r?\n(.*?)-----END \1-----", re.DOTALL)
MAX_BUNDLE_BYTES = 16 * 1024 * 1024
"""Refuse more than this in one file or message: the largest public bundles are below 1 MiB, large CRLs a few."""


def read_certificates(data: bytes) -> list[bytes]:
    """The certificates of a PEM text (other blocks, such as a private key, are passed over), of one DER certificate, or of several
    in a row, in order. Raises IdentityError (`certificate_malformed`) when there is none or one cannot be told apart."""
    return _read(data, b"CERTIFICATE", "certificate_malformed", "certificate")


def read_crls(data: bytes) -> list[bytes]:
    """As `read_certificates`, for X.509 revocation lists (`crl_malformed`)."""
    return _read(data, b"X509 CRL", "crl_malformed", "revocation list")


def encode_certificates(chain: list[bytes] | tuple[bytes, ...]) -> bytes:
    """DER certificates as one PEM text (RFC 7468), in order."""
    blocks = []
    for der in chain:
        text = base64.b64encode(der)
        lines = b"\n".join(text[i : i + 64] for i in range(0, len(text), 64))
        blocks.append(b"-----BEGIN CERTIFICATE-----\n" + lines + b"\n-----END CERTIFICATE-----\n")
    return b"".join(blocks)


def split_der(data: bytes, code: str = "certificate_malformed") -> list[bytes]:
    """Cut concatenated DER SEQUENCEs apart (the SPIFFE Workload API sends chains and bundles so). Definite lengths only."""
    found: list[bytes] = []
    at, end = 0, len(data)
    while at < end:
        if data[at] != 0x30 or at + 2 > end:
            raise IdentityError(code, f"no DER SEQUENCE at offset {at}")
        first = data[at + 1]
        if first < 0x80:
            head, length = 2, first
        else:
            octets = first & 0x7F
            # 0x80 is the indefinite form of BER; more than 4 octets is a length that no certificate has.
            if not 1 <= octets <= 4 or at + 2 + octets > end:
                raise IdentityError(code, f"a length that is not DER at offset {at}")
            head, length = 2 + octets, int.from_bytes(data[at + 2 : at + 2 + octets], "big")
        if at + head + length > end:
            raise IdentityError(code, f"the value at offset {at} is cut off")
        found.append(data[at : at + head + length])
        at += head + length
    return found


def _read(data: bytes, label: bytes, code: str, what: str) -> list[bytes]:
    if len(data) > MAX_BUNDLE_BYTES:
        raise IdentityError(code, f"more than {MAX_BUNDLE_BYTES} bytes")
    if data[:1] == b"0" and b"-----BEGIN" not in data[:64]:
        return split_der(data, code)
    found: list[bytes] = []
    for match in _BLOCK.finditer(data):
        if match[1] != label:
            continue
        try:
            found.append(base64.b64decode(b"".join(match[2].split()), validate=True))
        except binascii.Error as exc:
            raise IdentityError(code, f"a PEM block of type {label.decode()} is not base64") from exc
    if data.count(b"-----BEGIN " + label + b"-----") != len(found):
        raise IdentityError(code, f"a PEM block of type {label.decode()} is not closed")
    if not found:
        raise IdentityError(code, f"no {what} found: expected PEM blocks of type {label.decode()}, or DER")
    return found
