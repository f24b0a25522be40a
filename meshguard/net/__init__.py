"""Sockets: listeners, TLS channels, downstream connections, upstream clusters and pools. Takes no decision."""
