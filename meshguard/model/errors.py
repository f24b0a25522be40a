"""The one tree of errors.

Each class knows whose fault it is (through its `Reason`, where a client can see it); verification raises one of these or
returns proof, it never returns a bool.
"""

from __future__ import annotations

from meshguard.model.reasons import Reason

__all__ = [
    "DocumentError",
    "IdentityError",
    "KeysetError",
    "MeshguardError",
    "Problem",
    "RequestError",
    "UpstreamError",
    "UsageError",
    "WithheldError",
    "withheld",
]


class MeshguardError(Exception):
    """Root of everything that meshguard raises on purpose."""


class RequestError(MeshguardError):
    """A request is refused with `reason`; `detail` is for the record, never for the client. `content_type` is what an HTTP/2 head that
    could not be taken had said: the answer is given in the client's own terms."""

    content_type = b""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.code}: {detail}" if detail else reason.code)
        self.reason = reason
        self.detail = detail


class UpstreamError(RequestError):
    """The upstream failed; `reason` is one of the upstream reasons."""


class IdentityError(MeshguardError):
    """A certificate, token or SPIFFE ID is not acceptable. `code` is stable (`san_missing`, `expired`, `untrusted`, ...)."""

    def __init__(self, code: str, detail: str = "") -> None:
        super().__init__(f"{code}: {detail}" if detail else code)
        self.code = code
        self.detail = detail


class UsageError(MeshguardError):
    """What a command line names cannot be used: exit code 2."""


class KeysetError(MeshguardError):
    """A key is unknown, disabled, destroyed or unavailable. Never carries key material."""


class WithheldError(MeshguardError):
    """Stands for an exception whose words are not told."""


def withheld(exc: BaseException) -> WithheldError:
    """The kind of an exception and the way it came, without its words and those of its causes: of a message that is looked into they
    may quote what is protected (`invalid literal for int() with base 10: '4111...'`)."""
    return WithheldError(type(exc).__name__).with_traceback(exc.__traceback__)


class Problem:
    """One error of a document: `file`, 1-based `line` and `column`, `path` in the document (`rules[2].paths[0]`), the offending
    `value` (shortened), what was `expected`, and the `nearest` known key where a key is unknown. `unreadable`: there is no document."""

    __slots__ = ("column", "expected", "file", "line", "nearest", "path", "unreadable", "value")

    def __init__(
        self,
        file: str,
        path: str,
        expected: str,
        *,
        line: int = 0,
        column: int = 0,
        value: str = "",
        nearest: str = "",
        unreadable: bool = False,
    ) -> None:
        self.unreadable = unreadable
        self.file = file
        self.line = line
        self.column = column
        self.path = path
        self.value = value
        self.expected = expected
        self.nearest = nearest

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        text = f"{where}: {self.path or '(document)'}: expected {self.expected}"
        if self.value:
            text += f", got {self.value}"
        if self.nearest:
            text += f"; did you mean {self.nearest!r}?"
        return text


class DocumentError(MeshguardError):
    """A document is not acceptable; `problems` lists every error in it."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems
