"""A running node as commands reach it: the address of its admin API and the token for guarded operations."""

from __future__ import annotations

import argparse
import http.client
import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from meshguard.model.errors import MeshguardError

__all__ = ["Node", "NodeError", "call", "node_of"]

_TIMEOUT_S = 10.0
_DEFAULT = ("127.0.0.1", 9901)


class NodeError(MeshguardError):
    """The node refused, or it could not be reached."""


@dataclass(frozen=True, slots=True)
class Node:
    """`token` is empty where there is none."""

    host: str
    port: int
    token: bytes = b""

    def __repr__(self) -> str:
        return f"Node({self.host}:{self.port})"


def node_of(options: argparse.Namespace) -> Node:
    """From `--config`, `--admin` and `--token-file`. Raises DocumentError, NodeError, OSError."""
    from meshguard.control.operations import admin_token

    host, port = _DEFAULT
    token_file = options.token_file
    if options.config is not None:
        from meshguard.control.settings.load import load_configuration

        admin = load_configuration(options.config, now=time.time()).configuration.admin
        host, port = admin.address.host, admin.address.port
        token_file = token_file or admin.token_file
    if options.admin:
        host, separator, text = options.admin.rpartition(":")
        if not separator or not text.isdecimal():
            raise NodeError("--admin: HOST:PORT was expected")
        port = int(text)
    return Node(host.strip("[]"), port, admin_token(token_file, create=False) if token_file is not None else b"")


def call(node: Node, method: str, path: str, query: dict[str, str], body: bytes = b"") -> Any:
    """The JSON answer of one request. Raises NodeError with the node's own words, or why it did not answer."""
    headers = {"authorization": f"Bearer {node.token.decode('ascii')}"} if node.token else {}
    connection = http.client.HTTPConnection(node.host, node.port, timeout=_TIMEOUT_S)
    try:
        connection.request(method, f"{path}?{urlencode(query)}" if query else path, body or None, headers)
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as exc:
        raise NodeError(f"the node at {node.host}:{node.port} does not answer: {exc}") from exc
    finally:
        connection.close()
    try:
        value = json.loads(text)
    except ValueError as exc:
        raise NodeError(f"the node at {node.host}:{node.port} answered {answer.status} without JSON: is this its admin address?") from exc
    if answer.status >= 300:
        raise NodeError(f"{answer.status} {value.get('title', '') if isinstance(value, dict) else ''}")
    return value
