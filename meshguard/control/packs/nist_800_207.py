"""NIST SP 800-207, Zero Trust Architecture: the seven tenets of section 2.1, as far as a proxy can show them."""

from __future__ import annotations

from meshguard.control.packs.model import Control, Pack

__all__ = ["PACK"]

PACK = Pack(
    "nist-sp-800-207",
    "NIST SP 800-207, tenets of zero trust",
    "NIST Special Publication 800-207, section 2.1",
    (
        Control("tenet-1", "Every data source and service is a resource", ("destinations_named",), ("decided",)),
        Control(
            "tenet-2",
            "All communication is secured, wherever it happens",
            ("tls_inbound", "tls_upstream", "tls_floor", "no_relaxation"),
            ("encrypted",),
        ),
        Control("tenet-3", "Access is granted by session, with least privilege", ("least_privilege",), ("decided", "least_privilege")),
        Control("tenet-4", "Access follows from policy and identity", ("no_anonymous", "callers_named"), ("authenticated",)),
        Control("tenet-5", "The integrity of assets is measured", ("policy_signed", "workloads_measured")),
        Control(
            "tenet-6",
            "Authentication and authorisation are dynamic, and strictly enforced before access",
            ("tls_inbound", "default_deny", "no_relaxation", "quarantine_ready", "certificate_1d"),
            ("authenticated", "decided", "default_deny", "certificate_1d"),
        ),
        Control("tenet-7", "What happens is collected and used", ("ledger_on", "telemetry_exported"), ("recorded",)),
    ),
)
