"""What must agree on the listeners of an edge. Works on the plain values, as `crosscheck` does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from meshguard.sources.complaints import Complaint

__all__ = ["edge_complaints"]


def edge_complaints(values: Mapping[str, Any]) -> Iterator[Complaint]:
    """Complaints about certificates by name, forwarded fields, redirects and strict transport."""
    listeners = values.get("listeners")
    for name, listener in listeners.items() if isinstance(listeners, Mapping) else ():
        if isinstance(listener, Mapping):
            at = ("listeners", str(name))
            yield from _certificates(at, listener)
            yield from _forwarded(at, listener)
            yield from _redirect(at, listener)


def _certificates(at: tuple[str, ...], listener: Mapping[str, Any]) -> Iterator[Complaint]:
    entries = listener.get("certificates")
    if not entries:
        if listener.get("unknown_names") == "default":
            yield Complaint((*at, "unknown_names"), "no such key here: only `certificates` are chosen by name")
        return
    if listener.get("tls") != "server":
        yield Complaint((*at, "certificates"), "no such key here: only `tls: server` has certificates of its own, others show the SVID")
    if listener.get("certificate") is not None:
        yield Complaint((*at, "certificate"), "either `certificate` and `key`, or `certificates`")
    seen: dict[str, int] = {}
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        names = entry.get("names") if isinstance(entry, Mapping) else None
        for place, name in enumerate(names if isinstance(names, list) else ()):
            if not isinstance(name, str):
                continue
            other = seen.setdefault(name.lower().rstrip("."), index)
            if other != index:
                yield Complaint(
                    (*at, "certificates", index, "names", place), f"a name of one certificate: certificates[{other}] has it", name
                )


def _forwarded(at: tuple[str, ...], listener: Mapping[str, Any]) -> Iterator[Complaint]:
    said = [key for key in ("trusted_hops", "trusted_addresses") if listener.get(key)]
    if len(said) == 2:
        yield Complaint((*at, "trusted_hops"), "either trusted_hops or trusted_addresses: they are two ways to say the same")
    if said and listener.get("forwarded") == "none":
        yield Complaint((*at, said[0]), "no such key here: `forwarded: none` reads nothing from anybody")
    if listener.get("caller") == "xfcc":
        if not listener.get("trusted_proxies"):
            yield Complaint((*at, "caller"), "trusted_proxies beside it: those that may speak for others")
        if listener.get("decision_token") not in (None, "none"):
            yield Complaint((*at, "caller"), "no such value here: decision tokens prove the callers themselves", "xfcc")
    if said and listener.get("direction") == "outbound":
        yield Complaint((*at, said[0]), "no such key here: nobody stands between the application and its outbound listener")


def _redirect(at: tuple[str, ...], listener: Mapping[str, Any]) -> Iterator[Complaint]:
    if listener.get("redirect") is not None:
        if listener.get("tls") != "none":
            yield Complaint((*at, "tls"), "none: what comes over TLS needs no redirect to https", str(listener.get("tls")))
        for key in ("to", "routes"):
            if listener.get(key):
                yield Complaint((*at, key), "no such key here: a listener with `redirect` forwards nothing")
    if listener.get("hsts") is not None and listener.get("tls") in ("none", "permissive"):
        yield Complaint((*at, "hsts"), "no such key here: it may only be sent over TLS (RFC 6797 section 7.2)")
