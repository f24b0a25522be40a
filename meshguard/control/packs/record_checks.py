"""Checks of what is kept and who may change things: the ledger, the admin API, bundles, credentials in documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from meshguard.control.packs.model import Fault, NotJudged, Subject
from meshguard.control.settings.ledger import LedgerConfig

__all__ = ["RECORD_CHECKS"]

YEAR_DAYS = 365.0
_CREDENTIALS = ("authorization", "proxy-authorization", "cookie", "x-api-key", "api-key", "x-auth-token")


def _ledger(subject: Subject) -> LedgerConfig:
    ledger = subject.configuration.ledger
    if ledger is None:
        raise NotJudged("not_assessed", "there is no ledger")
    return ledger


def ledger_on(subject: Subject) -> Iterator[Fault]:
    if subject.configuration.ledger is None:
        yield Fault(("ledger",), "a ledger: every decision on record, tamper-evident", value="none")


def ledger_refuses(subject: Subject) -> Iterator[Fault]:
    on_failure = _ledger(subject).on_failure
    if on_failure == "degrade" or (on_failure is None and subject.configuration.profile != "strict"):
        yield Fault(("ledger", "on_failure"), "refuse: what is not on record is not answered", value=on_failure or "degrade (profile)")


def ledger_witnessed(subject: Subject) -> Iterator[Fault]:
    ledger = _ledger(subject)
    if ledger.checkpoints.publish_file is None and ledger.checkpoints.publish_url is None and ledger.ship is None:
        words = "publish_file, publish_url or ship: alone a ledger cannot show that it was cut"
        yield Fault(("ledger", "checkpoints"), words, value="none")


def ledger_kept_a_year(subject: Subject) -> Iterator[Fault]:
    ledger = _ledger(subject)
    days, shipped = ledger.retention.days, ledger.ship is not None
    if days is not None and days < YEAR_DAYS and not shipped:
        yield Fault(("ledger", "retention", "days"), f"{YEAR_DAYS:g} days at least, or ship", value=f"{days:g}")
    if ledger.retention.total_bytes is not None and not shipped:
        yield Fault(("ledger", "retention", "total_bytes"), "no limit by size without ship: it may end the year early", value="a limit")


def telemetry_exported(subject: Subject) -> Iterator[Fault]:
    if subject.configuration.telemetry.otlp is None:
        yield Fault(("telemetry",), "otlp: traces and metrics go to a collector", value="none")


def quarantine_ready(subject: Subject) -> Iterator[Fault]:
    configuration = subject.configuration
    if configuration.admin.token_file is None:
        yield Fault(("admin",), "token_file: without it nobody can be cut out (meshguard quarantine)", value="none")
    if configuration.quarantine.path is None:
        yield Fault(("quarantine",), "path: a restart lets everybody in again", value="none")


def admin_local(subject: Subject) -> Iterator[Fault]:
    address = subject.configuration.admin.address
    if not address.is_loopback:
        yield Fault(("admin", "address"), "an address of this machine only", value=str(address))


def admin_token(subject: Subject) -> Iterator[Fault]:
    if subject.configuration.admin.token_file is None:
        yield Fault(("admin",), "token_file: loopback is open to the workload itself", value="none")


def profile_strict(subject: Subject) -> Iterator[Fault]:
    if subject.configuration.profile != "strict":
        yield Fault(("profile",), "strict", value=subject.configuration.profile)


def _signed(subject: Subject, signatures: int) -> Iterator[Fault]:
    bundle = subject.configuration.bundle
    if bundle is None:
        yield Fault(("policies",), "a bundle instead: signed, versioned, never older", value="files")
    elif bundle.threshold < signatures:
        yield Fault(("bundle", "threshold"), f"{signatures} signatures", value=str(bundle.threshold))


def policy_signed(subject: Subject) -> Iterator[Fault]:
    yield from _signed(subject, 1)


def policy_signed_twice(subject: Subject) -> Iterator[Fault]:
    yield from _signed(subject, 2)


def no_credentials(subject: Subject) -> Iterator[Fault]:
    configuration = subject.configuration
    said = subject.loaded.document.text if subject.loaded is not None else ""
    for name, listener in configuration.listeners.items():
        for number, route in enumerate(listener.routes):
            for key in ("set", "append"):
                changes: Mapping[str, str] = getattr(route.request_headers, key)
                for field, value in changes.items():
                    if field.lower() in _CREDENTIALS and value in said:  # else it came from the environment
                        place = ("listeners", name, "routes", number, "request_headers", key, field)
                        yield Fault(place, "a value from the environment (${NAME}) instead of a credential in the document")


RECORD_CHECKS = {
    "ledger_on": ledger_on,
    "ledger_refuses": ledger_refuses,
    "ledger_witnessed": ledger_witnessed,
    "ledger_kept_a_year": ledger_kept_a_year,
    "telemetry_exported": telemetry_exported,
    "quarantine_ready": quarantine_ready,
    "admin_local": admin_local,
    "admin_token": admin_token,
    "profile_strict": profile_strict,
    "policy_signed": policy_signed,
    "policy_signed_twice": policy_signed_twice,
    "no_credentials": no_credentials,
}
