"""The other proxies, each configured for the same work as far as it can do it."""

from __future__ import annotations

from pathlib import Path

from benchmarks import envoy, install
from benchmarks.bench import Bench
from benchmarks.candidates import Plan, Prepare
from benchmarks.rules import GRPC

__all__ = ["DEFAULT", "PEERS"]


def nginx(bench: Bench, directory: Path) -> Plan:
    """mTLS without policy and without log."""
    binary = install.system_binary("nginx")
    ports = {kind: bench.ports.port() for kind in ("h1-plain", "h1-mtls", "h2-mtls", "grpc")}
    certs = bench.certs
    temporary = "\n".join(f"  {kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config = directory / "nginx.conf"
    config.write_text(f"""
worker_processes 1; daemon off; master_process off; pid {directory}/nginx.pid; error_log {directory}/error.log;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; proxy_max_temp_file_size 0;
{temporary}
  upstream up_h1 {{ server 127.0.0.1:{bench.up_h1}; keepalive 128; keepalive_requests 1000000000; }}
  upstream up_h2 {{ server 127.0.0.1:{bench.up_h2}; keepalive 128; keepalive_requests 1000000000; }}
  ssl_certificate {certs}/server.pem; ssl_certificate_key {certs}/server.key; ssl_client_certificate {certs}/ca.pem;
  ssl_verify_client on; ssl_protocols TLSv1.3; ssl_session_cache off; ssl_session_tickets off;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header X-Forwarded-For $remote_addr;
  server {{ listen 127.0.0.1:{ports["h1-plain"]}; location / {{ proxy_pass http://up_h1; }} }}
  server {{ listen 127.0.0.1:{ports["h1-mtls"]} ssl; location / {{ proxy_pass http://up_h1; }} }}
  server {{ listen 127.0.0.1:{ports["h2-mtls"]} ssl http2; location / {{ proxy_pass http://up_h1; }} }}
  server {{ listen 127.0.0.1:{ports["grpc"]} ssl http2; location {GRPC}/ {{ grpc_pass grpc://up_h2; }} }}
}}
""")
    return Plan([binary, "-e", directory / "error.log", "-c", config], ports)


def haproxy(bench: Bench, directory: Path) -> Plan:
    """mTLS without policy and without log."""
    binary = install.system_binary("haproxy")
    plain, mtls = bench.ports.port(), bench.ports.port()
    certs = bench.certs
    verify = f"ca-file {certs}/ca.pem verify required"
    config = directory / "haproxy.cfg"
    config.write_text(f"""
global
  nbthread 1
  maxconn 4096
  tune.ssl.cachesize 0
defaults
  mode http
  timeout connect 5s
  timeout client 600s
  timeout server 600s
  http-reuse always
  option forwardfor
frontend plain
  bind 127.0.0.1:{plain}
  default_backend up_h1
frontend mtls
  bind 127.0.0.1:{mtls} ssl crt {certs}/server.both.pem {verify} ssl-min-ver TLSv1.3 no-tls-tickets alpn h2,http/1.1
  use_backend up_h2 if {{ path_beg {GRPC}/ }}
  default_backend up_h1
backend up_h1
  server s 127.0.0.1:{bench.up_h1} pool-max-conn 128
backend up_h2
  server s 127.0.0.1:{bench.up_h2} proto h2 pool-max-conn 128
""")
    return Plan([binary, "-f", config, "-db"], {"h1-plain": plain, "h1-mtls": mtls, "h2-mtls": mtls, "grpc": mtls})


def mitmproxy(bench: Bench, directory: Path) -> Plan:
    """A reverse proxy with TLS that asks for a client certificate, but neither demands nor verifies it; for scale only."""
    port = bench.ports.port()
    command = [
        install.mitmdump(),
        *("--quiet", "--set", "flow_detail=0", "--set", f"confdir={directory}"),
        *("--mode", f"reverse:http://127.0.0.1:{bench.up_h1}", "--listen-host", "127.0.0.1", "--listen-port", port),
        *("--certs", f"*={bench.certs / 'server.both.pem'}", "--set", "request_client_cert=true"),
        *("--set", "tls_version_client_min=TLS1_3", "--set", "keep_host_header=true"),
    ]
    return Plan(command, {"h1-mtls": port, "h1-plain": port}, demands_certificate=False)


PEERS: dict[str, Prepare] = {
    "envoy": envoy.best,
    "envoy-same": envoy.same,
    "envoy-tree": envoy.tree,
    "envoy10": envoy.ten,
    "envoy-no-rules": envoy.unruled,
    "envoy-10-rules": envoy.middle(10),
    "envoy-1000-rules": envoy.middle(1000),
    "envoy-many-rules": envoy.middle(100_000),
    "envoy-ext-proc": envoy.ext_proc,
    "nginx": nginx,
    "haproxy": haproxy,
    "mitmproxy": mitmproxy,
}
"""Every peer by its name."""

DEFAULT = ("envoy", "nginx", "haproxy", "mitmproxy")
