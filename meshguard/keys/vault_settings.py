"""From the `keys` section of a configuration to a Vault KEK: which login, which certificate authorities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from meshguard.keys.http import HttpClient
from meshguard.keys.vault import VaultKek
from meshguard.keys.vault_login import AppRoleLogin, GivenToken, JwtLogin, Login

__all__ = ["vault_kek"]


def vault_kek(values: Mapping[str, Any]) -> VaultKek:
    """`values` as VaultKeysetConfig has them; paths are Path objects."""
    http = HttpClient(values["timeout_s"], values.get("ca"))
    login = _login(values.get("login") or {})
    return VaultKek(http, values["address"], values["key"], login, mount=values["mount"], namespace=values.get("namespace") or "")


def _login(values: Mapping[str, Any]) -> Login:
    if approle := values.get("approle"):
        return AppRoleLogin(approle["mount"], approle["role_id"], approle.get("secret_id_file"))
    if kubernetes := values.get("kubernetes"):
        return JwtLogin(kubernetes["mount"], kubernetes["role"], kubernetes["jwt_file"])
    if jwt := values.get("jwt"):
        return JwtLogin(jwt["mount"], jwt["role"], jwt["jwt_file"])
    return GivenToken(values.get("token_env") or "VAULT_TOKEN", values.get("token_file"))
