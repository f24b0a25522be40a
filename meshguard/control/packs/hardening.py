"""Hardening of a mesh, in the manner of a benchmark: each item has a number, a title and a check. The numbers are ours (no public benchmark
covers this program)."""

from __future__ import annotations

from meshguard.control.packs.model import Control, Pack

__all__ = ["PACK"]

PACK = Pack(
    "mesh-hardening",
    "Hardening of a meshguard mesh",
    "meshguard's own benchmark",
    (
        Control("1.1", "Listeners ask every peer for its certificate", ("tls_inbound",), ("authenticated",)),
        Control("1.2", "No listener takes plaintext for migration", ("no_relaxation",), ("encrypted",)),
        Control("1.3", "Upstreams beyond this machine are called over TLS", ("tls_upstream",)),
        Control("1.4", "Upstreams of the mesh are known by exact SPIFFE IDs", ("upstreams_named",)),
        Control("1.5", "TLS 1.2 or newer, forward secrecy, authenticated encryption", ("tls_floor",), ("encrypted",)),
        Control("1.6", "Requests name only destinations that are allowed", ("destinations_named",)),
        Control("2.1", "Identities come from an issuer made for production", ("no_development_ca",)),
        Control("2.2", "Certificates live for a day at most", ("certificate_1d",), ("certificate_1d",)),
        Control("2.3", "An identity can be cut out at once, and stays out", ("quarantine_ready",)),
        Control("3.1", "What no rule allows is denied", ("default_deny",), ("default_deny",)),
        Control("3.2", "No rule allows callers without an identity", ("no_anonymous",), ("authenticated",)),
        Control("3.3", "Rules name their callers", ("callers_named",), ("callers_named",)),
        Control("3.4", "Rules name methods and paths", ("least_privilege",), ("least_privilege",)),
        Control("3.5", "No permission is unused", ("permissions_used",)),
        Control("3.6", "Policy comes only in signed bundles", ("policy_signed",)),
        Control("3.7", "A change of policy takes two signatures", ("policy_signed_twice",)),
        Control("4.1", "Every decision is in the ledger", ("ledger_on",), ("recorded",)),
        Control("4.2", "What cannot be recorded is not answered", ("ledger_refuses",)),
        Control("4.3", "Checkpoints of the ledger are kept elsewhere", ("ledger_witnessed",)),
        Control("4.4", "The ledger is kept for a year", ("ledger_kept_a_year",)),
        Control("5.1", "The admin API is reachable from this machine only", ("admin_local",)),
        Control("5.2", "Operations of the admin API take a token", ("admin_token",)),
        Control("5.3", "The profile is strict", ("profile_strict",)),
        Control("5.4", "No credentials in configuration files", ("no_credentials",)),
        Control("6.1", "Edges limit the rate of requests", ("edge_limited",)),
        Control("6.2", "Attempts with tokens are limited before the decision", ("attempts_limited",)),
        Control("6.3", "Header names that upstreams could confuse are not let through", ("no_underscores",)),
        Control("7.1", "Data keys are wrapped by a key service", ("keys_wrapped",)),
        Control("7.2", "Data keys are rotated", ("keys_rotated",)),
    ),
)
