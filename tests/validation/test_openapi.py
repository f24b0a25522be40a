"""OpenAPI 3.1: what a document lets through, what it refuses and where, and which documents are refused themselves."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pytest

from meshguard.validation.contract import Contract
from meshguard.validation.openapi import compile_openapi
from meshguard.validation.violation import ContractError, Violation
from tests.validation.documents import SHOP

CONTRACT = compile_openapi(SHOP, deny=True, reports=True)
TENANT = {"x-tenant": ["t-1"]}
JSON = "application/json"


def judge(
    target: str,
    method: str = "GET",
    body: object = None,
    media: Sequence[str] = (JSON,),
    headers: Mapping[str, list[str]] = TENANT,
    contract: Contract = CONTRACT,
) -> str:
    """The place of the violation; empty when there is none."""
    path, mark, query = target.partition("?")
    raw = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
    try:
        check = contract.check(method, path, query.encode() if mark else None)
        if check is None:
            return "unknown"
        checker = check.judge_head(lambda name: headers.get(name, []), bool(raw), media if raw else ())
        if checker is not None:
            checker.judge_body(raw)
    except Violation as violation:
        return violation.place
    return ""


@pytest.mark.parametrize(
    ("target", "place"),
    [
        ("/v1/orders", ""),
        ("/v2/orders", ""),
        ("/orders", "path"),
        ("/v1/orders/", "path"),
        ("/v1/Orders", "path"),
        ("/v1/%6Frders", ""),
        ("/v1/orders/7", ""),
        ("/v1/orders/0", "path/id"),
        ("/v1/orders/latest", ""),
        ("/v1/orders/oldest", "path/id"),
        ("/v1/orders/7%2F8", "path/id"),
        ("/v1/orders/07", "path/id"),
        ("/v1/orders/7/items", "path"),
        ("/v1/orders/%FF", "path"),
        ("/v1/orders?limit=100", ""),
        ("/v1/orders?limit=101", "query/limit"),
        ("/v1/orders?limit=1e1", ""),
        ("/v1/orders?limit=1.5", "query/limit"),
        ("/v1/orders?limit=", "query/limit"),
        ("/v1/orders?limit", "query/limit"),
        ("/v1/orders?limit=1&limit=1", "query/limit"),
        ("/v1/orders?li%6Dit=101", "query/limit"),
        ("/v1/orders?%FF=1", "query"),
        ("/v1/orders?other=1", ""),
        ("/v1/orders?tag=a&tag=7", ""),
        ("/v1/orders?tag=a&tag=b&tag=c", "query/tag"),
        ("/v1/orders?ids=1,2,3", ""),
        ("/v1/orders?ids=1,x", "query/ids/1"),
        ("/v1/orders?open=true", ""),
        ("/v1/orders?open=True", "query/open"),
        ("/v1/orders?code=123", ""),
        ("/v1/orders?code=1234", "query/code"),
        ("/v1/orders?either=all", ""),
        ("/v1/orders?either=11", ""),
        ("/v1/orders?either=9", "query/either"),
        ("/v1/orders?filter=%7B%22a%22:1%7D", ""),
        ("/v1/orders?filter=%7B%22b%22:1%7D", "query/filter"),
        ("/v1/orders?filter=%7B%22a%22:1,%22a%22:2%7D", "query/filter"),
        ("/v1/orders?filter=%7B", "query/filter"),
    ],
)
def test_paths_and_queries(target: str, place: str) -> None:
    assert judge(target) == place


@pytest.mark.parametrize(
    ("headers", "place"),
    [
        ({}, "header/x-tenant"),
        ({"x-tenant": ["t-1"]}, ""),
        ({"x-tenant": ["t-"]}, "header/x-tenant"),
        ({"x-tenant": ["t-1", "t-1"]}, "header/x-tenant"),
    ],
)
def test_header_parameters(headers: dict[str, list[str]], place: str) -> None:
    assert judge("/v1/orders", headers=headers) == place


ORDER: dict[str, Any] = {"items": [{"sku": "a", "qty": 1}]}


@pytest.mark.parametrize(
    ("body", "media", "place"),
    [
        (ORDER, [JSON], ""),
        (None, [], "body"),
        (ORDER | {"parent": ORDER, "at": "2026-01-01T00:00:00Z"}, [JSON], ""),
        (ORDER | {"at": "yesterday"}, [JSON], "body/at"),
        ({"items": [{"sku": "a", "qty": 0}]}, [JSON], "body/items/0/qty"),
        ({"items": [{"sku": "a", "qty": "1"}]}, [JSON], "body/items/0/qty"),
        ({"items": [{"sku": "a", "extra": 1}]}, [JSON], "body/items/0"),
        (ORDER | {"admin": True}, [JSON], "body"),
        (ORDER | {"parent": {"items": []}}, [JSON], "body/parent/items"),
        ([], [JSON], "body"),
        (ORDER, [], "header/content-type"),
        (ORDER, [JSON, JSON], "header/content-type"),
        (ORDER, ["text/plain"], "header/content-type"),
        (ORDER, ["application/x+json"], "header/content-type"),
        ({"a": 1, "b": 2}, ["application/vnd.shop+json"], "body"),
        (b"a,b\n", ["text/csv"], ""),
        (b"\x89PNG", ["image/png"], ""),
        (b'{"items":[{"sku":"a"}],"items":[]}', [JSON], "body"),
        (b'{"items":[{"sku":"a","qty":1e999}]}', [JSON], "body"),
        (b'{"items":[{"sku":"a","qty":NaN}]}', [JSON], "body"),
        (b'{"items":[{"sku":"\\ud800"}]}', [JSON], "body"),
        (b'{"items":[{"sku":"\xff"}]}', [JSON], "body"),
        (b'\xef\xbb\xbf{"items":[{"sku":"a"}]}', [JSON], "body"),
        ('{"items":[{"sku":"a"}]}'.encode("utf-16"), [JSON], "body"),
        (b'{"items":[{"sku":"a"}]} {}', [JSON], "body"),
        (b'{"items":[{"sku":"a","qty":' + b"9" * 500 + b"}]}", [JSON], "body"),
        (b"[" * 500_000 + b"]" * 500_000, [JSON], "body"),
        (b'{"parent":' * 65 + b"{}" + b"}" * 65, [JSON], "body"),
        (b"[" * 65 + b'"]]]]"', [JSON], "body"),
    ],
)
def test_bodies(body: object, media: list[str], place: str) -> None:
    assert judge("/v1/orders", "POST", body, media) == place


def test_brackets_in_strings_do_not_count_as_depth() -> None:
    assert judge("/v1/orders", "POST", {"items": [{"sku": '[{"\\' * 200}]}) == ""


def test_methods_bodies_and_unknown_operations() -> None:
    assert judge("/v1/orders", "DELETE") == "path"
    assert judge("/v1/orders", "HEAD") == "path"
    assert judge("/v1/orders/latest", "PUT", ORDER) == "path"  # the concrete path is the one, although the template knows PUT
    assert judge("/v1/orders/1", "PUT") == ""  # its body is not required
    assert judge("/v1/orders/1", "PUT", {"items": []}) == "body/items"
    assert judge("/v1/orders/1", "GET", ORDER) == "body"  # a body that no document speaks of
    loose = compile_openapi(SHOP, deny=False, reports=False)
    assert judge("/v1/orders", "DELETE", contract=loose) == "unknown"
    assert judge("/v1/orders/0", contract=loose) == "path/id"


def test_the_rule_says_nothing_of_the_request() -> None:
    """Names of members are the client's (they can be personal data): they are in the place, which the client may get, not in the record."""
    check = CONTRACT.check("POST", "/v1/orders", None)
    assert check is not None
    checker = check.judge_head(lambda name: ["t-1"], True, [JSON])
    assert checker is not None
    with pytest.raises(Violation) as caught:
        checker.judge_body(b'{"items":[{"sku":"a"}],"secret-name":1}')
    assert caught.value.rule == "unevaluatedProperties at /components/schemas/Order/unevaluatedProperties"
    schema = copy.deepcopy(SHOP)
    schema["components"]["schemas"]["Order"] = {"additionalProperties": {"type": "integer"}}
    check = compile_openapi(schema, deny=True, reports=True).check("POST", "/v1/orders", None)
    assert check is not None
    checker = check.judge_head(lambda name: ["t-1"], True, [JSON])
    assert checker is not None
    with pytest.raises(Violation) as caught:
        checker.judge_body(b'{"secret/na\\u00efme":"x"}')
    assert caught.value.place == "body/secret~1na\\u00efme"
    assert "secret" not in caught.value.rule


def _changed(path: Sequence[str], value: object) -> dict[str, Any]:
    document: Any = copy.deepcopy(SHOP)
    inner = document
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    return document  # type: ignore[no-any-return]


_GET = ["paths", "/orders", "get"]


@pytest.mark.parametrize(
    ("path", "value", "at"),
    [
        (["openapi"], "3.0.3", ("openapi",)),
        (["jsonSchemaDialect"], "http://json-schema.org/draft-07/schema#", ("jsonSchemaDialect",)),
        (["paths"], {}, ("paths",)),
        (["servers"], [{"url": "https://{host}/{base}"}], ("servers", 0, "url")),
        (["components", "schemas", "Item", "type"], "objekt", ("paths", "/orders", "post", "requestBody", "content", JSON, "schema")),
        (["components", "schemas", "Item"], {"pattern": "(?=a)b"}, ("paths", "/orders", "post", "requestBody", "content", JSON, "schema")),
        (["components", "schemas", "Item"], {"$ref": "https://else.example/s"}, None),
        (["components", "schemas", "Item"], {"$ref": "file:///etc/passwd"}, None),
        (["components", "parameters", "Limit"], {"$ref": "#/components/parameters/Limit"}, None),
        (["components", "parameters", "Limit"], {"$ref": "other.yaml#/x"}, ("components", "parameters", "Limit", "$ref")),
        ([*_GET, "parameters"], [{"$ref": "#/components/parameters/None"}], ("paths", "/orders", "get", "parameters", 0, "$ref")),
        ([*_GET, "parameters"], [{"name": "c", "in": "cookie", "schema": True}], ("paths", "/orders", "get", "parameters", 0, "in")),
        (
            [*_GET, "parameters"],
            [{"name": "c", "in": "query", "style": "deepObject", "schema": {"type": "object"}}],
            ("paths", "/orders", "get", "parameters", 0, "style"),
        ),
        (
            [*_GET, "parameters"],
            [{"name": "c", "in": "query", "schema": {"type": "object"}}],
            ("paths", "/orders", "get", "parameters", 0, "schema"),
        ),
        ([*_GET, "servers"], [{"url": "/x"}], ("paths", "/orders", "get", "servers")),
        (["paths", "/orders/{id}", "parameters"], [], ("paths", "/orders/{id}", "get")),
        (["paths", "/orders/{other}"], {"get": {}}, ("paths", "/orders/{other}")),
        (["paths", "/a/{b}{c}"], {"get": {}}, ("paths", "/a/{b}{c}")),
        (["paths", "relative"], {"get": {}}, ("paths", "relative")),
        (
            ["paths", "/orders", "post", "requestBody", "content", "text/csv"],
            {"schema": {"type": "string"}},
            ("paths", "/orders", "post", "requestBody", "content", "text/csv"),
        ),
    ],
)
def test_documents_that_cannot_be_enforced_are_refused(path: list[str], value: object, at: tuple[str | int, ...] | None) -> None:
    with pytest.raises(ContractError) as caught:
        compile_openapi(_changed(path, value), deny=True, reports=True)
    if at is not None:
        assert at in [problem[0] for problem in caught.value.problems]
    assert all(text and "\n" not in text for _, text in caught.value.problems)


def test_every_problem_is_told_at_once() -> None:
    document = _changed(["paths", "relative"], {"get": {}})
    document["paths"]["/a/{b}{c}"] = {"get": {}}
    document["servers"] = [{}]
    with pytest.raises(ContractError) as caught:
        compile_openapi(document, deny=True, reports=True)
    assert len(caught.value.problems) == 3
