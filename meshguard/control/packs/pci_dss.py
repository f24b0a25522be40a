"""PCI DSS 4.0, requirements 7 (access by need to know) and 8 (identify and authenticate), and the requirements these lean on: masking and
protection of account numbers (3), transmission (4), audit logs (10).

Titles are short words of ours for what a requirement asks; the standard's own text is what counts. What people do (approve, document,
review every six months) shows here only as far as it leaves a trace in configuration: a signature, a list of unused permissions.
"""

from __future__ import annotations

from meshguard.control.packs.model import Control, Pack

__all__ = ["PACK"]

PACK = Pack(
    "pci-dss-4.0",
    "PCI DSS 4.0, requirements 7 and 8 and what they lean on",
    "Payment Card Industry Data Security Standard, version 4.0",
    (
        Control("3.4.1", "Account numbers are masked when displayed: at most BIN and last four", ("pan_masked",), ("need_to_know",)),
        Control("3.5.1", "Account numbers are unreadable wherever they go", ("pan_protected",)),
        Control("3.6.1", "Keys of account data are themselves protected", ("keys_wrapped",)),
        Control("3.7.4", "Keys are changed at the end of their time", ("keys_rotated",)),
        Control("4.2.1", "Strong cryptography on every transmission", ("tls_inbound", "tls_upstream", "tls_floor"), ("encrypted",)),
        Control("7.2.1", "Access is given by a model: function, need and least privilege", ("callers_named", "least_privilege")),
        Control("7.2.2", "Privileges are the least that a function needs", ("least_privilege",), ("least_privilege",)),
        Control("7.2.3", "Privileges are approved by authorised people", ("policy_signed",)),
        Control("7.2.4", "Privileges are reviewed, what is not needed is taken away", ("permissions_used",)),
        Control("7.2.5", "Accounts of applications have least privilege", ("callers_named", "least_privilege"), ("callers_named",)),
        Control("7.2.5.1", "Privileges of application accounts are reviewed", ("permissions_used",)),
        Control("7.2.6", "Access to stored cardholder data only by role and need", ("pan_protected",), ("need_to_know",)),
        Control("7.3.1", "An access control system covers every component", ("tls_inbound", "no_relaxation"), ("decided",)),
        Control("7.3.2", "It enforces the permissions that were assigned", ("no_relaxation", "default_deny"), ("decided",)),
        Control("7.3.3", "It denies all by default", ("default_deny",), ("default_deny",)),
        Control("8.2.1", "Everybody has a unique identity before access", ("no_anonymous",), ("authenticated",)),
        Control("8.2.2", "Shared identities only as an exception", ("callers_named",), ("callers_named",)),
        Control("8.2.5", "Access of those who left is revoked at once", ("quarantine_ready",)),
        Control("8.3.1", "Every access is authenticated", ("tls_inbound", "tokens_at_edges"), ("authenticated",)),
        Control("8.3.2", "Credentials are unreadable on every transmission", ("tls_inbound", "tls_floor"), ("encrypted",)),
        Control("8.3.4", "Invalid attempts to authenticate are limited", ("attempts_limited",)),
        Control("8.3.9", "Credentials are changed at least every 90 days", ("certificate_90d",), ("certificate_90d",)),
        Control("8.6.2", "No credentials in configuration files", ("no_credentials",)),
        Control("8.6.3", "Credentials of applications are protected and changed", ("certificate_90d", "no_development_ca")),
        Control("10.2.1", "Every access is on record", ("ledger_on", "ledger_refuses"), ("recorded",)),
        Control("10.3.2", "Audit logs are protected against changes", ("ledger_witnessed",)),
        Control("10.5.1", "Audit logs are kept for twelve months", ("ledger_kept_a_year",)),
    ),
)
