"""One state for many processes: documents are loaded by each, and a fingerprint says that all have loaded the same.

A fingerprint covers which files there are, their identity, size and times, and the meaning of the policy. A file that changes while it is
read would give two processes two contents under one fingerprint; so a load counts only when nothing changed since it began.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from threading import Event

from meshguard.control.inputs import Inputs, load_inputs
from meshguard.control.keyring import Keyring
from meshguard.control.pacing import Breathe, unpaced
from meshguard.control.settings.load import LoadedConfiguration
from meshguard.model.errors import MeshguardError
from meshguard.sources.bundles import BundleKeeper
from meshguard.sources.watch import fingerprint

__all__ = ["Unsettled", "load_settled"]

_TRIES = 5
_CLOCK_NS = 20_000_000
"""The kernel stamps files with its coarse clock (4 to 10 ms a tick)."""


class Unsettled(MeshguardError):
    """The documents change faster than they can be read."""


def load_settled(
    load_configuration: Callable[[], LoadedConfiguration],
    keyring: Keyring,
    bundles: BundleKeeper | None,
    breathe: Breathe = unpaced,
) -> tuple[Inputs, str]:
    """Inputs with their fingerprint (hex). Blocks. Raises what `load_inputs` raises, and Unsettled."""
    pause = Event()
    for attempt in range(_TRIES):
        if attempt:
            pause.wait(0.025 * attempt)
        begun = time.time_ns()
        inputs = load_inputs(load_configuration, keyring, bundles, breathe)
        stamps = [fingerprint(path) for path in inputs.files]
        latest = max((value for stamp in stamps for entry in stamp if len(entry) > 1 for value in entry[-2:]), default=0)
        if latest < begun - _CLOCK_NS:
            bundle = inputs.candidate.data if inputs.candidate is not None else b""
            said = repr((inputs.loaded.document.text, inputs.policy.digest, bundle, stamps))
            return inputs, hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()
    raise Unsettled("the documents changed while they were read")
