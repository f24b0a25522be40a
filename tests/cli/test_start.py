"""What a process does not load at its start: modules that cost memory and time and that few configurations use."""

from __future__ import annotations

import subprocess
import sys

_PROGRAM = """
import sys
from meshguard.cli.main import main
main([])
import meshguard.cli.serve, meshguard.control.process
print(*sorted(sys.modules))
"""
_UNUSED = (
    "cel_expr_python", "difflib", "h2", "importlib.metadata", "jsonschema_rs", "meshguard.fields.compile", "meshguard.identity.jwt",
    "meshguard.keys.vault", "meshguard.net.http2_server", "meshguard.pipeline.inspection", "meshguard.storage.ledger", "msgspec",
    "opentelemetry", "sqlite3", "tempfile",
)  # fmt: skip


def test_the_data_plane_starts_with_what_everybody_uses() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, timeout=60, check=True)
    loaded = done.stdout.split()
    assert "meshguard.pipeline.journey" in loaded
    assert [name for name in _UNUSED if name in loaded] == []
