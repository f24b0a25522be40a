"""The command line within this process: the same entry point, without the half second that an interpreter takes to start."""

from __future__ import annotations

import contextlib
import io

from meshguard.cli.main import main

__all__ = ["meshguard"]


def meshguard(*arguments: object, expect: int = 0) -> tuple[str, str]:
    """Runs `meshguard ARGUMENTS`; what it wrote to standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(argument) for argument in arguments])
    assert code == expect, (code, out.getvalue()[-4000:], err.getvalue()[-4000:])
    return out.getvalue(), err.getvalue()
