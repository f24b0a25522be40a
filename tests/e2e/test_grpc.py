"""gRPC through the process: grpcio's clients and servers in all four shapes, deadlines, cancellation, refusals, health, records."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from tests.harness.http2 import H2Client, H2Server
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import Proxy, eventually

MIB = 1 << 20
ENGINES = ("default", "reference")
engines = pytest.mark.parametrize("engine", ENGINES)
OPTIONS = [("grpc.max_receive_message_length", 64 * MIB), ("grpc.max_send_message_length", 64 * MIB), ("grpc.enable_http_proxy", 0)]
S = grpc.StatusCode


class Echo(grpc.GenericRpcHandler):
    """`/shop.Orders/*` on plain octets; what happens inside is kept for the tests."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.remaining: list[float] = []
        self.metadata: list[dict[str, Any]] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        name = details.method.rpartition("/")[2]
        if name in ("Get", "Secret", "Big"):
            return grpc.unary_unary_rpc_method_handler(self._get)
        if name == "Slow":
            return grpc.unary_unary_rpc_method_handler(self._slow)
        if name == "Fail":
            return grpc.unary_unary_rpc_method_handler(lambda _, context: context.abort(S.FAILED_PRECONDITION, "nicht möglich %"))
        if name == "Watch":
            return grpc.unary_stream_rpc_method_handler(lambda request, _: (b"%d" % n for n in range(int(request))))
        if name == "Put":
            return grpc.stream_unary_rpc_method_handler(lambda messages, _: b"".join(messages))
        if name == "Chat":
            return grpc.stream_stream_rpc_method_handler(self._chat)
        return None

    def _get(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.metadata.append(dict(context.invocation_metadata()))
        context.send_initial_metadata((("x-first", "1"),))
        context.set_trailing_metadata((("x-last", "2"), ("x-bin", b"\0\1")))
        return request * 2

    def _slow(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.remaining.append(context.time_remaining())
        done = threading.Event()
        context.add_callback(done.set)
        done.wait(10)
        self.cancelled.set()
        return b""

    def _chat(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(self.cancelled.set)
        yield from messages


class Call:
    """Calls of one channel; `call(name)(...)` etc. are grpcio's multicallables."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.channel = channel

    def unary(self, name: str, service: str = "shop.Orders") -> grpc.UnaryUnaryMultiCallable:
        return self.channel.unary_unary(f"/{service}/{name}")


class Place:
    def __init__(self, proxy: Proxy, echo: Echo, mesh: Mesh, servicer: health.HealthServicer, directory: Path) -> None:
        self.proxy = proxy
        self.echo = echo
        self.mesh = mesh
        self.health = servicer
        self.directory = directory
        self._channels: dict[str, grpc.Channel] = {}

    def channel(self, listener: str, who: str = "billing") -> grpc.Channel:
        if listener not in self._channels:
            target = f"localhost:{self.proxy.ports[listener]}"
            if listener.startswith("plain"):
                self._channels[listener] = grpc.insecure_channel(target, OPTIONS)
            else:
                leaf = self.mesh.service(who)
                credentials = grpc.ssl_channel_credentials(self.mesh.ca.pem, leaf.key_pem, leaf.chain_pem)
                self._channels[listener] = grpc.secure_channel(target, credentials, OPTIONS)
        return self._channels[listener]

    def call(self, listener: str) -> Call:
        return Call(self.channel(listener))

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()


RULES = [
    {"id": "no-secret", "deny": "anyone", "paths": ["/shop.Orders/Secret"]},
    {"id": "orders", "allow": "anyone", "methods": ["POST"], "paths": ["/shop.Orders/{method}", "/dead.Orders/*", "/old.Orders/*"]},
    {"id": "tools", "allow": "anyone", "paths": ["/grpc.health.v1.Health/*", "/grpc.reflection.v1alpha.ServerReflection/*"]},
]


@contextlib.contextmanager
def served(handlers: list[grpc.GenericRpcHandler], port: int = 0) -> Iterator[tuple[grpc.Server, int, health.HealthServicer]]:
    server = grpc.server(futures.ThreadPoolExecutor(16), handlers=handlers, options=[*OPTIONS, ("grpc.so_reuseport", 0)])
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection(["shop.Orders", reflection.SERVICE_NAME], server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield server, bound, servicer
    finally:
        server.stop(0).wait(5)


@pytest.fixture(scope="module")
def place(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp("grpc")
    identity = mesh.identity(directory)
    mesh.ca.issue(SHOP + "meshguard", dns=["localhost"]).write(directory, "svid")
    echo = Echo()
    with served([echo]) as (_, port, servicer):
        routes = [
            {"id": "dead", "paths": ["/dead.Orders/*"], "to": "dead"},
            {"id": "old", "paths": ["/old.Orders/*"], "to": "old"},
            {"id": "all", "to": "app"},
        ]

        def on(prefix: str) -> list[dict[str, Any]]:
            return [{**route, "id": f"{prefix}-{route['id']}"} for route in routes]

        listeners: dict[str, Any] = {}
        for engine in ENGINES:
            listeners[engine] = {"tls": "mutual", "engine": engine, "routes": on(engine)}
            listeners[f"plain-{engine}"] = {"tls": "none", "engine": engine, "protocols": ["h2"], "routes": on(f"plain-{engine}")}
            listeners[f"plain-small-{engine}"] = {
                "tls": "none", "engine": engine, "protocols": ["h2"], "to": "app", "limits": {"body_bytes": 1000, "body_idle_s": 1},
            }  # fmt: skip
        config = {
            "identity": identity,
            "listeners": listeners,
            "clusters": {
                "app": {"endpoints": [f"127.0.0.1:{port}"], "protocol": "h2", "timeouts": {"response_s": 8, "connect_s": 3}},
                "dead": {"endpoints": ["127.0.0.1:9"], "protocol": "h2"},
                "old": mesh.endpoints(),
            },
            "drain_s": 1,
        }
        with Proxy(directory, config, policies={"p.yaml": {"rules": RULES}}) as proxy:
            made = Place(proxy, echo, mesh, servicer, directory)
            yield made
            made.close()


def failure(call: Callable[[], object]) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


# -- shapes -----------------------------------------------------------------------------------------------------------------


@engines
def test_all_four_shapes(engine: str, place: Place) -> None:
    channel = place.channel(engine)
    answer, call = channel.unary_unary("/shop.Orders/Get").with_call(b"ab", timeout=10)
    assert answer == b"abab"
    assert dict(call.initial_metadata())["x-first"] == "1"
    assert dict(call.trailing_metadata()) == {"x-last": "2", "x-bin": b"\0\1"}
    assert list(channel.unary_stream("/shop.Orders/Watch")(b"200", timeout=10)) == [b"%d" % n for n in range(200)]
    assert channel.stream_unary("/shop.Orders/Put")(iter([b"a", b"b", b"c"]), timeout=10) == b"abc"
    assert list(channel.stream_stream("/shop.Orders/Chat")(iter([b"a", b"b"]), timeout=10)) == [b"a", b"b"]
    metadata = place.echo.metadata[-1]
    assert f"URI={SHOP}billing" in metadata["x-forwarded-client-cert"]
    assert metadata["via"] == "2 meshguard"


@engines
def test_each_message_passes_at_once_both_ways(engine: str, place: Place) -> None:
    """A bidirectional stream is a conversation: each side waits for the other's words. It may be silent for longer than a body may."""
    said: list[threading.Event] = [threading.Event() for _ in range(5)]

    def questions() -> Iterator[bytes]:
        for n, event in enumerate(said):
            yield b"question %d" % n
            if n == 2:
                threading.Event().wait(1.6)  # `body_idle_s` of this listener is 1
            assert event.wait(5)

    answers = place.channel(f"plain-small-{engine}").stream_stream("/shop.Orders/Chat")(questions(), timeout=15)
    for n, event in enumerate(said):
        assert next(answers) == b"question %d" % n
        event.set()
    assert answers.code() is S.OK


@engines
def test_large_messages(engine: str, place: Place) -> None:
    body = bytes(range(256)) * 4096 * 10  # 10 MiB there, 20 MiB back
    assert place.call(f"plain-{engine}").unary("Big")(body, timeout=30) == body * 2


@engines
def test_many_calls_at_a_time(engine: str, place: Place) -> None:
    get = place.call(engine).unary("Get")
    calls = [get.future(b"%d" % n, timeout=20) for n in range(150)]  # more than one connection's streams: grpcio waits for room
    assert [call.result() for call in calls] == [b"%d" % n * 2 for n in range(150)]


def test_health_and_reflection_through_the_proxy(place: Place) -> None:
    channel = place.channel("default")
    stub = health_pb2_grpc.HealthStub(channel)
    place.health.set("shop.Orders", health_pb2.HealthCheckResponse.NOT_SERVING)
    request = health_pb2.HealthCheckRequest(service="shop.Orders")
    assert stub.Check(request, timeout=5).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch = stub.Watch(request, timeout=5)
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    place.health.set("shop.Orders", health_pb2.HealthCheckResponse.SERVING)
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()
    listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=5
    )
    names = {service.name for service in next(listing).list_services_response.service}
    assert "shop.Orders" in names


# -- errors -----------------------------------------------------------------------------------------------------------------


@engines
def test_what_goes_wrong_has_the_right_status(engine: str, place: Place) -> None:
    call = place.call(engine)
    error = failure(lambda: call.unary("Fail")(b"", timeout=5))
    assert (error.code(), error.details()) == (S.FAILED_PRECONDITION, "nicht möglich %")
    assert failure(lambda: call.unary("Unknown")(b"", timeout=5)).code() is S.UNIMPLEMENTED
    for name, service, code, reason in (
        ("Secret", "shop.Orders", S.PERMISSION_DENIED, "policy_denied"),
        ("Get", "other.Service", S.PERMISSION_DENIED, "no_rule"),
        ("Get", "dead.Orders", S.UNAVAILABLE, "connect_failed"),
        ("Get", "old.Orders", S.UNIMPLEMENTED, "grpc_needs_http2"),
    ):
        error = failure(lambda name=name, service=service: call.unary(name, service)(b"x", timeout=5))  # type: ignore[misc]
        assert error.code() is code, error
        assert reason in error.details()
        decision = error.details().rpartition("decision ")[2].rstrip(")")
        record = place.proxy.decision(decision)
        assert record["outcome"]["grpc_status"] == code.value[0]
        assert record["why"]["reason"] == reason
    error = failure(lambda: place.call(f"plain-small-{engine}").unary("Get")(b"x" * 5000, timeout=5))
    assert error.code() is S.RESOURCE_EXHAUSTED
    assert not [request for request in place.mesh.upstream.requests if "old.Orders" in request.target]


def test_a_refusal_is_trailers_only(place: Place) -> None:
    with H2Client(place.proxy.address("plain-default")) as client:
        stream = client.request("/shop.Orders/Secret", "POST", [("content-type", "application/grpc+proto"), ("te", "trailers")], end=False)
        answer = client.answer(stream)
        assert answer.head is not None
        assert (answer.status, answer.head["content-type"], answer.head["grpc-status"]) == (200, "application/grpc", "7")
        assert (bytes(answer.body), answer.trailers, answer.ended) == (b"", None, True)
        assert "policy_denied" in unquote(answer.head["grpc-message"])
        web = client.get("/shop.Orders/Secret", method="POST", fields=[("content-type", "application/grpc-web")])
        assert (web.status, web.json["code"]) == (403, "policy_denied")  # not this protocol: an ordinary refusal


# -- deadlines and cancellation -----------------------------------------------------------------------------------------------


@engines
def test_a_deadline_travels_and_binds(engine: str, place: Place) -> None:
    place.echo.cancelled.clear()
    error = failure(lambda: place.call(engine).unary("Slow")(b"", timeout=0.7))
    assert error.code() is S.DEADLINE_EXCEEDED
    assert place.echo.cancelled.wait(5)
    assert 0.2 < place.echo.remaining[-1] < 0.75


def test_the_proxy_keeps_the_deadline_where_nobody_else_does(mesh: Mesh, tmp_path: Path) -> None:
    with H2Server() as server:
        server.default = lambda call: None
        config = {
            "identity": mesh.identity(tmp_path),
            "listeners": {engine: {"tls": "none", "protocols": ["h2"], "to": "app", "engine": engine} for engine in ENGINES},
            "clusters": {"app": {"endpoints": [f"127.0.0.1:{server.port}"], "protocol": "h2"}},
            "drain_s": 1,
        }
        with Proxy(tmp_path, config, policies={"p.yaml": {"rules": RULES}}) as proxy:
            for engine in ENGINES:
                with H2Client(proxy.address(engine)) as client:

                    def ask(timeout: str, client: H2Client = client) -> dict[str, str]:
                        fields = [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", timeout)]
                        head = client.answer(client.request("/shop.Orders/Get", "POST", fields, body=b"\0\0\0\0\0")).head
                        assert head is not None
                        return head

                    assert ask("300m")["grpc-status"] == "4"
                    call = server.calls[-1]
                    server.wait(lambda c=call: c.reset == 8, "RST_STREAM")  # type: ignore[misc]
                    unit, value = call.head["grpc-timeout"][-1], call.head["grpc-timeout"][:-1]
                    assert unit == "u"
                    assert 0 < int(value) <= 300_000
                    before = len(server.calls)
                    for bad in ("300", "m", "123456789S", "1.5S", "-1S", "1 S", "1s", "\u00b2S"):
                        assert ask(bad)["grpc-status"] == "3", bad
                    assert len(server.calls) == before


@engines
def test_a_cancelled_call_is_cancelled_at_the_server(engine: str, place: Place) -> None:
    place.echo.cancelled.clear()
    stop = threading.Event()

    def forever() -> Iterator[bytes]:
        yield b"one"
        stop.wait(10)

    call = place.channel(engine).stream_stream("/shop.Orders/Chat")(forever(), timeout=20)
    assert next(call) == b"one"
    call.cancel()
    assert place.echo.cancelled.wait(5)
    stop.set()


# -- upstreams ----------------------------------------------------------------------------------------------------------------


def test_a_graceful_restart_of_the_server(mesh: Mesh, tmp_path: Path) -> None:
    """Two servers; each in turn is stopped with a grace and started again under load. Only what the stopping server itself cancels fails:
    grpcio's rejects the calls that reach it after `stop`, before its GOAWAY does."""
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(served([Echo()]))
        second = stack.enter_context(served([Echo()]))
        config = {
            "identity": mesh.identity(tmp_path),
            "listeners": {"in": {"tls": "none", "protocols": ["h2"], "to": "app"}},
            "clusters": {
                "app": {
                    "endpoints": [f"127.0.0.1:{first[1]}", f"127.0.0.1:{second[1]}"],
                    "protocol": "h2",
                    "retries": {"attempts": 3, "budget_percent": 100},
                    "ejection": {"consecutive_failures": 0},
                    "timeouts": {"connect_s": 3},
                }
            },
            "drain_s": 1,
        }
        with Proxy(tmp_path, config, policies={"p.yaml": {"rules": RULES}}) as proxy:
            channel = stack.enter_context(grpc.insecure_channel(f"localhost:{proxy.ports['in']}", OPTIONS))
            get = channel.unary_unary("/shop.Orders/Get")
            over = threading.Event()
            results: list[bytes] = []
            errors: list[grpc.RpcError] = []

            def load() -> None:
                while not over.is_set():
                    try:
                        results.append(get(b"x", timeout=5))
                    except grpc.RpcError as error:
                        errors.append(error)

            threads = [threading.Thread(target=load) for _ in range(4)]
            for thread in threads:
                thread.start()
            eventually(lambda: len(results) > 20, "some calls")
            for server, port, _ in (first, second):
                server.stop(2).wait(5)
                done = len(results)
                eventually(lambda done=done: len(results) > done + 20, "calls at the other server")  # type: ignore[misc]
                stack.enter_context(served([Echo()], port))
                done = len(results)
                eventually(lambda done=done: len(results) > done + 20, "calls at both")  # type: ignore[misc]
            over.set()
            for thread in threads:
                thread.join(10)
            assert {error.code() for error in errors} <= {S.CANCELLED}, errors[:3]
            assert len(errors) <= 8


def test_health_of_grpc_upstreams(mesh: Mesh, tmp_path: Path) -> None:
    with served([Echo()]) as (_, port, servicer):
        servicer.set("shop.Orders", health_pb2.HealthCheckResponse.SERVING)
        check = {"grpc": "shop.Orders", "interval_s": 0.1, "timeout_s": 2, "healthy": 1, "unhealthy": 1}
        config = {
            "identity": mesh.identity(tmp_path),
            "listeners": {"in": {"tls": "none", "protocols": ["h2"], "to": "app"}},
            "clusters": {"app": {"endpoints": [f"127.0.0.1:{port}"], "protocol": "h2", "health": check, "timeouts": {"connect_s": 3}}},
            "drain_s": 1,
        }
        with contextlib.ExitStack() as stack:
            proxy = stack.enter_context(Proxy(tmp_path, config, policies={"p.yaml": {"rules": RULES}}))
            channel = stack.enter_context(grpc.insecure_channel(f"localhost:{proxy.ports['in']}", OPTIONS))
            get = channel.unary_unary("/shop.Orders/Get")

            def code() -> grpc.StatusCode:
                call = get.with_call
                try:
                    return call(b"", timeout=5)[1].code()
                except grpc.RpcError as error:
                    return error.code()

            assert code() is S.OK
            servicer.set("shop.Orders", health_pb2.HealthCheckResponse.NOT_SERVING)
            eventually(lambda: code() is S.UNAVAILABLE, "no healthy endpoint")
            servicer.set("shop.Orders", health_pb2.HealthCheckResponse.SERVING)
            eventually(lambda: code() is S.OK, "a healthy endpoint")


def test_records_and_metrics_tell_the_status(place: Place) -> None:
    call = place.call("default")
    before = place.proxy.mark()
    call.unary("Get")(b"", timeout=5)
    failure(lambda: call.unary("Fail")(b"", timeout=5))
    place.proxy.decision_where(lambda r: r["what"]["path"] == "/shop.Orders/Get", "the record of a good call", since=before)
    record = place.proxy.decision_where(lambda r: r["what"]["path"] == "/shop.Orders/Fail", "the record of a failed call")
    assert (record["outcome"]["status"], record["outcome"]["grpc_status"]) == (200, 9)
    assert record["why"]["verdict"] == "allow"
    labels = {"route": "default-all", "cluster": "app"}
    for status in ("9", "0"):
        assert place.proxy.metric("meshguard_grpc_requests_total", rpc_grpc_status_code=status, **labels) >= 1
