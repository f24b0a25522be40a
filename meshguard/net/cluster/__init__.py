"""Upstream clusters: which connection a request gets, and what happens when there is none.

Knows endpoints, pools, limits, health, ejection, name resolution and retries. Must not know requests, HTTP messages of the
journey, TLS or policy: connections come from a `connect` callable and carry an opaque protocol of the caller's.
"""
