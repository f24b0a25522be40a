"""The providers of key-encryption keys, by the name that a configuration uses. The one place to add another.

Each is imported when a keyset names it: a proxy without one does not pay for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from meshguard.keys.provider import Kek
from meshguard.model.errors import KeysetError

__all__ = ["PROVIDERS", "kek_of"]


def _file(values: Mapping[str, Any]) -> Kek:
    from meshguard.keys.local import LocalKek

    if values.get("kek") is None:
        raise KeysetError("the file provider wraps keys only with a `kek` file")
    return LocalKek(values["kek"])


def _vault(values: Mapping[str, Any]) -> Kek:
    from meshguard.keys.vault_settings import vault_kek

    return vault_kek(values)


def _awskms(values: Mapping[str, Any]) -> Kek:
    from meshguard.keys.awskms import awskms_kek

    return awskms_kek(values)


def _pkcs11(values: Mapping[str, Any]) -> Kek:
    from meshguard.keys.hsm import hsm_kek

    return hsm_kek(values)


PROVIDERS: tuple[tuple[str, Callable[[Mapping[str, Any]], Kek]], ...] = (
    ("file", _file),
    ("vault", _vault),
    ("awskms", _awskms),
    ("pkcs11", _pkcs11),
)
"""(name, what makes its KEK from the values of a keyset's section under `keys`)."""


def kek_of(values: Mapping[str, Any]) -> Kek:
    """The KEK of a keyset's section (with its `provider`). Raises KeyError for an unknown one, KeysetError for values that do not do."""
    return dict(PROVIDERS)[values["provider"]](values)
