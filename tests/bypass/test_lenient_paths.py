"""Routes that keep encoded separators: what a kept escape hides may neither leave the rule that allowed it nor loosen another route."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.client import RawClient, get
from tests.harness.mesh import Mesh
from tests.harness.proxy import Proxy
from tests.harness.upstream import Upstream

ENGINES = ("default", "reference")
engines = pytest.mark.parametrize("engine", ENGINES)
KEEP = {"encoded_slash": "keep", "double_encoding": "keep", "backslash": "keep", "params": "keep"}


@pytest.fixture(scope="module")
def strict_side() -> Iterator[Upstream]:
    with Upstream() as made:
        yield made


@pytest.fixture(scope="module")
def proxy(mesh: Mesh, strict_side: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("lenient")
    listeners: dict[str, Any] = {}
    for engine in ENGINES:
        for name, options in (("all", KEEP), ("slash", {"encoded_slash": "keep"})):
            listeners[f"{name}-{engine}"] = {
                "tls": "none",
                "engine": engine,
                "routes": [{"id": f"{name}-{engine}", "paths": ["/**"], "path": options, "to": "app"}],
            }
        listeners[f"beside-{engine}"] = {
            "tls": "none",
            "engine": engine,
            "routes": [
                {"id": f"a-{engine}", "paths": ["/files/**", "/open/**"], "to": "a"},
                {"id": f"b-{engine}", "paths": ["/**"], "path": {"encoded_slash": "keep"}, "to": "app"},
            ],
        }
        listeners[f"apart-{engine}"] = {
            "tls": "none",
            "engine": engine,
            "routes": [
                {"id": f"strict-{engine}", "paths": ["/files/**"], "to": "a"},
                {"id": f"lenient-{engine}", "paths": ["/open/**"], "path": KEEP, "to": "app"},
            ],
        }
    config = {
        "identity": mesh.identity(directory),
        "listeners": listeners,
        "clusters": {"app": mesh.endpoints(), "a": mesh.endpoints(strict_side)},
    }
    policies = {"p.yaml": {"rules": [{"id": "files", "allow": "anyone", "paths": ["/files/{id}", "/open/{id}"]}]}}
    with Proxy(directory, config, policies=policies) as made:
        yield made
    assert "Traceback" not in made.stderr_text


HIDDEN = [
    "/files/..%2Fadmin",
    "/files/..%2fadmin",
    "/files/%2e%2e%2Fadmin",
    "/files/.%2e%2Fadmin",
    "/files/x%2F..%2F..%2Fadmin",
    "/files/x%2F..%2F..",
    "/files/x%2F%2E%2E%2F..%2Fadmin",
    "/files/.%2F..%2Fadmin",
    "/files/%2F..%2Fadmin",
    "/files/..%5Cadmin",
    "/files/..%5cadmin",
    "/files/x%5C..%5C..%5Cadmin",
    "/files/x%5C..%2F..%5Cadmin",
    "/files/%252e%252e%252fadmin",
    "/files/..%252fadmin",
    "/files/..%255cadmin",
    "/files/x%252F..%252F..%252Fadmin",
    "/files/x%2F%252e%252e%2F..%2Fadmin",
    "/files/%25252e%25252e%25252fadmin",
    "/files/..;x=1%2Fadmin",
    "/files/x%2F..;a%2F..;b%2Fadmin",
    "/files/..%3Bx%2Fadmin",
    "/files/..%2F",
    "/files/x%2F..",
    "/files/x%2F.",
    "/files%2F..%2Fadmin",
    "/files%2Fa",
    "/%2e%2e%2Ffiles%2Fa",
    "/open/..%2Ffiles%2Fa",
]


@pytest.mark.parametrize("listener", ["all", "slash"])
@engines
def test_hidden_dot_segments_are_refused(listener: str, engine: str, proxy: Proxy, mesh: Mesh) -> None:
    """The only rule allows one segment below /files: an upstream that decodes the escapes must not be led out of it."""
    passed = []
    for target in HIDDEN:
        mark = mesh.upstream.mark()
        with RawClient(proxy.address(f"{listener}-{engine}")) as client:
            status = client.request(get(target)).status
        if status not in (400, 403, 404) or mesh.upstream.since(mark):
            passed.append((target, status))
    assert passed == []


KEPT = {
    "slash": ["/files/a%2Fb", "/files/a%2Fb%2F", "/files/%2Fa", "/files/a%2F%2Fb", "/files/a%2F...%2Fb", "/files/a%2F.b", "/files/a..%2Fb"],
    "all": ["/files/a%2Fb", "/files/a%5Cb", "/files/a%252Fb", "/files/a%2541", "/files/a%5C.b%2F..c", "/files/a?x=..%2F..%2Fadmin"],
}


@pytest.mark.parametrize("listener", KEPT)
@engines
def test_harmless_escapes_are_kept(listener: str, engine: str, proxy: Proxy, mesh: Mesh) -> None:
    for target in KEPT[listener]:
        mark = mesh.upstream.mark()
        with RawClient(proxy.address(f"{listener}-{engine}")) as client:
            assert client.request(get(target)).status == 200, target
        assert [s.target for s in mesh.upstream.since(mark)] == [target]


def test_one_option_allows_no_other(proxy: Proxy, mesh: Mesh) -> None:
    mark = mesh.upstream.mark()
    for target in ("/files/a%5Cb", "/files/a%252Fb", "/files/a;b"):
        with RawClient(proxy.address("slash-default")) as client:
            assert client.request(get(target)).status == 400, target
    assert mesh.upstream.since(mark) == []


@engines
def test_a_lenient_route_loosens_no_strict_one(engine: str, proxy: Proxy, strict_side: Upstream, mesh: Mesh) -> None:
    """A strict route that would match comes first, a lenient one behind it: the strict one's upstream never sees the kept escape."""
    mark, strict_mark = mesh.upstream.mark(), strict_side.mark()
    for listener, target, statuses in (
        ("beside", "/files/a%2Fb", (200, 400, 404)),
        ("beside", "/open/a%2Fb", (200, 400, 404)),
        ("beside", "/files/a%5Cb", (400,)),
        ("beside", "/files/a%252Fb", (400,)),
        ("apart", "/files/a%2Fb", (400,)),
        ("apart", "/files/a%5Cb", (400,)),
        ("apart", "/open/a%2Fb", (200,)),
    ):
        for data in (get(target), get(target, method="POST", body=b"x")):
            with RawClient(proxy.address(f"{listener}-{engine}")) as client:
                assert client.request(data).status in statuses, (listener, target)
    assert strict_side.since(strict_mark) == []
    assert {s.target for s in mesh.upstream.since(mark)} <= {"/files/a%2Fb", "/open/a%2Fb"}
    with RawClient(proxy.address(f"beside-{engine}")) as client:
        for target in ("/files/a", "/open/a", "/files/%61"):
            assert client.request(get(target)).status == 200
    assert [s.target for s in strict_side.since(strict_mark)] == ["/files/a", "/open/a", "/files/a"]
