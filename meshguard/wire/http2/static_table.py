"""The static table of HPACK (RFC 7541 appendix A), in order from index 1."""

from __future__ import annotations

__all__ = ["DYNAMIC", "STATIC_TABLE"]

_WITH_VALUES = (
    (b":authority", b""), (b":method", b"GET"), (b":method", b"POST"), (b":path", b"/"), (b":path", b"/index.html"), (b":scheme", b"http"),
    (b":scheme", b"https"), (b":status", b"200"), (b":status", b"204"), (b":status", b"206"), (b":status", b"304"), (b":status", b"400"),
    (b":status", b"404"), (b":status", b"500"), (b"accept-charset", b""), (b"accept-encoding", b"gzip, deflate"),
)  # fmt: skip
_NAMES = (
    b"accept-language accept-ranges accept access-control-allow-origin age allow authorization cache-control content-disposition "
    b"content-encoding content-language content-length content-location content-range content-type cookie date etag expect expires from "
    b"host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified link location max-forwards "
    b"proxy-authenticate proxy-authorization range referer refresh retry-after server set-cookie strict-transport-security "
    b"transfer-encoding user-agent vary via www-authenticate"
)

STATIC_TABLE: tuple[tuple[bytes, bytes], ...] = (*_WITH_VALUES, *((name, b"") for name in _NAMES.split()))
DYNAMIC = len(STATIC_TABLE) + 1
"""The first index of the dynamic table."""
