"""gRPC messages that decide and that are validated: grpcio's clients and server around the real process, and raw frames for attacks."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory

from tests.fields.orders_proto import descriptor_set, order, types
from tests.fields.test_protobuf_values import tag, text
from tests.harness.http2 import H2Client
from tests.harness.mesh import SHOP, Mesh
from tests.harness.proxy import Proxy, free_port

S = grpc.StatusCode
ENGINES = ("default", "reference")
engines = pytest.mark.parametrize("engine", ENGINES)
KIND = ("content-type", "application/grpc")


class Orders(grpc.GenericRpcHandler):
    """Echoes; what arrives is kept."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        if details.method.endswith("/Chat"):
            return grpc.stream_stream_rpc_method_handler(lambda messages, _: (self.keep(message) for message in messages))
        return grpc.unary_unary_rpc_method_handler(lambda message, _: self.keep(message))

    def keep(self, message: bytes) -> bytes:
        self.seen.append(message)
        return message


class Bank:
    def __init__(self, proxy: Proxy, mesh: Mesh, orders: Orders) -> None:
        self.proxy = proxy
        self.mesh = mesh
        self.orders = orders
        self._channels: dict[str, grpc.Channel] = {}

    def channel(self, listener: str) -> grpc.Channel:
        if listener not in self._channels:
            leaf = self.mesh.service("billing")
            credentials = grpc.ssl_channel_credentials(self.mesh.ca.pem, leaf.key_pem, leaf.chain_pem)
            options = [("grpc.enable_http_proxy", 0)]
            self._channels[listener] = grpc.secure_channel(f"localhost:{self.proxy.ports[listener]}", credentials, options)
        return self._channels[listener]

    def place(self, listener: str, message: bytes, method: str = "bank.v1.Orders/Place", **more: Any) -> bytes:
        answer: bytes = self.channel(listener).unary_unary(f"/{method}")(message, timeout=10, **more)
        return answer

    def refused(self, call: Callable[[], object]) -> grpc.RpcError:
        """The refusal of a call of which the upstream has seen nothing."""
        before = len(self.orders.seen)
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert len(self.orders.seen) == before
        return caught.value

    def raw(self, listener: str, body: bytes, *fields: tuple[str, str], path: str = "/bank.v1.Orders/Place") -> dict[str, str]:
        """The trailers of a call with these octets."""
        with H2Client(self.proxy.address(listener), self.mesh.client("billing", ("h2",))) as client:
            answer = client.answer(client.request(path, "POST", [*(fields or (KIND,)), ("te", "trailers")], body=body))
            return answer.trailers or answer.head or {}


def frame(message: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(message).to_bytes(4, "big") + message


@pytest.fixture(scope="module")
def bank(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bank]:
    directory: Path = tmp_path_factory.mktemp("bank")
    (directory / "policies").mkdir()
    for place in (directory, directory / "policies"):
        (place / "bank.pb").write_bytes(descriptor_set().SerializeToString())
    identity = mesh.identity(directory)
    mesh.ca.issue(SHOP + "meshguard", dns=["localhost"]).write(directory, "svid")
    orders = Orders()
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[orders], options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    contract = {"protobuf": "bank.pb", "report": "path"}
    listeners: dict[str, Any] = {}
    for engine in ENGINES:
        listeners[engine] = {"tls": "mutual", "engine": engine, "to": "app"}
        listeners[f"valid-{engine}"] = {"tls": "mutual", "engine": engine, "to": "app", "validation": contract}
        listeners[f"valid-{engine}"]["limits"] = {"inspect_body_bytes": 20_000}
    config = {
        "identity": identity,
        "listeners": listeners,
        "clusters": {"app": {"endpoints": [f"127.0.0.1:{port}"], "protocol": "h2"}},
        "drain_s": 1,
    }

    def protobuf(**fields: Any) -> dict[str, Any]:
        return {"protobuf": {"descriptor": "bank.pb", "fields": fields}}

    on_valid = [port for name, port in _ports(listeners).items() if name.startswith("valid")]
    on_rules = [port for name, port in _ports(listeners).items() if not name.startswith("valid")]
    calls: dict[str, Any] = {"methods": ["POST"], "paths": ["/bank.v1.Orders/Place", "/bank.v1.Orders/Chat"]}

    def deny(name: str, **fields: Any) -> dict[str, Any]:
        return {"id": name, "deny": "anyone", **calls, "ports": on_rules, "body": protobuf(**fields)}

    rules = [
        deny("no-admin", role="ADMIN"),
        deny("items", **{"items.amount": {"above": 10}}),
        deny("notes", notes={"above": 3}),
        {"id": "small", "allow": "authenticated", **calls, "ports": on_rules, "body": protobuf(**{"payment.amount": {"max": 5000}})},
        {"id": "plain", "allow": "authenticated", "paths": ["/other/**"]},
        {"id": "valid", "allow": "authenticated", "ports": on_valid},
    ]
    policy = {"rules": rules}
    try:
        with Proxy(directory, config, policies={"p.yaml": policy}) as proxy:
            yield Bank(proxy, mesh, orders)
        assert "Traceback" not in proxy.stderr_text
    finally:
        server.stop(0).wait(5)


def _ports(listeners: dict[str, Any]) -> dict[str, int]:
    return {name: listener.setdefault("_port", free_port()) for name, listener in listeners.items()}


def _violation(details: bytes) -> str:
    """The field of the BadRequest in a google.rpc.Status, read by the protobuf runtime."""
    kind = descriptor_pb2.FieldDescriptorProto
    many, one = kind.LABEL_REPEATED, kind.LABEL_OPTIONAL

    def message(name: str, *fields: Any) -> Any:
        return descriptor_pb2.DescriptorProto(
            name=name,
            field=[
                kind(name=each, number=n, type=of, label=label, type_name=of_name or None)
                for n, (each, of, label, of_name) in enumerate(fields, 1)
            ],
        )

    file = descriptor_pb2.FileDescriptorProto(
        name="rpc.proto",
        package="google.rpc",
        syntax="proto3",
        dependency=["google/protobuf/any.proto"],
        message_type=[
            message(
                "Status",
                ("code", kind.TYPE_INT32, one, ""),
                ("message", kind.TYPE_STRING, one, ""),
                ("details", kind.TYPE_MESSAGE, many, ".google.protobuf.Any"),
            ),
            message("FieldViolation", ("field", kind.TYPE_STRING, one, ""), ("description", kind.TYPE_STRING, one, "")),
            message("BadRequest", ("field_violations", kind.TYPE_MESSAGE, many, ".google.rpc.FieldViolation")),
        ],
    )
    pool = descriptor_pool.DescriptorPool()
    any_file = descriptor_pb2.FileDescriptorProto()
    any_pb2.DESCRIPTOR.CopyToProto(any_file)  # type: ignore[arg-type]
    pool.Add(any_file)
    pool.Add(file)
    status: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName("google.rpc.Status")).FromString(details)
    told: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName("google.rpc.BadRequest"))()
    assert status.code == 3
    assert status.details[0].Unpack(told)
    assert len(told.field_violations) == 1
    field: str = told.field_violations[0].field
    return field


def payment(**values: Any) -> Any:
    return types()["bank.v1.Payment"](**values)


@engines
def test_a_message_decides(engine: str, bank: Bank) -> None:
    good = order(id="1", payment=payment(amount=5000), items=[payment(amount=10)], notes={"a": 3}).SerializeToString()
    assert bank.place(engine, good) == good
    assert bank.place(engine, good, compression=grpc.Compression.Gzip) == good
    for message, code in (
        (order(payment=payment(amount=5001)), S.PERMISSION_DENIED),
        (order(), S.PERMISSION_DENIED),  # no amount: no allow rule holds
        (order(role="ADMIN", payment=payment(amount=1)), S.PERMISSION_DENIED),
        (order(payment=payment(amount=1), items=[payment(amount=1), payment(amount=11)]), S.PERMISSION_DENIED),
        (order(payment=payment(amount=1), notes={"x": 1, "y": 4}), S.PERMISSION_DENIED),
    ):
        octets = message.SerializeToString()
        assert bank.refused(lambda octets=octets: bank.place(engine, octets)).code() == code, message
        assert bank.refused(lambda octets=octets: bank.place(engine, octets, compression=grpc.Compression.Gzip)).code() == code
    assert bank.place(engine, order(payment=payment()).SerializeToString())  # proto3: an amount that is not written is 0
    assert bank.channel(engine).unary_unary("/other/Method")(b"anything", timeout=10) == b"anything"


@engines
def test_messages_that_cannot_be_read_in_one_way(engine: str, bank: Bank) -> None:
    good = order(payment=payment(amount=1)).SerializeToString()
    before = len(bank.orders.seen)
    for body, status in (
        (frame(good) + frame(order(payment=payment(amount=9999)).SerializeToString()), "3"),  # what comes after the first
        (frame(good)[:-1], "3"),
        (b"", "7"),
        (frame(good + good), "3"),  # merged by some, replaced by others
        (frame(good + tag(5, 0) + b"\x00" + tag(5, 0) + b"\x01"), "3"),
        (frame(good + text(5, b"\x01")), "3"),  # another wire type: to some unknown, to others a value
        (frame(good, 2), "3"),
        (frame(gzip.compress(good), 1), "3"),  # compressed without a word of it
        (frame(good + tag(5, 0) + b"\x7f"), "7"),  # a role that is not known
    ):
        assert bank.raw(engine, body)["grpc-status"] == status, body
    big = frame(order(payment=payment(amount=1), blob=b"x" * (1 << 20)).SerializeToString())
    assert bank.raw(engine, big)["grpc-status"] == "8"
    assert bank.raw(engine, frame(gzip.compress(b"\0" * (4 << 20)), 1), KIND, ("grpc-encoding", "gzip"))["grpc-status"] == "8"
    assert bank.raw(engine, frame(good), KIND, ("content-encoding", "x"))["grpc-status"] == "3"
    for kind in ("application/json", "application/grpc+json", "application/grpc-web", "application/x-protobuf"):
        answer = bank.raw(engine, frame(good), ("content-type", kind))
        assert "grpc-status" not in answer or answer["grpc-status"] != "0", kind
    assert len(bank.orders.seen) == before
    # a stream of messages would have to be let through before its later ones are known: rules on bodies refuse it
    chat = bank.channel(engine).stream_stream("/bank.v1.Orders/Chat")
    assert bank.refused(lambda: list(chat(iter([good]), timeout=10))).code() == S.INVALID_ARGUMENT


@engines
def test_messages_are_validated(engine: str, bank: Bank) -> None:
    listener = f"valid-{engine}"
    good = order(id="1", items=[payment(amount=1)], role="ADMIN").SerializeToString()
    assert bank.place(listener, good) == good
    assert bank.place(listener, good, compression=grpc.Compression.Gzip) == good
    assert bank.raw(listener, good, ("content-type", "application/protobuf")).get("grpc-status") is None
    for message, place in (
        (good + text(500, b"x"), "body"),
        (text(3, text(77, b"x")), "body/items/0"),
        (good + tag(7, 0) + b"\x01", "body/fixed"),
        (text(1, b"\xff"), "body/id"),
    ):
        error = bank.refused(lambda message=message: bank.place(listener, message))
        assert error.code() == S.INVALID_ARGUMENT
        assert _violation(dict(error.trailing_metadata())["grpc-status-details-bin"]) == place
    legacy = types()["bank.old.Legacy"]
    assert bank.place(listener, legacy(id=1, level=2).SerializeToString(), "bank.v1.Orders/Old")
    for octets, rule in (
        (b"\x10\x01", "required bank.old.Legacy.id"),
        (b"\x08\x01\x10\x09", "a value of the enum of bank.old.Legacy.level"),
    ):
        since = bank.proxy.mark()
        assert bank.refused(lambda octets=octets: bank.place(listener, octets, "bank.v1.Orders/Old")).code() == S.INVALID_ARGUMENT
        record = bank.proxy.decision_where(lambda each, rule=rule: each["why"].get("detail") == rule, "the record", since)
        assert record["why"]["reason"] == "request_invalid"
    assert bank.refused(lambda: bank.place(listener, good, "bank.v1.Orders/Nothing")).code() == S.UNIMPLEMENTED
    assert bank.refused(lambda: bank.place(listener, good, "bank.v1.orders/place")).code() == S.UNIMPLEMENTED
    assert bank.refused(lambda: bank.place(listener, order(blob=b"x" * 30_000).SerializeToString())).code() == S.RESOURCE_EXHAUSTED
    before = len(bank.orders.seen)
    assert bank.raw(listener, frame(good) * 2)["grpc-status"] == "3"
    assert bank.raw(listener, frame(good), ("content-type", "application/json"))["content-type"] == "application/problem+json"
    assert len(bank.orders.seen) == before


@engines
def test_a_stream_is_validated_message_by_message(engine: str, bank: Bank) -> None:
    chat = bank.channel(f"valid-{engine}").stream_stream("/bank.v1.Orders/Chat")
    good = order(id="1").SerializeToString()
    assert list(chat(iter([good] * 3), timeout=10)) == [good] * 3

    def messages() -> Iterator[bytes]:
        yield good
        yield good + text(500, b"x")
        yield good

    answers = chat(messages(), timeout=10)
    before = len(bank.orders.seen)
    with pytest.raises(grpc.RpcError) as caught:
        assert set(answers) <= {good}
    assert caught.value.code() in (S.INVALID_ARGUMENT, S.INTERNAL, S.CANCELLED, S.UNKNOWN)  # an answer that has begun can only be reset
    assert len(bank.orders.seen) <= before + 1
    assert text(500, b"x") not in b"".join(bank.orders.seen)
