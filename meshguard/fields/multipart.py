"""multipart/form-data (RFC 7578, RFC 2046 section 5.1): the text parts of a form, found by name. Files and other parts stay as they are.

Parsers of multipart differ more than any others, so this one is strict: one boundary, CRLF line ends, Content-Disposition first and once in
each part, its `name` quoted and plain, no transfer encoding, and a protected part is text in UTF-8. Everything else is refused: a part
whose name two parsers read differently could carry a protected value past us.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from meshguard.fields.treatment import Work

__all__ = ["MultipartError", "boundary_of", "rewrite_parts"]

_BOUNDARY = re.compile(r"[A-Za-z0-9'()+_,./:=? -]{0,69}[A-Za-z0-9'()+_,./:=?-]")  # RFC 2046 section 5.1.1
_PARAMETER = re.compile(r""";[ \t]*boundary=(?:"([^"\\]*)"|([^\s;"]+))""", re.IGNORECASE)
_DISPOSITION = re.compile(
    rb'form-data((?:;[ ]*(?:name|filename)="[^"\\\r\n\x00]*"|;[ ]*filename\*=[A-Za-z0-9._%\'-]+)*+)[ ]*', re.IGNORECASE
)
_NAMED = re.compile(rb';[ ]*(name|filename)="([^"]*)"', re.IGNORECASE)
_HEADER = re.compile(rb"([A-Za-z0-9-]+):[ \t]*([^\r\n\x00]*)\Z")
_TEXT = re.compile(rb"text/plain[ \t]*(?:;[ \t]*charset=\"?utf-?8\"?[ \t]*)?", re.IGNORECASE)
MAX_PARTS = 1000


class MultipartError(ValueError):
    """A body that cannot be read in one way only. The message never carries content."""


def boundary_of(content_type: str) -> bytes:
    """The boundary parameter of a Content-Type. Raises MultipartError unless there is exactly one that is well formed."""
    found = _PARAMETER.findall(content_type)
    text = found[0][0] or found[0][1] if len(found) == 1 else ""
    if not _BOUNDARY.fullmatch(text) or content_type.lower().count("boundary") != 1:
        raise MultipartError("no single valid boundary")
    return text.encode()


def rewrite_parts(body: bytes, boundary: bytes, names: Mapping[str, int], work: Work) -> bytes:
    """The body with the parts named in `names` (name: number of the rule) treated. Raises MultipartError and what `Work.treat` raises."""
    delimiter = b"--" + boundary
    if not body.startswith(delimiter + b"\r\n"):
        raise MultipartError("no boundary at the beginning")
    if b"\n" + delimiter in body.replace(b"\r\n" + delimiter, b""):
        raise MultipartError("a boundary after a bare line feed")
    pieces = (b"\r\n" + body).split(b"\r\n" + delimiter)
    if len(pieces) > MAX_PARTS + 2:
        raise MultipartError(f"more than {MAX_PARTS} parts")
    if len(pieces) < 3 or pieces[0] or pieces[-1] not in (b"--", b"--\r\n"):
        raise MultipartError("no closing boundary at the end")
    folded = {name.casefold() for name in names}
    kept: list[bytes] = []
    for piece in pieces[1:-1]:
        head, separator, content = piece.partition(b"\r\n\r\n")
        if not separator or not head.startswith(b"\r\n"):
            raise MultipartError("a part without a head, or a boundary inside a line")
        name, is_file, is_text = _head(head[2:])
        number = names.get(name)
        if number is None:
            if name.partition("[")[0].strip().casefold() in folded:
                raise MultipartError("a name that some readers take for a protected one")
            kept.append(piece)
            continue
        if is_file or not is_text:
            raise MultipartError("a protected part that is no text")
        try:
            value = content.decode("utf-8")
        except UnicodeDecodeError:
            raise MultipartError("not UTF-8") from None
        treated = work.text(number, value)
        if treated is None:
            continue
        new = treated[0].encode()
        if b"\r\n" + delimiter in b"\r\n" + new:
            raise MultipartError("a value that holds the boundary")
        kept.append(head + separator + new)
    if not kept:
        raise MultipartError("no part left")
    result = (b"\r\n" + delimiter).join([b"", *kept, pieces[-1]])
    return result[2:]


def _head(head: bytes) -> tuple[str, bool, bool]:
    """(name, whether it is a file, whether it is plain text) of a part."""
    name, is_file, is_text, seen = "", False, True, set()
    for line in head.split(b"\r\n"):
        match = _HEADER.match(line)
        if match is None or match[1].lower() in seen:
            raise MultipartError("a part with a malformed or repeated header field")
        field, value = match[1].lower(), match[2].rstrip(b" \t")
        seen.add(field)
        if field == b"content-disposition":
            disposition = _DISPOSITION.fullmatch(value)
            named = _NAMED.findall(disposition[1]) if disposition is not None else []
            kinds = [kind.lower() for kind, _ in named]
            if disposition is None or kinds.count(b"name") != 1 or kinds.count(b"filename") > 1:
                raise MultipartError("a Content-Disposition that is not form-data with one plain name")
            is_file = b"filename" in disposition[1].lower()
            raw = next(text for kind, text in named if kind.lower() == b"name")
            if b"%" in raw:  # browsers escape quotes and line ends so, other writers do not
                raise MultipartError("a name with a percent sign")
            try:
                name = raw.decode("utf-8")
            except UnicodeDecodeError:
                raise MultipartError("a name that is not UTF-8") from None
        elif field == b"content-type":
            is_text = _TEXT.fullmatch(value) is not None
        elif field == b"content-transfer-encoding" and value.lower() not in (b"7bit", b"8bit", b"binary"):
            raise MultipartError("a content transfer encoding")
    if b"content-disposition" not in seen:
        raise MultipartError("a part without Content-Disposition")
    return name, is_file, is_text
