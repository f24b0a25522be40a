"""AWS Signature Version 4 for requests of one body and a plain path, as the AWS General Reference describes it."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import inf
from time import gmtime, strftime
from urllib.parse import urlsplit

__all__ = ["Credentials", "signed_fields"]


@dataclass(frozen=True, slots=True)
class Credentials:
    """`expires` in epoch seconds; inf for long-term ones. The repr has no secret."""

    access_key: str
    secret_key: str
    session_token: str = ""
    expires: float = inf

    def __repr__(self) -> str:
        return f"Credentials({self.access_key[:4]}..., <redacted>)"


def signed_fields(
    method: str, url: str, fields: Mapping[str, str], body: bytes, credentials: Credentials, region: str, service: str, now: float
) -> dict[str, str]:
    """The header fields to add: `x-amz-date`, `x-amz-security-token` where there is one, `authorization`. `fields` have lower-case names;
    all of them and `host` are signed. `now` is epoch seconds."""
    parts = urlsplit(url)
    moment = strftime("%Y%m%dT%H%M%SZ", gmtime(now))
    added = {"x-amz-date": moment}
    if credentials.session_token:
        added["x-amz-security-token"] = credentials.session_token
    signed = {"host": parts.netloc, **fields, **added}
    names = ";".join(sorted(signed))
    lines = [method, parts.path or "/", "&".join(sorted(parts.query.split("&"))) if parts.query else ""]
    lines += [f"{name}:{' '.join(signed[name].split())}" for name in sorted(signed)]
    canonical = "\n".join([*lines, "", names, sha256(body).hexdigest()])
    scope = f"{moment[:8]}/{region}/{service}/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{credentials.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    place = f"Credential={credentials.access_key}/{scope}"
    return added | {"authorization": f"AWS4-HMAC-SHA256 {place}, SignedHeaders={names}, Signature={signature}"}
