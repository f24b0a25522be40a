"""Logs of the process itself: one JSON object a line (or text for a terminal) on stderr, redacted, never in the way of the loop.

JSON keys: time (RFC 3339, UTC), level, logger, message, then where given trace_id, span_id, decision_id, data, exception. A caller gives
them as `extra={"trace_id": ..., "decision_id": ..., "data": {...}}`. The ids are those of the decision log, so the two can be joined.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Literal, TextIO

import orjson

from meshguard.telemetry.line_writer import LineWriter
from meshguard.telemetry.metrics import Registry
from meshguard.telemetry.redaction import Redactor

__all__ = ["LEVELS", "JsonFormatter", "LineHandler", "LogFormat", "TextFormatter", "configure", "default_format", "formatter"]

LogFormat = Literal["json", "text"]
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

_IDS = ("trace_id", "span_id", "decision_id")
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))} | {
    0x0A: "\\n",
    0x0D: "\\r",
    0x09: "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
_STDERR = 2
_QUEUE = 4096


def _timestamp(created: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(created)) + f".{int(created % 1 * 1e6):06d}Z"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # wrong arguments for the format: the template itself is ours and safe, the arguments are not shown
        return f"{record.msg!s} (the arguments do not fit)"


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """Without the newline; everything redacted, nothing that could start another line."""
        line: dict[str, object] = {
            "time": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._redactor.text(_message(record)),
        }
        for name in _IDS:
            value = getattr(record, name, None)
            if value:
                line[name] = self._redactor.text(value.decode("latin-1") if isinstance(value, bytes) else str(value))
        data = getattr(record, "data", None)
        if data is not None:
            line["data"] = self._redactor.value(data)
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = self._redactor.text(self.formatException(record.exc_info))
        try:
            return orjson.dumps(line, option=orjson.OPT_NON_STR_KEYS).decode()
        except TypeError:  # lone surrogates, integers over 64 bits
            import json

            return json.dumps(line)  # escapes whatever is not ASCII


class TextFormatter(logging.Formatter):
    """A log record for people: one line, the exception below it, indented. Control characters are shown, not sent to the terminal."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__()
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        """Without the last newline."""
        clean = self._redactor.text
        parts = [
            _timestamp(record.created),
            f"{record.levelname.lower():7}",
            f"{record.name}:",
            clean(_message(record)).translate(_CONTROLS),
        ]
        for name in _IDS:
            value = getattr(record, name, None)
            if value:
                parts.append(f"{name}={clean(value.decode('latin-1') if isinstance(value, bytes) else str(value)).translate(_CONTROLS)}")
        data = getattr(record, "data", None)
        if data is not None:
            parts.append(str(self._redactor.value(data)).translate(_CONTROLS))
        text = " ".join(parts)
        if record.exc_info and record.exc_info[0] is not None:
            for line in clean(self.formatException(record.exc_info)).splitlines():
                text += "\n    | " + line.translate(_CONTROLS)
        return text


class LineHandler(logging.Handler):
    """Hands formatted records to a LineWriter: logging never waits for whoever reads stderr."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record. Never raises."""
        try:
            line = self.format(record)
        except Exception:  # logging must not break who logs; the record's own text is not safe to show then
            line = f'{{"level":"error","logger":"{__name__}","message":"a log record could not be formatted"}}'
        self._writer.write(line.encode("utf-8", "backslashreplace") + b"\n", 1)

    def share(self, descriptor: int) -> None:
        """Take turns with other processes that write to the same place (`LineWriter.share`)."""
        self._writer.share(descriptor)

    def close_within(self, deadline_s: float) -> None:
        """Write what is queued, for at most `deadline_s`."""
        self._writer.close(deadline_s)
        super().close()


def configure(level: str, log_format: LogFormat, registry: Registry, redactor: Redactor, *, target: str | int = _STDERR) -> LineHandler:
    """Make `target` (stderr) the only place that this process logs to. Returns the handler, to be closed at the end.

    Raises ValueError for an unknown level.
    """
    if level not in LEVELS:
        raise ValueError(f"log level: expected one of {', '.join(LEVELS)}, not {level!r}")
    handler = LineHandler(LineWriter(target, registry, name="meshguard.log", capacity=_QUEUE))
    handler.setFormatter(formatter(log_format, redactor))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(LEVELS[level])
    logging.captureWarnings(True)
    # other people's debugging shows buffers and keys of connections: it needs a decision of its own
    for name in ("asyncio", "h11", "grpc", "watchfiles", "opentelemetry"):
        logging.getLogger(name).setLevel(max(LEVELS[level], logging.INFO))
    return handler


def formatter(log_format: LogFormat, redactor: Redactor) -> logging.Formatter:
    """One line for each record, redacted."""
    return JsonFormatter(redactor) if log_format == "json" else TextFormatter(redactor)


def default_format(stream: TextIO = sys.stderr) -> LogFormat:
    """`text` for a terminal, `json` for everything else."""
    return "text" if stream.isatty() else "json"
