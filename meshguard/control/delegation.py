"""Decision tokens as they are configured: who signs for which next hop, and which listeners verify."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from meshguard.control.settings.delegation import audience_of

if TYPE_CHECKING:
    from meshguard.control.settings.configuration import Configuration
    from meshguard.control.settings.listeners import ListenerConfig, RouteConfig
    from meshguard.identity.material import Material
    from meshguard.pipeline.delegation import TokenReader, TokenWriter

__all__ = ["TokenWriters", "token_reader", "token_writers"]

TokenWriters = Callable[["RouteConfig"], "TokenWriter | None"]


def token_reader(config: ListenerConfig) -> TokenReader | None:
    """Who verifies on this listener."""
    if config.decision_token == "none":  # noqa: S105  # a word of the configuration
        return None
    from meshguard.pipeline.delegation import TokenReader

    return TokenReader(config.decision_token == "require")  # noqa: S105


def token_writers(configuration: Configuration, material: Material | None) -> TokenWriters:
    """Gives each route what adds the field. The key is read only where some route sends."""
    routes = [route for listener in configuration.listeners.values() for route in listener.routes]
    if not any(route.decision_token != "none" for route in routes):  # noqa: S105
        return lambda route: None
    from meshguard.identity.signer import Signer
    from meshguard.pipeline.delegation import TokenWriter

    sends = any(route.decision_token == "send" for route in routes)  # noqa: S105
    signer = Signer(material) if sends and material is not None else None

    def writer(route: RouteConfig) -> TokenWriter | None:
        if route.decision_token == "none":  # noqa: S105
            return None
        tls = configuration.clusters[route.to].tls if route.decision_token == "send" else None  # noqa: S105
        return TokenWriter(signer, audience_of(tls.model_dump()) if tls is not None else "")

    return writer
