"""The clauses of standards that field protection serves, each with the fact of a report that it rests on.

PCI DSS v4.0.1 (June 2024), HIPAA Security and Privacy Rules (45 CFR part 164), GDPR (Regulation (EU) 2016/679). The words are a summary;
the texts themselves decide. A clause is shown only where its fact is there, for example key rotation only with a schedule.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CLAUSES", "DISCLAIMER", "Clause"]

DISCLAIMER = (
    "Evidence, not certification: this lists what the configuration in force does. Whether it meets a requirement depends on what the "
    "fields hold, on systems outside meshguard and on how both are run; an assessor decides."
)


class Clause(NamedTuple):
    """`fact` names what must be true of the report: `sealed`, `masked`, `readers`, `records`, `wrapped`, `rotation`, `destruction` or
    `tenants`."""

    standard: str
    clause: str
    about: str
    fact: str


CLAUSES: tuple[Clause, ...] = (
    Clause("PCI DSS 4.0.1", "3.4.1", "PAN is masked when displayed, to all without a business need to see more", "masked"),
    Clause("PCI DSS 4.0.1", "3.5.1", "PAN is rendered unreadable anywhere it is stored: strong cryptography with key management", "sealed"),
    Clause("PCI DSS 4.0.1", "3.6.1.2", "Keys for stored account data are kept encrypted by a key-encryption key stored apart", "wrapped"),
    Clause("PCI DSS 4.0.1", "3.7.4", "Keys are changed at the end of their cryptoperiod", "rotation"),
    Clause("PCI DSS 4.0.1", "3.7.5", "Keys are retired, replaced or destroyed", "destruction"),
    Clause("PCI DSS 4.0.1", "4.2.1", "PAN is protected with strong cryptography over open, public networks", "sealed"),
    Clause("PCI DSS 4.0.1", "7.2.1", "Access control model: by need, by role, least privilege", "readers"),
    Clause("PCI DSS 4.0.1", "7.2.5", "Application and system accounts have the least privileges necessary", "readers"),
    Clause("PCI DSS 4.0.1", "10.2.1.1", "Audit logs capture all individual user access to cardholder data", "records"),
    Clause("HIPAA", "45 CFR 164.312(a)(1)", "Access control: only those who have been granted access rights", "readers"),
    Clause("HIPAA", "45 CFR 164.312(a)(2)(iv)", "Encryption and decryption (addressable)", "sealed"),
    Clause("HIPAA", "45 CFR 164.312(b)", "Audit controls: activity in systems with ePHI is recorded", "records"),
    Clause("HIPAA", "45 CFR 164.312(e)(2)(ii)", "Transmission security: encryption (addressable)", "sealed"),
    Clause("HIPAA", "45 CFR 164.502(b)", "Minimum necessary use and disclosure", "readers"),
    Clause("GDPR", "Art. 5(1)(c)", "Data minimisation: others see ciphertext, a mask or nothing", "readers"),
    Clause("GDPR", "Art. 5(1)(f)", "Integrity and confidentiality", "sealed"),
    Clause("GDPR", "Art. 17", "Right to erasure: the key of a subject or tenant can be destroyed alone", "tenants"),
    Clause("GDPR", "Art. 25(1)", "Data protection by design and by default", "sealed"),
    Clause("GDPR", "Art. 32(1)(a)", "Pseudonymisation and encryption of personal data", "sealed"),
    Clause("GDPR", "Art. 34(3)(a)", "After a breach: data unintelligible to those not authorised to access it", "sealed"),
)
