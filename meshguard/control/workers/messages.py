"""What supervisor, template and workers say to each other: one small class a message, and one table of all of them.

A message is a frame: four octets of length, then a JSON object {"k": kind, "i": id, "r": id answered, "f": descriptors, "b": body}. The
descriptors travel beside the first octet of the frame (SCM_RIGHTS). Both ends run the same installation, so an unknown kind is an error.

To add a command: a dataclass here, its line in `MESSAGES`, and a handler where it arrives (`Worker.handlers` for commands to workers).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

__all__ = [
    "MAX_FRAME_BYTES",
    "MESSAGES",
    "Abort",
    "Adopt",
    "Changed",
    "Commit",
    "Contain",
    "Done",
    "Drain",
    "Drained",
    "Exited",
    "Fork",
    "Forked",
    "Frame",
    "FrameReader",
    "Load",
    "Loaded",
    "Message",
    "Operate",
    "Operated",
    "Prepare",
    "ProtocolError",
    "Ready",
    "Record",
    "Refused",
    "Release",
    "Reopen",
    "Report",
    "Reported",
    "Watch",
    "encode",
]

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""A report of every series at its cap is a few MB."""
_HEADER = 4


class ProtocolError(Exception):
    """The other end does not speak this protocol. The link is closed."""


@dataclass(slots=True)
class Message:
    """The base of all messages."""


# -- supervisor to template -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Load(Message):
    """Read and check all documents anew. Answer: Loaded or Refused. `Commit` or `Abort` follows, unless it is the first: that is what
    workers are made of at once, if it is what `in_force` says (the fingerprint of what others enforce already; empty: nothing)."""

    in_force: str = ""


@dataclass(slots=True)
class Fork(Message):
    """Make worker `number` out of the last good state. Descriptors: its end of the link, then `sockets` in order, which are
    [address, count] pairs, then those of `shared` by name. `contained` is the quarantine, `workers` how many there are in this
    `generation` (the half of the census that is theirs). Answer: Forked."""

    number: int
    sockets: list[tuple[str, int]]
    shared: list[str]
    contained: list[dict[str, Any]]
    workers: int = 1
    generation: int = 0


# -- template to supervisor -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Loaded(Message):
    """What was loaded: `fingerprint` of all documents, and what the supervisor needs of the configuration."""

    fingerprint: str
    policy_digest: str
    workers: int
    admin: str
    listeners: dict[str, str]
    drain_s: float
    restart_s: float
    rules: int
    token_file: str
    ledger: str  # its directory, "" for none
    refused: str  # why the newest bundle is not what was loaded


@dataclass(slots=True)
class Forked(Message):
    number: int
    pid: int


@dataclass(slots=True)
class Exited(Message):
    """A worker has ended. `status` is its exit status, or minus the number of the signal that ended it."""

    pid: int
    status: int


# -- supervisor to worker ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Prepare(Message):
    """Load the documents, which must have this fingerprint, and build everything; change nothing. Descriptors: sockets of new listeners
    as [address, count]. Answer: Done or Refused."""

    fingerprint: str
    sockets: list[tuple[str, int]]


@dataclass(slots=True)
class Commit(Message):
    """Put in force what was prepared. Answer: Done, or Refused where the promise could not be kept."""

    why: str


@dataclass(slots=True)
class Abort(Message):
    """Forget what was prepared. `error` is why nobody takes it. Answer: Done."""

    why: str
    error: str


@dataclass(slots=True)
class Report(Message):
    """Tell state and, with `families`, metrics. Answer: Reported."""

    families: bool = False
    stats: bool = False
    requests: bool = False


@dataclass(slots=True)
class Reopen(Message):
    """Log files were rotated. Answer: Done."""


@dataclass(slots=True)
class Watch(Message):
    """From now on this worker looks after the files and says `Changed`. Answer: Done."""


@dataclass(slots=True)
class Adopt(Message):
    """Accept from the sockets of another worker, which is gone. Descriptors as in Prepare. Answer: Done."""

    number: int
    sockets: list[tuple[str, int]]


@dataclass(slots=True)
class Release(Message):
    """Worker `number` is back: leave its sockets to it. Answer: Done."""

    number: int


@dataclass(slots=True)
class Operate(Message):
    """A request to an operation of the admin API (`control.operations`), for one worker to carry out. Answer: Operated."""

    path: str
    method: str
    query: dict[str, str]
    body: str


@dataclass(slots=True)
class Operated(Message):
    """What came of it: an HTTP status and a JSON value."""

    status: int
    value: Any


@dataclass(slots=True)
class Contain(Message):
    """Who is cut out now, as another worker has put it in force: entries of `policy.quarantine`. Answer: Done."""

    entries: list[dict[str, Any]]


@dataclass(slots=True)
class Record(Message):
    """Put an event of the supervisor on record: it has no ledger of its own. Answer: Done."""

    event: str
    data: dict[str, Any]


@dataclass(slots=True)
class Drain(Message):
    """Finish within `grace_s` and end; with `gentle_s` others accept at these addresses now. Answer: Drained, as the last word."""

    grace_s: float
    gentle_s: float = 0.0


# -- worker to supervisor ---------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Ready(Message):
    """The worker serves."""

    policy_digest: str
    fingerprint: str


@dataclass(slots=True)
class Changed(Message):
    """Files have changed (only the one that was told to watch says so)."""

    why: str


@dataclass(slots=True)
class Reported(Message):
    """`status` as `status_json.plain`; `families` as `merge.plain`."""

    status: dict[str, Any]
    families: list[Any] = field(default_factory=list)
    stats: dict[str, Any] = field(default_factory=dict)
    requests: list[Any] = field(default_factory=list)


@dataclass(slots=True)
class Drained(Message):
    """The last counters, so that the sums over all workers never fall."""

    families: list[Any]


# -- answers ----------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Done(Message):
    """`policy_digest` is what the worker enforces now."""

    policy_digest: str = ""


@dataclass(slots=True)
class Refused(Message):
    """`expected`: documents are wrong, rather than the program."""

    error: str
    expected: bool = True


MESSAGES: tuple[type[Message], ...] = (
    Load, Fork, Loaded, Forked, Exited,
    Prepare, Commit, Abort, Report, Reopen, Watch, Adopt, Release, Operate, Operated, Contain, Record, Drain,
    Ready, Changed, Reported, Drained, Done, Refused,
)  # fmt: skip
_KINDS = {message.__name__: message for message in MESSAGES}


class Frame:
    """A message with its envelope: `id` (0: no answer is wanted), `answers` the id of the message that it answers, or 0."""

    __slots__ = ("answers", "descriptors", "id", "message")

    def __init__(self, message: Message, id: int = 0, answers: int = 0, descriptors: list[int] | None = None) -> None:
        self.message = message
        self.id = id
        self.answers = answers
        self.descriptors = descriptors or []


def encode(frame: Frame) -> bytes:
    """The octets of a frame, its descriptors only counted. Raises ProtocolError when it is too large."""
    kind = type(frame.message).__name__
    body = orjson.dumps({"k": kind, "i": frame.id, "r": frame.answers, "f": len(frame.descriptors), "b": frame.message})
    if len(body) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a {kind} of {len(body)} octets")
    return len(body).to_bytes(_HEADER, "big") + body


class FrameReader:
    """Octets and descriptors in, frames out. Descriptors come in the order of the frames that they belong to."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._descriptors: list[int] = []

    def feed(self, data: bytes, descriptors: list[int]) -> list[Frame]:
        """The frames that are complete now. Raises ProtocolError."""
        self._buffer += data
        self._descriptors += descriptors
        frames = []
        while len(self._buffer) >= _HEADER:
            length = int.from_bytes(self._buffer[:_HEADER], "big")
            if length > MAX_FRAME_BYTES:
                raise ProtocolError(f"a frame of {length} octets")
            if len(self._buffer) < _HEADER + length:
                break
            frames.append(self._frame(bytes(self._buffer[_HEADER : _HEADER + length])))
            del self._buffer[: _HEADER + length]
        return frames

    def abandoned(self) -> list[int]:
        """Descriptors that came and belong to no complete frame: to be closed."""
        rest, self._descriptors = self._descriptors, []
        return rest

    def _frame(self, body: bytes) -> Frame:
        try:
            value = orjson.loads(body)
            message = _KINDS[value["k"]](**value["b"])
            count = value["f"]
            frame = Frame(message, value["i"], value["r"], self._descriptors[:count])
        except (ValueError, KeyError, TypeError) as exc:
            raise ProtocolError(f"not a message: {exc}") from exc
        if len(frame.descriptors) != count:
            raise ProtocolError("descriptors are missing")
        del self._descriptors[:count]
        return frame
