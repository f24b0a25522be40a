"""Where bundles come from and where the last good one is kept: a file, an https URL, the fleet's store, a directory of state.

    candidate (file or URL) -> signatures, version, expiry -> compiled and put in force by the caller -> `commit` -> state directory

INVARIANT: only what was in force is committed, and only what is committed counts as the version that may not go back. A candidate that is
refused changes nothing: the bundle in force goes on, and the refusal is told. The state directory outlives restarts, so a node whose
source is away, or lies, starts with what it last enforced.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from posixpath import normpath
from urllib.parse import SplitResult

import h11

from meshguard.integrity.bundle import MAX_BUNDLE_BYTES, Bundle, BundleError, accept, open_bundle
from meshguard.integrity.dsse import PublicKey, SignatureError, load_public_keys
from meshguard.model.errors import DocumentError, MeshguardError, Problem
from meshguard.sources.documents import Document, parse
from meshguard.sources.https import checked_url, fetch

__all__ = ["BundleKeeper", "BundleSettings", "Candidate", "follow"]

log = logging.getLogger(__name__)

FETCH_S = 30.0
_ACCEPT = "application/vnd.dsse.envelope.v1+json, application/json"
_REGULAR, _GLASS = "bundle.json", "break-glass.json"


@dataclass(frozen=True, slots=True)
class BundleSettings:
    """Exactly one of `path`, `url` and `fleet` (a key of the store); `keys` are PEM files of the trusted signers, `threshold` of which must
    have signed."""

    path: Path | None
    url: str | None
    ca: Path | None
    keys: tuple[Path, ...]
    threshold: int
    state: Path
    interval_s: float
    name: str | None = None
    fleet: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """An accepted bundle that is not yet in force; `data` is what was signed, to be kept."""

    bundle: Bundle
    data: bytes
    inforce: bool = False  # in this process: its expiry is told, and it goes on

    def __hash__(self) -> int:
        return hash(self.data)

    def documents(self) -> list[Document]:
        """Its documents. The environment of a node cannot change them. Raises DocumentError."""
        return [parse(f"{self._at}/{name}", text, environment={}) for name, text in self.bundle.documents.items()]

    def read(self, file: str, name: str) -> bytes:
        """The file that the document `file` names, relative to it: one of the bundle, never one of the node. Raises FileNotFoundError."""
        beside = file.removeprefix(f"{self._at}/").rpartition("/")[0]
        found = self.bundle.files.get(normpath(f"{beside}/{name}" if beside else name))
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "no such file in the bundle", name)
        return found

    @property
    def _at(self) -> str:
        return f"{self.bundle.name}@{self.bundle.version}"


class BundleKeeper:
    """The bundles of one node. `refused` says why the newest candidate was not taken, "" when it was. `pull` asks the fleet's store for
    the value of its key (None: there is none), where bundles come from there."""

    def __init__(
        self, settings: BundleSettings, clock: Callable[[], float] = time.time, pull: Callable[[], Awaitable[bytes | None]] | None = None
    ) -> None:
        self.pull = pull
        self._settings = settings
        self._clock = clock
        self._keys: Sequence[PublicKey] = ()
        self._trust()
        self._fetched: bytes | None = None
        self._etag = ""
        self._url: SplitResult | None = checked_url(settings.url) if settings.url is not None else None
        self._context: ssl.SSLContext | None = None
        self.refused = ""
        self.refusal: dict[str, str] | None = None  # the same for the record: code, error, digest of what was offered
        self.enforced: Bundle | None = None  # what the owner has put in force last
        self.regular = self._held(_REGULAR)
        self.glass = self._held(_GLASS)

    def _trust(self) -> None:
        self._keys = _trusted(self._settings.keys, self._settings.threshold)

    def choose(self) -> list[Candidate]:
        """What should be in force now, best first: a break-glass bundle while it lasts, the newest acceptable regular one, the one that is
        kept (unless it has expired since). Raises DocumentError when there is none."""
        now = self._clock()
        self.refused, self.refusal = "", None
        self._trust()
        offered = self._offered()
        regular, glass = self.regular, self.glass
        if offered is not None:
            try:
                bundle = open_bundle(offered, self._keys, self._settings.threshold)
                accept(bundle, regular.bundle if regular is not None else None, now, name=self._settings.name)
            except BundleError as exc:
                self.refused = str(exc)
                self.refusal = {"code": exc.code, "error": str(exc), "offered": "sha256:" + hashlib.sha256(offered).hexdigest()}
            else:
                candidate = Candidate(bundle, offered)
                regular, glass = (regular, candidate) if bundle.is_break_glass else (candidate, glass)
        found = [glass] if glass is not None and now < glass.bundle.until else []
        for each in dict.fromkeys((regular, self.regular)):
            if each is not None and (each.inforce or now < each.bundle.expires):
                found.append(each)
        if not found:
            raise self._problem(self.refused or ("the kept bundle has expired" if regular is not None else "no bundle has arrived yet"))
        return found

    def commit(self, candidate: Candidate) -> None:
        """`candidate` is in force. Raises OSError when it cannot be kept: the caller tells, enforcement goes on."""
        candidate = replace(candidate, inforce=True)
        if candidate.bundle.is_break_glass:
            kept, self.glass = self.glass, candidate
        else:
            kept, self.regular = self.regular, candidate
        if kept is None or kept.data != candidate.data:
            self._write(_GLASS if candidate.bundle.is_break_glass else _REGULAR, candidate.data)
        glass = self.glass
        if glass is not None and self._clock() >= glass.bundle.until:
            self.glass = None
            (self._settings.state / _GLASS).unlink(missing_ok=True)

    def due(self, inforce: Bundle) -> bool:
        """Break-glass that is in force has ended."""
        return inforce.is_break_glass and self._clock() >= inforce.until

    @property
    def has_url(self) -> bool:
        return self._url is not None

    @property
    def interval_s(self) -> float:
        return self._settings.interval_s

    async def fetch(self) -> bool:
        """Asks the URL or the store once; True when another document came. Raises BundleError(unavailable)."""
        if self.pull is not None:
            return await self._pulled(self.pull)
        if self._url is None:
            return False
        try:
            if self._context is None and self._url.scheme == "https":
                ca = self._settings.ca
                self._context = ssl.create_default_context(cafile=str(ca) if ca is not None else None)
            async with asyncio.timeout(FETCH_S):
                answer = await fetch(self._url, self._etag, _ACCEPT, MAX_BUNDLE_BYTES, self._context)
        except (TimeoutError, OSError, ValueError, h11.ProtocolError) as exc:
            raise BundleError("unavailable", f"{self._settings.url}: {exc or type(exc).__name__}") from exc
        self._etag = answer.etag
        return answer.body is not None and self.offer(answer.body)

    async def _pulled(self, pull: Callable[[], Awaitable[bytes | None]]) -> bool:
        try:
            async with asyncio.timeout(FETCH_S):
                data = await pull()
        except (TimeoutError, OSError, MeshguardError) as exc:
            raise BundleError("unavailable", str(exc) or type(exc).__name__) from exc
        if data is None:
            raise BundleError("unavailable", f"the store has nothing under {self._settings.fleet}")
        return self.offer(data)

    def offer(self, data: bytes) -> bool:
        """A document that came; False when it is the one that came last. `choose` judges it."""
        if data == self._fetched:
            return False
        self._fetched = data
        return True

    async def fetch_first(self) -> None:
        """The first fetch, before anything is in force: what is kept will do when it fails."""
        try:
            await self.fetch()
        except BundleError as exc:
            log.warning("the first fetch of the bundle failed", extra={"data": {"error": str(exc), "kept": self.regular is not None}})

    def _offered(self) -> bytes | None:
        path = self._settings.path
        if path is None:
            return self._fetched
        try:
            with path.open("rb") as file:
                return file.read(MAX_BUNDLE_BYTES + 1)
        except OSError as exc:
            self.refused = f"{path}: {exc.strerror}"
            return None

    def _held(self, name: str) -> Candidate | None:
        """What was in force before a restart: its signatures are judged anew (a signer may have been withdrawn), its expiry too."""
        try:
            data = (self._settings.state / name).read_bytes()
        except FileNotFoundError:
            return None
        try:
            bundle = open_bundle(data, self._keys, self._settings.threshold)
        except BundleError as exc:
            raise self._problem(f"the kept {name} is not acceptable: {exc}") from exc
        return Candidate(bundle, data)

    def _write(self, name: str, data: bytes) -> None:
        state = self._settings.state
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = state / f".{name}.{os.getpid()}"
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, state / name)

    def _problem(self, text: str) -> DocumentError:
        expected = f"a bundle signed by {self._settings.threshold} of {len(self._keys)} trusted keys ({text})"
        return DocumentError([Problem(str(self._settings.path or self._settings.url or f"fleet:{self._settings.fleet}"), "", expected)])


def _trusted(files: Sequence[Path], threshold: int) -> list[PublicKey]:
    keys: dict[str, PublicKey] = {}
    for file in files:
        try:
            for key in load_public_keys(file.read_bytes()):
                keys[key.id] = key
        except SignatureError as exc:
            raise DocumentError([Problem(str(file), "", f"PEM with public keys of signers ({exc})")]) from exc
    if len(keys) < threshold:
        raise DocumentError([Problem(str(files[0]), "", f"at least {threshold} different keys for a threshold of {threshold}")])
    return list(keys.values())


async def follow(keeper: BundleKeeper, changed: Callable[[], Awaitable[object]]) -> None:
    """Fetches the URL every `interval_s` with its ETag until cancelled; awaits `changed` when another document came. Failures back off
    with jitter, so that a fleet does not come back at the same moment, and are told in `keeper.refused`."""
    failures = 0
    interval_s = keeper.interval_s
    while True:
        wait_s = interval_s if not failures else min(interval_s * 10, interval_s * 2.0 ** min(failures, 8))
        await asyncio.sleep(wait_s * (0.5 + random.random() / 2))
        try:
            if await keeper.fetch():
                await changed()
            failures = 0
        except BundleError as exc:
            failures += 1
            keeper.refused = str(exc)
