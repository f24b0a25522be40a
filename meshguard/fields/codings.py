"""Content codings (RFC 9110 section 8.4.1): one layer of gzip, br or zstd, decoded within limits and encoded again.

Two limits hold a bomb: the octets that may come out, and the ratio to what went in. The libraries for br and zstd are optional and
imported when the first such body comes; without them, and for `deflate` (which senders spell in two ways), the body is refused.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

__all__ = [
    "CODINGS",
    "CodingError",
    "Decoder",
    "Encoder",
    "TooMuchError",
    "UnavailableCodingError",
    "decode_body",
    "encode_body",
    "new_decoder",
    "new_encoder",
]

CODINGS = ("gzip", "br", "zstd")
MAX_RATIO = 200
"""Honest JSON compresses 5 to 30 times; a bomb a thousand times and more."""
RATIO_FREE = 1 << 16
"""Octets that may come out whatever went in: short bodies of spaces are no bombs."""
_STEP = 1 << 16
_GZIP_WINDOW = 31


class CodingError(ValueError):
    """What claims to be coded is not, or is a bomb. The message never carries content."""


class TooMuchError(CodingError):
    """More comes out than may."""


class UnavailableCodingError(ValueError):
    """The coding is not one that this process can decode."""


class Decoder(Protocol):
    """Decodes a body piece by piece."""

    def feed(self, data: bytes, limit: int) -> bytes:
        """What comes out. Raises CodingError, also when more than `limit` octets would come out."""

    def finish(self) -> None:
        """The body has ended. Raises CodingError when the coded stream has not."""


class Encoder(Protocol):
    """Encodes a body piece by piece."""

    def feed(self, data: bytes) -> bytes:
        """Coded octets from which a reader gets all of `data` at once."""

    def finish(self) -> bytes: ...


def new_decoder(coding: str) -> Decoder:
    """Raises UnavailableCodingError."""
    if coding == "gzip":
        return _Gunzip()
    if coding == "br":
        return _Unbrotli(_library("brotli"))
    if coding == "zstd":
        return _Unzstd(_zstd())
    raise UnavailableCodingError("a content coding that is not handled")


def new_encoder(coding: str) -> Encoder:
    """Raises UnavailableCodingError."""
    if coding == "gzip":
        return _Gzip()
    if coding == "br":
        return _Brotli(_library("brotli"))
    if coding == "zstd":
        return _Zstd(_zstd())
    raise UnavailableCodingError("a content coding that is not handled")


def decode_body(coding: str, body: bytes, limit: int) -> bytes:
    """A whole body without its coding. Raises CodingError, UnavailableCodingError."""
    decoder = new_decoder(coding)
    out = decoder.feed(body, limit)
    decoder.finish()
    return out


def encode_body(coding: str, body: bytes) -> bytes:
    """A whole body in its coding. Raises UnavailableCodingError."""
    encoder = new_encoder(coding)
    return encoder.feed(body) + encoder.finish()


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise UnavailableCodingError(f"a content coding whose library ({name}) is not installed") from None


def _zstd() -> Any:
    try:
        return import_module("compression.zstd")  # Python 3.14
    except ImportError:
        return _library("backports.zstd")


class _Bounded:
    """What all decoders share: the two limits, and the end of the stream."""

    __slots__ = ("_ended", "_in", "_out")

    def __init__(self) -> None:
        self._in = 0
        self._out = 0
        self._ended = False

    def feed(self, data: bytes, limit: int) -> bytes:
        if not data:
            return b""
        if self._ended:
            raise CodingError("something after the end of the coded body")
        self._in += len(data)
        pieces: list[bytes] = []
        size = 0
        while True:
            room = min(limit - size, max(RATIO_FREE, self._in * MAX_RATIO) - self._out) + 1
            piece = self._step(data, min(room, _STEP))
            data = b""
            size += len(piece)
            self._out += len(piece)
            if size > limit:
                raise TooMuchError(f"more than {limit} octets when decoded")
            if self._out > max(RATIO_FREE, self._in * MAX_RATIO):
                raise TooMuchError(f"more than {MAX_RATIO} times as many octets when decoded")
            pieces.append(piece)
            if not self._more(len(piece)):
                return b"".join(pieces)

    def finish(self) -> None:
        if not self._ended:
            raise CodingError("a coded body that is cut off")

    def _step(self, data: bytes, room: int) -> bytes:
        raise NotImplementedError

    def _more(self, size: int) -> bool:
        raise NotImplementedError


class _Gunzip(_Bounded):
    __slots__ = ("_z", "_zlib")

    def __init__(self) -> None:
        super().__init__()
        self._zlib: Any = import_module("zlib")
        self._z = self._zlib.decompressobj(_GZIP_WINDOW)

    def _step(self, data: bytes, room: int) -> bytes:
        try:
            piece: bytes = self._z.decompress(self._z.unconsumed_tail + data, room)
        except self._zlib.error:
            raise CodingError("not gzip") from None
        if self._z.eof:
            if self._z.unused_data:
                raise CodingError("something after the end of the coded body")
            self._ended = True
        return piece

    def _more(self, size: int) -> bool:
        return not self._ended and (bool(self._z.unconsumed_tail) or size > 0)


class _Unbrotli(_Bounded):
    __slots__ = ("_error", "_z")

    def __init__(self, library: Any) -> None:
        super().__init__()
        self._error = library.error
        self._z = library.Decompressor()
        if not hasattr(self._z, "can_accept_more_data"):  # before 1.2 there was no way to bound what comes out
            raise UnavailableCodingError("a content coding whose library (brotli) is older than 1.2")

    def _step(self, data: bytes, room: int) -> bytes:
        try:
            piece: bytes = self._z.process(data, output_buffer_limit=room)
        except self._error:
            raise CodingError("not br") from None
        self._ended = self._z.is_finished()
        return piece

    def _more(self, size: int) -> bool:
        return not self._ended and not self._z.can_accept_more_data()


class _Unzstd(_Bounded):
    __slots__ = ("_error", "_z")

    def __init__(self, library: Any) -> None:
        super().__init__()
        self._error = library.ZstdError
        # RFC 8878 section 7.2: windows of at most 8 MiB are what every decoder has to take
        self._z = library.ZstdDecompressor(options={library.DecompressionParameter.window_log_max: 23})

    def _step(self, data: bytes, room: int) -> bytes:
        try:
            piece: bytes = self._z.decompress(data, max_length=room)
        except self._error:
            raise CodingError("not zstd") from None
        if self._z.eof:
            if self._z.unused_data:
                raise CodingError("something after the end of the coded body")
            self._ended = True
        return piece

    def _more(self, size: int) -> bool:
        return not self._ended and not self._z.needs_input


class _Gzip:
    __slots__ = ("_z", "_zlib")

    def __init__(self) -> None:
        self._zlib: Any = import_module("zlib")
        self._z = self._zlib.compressobj(6, self._zlib.DEFLATED, _GZIP_WINDOW)

    def feed(self, data: bytes) -> bytes:
        return bytes(self._z.compress(data) + self._z.flush(self._zlib.Z_SYNC_FLUSH)) if data else b""

    def finish(self) -> bytes:
        return bytes(self._z.flush())


class _Brotli:
    __slots__ = ("_z",)

    def __init__(self, library: Any) -> None:
        self._z = library.Compressor(quality=4)

    def feed(self, data: bytes) -> bytes:
        return bytes(self._z.process(data) + self._z.flush()) if data else b""

    def finish(self) -> bytes:
        return bytes(self._z.finish())


class _Zstd:
    __slots__ = ("_flush", "_z")

    def __init__(self, library: Any) -> None:
        self._z = library.ZstdCompressor(level=3)
        self._flush = library.ZstdCompressor.FLUSH_BLOCK

    def feed(self, data: bytes) -> bytes:
        return bytes(self._z.compress(data, self._flush)) if data else b""

    def finish(self) -> bytes:
        return bytes(self._z.flush())
