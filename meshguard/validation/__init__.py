"""Requests against their contract (E5): OpenAPI 3.1, JSON Schema, protobuf; compiled once, judged before the upstream sees anything."""
