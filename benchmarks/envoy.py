"""Envoy as the anchor: mTLS, RBAC with the same rules, XFCC and a JSON access log, in several variants."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import install
from benchmarks.bench import Bench
from benchmarks.candidates import Plan, Prepare
from benchmarks.documents import PREFIXES
from benchmarks.ext_proc_server import PATH_HEADER
from benchmarks.rules import GRPC, Rule, make, mine_first

__all__ = ["best", "ext_proc", "same", "ten", "tree"]

_EXTENSION = "type.googleapis.com/envoy.extensions."
_RBAC = "envoy.filters.http.rbac"
_RBAC_TYPE = _EXTENSION + "filters.http.rbac.v3.RBAC"

Json = dict[str, Any]


def _linear(rules: list[Rule]) -> Json:
    """One policy a rule: Envoy tries them one by one in the order of their names."""

    def policy(rule: Rule) -> Json:
        conditions = [
            {"header": {"name": ":method", "string_match": {"exact": rule.method}}},
            {"url_path": {"path": {"prefix": rule.prefix + "/"}}},
        ]
        return {
            "permissions": [{"and_rules": {"rules": conditions}}],
            "principals": [{"authenticated": {"principal_name": {"exact": rule.principal}}}],
        }

    policies = {rule.id: policy(rule) for rule in rules}
    return {"name": _RBAC, "typed_config": {"@type": _RBAC_TYPE, "rules": {"action": "ALLOW", "policies": policies}}}


def _matching_tree(rules: list[Rule]) -> Json:
    """The same rules as a matching tree: caller, then path prefix (a trie), then method; what an expert would write."""

    def level(input_type: str, kind: str, branches: Json, **settings: str) -> Json:
        entry = {"name": input_type, "typed_config": {"@type": "type.googleapis.com/envoy." + input_type, **settings}}
        return {"matcher_tree": {"input": entry, kind: {"map": branches}}}

    def header(name: str, kind: str, branches: Json) -> Json:
        return level("type.matcher.v3.HttpRequestHeaderMatchInput", kind, branches, header_name=name)

    callers: dict[str, dict[str, Json]] = {}
    for rule in rules:
        action_type = "type.googleapis.com/envoy.config.rbac.v3.Action"
        action = {"action": {"name": "action", "typed_config": {"@type": action_type, "name": rule.id, "action": "ALLOW"}}}
        callers.setdefault(rule.principal, {}).setdefault(rule.prefix + "/", {})[rule.method] = action
    branches = {
        caller: {
            "matcher": header(
                ":path",
                "prefix_match_map",
                {prefix: {"matcher": header(":method", "exact_match_map", methods)} for prefix, methods in prefixes.items()},
            )
        }
        for caller, prefixes in callers.items()
    }
    matcher = level("extensions.matching.common_inputs.ssl.v3.UriSanInput", "exact_match_map", branches)
    return {"name": _RBAC, "typed_config": {"@type": _RBAC_TYPE, "matcher": matcher}}


def _access_log(path: Path) -> list[Json]:
    fields = {
        "time": "%START_TIME%",
        "method": "%REQ(:METHOD)%",
        "path": "%REQ(:PATH)%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "principal": "%DOWNSTREAM_PEER_URI_SAN%",
        "authority": "%REQ(:AUTHORITY)%",
        "request_id": "%REQ(X-REQUEST-ID)%",
        "traceparent": "%REQ(TRACEPARENT)%",
        "upstream": "%UPSTREAM_HOST%",
        "duration_ms": "%DURATION%",
        "sent": "%BYTES_SENT%",
        "received": "%BYTES_RECEIVED%",
    }
    logger = {"@type": _EXTENSION + "access_loggers.file.v3.FileAccessLog", "path": str(path), "log_format": {"json_format": fields}}
    return [{"name": "envoy.access_loggers.file", "typed_config": logger}]


def _address(port: int) -> Json:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _cluster(name: str, port: int, http2: bool) -> Json:
    endpoint = {"endpoint": {"address": _address(port)}}
    cluster: Json = {
        "name": name,
        "connect_timeout": "1s",
        "type": "STATIC",
        "circuit_breakers": {"thresholds": [{"max_connections": 4096, "max_pending_requests": 8192, "max_requests": 8192}]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if http2:
        kind = "upstreams.http.v3.HttpProtocolOptions"
        options = {"@type": _EXTENSION + kind, "explicit_http_config": {"http2_protocol_options": {}}}
        cluster["typed_extension_protocol_options"] = {"envoy.extensions." + kind: options}
    return cluster


def _tls(certs: Path) -> Json:
    """The listener's TLS: a client certificate of the mesh CA is required."""
    certificate = {"certificate_chain": {"filename": str(certs / "server.pem")}, "private_key": {"filename": str(certs / "server.key")}}
    common = {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3"},
        "tls_certificates": [certificate],
        "validation_context": {"trusted_ca": {"filename": str(certs / "ca.pem")}},
    }
    context = {
        "@type": _EXTENSION + "transport_sockets.tls.v3.DownstreamTlsContext",
        "require_client_certificate": True,
        "common_tls_context": common,
    }
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _listener(
    name: str,
    port: int,
    rbac: Json | None,
    log: Path | None,
    certs: Path | None,
    processor: Json | None = None,
    routes: list[Json] | None = None,
) -> Json:
    router = {"@type": _EXTENSION + "filters.http.router.v3.Router", "suppress_envoy_headers": True}
    routes = [
        *(routes or []),
        {"match": {"prefix": GRPC + "/"}, "route": {"cluster": "up_h2", "timeout": "15s"}},
        {"match": {"prefix": "/"}, "route": {"cluster": "up_h1", "timeout": "15s"}},
    ]
    manager: Json = {
        "@type": _EXTENSION + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "codec_type": "AUTO",
        "use_remote_address": True,
        "generate_request_id": False,
        "http_filters": [
            *([rbac] if rbac else []),
            *([processor] if processor else []),
            {"name": "envoy.filters.http.router", "typed_config": router},
        ],
        "route_config": {"name": "all", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
    }
    if log:
        manager["access_log"] = _access_log(log)
    if certs and log:
        manager.update(forward_client_cert_details="SANITIZE_SET", set_current_client_cert_details={"uri": True})
    chain: Json = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    if certs:
        chain["transport_socket"] = _tls(certs)
    found: Json = {"name": name, "address": _address(port), "filter_chains": [chain]}
    if processor:
        found["per_connection_buffer_limit_bytes"] = 4 << 20  # the bodies it buffers for the processor
    return found


def _plan(bench: Bench, directory: Path, rules: list[Rule], log: bool, rbac: Callable[[list[Rule]], Json | None] = _linear) -> Plan:
    plain, mtls = bench.ports.port(), bench.ports.port()
    path = directory / "access.log" if log else None
    # Without TLS there is no identity, so there are no rules either; the log stays.
    listeners = [_listener("plain", plain, None, path, None), _listener("mtls", mtls, rbac(rules), path, bench.certs)]
    clusters = [_cluster("up_h1", bench.up_h1, False), _cluster("up_h2", bench.up_h2, True)]
    config = directory / "envoy.json"
    config.write_text(json.dumps({"static_resources": {"listeners": listeners, "clusters": clusters}}, indent=1))
    command = [install.envoy(), "-c", config, "--concurrency", "1", "--log-level", "error", "--disable-hot-restart"]
    return Plan(command, {"h1-plain": plain, "h1-mtls": mtls, "h2-mtls": mtls, "grpc": mtls}, policy=True, log=path)


def best(bench: Bench, directory: Path) -> Plan:
    """All the rules, the right ones first, and the access log: the fair Envoy."""
    return _plan(bench, directory, mine_first(make(bench.options.rules)), True)


def same(bench: Bench, directory: Path) -> Plan:
    """The same with the matching rules in the middle, as meshguard has them. Never the only anchor of a claim."""
    return _plan(bench, directory, make(bench.options.rules), True)


def tree(bench: Bench, directory: Path) -> Plan:
    """The same rules as a matching tree, whose cost does not grow with them."""
    return _plan(bench, directory, make(bench.options.rules), True, _matching_tree)


def ten(bench: Bench, directory: Path) -> Plan:
    """10 rules, the right ones first, no XFCC, no log: the best that Envoy can look."""
    return _plan(bench, directory, mine_first(make(bench.options.rules))[:10], False)


def ext_proc(bench: Bench, directory: Path) -> Plan:
    """`best` with an external processor that protects the fields of `documents`: both processes count."""
    mtls, port = bench.ports.port(), bench.ports.port()
    log = directory / "access.log"
    name, kind = "envoy.filters.http.ext_proc", _EXTENSION + "filters.http.ext_proc.v3."
    mode = {"request_header_mode": "SKIP", "response_header_mode": "SKIP", "response_body_mode": "BUFFERED"}
    settings: Json = {
        "@type": kind + "ExternalProcessor",
        "grpc_service": {"envoy_grpc": {"cluster_name": "processor"}, "timeout": "5s"},
        "processing_mode": mode,
        "message_timeout": "5s",
    }
    routes: list[Json] = []
    for count, prefix in PREFIXES.items():
        overrides: Json = {"overrides": {"grpc_initial_metadata": [{"key": PATH_HEADER, "value": prefix}]}} if count else {"disabled": True}
        here = {"@type": kind + "ExtProcPerRoute", **overrides}
        routes.append(
            {"match": {"prefix": prefix}, "route": {"cluster": "up_h1", "timeout": "15s"}, "typed_per_filter_config": {name: here}}
        )
    routes.append(
        {
            "match": {"prefix": "/"},
            "route": {"cluster": "up_h1", "timeout": "15s"},
            "typed_per_filter_config": {name: {"@type": kind + "ExtProcPerRoute", "disabled": True}},
        }
    )
    rbac = _linear(mine_first(make(bench.options.rules)))
    listener = _listener("mtls", mtls, rbac, log, bench.certs, {"name": name, "typed_config": settings}, routes)
    clusters = [_cluster("up_h1", bench.up_h1, False), _cluster("up_h2", bench.up_h2, True), _cluster("processor", port, True)]
    for cluster in clusters:
        cluster["per_connection_buffer_limit_bytes"] = 4 << 20
    config = directory / "envoy.json"
    config.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": clusters}}, indent=1))
    words = [install.envoy(), "-c", config, "--concurrency", "1", "--log-level", "error", "--disable-hot-restart"]
    server = [sys.executable, "-m", "benchmarks.ext_proc_server", port]
    both = f"{shlex.join(map(str, server))} & exec {shlex.join(map(str, words))}"
    return Plan(["sh", "-c", both], {"h1-mtls": mtls}, policy=True, log=log, cwd=install.ROOT)


def middle(count: int) -> Prepare:
    """So many rules tried one by one, the right ones in the middle, no log: for what rules cost, beside `unruled`."""
    return lambda bench, directory: _plan(bench, directory, make(count), False)


def unruled(bench: Bench, directory: Path) -> Plan:
    """mTLS and nothing else: what the ones above are compared with."""
    plan = _plan(bench, directory, [], False, lambda rules: None)
    return replace(plan, policy=False)
