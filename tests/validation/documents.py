"""An OpenAPI document with a bit of everything that is validated."""

from __future__ import annotations

from typing import Any

SHOP: dict[str, Any] = {
    "openapi": "3.1.0",
    "info": {"title": "shop", "version": "1"},
    "servers": [{"url": "https://shop.example/v1"}, {"url": "/v2/"}],
    "paths": {
        "/orders": {
            "parameters": [{"name": "X-Tenant", "in": "header", "required": True, "schema": {"type": "string", "pattern": "^t-[0-9]+$"}}],
            "get": {
                "parameters": [
                    {"$ref": "#/components/parameters/Limit"},
                    {"name": "tag", "in": "query", "schema": {"type": "array", "items": {"type": "string"}, "maxItems": 2}},
                    {"name": "ids", "in": "query", "explode": False, "schema": {"type": "array", "items": {"type": "integer"}}},
                    {"name": "open", "in": "query", "schema": {"type": "boolean"}},
                    {"name": "code", "in": "query", "schema": {"type": "string", "maxLength": 3}},
                    {"name": "either", "in": "query", "schema": {"anyOf": [{"type": "integer", "minimum": 10}, {"const": "all"}]}},
                    {
                        "name": "filter",
                        "in": "query",
                        "content": {"application/json": {"schema": {"type": "object", "required": ["a"]}}},
                    },
                ]
            },
            "post": {
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {"schema": {"$ref": "#/components/schemas/Order"}},
                        "application/vnd.shop+json": {"schema": {"type": "object", "maxProperties": 1}},
                        "text/csv": {},
                        "image/*": {},
                    },
                }
            },
        },
        "/orders/latest": {"get": {}},
        "/orders/{id}": {
            "parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1}}],
            "get": {},
            "put": {"requestBody": {"$ref": "#/components/requestBodies/Order"}},
        },
    },
    "components": {
        "parameters": {"Limit": {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100}}},
        "requestBodies": {"Order": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Order"}}}}},
        "schemas": {
            "Order": {
                "type": "object",
                "required": ["items"],
                "unevaluatedProperties": False,
                "properties": {
                    "items": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Item"}},
                    "at": {"type": "string", "format": "date-time"},
                    "parent": {"$ref": "#/components/schemas/Order"},
                },
            },
            "Item": {
                "type": "object",
                "required": ["sku"],
                "additionalProperties": False,
                "properties": {"sku": {"type": "string"}, "qty": {"type": "integer", "minimum": 1}},
            },
        },
    },
}
