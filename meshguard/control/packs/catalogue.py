"""The packs. To add one: a module with its `PACK`, and a line in `PACKS`."""

from __future__ import annotations

from meshguard.control.packs.hardening import PACK as HARDENING
from meshguard.control.packs.model import Pack
from meshguard.control.packs.nist_800_207 import PACK as NIST
from meshguard.control.packs.pci_dss import PACK as PCI

__all__ = ["PACKS", "pack_of"]

PACKS: tuple[Pack, ...] = (PCI, NIST, HARDENING)


def pack_of(name: str) -> Pack:
    """Raises KeyError."""
    return {pack.name: pack for pack in PACKS}[name]
