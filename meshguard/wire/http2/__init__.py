"""HTTP/2 (RFC 9113) and HPACK (RFC 7541): one connection's octets to streams and messages, and back. Knows no I/O, no clock, no policy."""
