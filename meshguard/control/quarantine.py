"""The quarantine of this node: added to and removed from by the admin API, kept in a file, put in force at once.

A change is one assignment to every journey; then each open connection of the identity is cut. Requests pay nothing for it: a connection is
judged when the set changes. The file is the truth over restarts and between processes: it is replaced as a whole, and what others
write into it is taken over. A file that cannot be read keeps the last set in force: nobody comes free by damage.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from meshguard.control.operations import AdminRequest, Operation, OperationError
from meshguard.control.recording import Tell, changes, silent
from meshguard.model.errors import DocumentError, Problem
from meshguard.policy.quarantine import MAX_REASON, NOBODY, Entry, Quarantine, parse_target

__all__ = ["QuarantineRegister"]

log = logging.getLogger(__name__)

_MAX_ENTRIES = 10_000
_MAX_TTL_S = 366 * 86400.0


class QuarantineRegister:
    """`apply` puts a set in force. `path` None: the set lives as long as the process."""

    def __init__(self, path: Path | None, apply: Callable[[Quarantine], None], clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._apply = apply
        self._clock = clock
        self._text = b""
        self.tell: Tell = silent  # each change is put on record
        self.current = NOBODY
        self.fleet: Callable[[], dict[str, object]] = dict
        """What the fleet's quarantine says, to be listed beside the node's own."""

    def load(self) -> None:
        """Takes over what the file says. Raises DocumentError, OSError; no file is an empty set."""
        if self._path is None:
            return
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            text = b""
        if text == self._text:
            return
        try:
            entries = [Entry(**each) for each in orjson.loads(text)["quarantine"]] if text else []
            quarantine = Quarantine(entries).alive(self._clock())
        except (ValueError, KeyError, TypeError) as exc:
            expected = 'a quarantine file: {"quarantine": [{"target", "reason", "by", "since", "until"}]}'
            raise DocumentError([Problem(str(self._path), "", f"{expected} ({exc})")]) from exc
        self._text = text
        self._take(quarantine, "file")

    def reload(self) -> None:
        """The same while running: what cannot be read changes nothing."""
        try:
            self.load()
        except (DocumentError, OSError) as exc:
            data = {"path": str(self._path), "error": str(exc)}
            log.error("the quarantine file cannot be read, the last set goes on", extra={"data": data})

    def take(self, entries: Iterable[Mapping[str, Any]]) -> None:
        """Takes over what another process of this node has put in force (and kept). Raises ValueError, TypeError."""
        self._take(Quarantine(Entry(**each) for each in entries).alive(self._clock()), "another worker")

    def add(self, target: str, reason: str, by: str, ttl_s: float = 0.0) -> Entry:
        """Cuts `target` out, for `ttl_s` seconds or (0) until it is removed. Raises ValueError, OSError: then nothing has changed."""
        parse_target(target)
        if not 0 <= ttl_s <= _MAX_TTL_S:
            raise ValueError("ttl: seconds up to a year, 0 for no end")
        if len(self.current.entries) >= _MAX_ENTRIES and target not in self.current.entries:
            raise ValueError(f"at most {_MAX_ENTRIES} entries")
        now = self._clock()
        entry = Entry(target, reason[:MAX_REASON], by[:MAX_REASON], now, now + ttl_s if ttl_s else 0.0)
        self._change(self.current.with_entry(entry))
        log.warning("quarantined", extra={"data": asdict(entry)})
        return entry

    def remove(self, target: str, by: str) -> None:
        """Raises KeyError when it is not there, OSError."""
        self._change(self.current.without(target), by)
        log.warning("quarantine ended", extra={"data": {"target": target, "by": by}})

    def expire(self) -> None:
        """Lets go of what has ended; to be called now and then."""
        current = self.current
        if current and current.alive(self._clock()) is not current:
            ended = [entry.target for entry in current.entries.values() if not entry.alive(self._clock())]
            self._change(current.alive(self._clock()))
            log.warning("quarantine ended", extra={"data": {"targets": ended, "by": "time to live"}})

    def _change(self, quarantine: Quarantine, by: str = "") -> None:
        if self._path is not None:
            text = orjson.dumps({"quarantine": [asdict(entry) for entry in quarantine.entries.values()]}, option=orjson.OPT_INDENT_2)
            fresh = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            try:
                with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(fresh, self._path)
            except OSError:
                fresh.unlink(missing_ok=True)
                raise
            self._text = text
        self._take(quarantine, "operation", by)

    def _take(self, quarantine: Quarantine, source: str, by: str = "") -> None:
        before, self.current = self.current, quarantine
        self._apply(quarantine)
        if source != "another worker":  # which has told it
            for change in changes(before, quarantine, self._clock(), source, by):
                self.tell("quarantine", change)
        log.info("quarantine in force", extra={"data": {"entries": len(quarantine.entries), "source": source}})

    # -- admin API ------------------------------------------------------------------------------------------------------

    def operation(self) -> Operation:
        """`/quarantine`: GET lists, POST {"target", "reason", "ttl_s", "by"} adds, DELETE ?target= removes."""
        return Operation(("GET", "POST", "DELETE"), self._operate)

    async def _operate(self, request: AdminRequest) -> tuple[int, object]:
        if request.method == "GET":
            return 200, self._listed()
        try:
            if request.method == "POST":
                asked = orjson.loads(request.body)
                known = isinstance(asked, dict) and not set(asked) - {"target", "reason", "ttl_s", "by"}
                if not known or not isinstance(asked.get("target"), str):
                    raise OperationError(400, 'a JSON object with "target", and perhaps "reason", "ttl_s", "by"')
                ttl_s = asked.get("ttl_s") or 0
                if not isinstance(ttl_s, int | float) or isinstance(ttl_s, bool):
                    raise OperationError(400, "ttl_s: a number of seconds")
                self.add(asked["target"], str(asked.get("reason") or ""), str(asked.get("by") or "admin"), float(ttl_s))
                return 200, self._listed()
            target = request.query.get("target", "")
            self.remove(target, request.query.get("by", "admin"))
            return 200, self._listed()
        except KeyError as exc:
            raise OperationError(404, "this target is not quarantined") from exc
        except OSError as exc:
            raise OperationError(507, f"the quarantine could not be saved, nothing has changed: {exc.strerror}") from exc

    def _listed(self) -> dict[str, object]:
        listed: dict[str, object] = {"quarantine": [asdict(entry) for entry in self.current.entries.values()]}
        listed["persistent"] = self._path is not None
        fleet = self.fleet()
        return listed | {"fleet": fleet} if fleet else listed
