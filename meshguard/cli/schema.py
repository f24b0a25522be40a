"""`meshguard schema`: JSON Schema of the documents, for editors that complete and check while one types."""

from __future__ import annotations

import argparse
import json
from typing import Any

__all__ = ["register", "schema_of"]

_EXAMPLES = """\
examples:
  meshguard schema > meshguard.schema.json
  meshguard schema policy > policy.schema.json

An editor with a YAML language server reads it from a comment in the first line of a document:
  # yaml-language-server: $schema=./meshguard.schema.json
"""
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser(
        "schema",
        help="print the JSON Schema of a document, for editors",
        description="Print the JSON Schema (2020-12) of configurations or policies.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", nargs="?", choices=("config", "policy"), default="config", help="which document (default: config)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the schema."""
    print(json.dumps(schema_of(options.kind), indent=2, ensure_ascii=False))
    return 0


def schema_of(kind: str) -> dict[str, Any]:
    """The JSON Schema of `config` or `policy` documents."""
    if kind == "config":
        from meshguard.control.settings.configuration import Configuration

        return {"$schema": DIALECT, **Configuration.model_json_schema()}
    return {"$schema": DIALECT, **_policy_schema()}


def _policy_schema() -> dict[str, Any]:
    from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
    from pydantic_core import core_schema

    from meshguard.policy.documents import PolicyDocument

    class AsWritten(GenerateJsonSchema):
        """The schema of what people write, where a validator takes more than the value it makes: a single value for a list of one,
        text for a time, a value for a header condition."""

        def is_instance_schema(self, schema: core_schema.IsInstanceSchema) -> JsonSchemaValue:
            return {"type": "string"}

        def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
            made = super().function_before_schema(schema)
            name = getattr(schema["function"]["function"], "__name__", "")
            if name == "_one_or_more" and "items" in made:
                return {"anyOf": [made["items"], made]}
            if name == "_header":
                return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}, made]}
            return made

    return PolicyDocument.model_json_schema(schema_generator=AsWritten)
