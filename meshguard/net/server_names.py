"""Several certificates on one listener, chosen by the name that the client asks for (SNI, RFC 6066 section 3).

The context of a listener holds the settings and the first certificate; during the handshake it gives way to the one of the name asked for.
Each context knows the names it is for, so that a request on a connection can be held to them: a client that reuses its connection for
another host (RFC 9113 section 9.1.1) is told 421 instead of being served under a certificate that is not that host's.

Sessions: no tickets are issued (`net.tls`), and OpenSSL resumes a TLS 1.2 session only under the name it was made for.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from typing import cast

__all__ = ["covers", "name_contexts", "names_of"]

Serves = Callable[[str], bool]


def name_contexts(contexts: Sequence[tuple[Sequence[str], ssl.SSLContext]], *, refuse: bool) -> ssl.SSLContext:
    """The listener's context. `contexts` are (names, context); `refuse` ends handshakes that name no or another server by an
    `unrecognized_name` alert, otherwise they get the first. None of the contexts may be in use yet."""
    exact: dict[str, ssl.SSLContext] = {}
    wildcards: dict[str, ssl.SSLContext] = {}
    for names, context in contexts:
        context.serves = _matcher(names)  # type: ignore[attr-defined]  # the one place to keep what belongs to a context
        for name in names:
            if name.startswith("*."):
                wildcards.setdefault(name[2:], context)
            else:
                exact.setdefault(name, context)
    first = contexts[0][1]

    def choose(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> int | None:
        wanted = (name or "").lower().rstrip(".")
        found = exact.get(wanted) or wildcards.get(wanted.partition(".")[2])
        if found is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME if refuse else None
        connection.context = found
        return None

    first.sni_callback = choose
    return first


def names_of(connection: ssl.SSLObject) -> Serves | None:
    """Which hosts requests on this connection may be for; None where the listener does not choose by name."""
    return cast("Serves | None", getattr(connection.context, "serves", None))


def covers(pattern: str, name: str) -> bool:
    """Whether a certificate for `pattern` is one for `name` (both may be wildcards): a wildcard is one label (RFC 9525 section 6.3)."""
    return pattern == name or (pattern.startswith("*.") and not name.startswith("*.") and name.partition(".")[2] == pattern[2:])


def _matcher(names: Sequence[str]) -> Serves:
    exact = frozenset(name for name in names if not name.startswith("*."))
    parents = frozenset(name[2:] for name in names if name.startswith("*."))
    return lambda host: host in exact or host.partition(".")[2] in parents
