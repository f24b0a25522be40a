"""Who is speaking: the OpenTelemetry resource of this process.

The SDK's own resource detection is used, so OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME mean what they mean elsewhere. It is
imported when the resource is first asked for, by the exporter's thread: without an OTLP endpoint nothing of the SDK is loaded.
"""

from __future__ import annotations

import os

from meshguard import __version__
from meshguard.telemetry.otlp_encoding import AttributeValue

__all__ = ["resource_attributes"]


def resource_attributes(service_name: str | None, instance_id: str) -> dict[str, AttributeValue]:
    """Attributes of the resource. `service_name` (from the configuration) wins over the environment, which wins over "meshguard"."""
    from opentelemetry.sdk.resources import Resource

    own: dict[str, AttributeValue] = {"service.version": __version__, "service.instance.id": instance_id}
    environment = os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if service_name:
        own["service.name"] = service_name
    elif not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in environment:
        own["service.name"] = "meshguard"
    if "service.instance.id=" in environment:
        del own["service.instance.id"]
    resource = Resource.create(own)
    return {key: value for key, value in resource.attributes.items() if isinstance(value, (str, bool, int, float))}
