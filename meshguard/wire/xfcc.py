"""X-Forwarded-Client-Cert: the chain of verified callers that proxies hand on (Envoy's format).

A value is a list of elements (`,`), each a list of `Key=Value` (`;`); a value that holds one of `,;=` or a quote is quoted, with backslash
escapes. Naive splitting can be exploited: an element with an open quote would swallow the ones appended behind it. So what does not
parse is dropped whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from meshguard.model.principal import Principal

__all__ = ["element", "join", "last_element"]

_PAIR = rb'(?i:By|Hash|Cert|Chain|Subject|URI|DNS|IPAddress)=(?:"(?:[^"\\\x00-\x1f]|\\[\x20-\x7e])*+"|[^",;=\\\x00-\x20]*+)'
_ELEMENT = _PAIR + rb"(?:;" + _PAIR + rb")*+"
_PAIRS = re.compile(rb'([A-Za-z]+)=(?:"((?:[^"\\]|\\.)*+)"|([^",;]*+))([;,]|\Z)[ \t]*')
_ESCAPED = re.compile(rb"\\(.)")
_VALID = re.compile(_ELEMENT + rb"(?:,[ \t]*+" + _ELEMENT + rb")*+").fullmatch


def element(own_id: str, principal: Principal) -> bytes:
    """The element of one hop. SPIFFE IDs hold none of the characters that would need quoting."""
    return f"By={own_id};Hash={principal.thumbprint};URI={principal.spiffe_id}".encode("ascii")


def last_element(value: bytes) -> list[tuple[str, str]]:
    """(key in lower case, value) of the last element: what the nearest hop says of its own peer. Empty where the value does not parse
    as a whole, so that no open quote can hide an element or make one."""
    if not _VALID(value):
        return []
    pairs: list[tuple[str, str]] = []
    ended = False
    for match in _PAIRS.finditer(value):
        if ended:
            pairs.clear()
        text = match[3] if match[2] is None else _ESCAPED.sub(rb"\1", match[2])
        pairs.append((match[1].decode("ascii").lower(), text.decode("latin-1")))
        ended = match[4] == b","
    return pairs


def join(received: Sequence[bytes], own: bytes) -> bytes:
    """What a trusted hop said, line by line, with our element as the last: the nearest hop. A line that does not parse is left out."""
    return b",".join([*(value for value in received if _VALID(value)), *([own] if own else [])])
