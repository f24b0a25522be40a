"""X-Forwarded-Client-Cert: the chain of verified callers that proxies hand on (Envoy's format).

A value is a list of elements (`,`), each a list of `Key=Value` (`;`); a value that holds one of `,;=` or a quote is quoted, with backslash
escapes. Naive splitting can be exploited: an element with an open quote would swallow the ones appended behind it. So what does not
parse is dropped whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from meshguard.model.principal import Principal

__all__ = ["element", "join"]

_PAIR = rb'(?i:By|Hash|Cert|Chain|Subject|URI|DNS|IPAddress)=(?:"(?:[^"\\\x00-\x1f]|\\[\x20-\x7e])*+"|[^",;=\\\x00-\x20]*+)'
_ELEMENT = _PAIR + rb"(?:;" + _PAIR + rb")*+"
_VALID = re.compile(_ELEMENT + rb"(?:,[ \t]*+" + _ELEMENT + rb")*+").fullmatch


def element(own_id: str, principal: Principal) -> bytes:
    """The element of one hop. SPIFFE IDs hold none of the characters that would need quoting."""
    return f"By={own_id};Hash={principal.thumbprint};URI={principal.spiffe_id}".encode("ascii")


def join(received: Sequence[bytes], own: bytes) -> bytes:
    """What a trusted hop said, line by line, with our element as the last: the nearest hop. A line that does not parse is left out."""
    return b",".join([*(value for value in received if _VALID(value)), *([own] if own else [])])
