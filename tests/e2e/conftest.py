"""One process for the journey: routes, header operations, timeouts, a dead and a flaky cluster, an outbound mTLS pair, OTLP."""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.harness.client import RawClient
from tests.harness.collector import Collector
from tests.harness.mesh import SHOP, Mesh
from tests.harness.pki import now, server_context
from tests.harness.ports import Refusing
from tests.harness.proxy import Proxy
from tests.harness.upstream import Upstream

SECRET = "planted-5e1f-4929-1234567890"


class Town:
    """The process with what surrounds it."""

    def __init__(self, proxy: Proxy, mesh: Mesh, collector: Collector, secure: Upstream, impostor: Upstream) -> None:
        self.proxy = proxy
        self.mesh = mesh
        self.upstream = mesh.upstream
        self.collector = collector
        self.secure = secure
        self.impostor = impostor

    def dial(
        self, listener: str = "default", who: str | None = "billing", context: ssl.SSLContext | None = None, **options: Any
    ) -> RawClient:
        tls = None if listener.startswith("plain") or listener == "outbound" else context or self.mesh.client(who)
        return RawClient(self.proxy.address(listener), tls, **options)


def _routes(engine: str) -> list[dict[str, Any]]:
    return [
        {"id": f"dead-{engine}", "paths": ["/dead/**"], "to": "dead"},
        {"id": f"flaky-{engine}", "paths": ["/flaky/**"], "to": "flaky"},
        {"id": f"tight-{engine}", "paths": ["/tight/**"], "to": "app", "timeouts": {"response_s": 0.5, "total_s": 1.5}},
        {"id": f"admins-{engine}", "paths": ["/who/**"], "principals": [SHOP + "admin"], "to": "other"},
        {"id": f"beta-{engine}", "paths": ["/beta/**"], "headers": {"x-channel": "beta"}, "to": "other"},
        {"id": f"hosted-{engine}", "authorities": ["other.example"], "to": "other"},
        {"id": f"posts-{engine}", "paths": ["/by-method/**"], "methods": ["POST"], "to": "other"},
        {
            "id": f"changed-{engine}",
            "paths": ["/changed/**"],
            "to": "app",
            "request_headers": {"set": {"x-set": "by-proxy"}, "append": {"x-app": "by-proxy"}, "remove": ["x-gone"]},
            "response_headers": {
                "set": {"x-set": "by-proxy", "strict-transport-security": "max-age=1"},
                "append": {"x-app": "by-proxy"},
                "remove": ["x-gone", "server"],
            },
        },
        {"id": f"trailers-{engine}", "paths": ["/trailers/**"], "to": "app", "trailers": "keep"},
        {"id": f"queued-{engine}", "paths": ["/queued/**"], "to": "queued"},
        {"id": f"only-{engine}", "authorities": ["shop.example", "localhost", "127.0.0.1"], "paths": ["/**"], "to": "app"},
    ]


@pytest.fixture(scope="session")
def other(mesh: Mesh) -> Iterator[Upstream]:
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def town(mesh: Mesh, other: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    directory = tmp_path_factory.mktemp("town")
    secure = Upstream(server_context(mesh.service("orders"), mesh.ca, directory))
    impostor = Upstream(server_context(mesh.ca.service("impostor"), mesh.ca, directory))
    with Collector() as collector, Refusing() as dead, secure, impostor:
        listeners: dict[str, Any] = {
            e: {
                "tls": "mutual",
                "engine": e,
                "routes": _routes(e),
                "authorities": ["shop.example", "localhost", "127.0.0.1", "other.example", "lost.example"],
            }
            for e in ("default", "reference")
        }
        listeners |= {
            "plain": {"tls": "none", "to": "app"},
            "edge": {"tls": "server", "to": "app"},
            "outbound": {
                "tls": "none",
                "routes": [
                    {"id": "to-orders", "authorities": ["orders"], "to": "orders"},
                    {"id": "to-impostor", "authorities": ["impostor"], "to": "impostor"},
                    {"id": "to-plain", "authorities": ["unsafe"], "to": "tls-to-plain"},
                ],
            },
        }
        orders = {"spiffe_id": SHOP + "orders"}
        config = {
            "identity": mesh.identity(directory),
            "listeners": listeners,
            "clusters": {
                "app": {**mesh.endpoints(), "timeouts": {"response_s": 10}},
                "other": mesh.endpoints(other),
                "dead": {"endpoints": [dead.address], "ejection": {"consecutive_failures": 0}},
                "flaky": {
                    "endpoints": [dead.address, f"127.0.0.1:{mesh.upstream.port}"],
                    "balance": "round_robin",
                    "ejection": {"consecutive_failures": 0},
                    "retries": {"attempts": 2, "budget_percent": 100},
                },
                "queued": {**mesh.endpoints(), "circuit": {"max_in_flight": 1, "max_connections": 1, "queue": 1, "queue_timeout_s": 1}},
                "orders": {"endpoints": [f"127.0.0.1:{secure.port}"], "tls": orders},
                "impostor": {"endpoints": [f"127.0.0.1:{impostor.port}"], "tls": orders},
                "tls-to-plain": {"endpoints": [f"127.0.0.1:{mesh.upstream.port}"], "tls": orders},
            },
            "telemetry": {"otlp": collector.url, "sample": 1.0, "service_name": "town"},
            "drain_s": 2,
        }
        policies = {
            "town.yaml": {
                "roles": {"billing": {"principals": [SHOP + "billing"]}, "support": {"principals": [SHOP + "support-*"]}},
                "rules": [
                    {"id": "no-admin", "deny": "anyone", "paths": ["/admin/**"]},
                    {"id": "orders", "allow": ["support"], "methods": ["GET"], "paths": ["/orders/{id}"]},
                    {"id": "shadow-deny", "deny": ["billing"], "paths": ["/shadowed/**"], "shadow": True},
                    {"id": "shadow-allow", "allow": ["billing"], "paths": ["/orders/{id}"], "shadow": True},
                    {"id": "billing-open", "allow": ["billing"], "paths": list(_OPEN)},
                    {"id": "admin-who", "allow": [SHOP + "admin"], "paths": ["/who/**"]},
                    {"id": "local", "allow": "anyone", "paths": ["/local/**", "/orders-out/**"]},
                ],
            }
        }
        with Proxy(directory, config, policies=policies, environment={"OTEL_METRIC_EXPORT_INTERVAL": "1000"}) as proxy:
            yield Town(proxy, mesh, collector, secure, impostor)


_OPEN = [
    "/",
    "/open",
    "/open/**",
    "/dead/**",
    "/flaky/**",
    "/tight/**",
    "/who/**",
    "/beta/**",
    "/by-method/**",
    "/changed/**",
    "/trailers/**",
    "/queued/**",
    "/shadowed/**",
    "/stream/**",
    "/innocent/**",
]


@pytest.fixture
def dial(town: Town) -> Callable[..., RawClient]:
    return town.dial


@pytest.fixture(scope="session")
def later() -> Callable[[float], dt.datetime]:
    return lambda seconds: now() + dt.timedelta(seconds=seconds)
