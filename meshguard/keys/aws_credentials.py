"""Where AWS credentials come from, in this order; the first that is configured is the one:

    environment        AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN
    web identity       AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ROLE_ARN (service accounts of Kubernetes): AssumeRoleWithWebIdentity of STS
    container          AWS_CONTAINER_CREDENTIALS_FULL_URI or _RELATIVE_URI (ECS tasks, EKS pod identity)
    instance metadata  version 2 only, with a session token; not when AWS_EC2_METADATA_DISABLED is true

Temporary ones are replaced EARLY_S before they expire, and at once when the service refuses them.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping
from datetime import datetime
from html import unescape
from math import inf
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import urlencode

from meshguard.keys.aws_signature import Credentials
from meshguard.keys.http import Answer, HttpClient
from meshguard.keys.provider import KekError

__all__ = ["CredentialChain"]

EARLY_S = 300.0
METADATA_S = 2.0
"""Deadline of one call to the metadata service: where there is none, packets are lost without an answer."""
MAX_TOKEN = 64 * 1024


class CredentialChain:
    """One set of credentials, kept until shortly before it expires; one request for it at a time."""

    def __init__(self, http: HttpClient, region: str, environment: Mapping[str, str] | None = None) -> None:
        self._http = http
        self._region = region
        self._environment = os.environ if environment is None else environment
        self._held: Credentials | None = None
        self._asking = asyncio.Lock()

    def forget(self) -> None:
        """The next request needs new ones."""
        self._held = None

    async def get(self) -> Credentials:
        """Valid credentials. Raises KekError."""
        async with self._asking:
            if self._held is None or time() >= self._held.expires - EARLY_S:
                try:
                    self._held = await self._ask()
                except KekError:
                    if self._held is None or time() >= self._held.expires:
                        raise  # otherwise those we have still do
            return self._held

    async def _ask(self) -> Credentials:
        has = self._environment.get
        if has("AWS_ACCESS_KEY_ID") and has("AWS_SECRET_ACCESS_KEY"):
            return Credentials(self._of("AWS_ACCESS_KEY_ID"), self._of("AWS_SECRET_ACCESS_KEY"), self._of("AWS_SESSION_TOKEN"))
        if has("AWS_WEB_IDENTITY_TOKEN_FILE") and has("AWS_ROLE_ARN"):
            return await self._web_identity()
        if has("AWS_CONTAINER_CREDENTIALS_FULL_URI") or has("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"):
            return await self._container()
        if self._of("AWS_EC2_METADATA_DISABLED").lower() != "true":
            return await self._instance()
        raise KekError("no AWS credentials: none in the environment, and the metadata service is switched off", away=False)

    def _of(self, name: str) -> str:
        return self._environment.get(name, "").strip()

    async def _web_identity(self) -> Credentials:
        token = await asyncio.to_thread(_read, Path(self._of("AWS_WEB_IDENTITY_TOKEN_FILE")))
        suffix = ".cn" if self._region.startswith("cn-") else ""
        url = self._of("AWS_ENDPOINT_URL_STS") or f"https://sts.{self._region}.amazonaws.com{suffix}"
        form = {
            "Action": "AssumeRoleWithWebIdentity",
            "Version": "2011-06-15",
            "RoleArn": self._of("AWS_ROLE_ARN"),
            "RoleSessionName": self._of("AWS_ROLE_SESSION_NAME") or "meshguard",
            "WebIdentityToken": token,
        }
        fields = {"content-type": "application/x-www-form-urlencoded", "accept": "application/xml"}
        answer = await self._http.exchange("POST", f"{url.rstrip('/')}/", fields, urlencode(form).encode())
        if answer.status != 200:
            raise KekError(f"STS: status {answer.status}", away=answer.status >= 500 or answer.status == 429)
        text = answer.body.decode("utf-8", "replace")
        # four elements of a fixed form: a parser for XML would only add what can go wrong in one
        found = {
            name: re.search(rf"<{name}>([^<]+)</{name}>", text) for name in ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration")
        }
        return _credentials({name: unescape(match[1]) for name, match in found.items() if match}, "SessionToken", "STS")

    async def _container(self) -> Credentials:
        url = self._of("AWS_CONTAINER_CREDENTIALS_FULL_URI") or f"http://169.254.170.2{self._of('AWS_CONTAINER_CREDENTIALS_RELATIVE_URI')}"
        fields = {"accept": "application/json"}
        if file := self._of("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
            fields["authorization"] = await asyncio.to_thread(_read, Path(file))
        elif token := self._of("AWS_CONTAINER_AUTHORIZATION_TOKEN"):
            fields["authorization"] = token
        return _credentials(
            _json(await self._http.exchange("GET", url, fields, timeout_s=METADATA_S)), "Token", "the container's credentials"
        )

    async def _instance(self) -> Credentials:
        base = (self._of("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254").rstrip("/") + "/latest"
        seconds = {"x-aws-ec2-metadata-token-ttl-seconds": "300"}
        answer = await self._http.exchange("PUT", f"{base}/api/token", seconds, timeout_s=METADATA_S)
        if answer.status != 200:
            raise KekError(f"instance metadata: status {answer.status}", away=True)
        token = {"x-aws-ec2-metadata-token": answer.body.decode("latin-1").strip()}
        path = f"{base}/meta-data/iam/security-credentials/"
        answer = await self._http.exchange("GET", path, token, timeout_s=METADATA_S)
        role = answer.body.decode("latin-1").strip().partition("\n")[0]
        if answer.status != 200 or not re.fullmatch(r"[\w+=,.@-]{1,128}", role):
            raise KekError(f"instance metadata: status {answer.status}, no role", away=answer.status >= 500)
        answer = await self._http.exchange("GET", path + role, token, timeout_s=METADATA_S)
        return _credentials(_json(answer), "Token", "instance metadata")


def _json(answer: Answer) -> dict[str, Any]:
    try:
        values = json.loads(answer.body) if answer.status == 200 else None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise KekError(f"credentials: status {answer.status}", away=answer.status >= 500 or answer.status == 200)
    return values


def _credentials(values: Mapping[str, Any], token: str, where: str) -> Credentials:
    try:
        expiration = values.get("Expiration")
        expires = datetime.fromisoformat(str(expiration)).timestamp() if expiration else inf
        return Credentials(str(values["AccessKeyId"]), str(values["SecretAccessKey"]), str(values.get(token, "")), expires)
    except (KeyError, ValueError):
        raise KekError(f"{where}: no credentials in the answer", away=True) from None


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_TOKEN).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise KekError(f"{path}: cannot be read", away=True) from exc
