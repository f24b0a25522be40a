"""Requests against their contract (E5): OpenAPI 3.1 documents and JSON Schemas, compiled once, judged before the upstream sees anything."""
