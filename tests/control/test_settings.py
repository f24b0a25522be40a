"""The configuration document: what a short one means, and what a wrong one is told."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from meshguard.control.settings.configuration import Configuration
from meshguard.control.settings.effective import effective_text, effective_values
from meshguard.control.settings.load import LoadedConfiguration, configuration_from, default_configuration
from meshguard.control.settings.values import Address, parse_address, parse_moment
from meshguard.model.errors import DocumentError
from meshguard.sources.documents import parse

NOW = datetime(2026, 6, 1, tzinfo=UTC).timestamp()

MINIMAL = """\
profile: development
listeners: {inbound: {address: "127.0.0.1:8443", to: app}}
clusters: {app: {endpoints: ["127.0.0.1:8080"]}}
policies: [policies/]
"""


def load(text: str, base: Path | None = None, *, files: bool = False, environment: dict[str, str] | None = None) -> LoadedConfiguration:
    document = parse("c.yaml", textwrap.dedent(text), environment=environment or {})
    return configuration_from(document, base or Path("/base"), now=NOW, environment=environment or {}, files=files)


def told(text: str, **more: Any) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        load(text, **more)
    return [str(problem).removeprefix("c.yaml:") for problem in caught.value.problems]


# -- a short document -------------------------------------------------------------------------------------------------------


def test_three_sections_are_enough_in_development() -> None:
    configuration = load(MINIMAL).configuration
    assert configuration.identity is not None
    assert configuration.identity.development_ca == Path("/base/identity")
    assert configuration.identity.workload == "/ns/dev/sa/meshguard"
    assert configuration.listeners["inbound"].tls == "mutual"
    assert configuration.clusters["app"].endpoints == [Address("127.0.0.1", 8080)]
    assert configuration.policies == [Path("/base/policies")]
    assert configuration.telemetry.sample == 1.0


def test_the_workload_api_comes_from_the_standard_variable() -> None:
    text = MINIMAL.replace("profile: development", "identity: {trust_domain: shop.example}")
    configuration = load(text, environment={"SPIFFE_ENDPOINT_SOCKET": "unix:///run/agent.sock"}).configuration
    assert configuration.identity is not None
    assert configuration.identity.workload_api == "unix:///run/agent.sock"
    assert "exactly one of files, workload_api and development_ca, got none of them" in told(text)[0]


def test_the_defaults_are_the_safe_limits() -> None:
    limits = load(MINIMAL).configuration.listeners["inbound"].limits
    assert (limits.head_bytes, limits.fields, limits.request_line_bytes) == (32 * 1024, 100, 8 * 1024)
    assert (limits.inspect_body_bytes, limits.inspect_total_bytes, limits.buffer_bytes) == (1 << 20, 64 << 20, 64 << 10)
    assert (limits.streams, limits.stream_window_bytes, limits.connection_window_bytes) == (100, 64 << 10, 1 << 20)
    assert (limits.reset_burst, limits.reset_per_s, limits.control_burst, limits.control_per_s) == (100, 33, 200, 50)
    assert (limits.handshake_s, limits.head_s, limits.body_idle_s, limits.body_total_s, limits.idle_s) == (5, 10, 10, 60, 60)
    assert (limits.overload_close_percent, limits.overload_shed_percent, limits.requests_per_turn) == (92, 95, 32)
    cluster = load(MINIMAL).configuration.clusters["app"]
    assert (cluster.timeouts.connect_s, cluster.timeouts.response_s) == (1, 15)
    assert (cluster.circuit.max_in_flight, cluster.circuit.queue, cluster.retries.budget_percent) == (1024, 128, 20)


def test_limits_of_a_listener_replace_single_common_ones() -> None:
    text = """\
        profile: development
        limits: {head_bytes: 16KiB, idle_s: 7}
        listeners:
          a: {address: "127.0.0.1:1", to: app, limits: {head_bytes: 4096, body_bytes: 1 MiB}}
          b: {address: "127.0.0.1:2", to: app}
          edge: {address: "127.0.0.1:3", to: app, tls: server}
        clusters: {app: {endpoints: ["127.0.0.1:8080"]}}
        policies: [p]
        """
    listeners = load(text).configuration.listeners
    assert (listeners["a"].limits.head_bytes, listeners["a"].limits.body_bytes, listeners["a"].limits.idle_s) == (4096, 1 << 20, 7)
    assert (listeners["b"].limits.head_bytes, listeners["b"].limits.body_bytes, listeners["b"].limits.head_s) == (16384, 0, 10)
    assert listeners["edge"].limits.head_s == 5
    assert load(text.replace("idle_s: 7", "head_s: 8")).configuration.listeners["edge"].limits.head_s == 8


def test_a_configuration_never_changes() -> None:
    configuration = load(MINIMAL).configuration
    with pytest.raises(ValidationError):
        configuration.drain_s = 3  # type: ignore[misc]


def test_host_names_are_resolved_and_addresses_are_not() -> None:
    text = MINIMAL.replace('["127.0.0.1:8080"]', '["app.internal:80"]')
    assert load(text).configuration.clusters["app"].resolve == "dns"
    assert load(MINIMAL.replace("127.0.0.1:8080", "[::1]:8080")).configuration.clusters["app"].resolve == "static"


def test_the_built_in_configuration_loads_with_its_policy(tmp_path: Path) -> None:
    loaded = default_configuration(now=NOW, base=tmp_path, environment={})
    configuration = loaded.configuration
    assert configuration.profile == "development"
    assert str(configuration.listeners["inbound"].address) == "127.0.0.1:8443"
    assert str(configuration.admin.address) == "127.0.0.1:9901"
    assert configuration.identity is not None
    assert configuration.identity.development_ca == tmp_path.resolve() / "identity"
    assert all(policy.is_file() for policy in configuration.policies)
    assert loaded.notes == ("profile development: not for production",)
    changed = default_configuration(now=NOW, base=tmp_path, environment={}, overrides={"drain_s": 3})
    assert changed.configuration.drain_s == 3


# -- what is in effect ------------------------------------------------------------------------------------------------------


def test_the_effective_text_is_a_configuration_that_means_the_same() -> None:
    text = """\
        profile: migration
        identity: {trust_domain: shop.example, workload_api: "unix:///run/agent.sock"}
        jwt: [{issuer: i, audiences: [a], jwks: "https://i.example/jwks"}]
        limits: {head_bytes: 16KiB}
        listeners:
          inbound:
            address: "[::]:8443"
            tls: permissive
            permissive_until: 2026-12-31
            limits: {fields: 20}
            routes:
              - {id: a, to: app, paths: [/a/**], headers: {x-v: "1.10"}, response_headers: {set: {x-a: "yes"}, remove: [server]}}
              - {id: b, to: app, methods: [GET]}
        clusters: {app: {endpoints: ["app:80"], health: {path: /up}}}
        policies: [p]
        keys: {k: {provider: file, path: k.json}}
        """
    loaded = load(text)
    again = load(effective_text(loaded))
    assert again.configuration == loaded.configuration
    lines = effective_text(loaded).splitlines()
    assert '    address: "[::]:8443"' in lines
    assert "    underscores: drop  # profile migration" in lines
    assert "  connect_s: 1.0  # default" in [line.strip() and line[4:] for line in lines]
    assert "    resolve: dns  # follows the endpoints" in lines


def test_credentials_in_header_values_are_hidden() -> None:
    text = MINIMAL.replace("to: app}", 'routes: [{id: a, to: app, request_headers: {set: {authorization: "Basic ${PW}", x-a: b}}}]}')
    loaded = load(text, environment={"PW": "hunter2"})
    assert loaded.configuration.listeners["inbound"].routes[0].request_headers.set["authorization"] == "Basic hunter2"
    assert "hunter2" not in effective_text(loaded)
    values = effective_values(loaded)["listeners"]["inbound"]["routes"][0]["request_headers"]["set"]
    assert values == {"authorization": "(hidden)", "x-a": "b"}


# -- errors -----------------------------------------------------------------------------------------------------------------


def test_errors_of_values_and_between_sections_are_told_together() -> None:
    text = """\
        profile: development
        listeners:
          inbound: {adress: "127.0.0.1:1", to: ap}
        clusters:
          app: {endpoints: ["::1:80"], timeouts: {connect_s: -1}}
        policies: [p]
        """
    assert told(text) == [
        "3:3: listeners.inbound.address: expected a value: this key is required",
        "3:21: listeners.inbound.adress: expected one of the keys address, authorities, caller, capture, certificate, certificates,"
        " decision_token, direction, engine, forwarded, hsts, key, limits, permissive_until, protocols, rate_limits, ...;"
        " did you mean 'address'?",
        "3:40: listeners.inbound.to: expected the name of a cluster (app), got 'ap'; did you mean 'app'?",
        "5:21: clusters.app.endpoints[0]: expected brackets around an IPv6 address, such as [::1]:8080, got '::1:80'",
        "5:54: clusters.app.timeouts.connect_s: expected a number above 0, got -1",
    ]


LISTENER = "profile: development\nlisteners: {inbound: {%s}}\nclusters: {app: {endpoints: ['127.0.0.1:8080']}}\npolicies: [p]\n"
CLUSTER = "profile: %s\nidentity: {trust_domain: a.example, files: {certificate: c, key: k, bundles: {a.example: b}}}\n"
CLUSTER += "listeners: {inbound: {address: '127.0.0.1:8443', to: app}}\nclusters: {app: {%s}}\npolicies: [p]\n"


@pytest.mark.parametrize(
    ("listener", "expected"),
    [
        ("address: '0.0.0.0:1'", "either `to: CLUSTER` or `routes`, got neither"),
        ("address: '0.0.0.0:1', to: app, routes: [{id: a, to: app}]", "got both"),
        ("address: 'localhost', to: app", "the port is missing"),
        ("address: 'shop.example:80', to: app", "an IP address and port to listen on"),
        ("address: '127.0.0.1:70000', to: app", "a port from 1 to 65535"),
        ("address: '127.0.0.1:9901', to: app", "a port that is free (admin.address has 127.0.0.1:9901)"),
        ("address: '0.0.0.0:9901', to: app", "a port that is free"),
        ("address: '[::]:9901', to: app", "a port that is free"),
        ("address: '0.0.0.0:1', to: app, tls: permissive", "a relaxation needs an end date"),
        ("address: '0.0.0.0:1', to: app, tls: permissive, permissive_until: 2026-05-31", "a date in the future (it is 2026-06-01)"),
        ("address: '0.0.0.0:1', to: app, tls: permissive, permissive_until: 2029-01-01", "a date within a year"),
        ("address: '0.0.0.0:1', to: app, tls: permissive, permissive_until: soon", "a date such as 2027-01-31"),
        ("address: '0.0.0.0:1', to: app, permissive_until: 2026-12-31", "nothing is relaxed on this listener"),
        ("address: '0.0.0.0:1', to: app, tls: none", "a relaxation needs an end date"),
        ("address: '0.0.0.0:1', to: app, certificate: a, key: b", "only `tls: server` has a certificate"),
        ("address: '0.0.0.0:1', to: app, tls: server, certificate: a", "certificate and key go together"),
        ("address: '0.0.0.0:1', to: app, tls: server, trusted_proxies: ['spiffe://a/b']", "a proxy is known by its SPIFFE ID"),
        ("address: '0.0.0.0:1', tls: server, routes: [{id: a, to: app, principals: ['spiffe://a/b']}]", "nobody is identified here"),
        ("address: '0.0.0.0:1', routes: [{id: a, to: app}, {id: a, to: app}]", "an id that no other route has (also at"),
        ("address: '0.0.0.0:1', routes: [{id: a, to: app, paths: [orders]}]", "a path that begins with /"),
        ("address: '0.0.0.0:1', routes: [{id: a, to: app, request_headers: {set: {'x y': a}}}]", "the name of a header field"),
        ("address: '0.0.0.0:1', routes: [{id: a, to: app, request_headers: {set: {x: \"a\\r\\nb: c\"}}}]", "printable ASCII"),
        ("address: '0.0.0.0:1', to: app, trusted_proxies: [edge]", "a SPIFFE ID or pattern"),
        ("address: '0.0.0.0:1', to: app, authorities: ['*']", "a host name without port"),
        ("address: '0.0.0.0:1', to: app, limits: {head_bytes: 1}", "a number at least 256"),
        ("address: '0.0.0.0:1', to: app, limits: {head_bytes: 1 mile}", "a number of bytes such as 65536 or 64KiB"),
        ("address: '0.0.0.0:1', to: app, limits: {idle_s: .inf}", "a number"),
    ],
)  # fmt: skip
def test_a_listener_that_cannot_be(listener: str, expected: str) -> None:
    lines = told(LISTENER % listener)
    assert len(lines) == 1
    assert expected in lines[0]
    assert lines[0].startswith("2:")


@pytest.mark.parametrize(
    ("profile", "cluster", "expected"),
    [
        ("strict", "endpoints: []", "at least one entry"),
        ("strict", "endpoints: ['a b:80']", "a host and port such as"),
        ("strict", "endpoints: ['1.2.3:80']", "an IPv4 address of four numbers"),
        ("strict", "endpoints: ['[::z]:80']", "an IPv6 address in the brackets"),
        ("strict", "endpoints: ['0.0.0.0:80'], tls: {server_name: a}", "an address to connect to"),
        ("strict", "endpoints: ['10.0.0.7:80']", "sends no plaintext to other machines"),
        ("migration", "endpoints: ['app:80'], resolve: static", "`resolve: dns` for host names"),
        ("strict", "endpoints: ['app:80'], tls: {}", "exactly one of spiffe_id, spiffe_ids and server_name, got none of them"),
        ("strict", "endpoints: ['app:80'], tls: {server_name: a, spiffe_id: 'spiffe://a.example/b'}", "got spiffe_id and server_name"),
        ("strict", "endpoints: ['app:80'], tls: {spiffe_id: 'spiffe://a.exampel/b'}", "did you mean 'a.example'?"),
        ("strict", "endpoints: ['app:80'], tls: {spiffe_id: 'spiffe://a.example/b', ca: x}", "verified by the bundle"),
        ("strict", "endpoints: ['127.0.0.1:80'], health: {path: up}", "a path that begins with /"),
        ("strict", "endpoints: ['127.0.0.1:80'], retries: {budget_percent: 101}", "a number at most 100"),
        ("strict", "endpoints: ['127.0.0.1:80'], balance: random", "least_request or round_robin"),
    ],
)
def test_a_cluster_that_cannot_be(profile: str, cluster: str, expected: str) -> None:
    lines = told(CLUSTER % (profile, cluster))
    assert len(lines) == 1
    assert expected in lines[0]
    assert lines[0].startswith("4:")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("identity: {trust_domain: a.example, workload_api: 'unix:///a', development_ca: b}", "got workload_api and development_ca"),
        ("identity: {trust_domain: a.example, workload_api: /run/a.sock}", "a URL such as unix:///run/spire/agent.sock"),
        ("identity: {trust_domain: A.example, workload_api: 'unix:///a'}", "a trust domain in lower case"),
        ("identity: {trust_domain: b.example, files: {certificate: c, key: k, bundles: {a.example: b}}}", "a bundle for the own"),
        ("identity: {trust_domain: a.example, workload_api: 'unix:///a', workload: /x}", "the SVID says who this proxy is"),
        ("identity: {trust_domain: a.example, development_ca: d, workload: ../x}", "the path of a SPIFFE ID"),
        ("jwt: [{issuer: i, audiences: [], jwks: f}]", "at least one entry"),
        ("jwt: [{issuer: i, audiences: [a], jwks: 'http://i.example/jwks'}]", "a URL such as https://issuer.example/jwks.json"),
        ("jwt: [{issuer: i, audiences: [a], jwks: 'https://u:p@i.example/jwks'}]", "a URL without a user name or password"),
        ("jwt: [{issuer: i, audiences: [a], jwks: f, algorithms: [HS256]}]", "did you mean 'ES256'?"),
        ("jwt: [{issuer: i, audiences: [a], jwks: f, algorithms: [none]}]", "ES256, ES384"),
        ("keys: {k: {provider: valt, path: x}}", "expected file, vault, awskms or pkcs11, got 'valt'"),
        ("keys: {'a b': {provider: file, path: x}}", "a name of letters, digits"),
        ("telemetry: {sample: 2}", "a number at most 1"),
        ("telemetry: {otlp: 'collector:4318'}", "a URL such as http://collector:4318"),
        ("telemetry: {always: [denial]}", "did you mean 'denials'?"),
        ("decision_log: {queue: 0}", "a number at least 1"),
        ("drain_s: ten", "a number, got 'ten'"),
        ("profile: strcit", "did you mean 'strict'?"),
        ("extra: 1", "one of the keys"),
    ],
)  # fmt: skip
def test_a_section_that_cannot_be(section: str, expected: str) -> None:
    text = MINIMAL.replace("profile: development\n", "") if section.startswith("profile") else MINIMAL
    lines = [line for line in told(text + section + "\n") if expected in line]
    assert len(lines) == 1
    assert "hunter" not in lines[0]


def test_an_identity_is_required_where_callers_have_one() -> None:
    strict = MINIMAL.replace("profile: development\n", "")
    assert "listeners.inbound (tls: mutual) needs one" in told(strict)[0]
    plain = strict.replace("to: app}", "to: app, tls: none}")
    assert load(plain).configuration.identity is None
    assert "clusters.app.tls needs one" in told(plain.replace('8080"]', '8080"], tls: {spiffe_id: "spiffe://a.example/b"}'))[0]


def test_files_that_do_not_exist_are_told_with_a_similar_name(tmp_path: Path) -> None:
    (tmp_path / "svid.pem").touch()
    (tmp_path / "policies").mkdir()
    text = """\
        identity: {trust_domain: a.example, files: {certificate: svd.pem, key: policies, bundles: {a.example: svid.pem}}}
        listeners: {inbound: {address: "127.0.0.1:1", to: app}}
        clusters: {app: {endpoints: ["127.0.0.1:2"]}}
        policies: [polices]
        """
    assert told(text, base=tmp_path, files=True) == [
        "1:58: identity.files.certificate: expected an existing file, got 'svd.pem'; did you mean 'svid.pem'?",
        "1:72: identity.files.key: expected a file, not a directory, got 'policies'",
        "4:12: policies[0]: expected an existing file or directory, got 'polices'; did you mean 'policies'?",
    ]


def test_a_document_that_is_no_mapping_is_told() -> None:
    assert told("[1]") == ["1:1: (document): expected a mapping (key: value)"]


# -- profiles ---------------------------------------------------------------------------------------------------------------

PERMISSIVE = """\
profile: %s
identity: {trust_domain: a.example, workload_api: "unix:///a"}
listeners: {inbound: {address: "0.0.0.0:8443", to: app, tls: permissive, permissive_until: 2026-12-31}}
clusters: {app: {endpoints: ["127.0.0.1:8080"]}}
policies: [p]
"""


def test_plaintext_needs_a_profile_that_permits_it_and_a_date_and_is_told() -> None:
    assert "the profile strict takes no plaintext from other machines" in told(PERMISSIVE % "strict")[0]
    loaded = load(PERMISSIVE % "migration")
    assert loaded.notes == ("listeners.inbound: plaintext is accepted until 2027-01-01 00:00 UTC",)
    assert loaded.configuration.listeners["inbound"].permissive_until == datetime(2027, 1, 1, tzinfo=UTC)


def test_a_development_ca_is_for_development() -> None:
    text = MINIMAL + "identity: {trust_domain: a.example, development_ca: d}\n"
    assert load(text).configuration.identity is not None
    for profile in ("strict", "migration"):
        lines = told(text.replace("development\n", f"{profile}\n", 1))
        assert len(lines) == 1
        assert "a development CA needs `profile: development`" in lines[0]


def test_what_is_said_wins_over_the_profile() -> None:
    configuration = load(MINIMAL + "telemetry: {sample: 0.5}\ndrain_s: 9\n").configuration
    assert (configuration.telemetry.sample, configuration.drain_s) == (0.5, 9)


def test_an_exposed_admin_address_and_plaintext_upstreams_are_told() -> None:
    text = MINIMAL.replace("127.0.0.1:8080", "app:80") + "admin: {address: '0.0.0.0:9901'}\n"
    assert load(text).notes == (
        "profile development: not for production",
        "clusters.app: plaintext leaves this machine, to app:80",
        "admin: reachable from other machines at 0.0.0.0:9901",
    )


# -- values -----------------------------------------------------------------------------------------------------------------


def test_addresses() -> None:
    assert str(parse_address("[0:0::1]:80")) == "[::1]:80"
    assert str(parse_address("Orders.Internal:80")) == "orders.internal:80"
    assert parse_address("127.0.0.9:1").is_loopback
    assert parse_address("[::]:1").is_any
    for text in ("", ":80", "a", "a:", "a:x", "a:0", "a:080000", "[::1]", "::1:80", "[a]:80", "a/b:80", "a..b:80", "1.2.3.4.5:80", "a:٣"):
        with pytest.raises(ValueError, match=r"\w"):
            parse_address(text)


def test_moments() -> None:
    assert parse_moment("2026-12-31") == datetime(2027, 1, 1, tzinfo=UTC)  # until its last second
    assert parse_moment("2026-12-31T18:00:00+02:00") == datetime(2026, 12, 31, 16, tzinfo=UTC)
    for text in ("2026-12-31T18:00:00", "31.12.2026", "", None, 5):
        with pytest.raises(ValueError, match="such as 2027-01-31"):
            parse_moment(text)


# -- cost -------------------------------------------------------------------------------------------------------------------


def test_the_models_are_light() -> None:
    """The whole process has 55 MB; the settings may not take more than a share of it, nor load what is optional."""
    code = """
        import sys
        def rss():
            return int(next(line for line in open('/proc/self/status') if line.startswith('VmRSS')).split()[1])
        from meshguard.cli.main import _no_plugins
        _no_plugins()  # as every command does
        import pydantic, yaml
        before = rss()
        from pathlib import Path
        from meshguard.control.settings.load import default_configuration
        default_configuration(now=0, base=Path('/tmp'), environment={})
        heavy = [name for name in ('grpc', 'opentelemetry', 'google.protobuf', 'asyncio', 'ssl', 'cryptography') if name in sys.modules]
        print(rss() - before, heavy)
        """
    out = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True).stdout
    grown, _, heavy = out.partition(" ")
    assert heavy.strip() == "[]"
    assert int(grown) < 16 * 1024


def test_the_schema_knows_every_key_of_the_effective_configuration() -> None:
    schema = Configuration.model_json_schema()
    values = yaml.safe_load(effective_text(load(MINIMAL)))
    assert values.keys() <= schema["properties"].keys()
