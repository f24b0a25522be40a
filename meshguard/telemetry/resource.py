"""Who is speaking: the OpenTelemetry resource of this process.

OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES mean what they mean elsewhere (OpenTelemetry specification). The SDK is loaded
only where its detectors are asked for (OTEL_EXPERIMENTAL_RESOURCE_DETECTORS): it would cost an idle sidecar 6 MB to read two variables.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import unquote

from meshguard import __version__
from meshguard.telemetry.otlp_encoding import AttributeValue

__all__ = ["resource_attributes"]


def resource_attributes(service_name: str | None, instance_id: str) -> dict[str, AttributeValue]:
    """Attributes of the resource. `service_name` (from the configuration) wins over the environment, which wins over "meshguard"."""
    attributes: dict[str, AttributeValue] = {
        "service.name": "meshguard",
        "service.version": __version__,
        "service.instance.id": instance_id,
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "meshguard",
        "telemetry.sdk.version": __version__,
        **_detected(os.environ),
        **_from_environment(os.environ),
    }
    if service_name:
        attributes["service.name"] = service_name
    return attributes


def _from_environment(environment: Mapping[str, str]) -> dict[str, AttributeValue]:
    """`key=value` pairs, comma-separated, values percent-encoded; what is not a pair is passed over."""
    found: dict[str, AttributeValue] = {}
    for pair in environment.get("OTEL_RESOURCE_ATTRIBUTES", "").split(","):
        key, equals, value = pair.partition("=")
        if equals and key.strip():
            found[key.strip()] = unquote(value.strip())
    if environment.get("OTEL_SERVICE_NAME"):
        found["service.name"] = environment["OTEL_SERVICE_NAME"]
    return found


def _detected(environment: Mapping[str, str]) -> dict[str, AttributeValue]:
    if not environment.get("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS"):
        return {}
    from opentelemetry.sdk.resources import Resource

    found = Resource.create().attributes
    return {key: value for key, value in found.items() if isinstance(value, (str, bool, int, float)) and value != "unknown_service"}
