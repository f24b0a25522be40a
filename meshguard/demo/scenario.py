"""The requests of the tour: who asks what, what must come of it, and the curl command that does the same by hand."""

from __future__ import annotations

import http.client
import json
import shlex
import ssl
from dataclasses import dataclass

from meshguard.demo.place import Place

__all__ = ["STEPS", "Answer", "Ports", "Step", "ask", "command", "mismatch"]

CARD = "4111111111111111"
_ORDER = json.dumps({"item": "tent", "payment": {"method": "card", "card": CARD}})
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the proxy and the service listen on 127.0.0.1."""

    proxy: int
    service: int


@dataclass(frozen=True, slots=True)
class Answer:
    """`status` 0: the connection was refused or cut before an answer, `body` says how."""

    status: int
    body: str


@dataclass(frozen=True, slots=True)
class Step:
    """One request. `client` None: no certificate; `scheme` https or http to the proxy, `direct` to the service past the proxy.

    `status` is what must come; `says` must be in the body and `hides` must not.
    """

    title: str
    client: str | None
    path: str
    status: int
    method: str = "GET"
    body: str = ""
    scheme: str = "https"
    says: str = ""
    hides: str = ""


STEPS: tuple[Step, ...] = (
    Step("billing may read orders", "billing", "/orders/1", 200, says="bicycle"),
    Step("support may read, not write: no rule allows it", "support", "/orders", 403, "POST", _ORDER, says="no_rule"),
    Step("the intruder has a certificate of the same CA, but no role", "intruder", "/orders/1", 403, says="no_rule"),
    Step("without a certificate there is no connection", None, "/orders/1", 0),
    Step("plaintext is refused", None, "/orders/1", 400, scheme="http", says="plaintext_refused"),
    Step("nobody reaches /admin", "billing", "/admin/users", 403, says="policy_denied", hides="root"),
    Step("... in whatever spelling", "billing", "/x/..//%41dmin/users/", 403, says="policy_denied", hides="root"),
    Step("billing places an order with a card number", "billing", "/orders", 201, "POST", _ORDER, says="tent"),
    Step("billing reads the number", "billing", "/orders/2", 200, says=CARD),
    Step("support sees its last four digits", "support", "/orders/2", 200, says="1111", hides=CARD),
    Step("the service's own store never had it", None, "/_store", 200, scheme="direct", says="eyJ", hides=CARD),
)
"""In order: later ones read what an earlier one stored."""


def command(step: Step, place: Place, ports: Ports) -> str:
    """The step as a curl command line."""
    words = ["curl", "-sS"]
    if "/.." in step.path:
        words.append("--path-as-is")
    if step.scheme == "https":
        words += ["--cacert", str(place.bundle)]
    if step.client is not None:
        words += ["--cert", str(place.certificate(step.client)), "--key", str(place.key(step.client))]
    if step.method != "GET":
        words += ["-X", step.method]
    if step.body:
        words += ["-H", "content-type: application/json", "-d", step.body]
    scheme, port = ("http", ports.service) if step.scheme == "direct" else (step.scheme, ports.proxy)
    return shlex.join([*words, f"{scheme}://127.0.0.1:{port}{step.path}"])


def ask(step: Step, place: Place, ports: Ports) -> Answer:
    """Makes the request of a step, as curl would."""
    port = ports.service if step.scheme == "direct" else ports.proxy
    link: http.client.HTTPConnection
    if step.scheme == "https":
        link = http.client.HTTPSConnection("127.0.0.1", port, timeout=_TIMEOUT_S, context=_context(step.client, place))
    else:
        link = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    try:
        headers = {"content-type": "application/json"} if step.body else {}
        link.request(step.method, step.path, body=step.body.encode() or None, headers=headers)
        response = link.getresponse()
        return Answer(response.status, response.read(1 << 20).decode(errors="replace"))
    except (ssl.SSLError, http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError) as exc:
        return Answer(0, f"{type(exc).__name__}: {exc}")
    finally:
        link.close()


def mismatch(step: Step, answer: Answer) -> str:
    """What is not as the step says; empty when all is well."""
    if answer.status != step.status:
        return f"status {answer.status}, not {step.status}: {answer.body.strip()[:200]}"
    if step.says not in answer.body:
        return f"{step.says!r} is not in the answer: {answer.body.strip()[:200]}"
    if step.hides and step.hides in answer.body:
        return "the answer shows what it must hide"
    return ""


def _context(client: str | None, place: Place) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(place.bundle))
    if client is not None:
        context.load_cert_chain(place.certificate(client), place.key(client))
    return context
