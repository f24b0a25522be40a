"""AWS KMS: GenerateDataKey, Encrypt and Decrypt with an encryption context, over its JSON protocol (AWS JSON 1.1, SigV4).

Three calls are not worth an SDK of 30 MB in every sidecar: the signature is `aws_signature`, the credentials are `aws_credentials`.
The context names keyset and version; the key is pinned when unwrapping. The wrapped form is the ciphertext blob in base64.
"""

from __future__ import annotations

import json
import os
from base64 import b64decode, b64encode
from collections.abc import Mapping
from math import inf
from time import time
from typing import Any

from meshguard.fields.material import KEY_BYTES
from meshguard.keys.aws_credentials import CredentialChain
from meshguard.keys.aws_signature import signed_fields
from meshguard.keys.http import Answer, HttpClient
from meshguard.keys.provider import Binding, KekError
from meshguard.model.errors import KeysetError

__all__ = ["AwsKms", "awskms_kek"]

# Errors of KMS that are over after a while (API reference, common errors and those of each call); all others are a no.
_AWAY = (
    *("ThrottlingException", "Throttling", "RequestLimitExceeded", "LimitExceededException", "SlowDown"),
    *("DependencyTimeoutException", "KMSInternalException", "KeyUnavailableException", "InternalFailure", "ServiceUnavailable"),
)
_LOGIN = ("ExpiredTokenException", "UnrecognizedClientException", "InvalidClientTokenId", "InvalidSignatureException")


class AwsKms:
    """The symmetric KMS key `key` (id, alias or ARN) in `region`. `context` are further members of the encryption context."""

    def __init__(
        self, http: HttpClient, credentials: CredentialChain, key: str, region: str, endpoint: str, context: Mapping[str, str]
    ) -> None:
        self._http = http
        self._credentials = credentials
        self._key = key
        self._region = region
        self._endpoint = endpoint.rstrip("/")
        self._context = dict(context)

    @property
    def place(self) -> str:
        return f"{self._endpoint} {self._key}"

    async def new_key(self, binding: Binding) -> tuple[bytes, str]:
        values = await self._call("GenerateDataKey", {"NumberOfBytes": KEY_BYTES, **self._bound(binding)})
        return self._key_of(values), self._blob_of(values)

    async def wrap(self, key: bytes, binding: Binding) -> str:
        return self._blob_of(await self._call("Encrypt", {"Plaintext": b64encode(key).decode(), **self._bound(binding)}))

    async def unwrap(self, wrapped: str, binding: Binding) -> bytes:
        return self._key_of(await self._call("Decrypt", {"CiphertextBlob": wrapped, **self._bound(binding)}))

    async def tend(self) -> float:
        return inf  # credentials are replaced before they expire, when they are needed

    async def close(self) -> None:
        self._credentials.forget()

    def _bound(self, binding: Binding) -> dict[str, Any]:
        return {"KeyId": self._key, "EncryptionContext": {**self._context, "meshguard": binding.text}}

    async def _call(self, action: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self._post(action, body)
        if answer.status != 200 and _kind(answer) in _LOGIN:
            self._credentials.forget()
            answer = await self._post(action, body)
        if answer.status != 200:
            kind = _kind(answer)
            raise KekError(
                f"{self._endpoint}: status {answer.status} {kind}", away=answer.status >= 500 or answer.status == 429 or kind in _AWAY
            )
        return _members(answer)

    async def _post(self, action: str, body: dict[str, Any]) -> Answer:
        data = json.dumps(body, separators=(",", ":")).encode()
        fields = {"content-type": "application/x-amz-json-1.1", "x-amz-target": f"TrentService.{action}"}
        credentials = await self._credentials.get()
        fields |= signed_fields("POST", f"{self._endpoint}/", fields, data, credentials, self._region, "kms", time())
        return await self._http.exchange("POST", f"{self._endpoint}/", fields, data)

    def _key_of(self, values: Mapping[str, Any]) -> bytes:
        try:
            key = b64decode(values["Plaintext"], validate=True)
        except (KeyError, TypeError, ValueError):
            key = b""
        if len(key) != KEY_BYTES:
            raise KekError(f"{self._endpoint}: no data key of {KEY_BYTES} octets in the answer", away=False)
        return key

    def _blob_of(self, values: Mapping[str, Any]) -> str:
        blob = values.get("CiphertextBlob")
        if not isinstance(blob, str) or not blob:
            raise KekError(f"{self._endpoint}: no wrapped key in the answer", away=False)
        return blob


def awskms_kek(values: Mapping[str, Any]) -> AwsKms:
    """`values` as AwsKmsKeysetConfig has them."""
    region = values.get("region") or _region_of(values["key"]) or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if not region:
        raise KeysetError("a region is needed: `region`, the ARN of the key, or AWS_REGION")
    http = HttpClient(values["timeout_s"], values.get("ca"))
    endpoint = values.get("endpoint") or f"https://kms.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}"
    return AwsKms(http, CredentialChain(http, region), values["key"], region, endpoint, values.get("context") or {})


def _region_of(key: str) -> str:
    parts = key.split(":")
    return parts[3] if len(parts) > 5 and parts[0] == "arn" else ""


def _kind(answer: Answer) -> str:
    """The name of an error: `__type` of the body, without what stands before `#`."""
    name = str(_members(answer).get("__type", "")).rpartition("#")[2]
    return name if name.isalnum() and len(name) < 80 else ""


def _members(answer: Answer) -> dict[str, Any]:
    try:
        values = json.loads(answer.body)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
