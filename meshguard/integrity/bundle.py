"""A bundle: all policy documents of a mesh as one signed file with a version that only goes forward.

Besides documents it can carry the files that they name (descriptor sets) and contracts that nodes validate requests by.

The payload is JSON inside a DSSE envelope, so every octet that is parsed was signed. `version` is a positive number; of two bundles the
node takes the higher one only (rollback is an attack). `expires` bounds for how long a stolen repository can replay the newest one
(freeze). A *break-glass* bundle may say anything, also what an older one said, but needs two signers, a reason, and ends by itself.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from meshguard.integrity.dsse import Envelope, PublicKey, SignatureError, parse_envelope, verify
from meshguard.model.errors import MeshguardError

__all__ = ["MAX_BREAK_GLASS_S", "MAX_BUNDLE_BYTES", "PAYLOAD_TYPE", "Bundle", "BundleError", "accept", "encode", "open_bundle"]

PAYLOAD_TYPE = "application/vnd.meshguard.bundle+json"
MAX_BUNDLE_BYTES = 64 << 20
MAX_BREAK_GLASS_S = 24 * 3600.0
_FORMAT, _WITH_FILES = 1, 2
"""A node that knows nothing of files must not take a bundle that has some."""
_BREAK_GLASS_SIGNERS = 2
_MAX_DOCUMENTS = 1000
_MAX_FILES = 1000


class BundleError(MeshguardError):
    """A bundle is not taken. `code`: malformed, unsigned (too few trusted signatures), expired, rollback, changed (another content under
    the version in force), name, break_glass."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"bundle {code}: {detail}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Bundle:
    """`documents` by name, in their order, and `files` that are none; times in epoch seconds; `digest` is the SHA-256 of the signed
    payload; `reason` and `until` are those of break-glass (`until` 0: a regular bundle); `signers` are key ids, filled by `open_bundle`."""

    name: str
    version: int
    created: float
    expires: float
    documents: Mapping[str, str]
    reason: str = ""
    until: float = 0.0
    digest: str = ""
    signers: frozenset[str] = field(default_factory=frozenset)
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def is_break_glass(self) -> bool:
        return self.until > 0


def encode(bundle: Bundle) -> Envelope:
    """The envelope to sign; equal bundles give equal octets."""
    payload: dict[str, object] = {
        "format": _WITH_FILES if bundle.files else _FORMAT,
        "name": bundle.name,
        "version": bundle.version,
        "created": bundle.created,
        "expires": bundle.expires,
        "documents": [{"name": name, "text": text} for name, text in bundle.documents.items()],
    }
    if bundle.files:
        payload["files"] = [{"name": name, "base64": b64encode(data).decode()} for name, data in sorted(bundle.files.items())]
    if bundle.is_break_glass:
        payload["break_glass"] = {"reason": bundle.reason, "until": bundle.until}
    data = json.dumps(payload, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return Envelope(PAYLOAD_TYPE, data, ())


def open_bundle(data: bytes, keys: Iterable[PublicKey], threshold: int) -> Bundle:
    """The bundle in `data`, signed by `threshold` of `keys`, a break-glass one by two at least. Raises BundleError(malformed, unsigned)."""
    if len(data) > MAX_BUNDLE_BYTES:
        raise BundleError("malformed", f"larger than {MAX_BUNDLE_BYTES} octets")
    keys = list(keys)
    try:
        envelope = parse_envelope(data, PAYLOAD_TYPE)
        signers = verify(envelope, keys, threshold)
    except SignatureError as exc:
        raise BundleError("unsigned" if exc.code == "too_few_signatures" else "malformed", str(exc)) from exc
    bundle = _parse(envelope.payload, signers)
    if bundle.is_break_glass and len(signers) < _BREAK_GLASS_SIGNERS:
        raise BundleError("unsigned", f"break-glass needs {_BREAK_GLASS_SIGNERS} trusted signatures, there is {len(signers)}")
    return bundle


def _parse(payload: bytes, signers: frozenset[str]) -> Bundle:
    try:
        value = json.loads(payload)
        if value["format"] not in (_FORMAT, _WITH_FILES):
            raise BundleError("malformed", f"format {_FORMAT} or {_WITH_FILES} was expected")
        carried = value["files"] if value["format"] == _WITH_FILES else []
        files = {each["name"]: b64decode(each["base64"], validate=True) for each in carried}
        listed = value["documents"]
        documents = {each["name"]: each["text"] for each in listed}
        glass = value.get("break_glass") or {}
        reason, until = glass.get("reason", ""), glass.get("until", 0.0)
        bundle = Bundle(
            value["name"],
            value["version"],
            float(value["created"]),
            float(value["expires"]),
            documents,
            reason,
            float(until),
            "sha256:" + hashlib.sha256(payload).hexdigest(),
            signers,
            files,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise BundleError("malformed", "the signed payload is no bundle") from exc
    texts = all(isinstance(text, str) for pair in documents.items() for text in pair) and all(isinstance(name, str) for name in files)
    whole = isinstance(bundle.version, int) and not isinstance(bundle.version, bool) and bundle.version > 0
    if not (texts and whole and isinstance(bundle.name, str) and bundle.name and isinstance(reason, str)):
        raise BundleError("malformed", "name, version and documents of a bundle were expected")
    if len(documents) != len(listed) or not 0 < len(documents) <= _MAX_DOCUMENTS:
        raise BundleError("malformed", f"1 to {_MAX_DOCUMENTS} documents with different names were expected")
    if len(files) != len(carried) or len(files) > _MAX_FILES or not files.keys().isdisjoint(documents):
        raise BundleError("malformed", f"at most {_MAX_FILES} files with names of their own were expected")
    if any(name.startswith((".", "/")) or "\\" in name or ".." in name.split("/") for name in (*documents, *files)):
        raise BundleError("malformed", "a name leads out of the bundle")
    if "break_glass" in value and not (bundle.until > 0 and reason.strip()):
        raise BundleError("malformed", "break-glass needs a reason and an end")
    return bundle


def accept(bundle: Bundle, held: Bundle | None, now: float, *, name: str | None = None) -> None:
    """Whether a node that holds the regular bundle `held` may take `bundle` now. Raises BundleError.

    INVARIANT: a regular version never goes back, and a version never changes its content."""
    if name is not None and bundle.name != name:
        raise BundleError("name", f"{bundle.name!r}, this node takes {name!r}")
    if bundle.is_break_glass:
        if now >= bundle.until:
            raise BundleError("expired", "break-glass has ended")
        if bundle.until - bundle.created > MAX_BREAK_GLASS_S or bundle.until - now > MAX_BREAK_GLASS_S:
            raise BundleError("break_glass", f"it may last {MAX_BREAK_GLASS_S / 3600:g} hours at most")
        return
    if now >= bundle.expires:
        raise BundleError("expired", "its time is over: build and sign a new one")
    if held is not None and bundle.name == held.name:
        if bundle.version < held.version:
            raise BundleError("rollback", f"version {bundle.version} after {held.version}")
        if bundle.version == held.version and bundle.digest != held.digest:
            raise BundleError("changed", f"version {bundle.version} is there with another content")
