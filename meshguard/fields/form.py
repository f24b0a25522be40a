"""application/x-www-form-urlencoded (URL standard section 5), the same in query strings: `name=value` pairs, found by name.

Names compare after decoding. Readers of forms differ, so what one of them could take for a protected name is refused where it is not the
name itself: `Card`, `card[]`, `card[0]`, `card.` and `card` behind a `;`. Of one name every occurrence is treated. Values are UTF-8.

A treated value is written in the URL standard's spelling. How a value was spelled before (`STYLES`) travels inside the sealed value, so
that what the usual encoders wrote comes back octet for octet; any other spelling comes back with the same meaning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from urllib.parse import quote, quote_plus

from meshguard.fields.treatment import Work

__all__ = ["FormError", "read_pairs", "rewrite_pairs"]

_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})?")
_HEX = re.compile(r"%[0-9A-F]{2}")
_OCTETS = [bytes((value,)) for value in range(256)]


class FormError(ValueError):
    """A form that cannot be read in one way only. The message never carries content."""


def _lower(text: str) -> str:
    return _HEX.sub(lambda match: match[0].lower(), text)


STYLES: tuple[Callable[[str], str], ...] = (
    lambda text: quote_plus(text, safe="*-._").replace("~", "%7E"),  # the URL standard
    lambda text: quote(text, safe="-._~"),  # RFC 3986: everything but unreserved characters, %20 for a space
    lambda text: quote(text, safe="-._~!$'()*,/:@?"),  # what may stand in a query
    lambda text: quote_plus(text, safe="-._~"),  # Python's urlencode
    lambda text: quote(text, safe="-_.!~*'()"),  # encodeURIComponent of ECMAScript
    lambda text: _lower(quote_plus(text, safe="*-._").replace("~", "%7E")),
    lambda text: _lower(quote(text, safe="-._~")),
)
"""How the usual encoders spell a value; the first is what is written."""


def rewrite_pairs(text: bytes, names: Mapping[str, int], work: Work) -> bytes:
    """`text` with the values of the pairs named in `names` (name: number of the rule) treated; the rest is as it was.

    Raises FormError and what `Work.treat` raises."""
    near = {_folded(name) for name in names}
    pieces: list[bytes] = []
    for pair in text.split(b"&"):
        raw_name, equals, raw = pair.partition(b"=")
        name = _decoded(raw_name)
        number = names.get(name)
        if number is None:
            if _folded(name) in near or (
                b";" in pair and any(_folded(_decoded(part.partition(b"=")[0])) in near for part in pair.split(b";"))
            ):
                raise FormError("a name that some readers take for a protected one")
            pieces.append(pair)
            continue
        if b";" in raw and any(_folded(_decoded(part.partition(b"=")[0])) in near for part in raw.split(b";")[1:]):
            raise FormError("a name that some readers take for a protected one")
        value = _decoded(raw)
        treated = work.text(number, value, _style(raw, value))
        if treated is None:
            continue
        if treated[0] == value and treated[1] == 0:
            pieces.append(pair)
            continue
        spelled = STYLES[treated[1]] if treated[1] < len(STYLES) else STYLES[0]
        pieces.append(raw_name + (equals or b"=") + spelled(treated[0]).encode())
    return b"&".join(pieces)


def read_pairs(text: bytes) -> list[tuple[str, str]]:
    """The names and values of a form. Raises FormError: some readers split at a `;` too, so where one stands as it is there is doubt."""
    if b";" in text:
        raise FormError("a semicolon that is not percent-encoded")
    pairs = (pair.partition(b"=") for pair in text.split(b"&") if pair)
    return [(_decoded(name), _decoded(value)) for name, _, value in pairs]


def _style(raw: bytes, value: str) -> int:
    text = raw.decode("utf-8", "replace")
    return next((number for number, spell in enumerate(STYLES) if spell(value) == text), 0)


def _decoded(raw: bytes) -> str:
    if b"%" in raw or b"+" in raw:
        raw = _PERCENT.sub(_octet, raw.replace(b"+", b" "))
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise FormError("not UTF-8") from None


def _octet(match: re.Match[bytes]) -> bytes:
    if match[1] is None:
        raise FormError("a percent sign without two hexadecimal digits")
    return _OCTETS[int(match[1], 16)]


def _folded(name: str) -> str:
    """What lenient readers make of a name: case, what follows a bracket, spaces and dots, a NUL."""
    return name.partition("\0")[0].partition("[")[0].strip(" .\t\r\n").replace(" ", "_").replace(".", "_").casefold()
